//! Which contributions become the next step. One table serves synchronous training, backup workers, bounded staleness and
//! asynchronous training.

use std::collections::BTreeMap;

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Training replicas.
    pub replicas: u32,
    /// Contributions of one version that make a step in synchronous training; fewer than `replicas` makes the slowest backups.
    pub aggregate: u32,
    /// A step takes contributions of its own version only.
    pub synchronous: bool,
    /// Versions that a contribution may be behind in asynchronous training.
    pub max_staleness: u64,
}

/// A contribution whose pushes are all acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Rank.
    pub replica: u32,
    /// Number among the replica's contributions.
    pub sequence: u64,
    /// The version it was computed from.
    pub version: u64,
    /// Its weight.
    pub samples: u32,
    /// The records it used.
    pub lease: u64,
}

/// What to do now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make a step of these, in ascending order of rank.
    Commit(Vec<Reported>),
    /// These are of no use any more.
    Drop(Vec<Reported>),
    /// Nothing yet: these ranks have not reported.
    Wait(Vec<u32>),
}

/// The contributions that wait for a decision.
#[derive(Clone, Debug)]
pub struct Clock {
    options: Options,
    version: u64,
    arrivals: u64,
    /// By rank: order of arrival and the contribution.
    pending: BTreeMap<u32, (u64, Reported)>,
}

impl Clock {
    /// At `version`, with nothing reported.
    pub fn new(options: Options, version: u64) -> Self {
        let replicas = options.replicas.max(1);
        let options = Options {
            replicas,
            aggregate: options.aggregate.clamp(1, replicas),
            ..options
        };
        Self {
            options,
            version,
            arrivals: 0,
            pending: BTreeMap::new(),
        }
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Takes a report; the same one again changes nothing.
    pub fn report(&mut self, reported: Reported) {
        if self
            .pending
            .get(&reported.replica)
            .is_some_and(|(_, known)| *known == reported)
        {
            return;
        }
        self.arrivals += 1;
        self.pending.insert(reported.replica, (self.arrivals, reported));
    }

    /// What the table says.
    pub fn decide(&self) -> Decision {
        let late: Vec<Reported> = self
            .pending
            .values()
            .map(|&(_, reported)| reported)
            .filter(|reported| self.is_late(reported))
            .collect();
        if !late.is_empty() {
            return Decision::Drop(late);
        }
        let wanted = if self.options.synchronous {
            self.options.aggregate as usize
        } else {
            1
        };
        if self.pending.len() >= wanted {
            let mut first: Vec<(u64, Reported)> = self.pending.values().copied().collect();
            first.sort_by_key(|&(arrival, _)| arrival);
            first.truncate(wanted);
            let mut chosen: Vec<Reported> = first.into_iter().map(|(_, reported)| reported).collect();
            chosen.sort_by_key(|reported| reported.replica);
            return Decision::Commit(chosen);
        }
        Decision::Wait(
            (0..self.options.replicas)
                .filter(|rank| !self.pending.contains_key(rank))
                .collect(),
        )
    }

    /// Carries out a decision; a commit makes a version.
    pub fn settle(&mut self, decision: &Decision) {
        let (Decision::Commit(gone) | Decision::Drop(gone)) = decision else {
            return;
        };
        for reported in gone {
            self.pending.remove(&reported.replica);
        }
        if matches!(decision, Decision::Commit(_)) {
            self.version += 1;
        }
    }

    fn is_late(&self, reported: &Reported) -> bool {
        let behind = self.version.saturating_sub(reported.version);
        behind
            > if self.options.synchronous {
                0
            } else {
                self.options.max_staleness
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(aggregate: u32, synchronous: bool) -> Clock {
        Clock::new(
            Options {
                replicas: 3,
                aggregate,
                synchronous,
                max_staleness: 1,
            },
            0,
        )
    }

    fn reported(replica: u32, version: u64) -> Reported {
        Reported {
            replica,
            sequence: version,
            version,
            samples: 8,
            lease: 0,
        }
    }

    #[test]
    fn synchronous_waits_for_all_and_sums_in_rank_order() {
        let mut clock = clock(3, true);
        clock.report(reported(2, 0));
        clock.report(reported(0, 0));
        assert_eq!(clock.decide(), Decision::Wait(vec![1]));
        clock.report(reported(1, 0));
        let decision = clock.decide();
        assert_eq!(
            decision,
            Decision::Commit(vec![reported(0, 0), reported(1, 0), reported(2, 0)])
        );
        clock.settle(&decision);
        assert_eq!(clock.version(), 1);
        assert_eq!(clock.decide(), Decision::Wait(vec![0, 1, 2]));
    }

    #[test]
    fn a_backup_worker_that_comes_late_is_dropped() {
        let mut clock = clock(2, true);
        clock.report(reported(2, 0));
        clock.report(reported(0, 0));
        let decision = clock.decide();
        assert_eq!(decision, Decision::Commit(vec![reported(0, 0), reported(2, 0)]));
        clock.settle(&decision);
        clock.report(reported(1, 0));
        assert_eq!(clock.decide(), Decision::Drop(vec![reported(1, 0)]));
    }

    #[test]
    fn asynchronous_takes_each_as_it_comes_within_the_bound() {
        let mut clock = clock(3, false);
        for replica in [1, 0] {
            clock.report(reported(replica, 0));
        }
        for expected in [1, 0] {
            let decision = clock.decide();
            assert_eq!(decision, Decision::Commit(vec![reported(expected, 0)]));
            clock.settle(&decision);
        }
        clock.report(reported(2, 0));
        assert_eq!(
            clock.decide(),
            Decision::Drop(vec![reported(2, 0)]),
            "two versions behind, one allowed"
        );
    }
}
