//! Which contributions become the next step. One table serves synchronous training, backup workers, bounded staleness and
//! asynchronous training.

use std::collections::{BTreeMap, BTreeSet};

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Contributions of one version that make a step in synchronous training; 0 means those of all replicas that take part,
    /// fewer than those makes the slowest backups.
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
    /// Ranks that a synchronous step waits for.
    active: BTreeSet<u32>,
    /// By rank: order of arrival and the contribution.
    pending: BTreeMap<u32, (u64, Reported)>,
    /// On their way into the next version.
    committing: Vec<Reported>,
}

impl Clock {
    /// At `version`, with nothing reported; these ranks take part.
    pub fn new(options: Options, version: u64, active: impl IntoIterator<Item = u32>) -> Self {
        Self {
            options,
            version,
            arrivals: 0,
            active: active.into_iter().collect(),
            pending: BTreeMap::new(),
            committing: Vec::new(),
        }
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Ranks that take part, ascending.
    pub fn active(&self) -> &BTreeSet<u32> {
        &self.active
    }

    /// Steps wait for this rank from now on. False if they did before.
    pub fn activate(&mut self, rank: u32) -> bool {
        self.active.insert(rank)
    }

    /// Steps no longer wait for this rank; what it has reported still counts. False if they did not before.
    pub fn deactivate(&mut self, rank: u32) -> bool {
        self.active.remove(&rank)
    }

    /// Takes back a report that no commit is using.
    pub fn forget(&mut self, rank: u32) -> Option<Reported> {
        self.pending.remove(&rank).map(|(_, reported)| reported)
    }

    /// Whether the records of this lease are in a contribution that waits for its fate.
    pub fn uses(&self, lease: u64) -> bool {
        let pending = self.pending.values().map(|(_, reported)| reported);
        pending.chain(&self.committing).any(|reported| reported.lease == lease)
    }

    /// The newest version that a contribution can be of: while a commit is under way, servers that are done with it give out
    /// the version that it makes.
    pub fn newest(&self) -> u64 {
        self.version + u64::from(!self.committing.is_empty())
    }

    /// Takes a report; the same one again changes nothing.
    pub fn report(&mut self, reported: Reported) {
        let known = self.pending.get(&reported.replica).map(|(_, known)| known);
        if known == Some(&reported) || self.committing.contains(&reported) {
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
        if let Some(wanted) = self.enough() {
            let mut first: Vec<(u64, Reported)> = self.pending.values().copied().collect();
            first.sort_by_key(|&(arrival, _)| arrival);
            first.truncate(wanted);
            let mut chosen: Vec<Reported> = first.into_iter().map(|(_, reported)| reported).collect();
            chosen.sort_by_key(|reported| reported.replica);
            return Decision::Commit(chosen);
        }
        let silent = self.active.iter().filter(|rank| !self.pending.contains_key(rank));
        Decision::Wait(silent.copied().collect())
    }

    /// Whether [`Clock::decide`] finds anything but waiting; cheap.
    pub fn is_decidable(&self) -> bool {
        self.enough().is_some() || self.pending.values().any(|(_, reported)| self.is_late(reported))
    }

    /// How many contributions make a step now, if there are so many.
    fn enough(&self) -> Option<usize> {
        let there = self.pending.len();
        if !self.options.synchronous {
            return (there > 0).then_some(1);
        }
        let all = self.active.iter().all(|rank| self.pending.contains_key(rank));
        if there > 0 && all && self.options.aggregate == 0 {
            return Some(there);
        }
        // Of fewer replicas than `aggregate`, all make a step.
        let wanted = self.options.aggregate as usize;
        (wanted > 0 && there > 0 && (all || there >= wanted)).then_some(wanted.min(there))
    }

    /// Takes the decision's contributions off the table; those of a commit count as under way until [`Clock::committed`].
    pub fn begin(&mut self, decision: &Decision) {
        let (Decision::Commit(gone) | Decision::Drop(gone)) = decision else {
            return;
        };
        for reported in gone {
            self.pending.remove(&reported.replica);
        }
        if let Decision::Commit(chosen) = decision {
            self.committing.clone_from(chosen);
        }
    }

    /// The commit that was begun is done on all servers: there is a new version.
    pub fn committed(&mut self) {
        self.committing.clear();
        self.version += 1;
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
        let options = Options {
            aggregate,
            synchronous,
            max_staleness: 1,
        };
        Clock::new(options, 0, 0..3)
    }

    fn reported(replica: u32, version: u64) -> Reported {
        Reported {
            replica,
            sequence: version,
            version,
            samples: 8,
            lease: u64::from(replica) + 100,
        }
    }

    fn settle(clock: &mut Clock, decision: &Decision) {
        clock.begin(decision);
        if matches!(decision, Decision::Commit(_)) {
            clock.committed();
        }
    }

    #[test]
    fn synchronous_waits_for_all_and_sums_in_rank_order() {
        let mut clock = clock(0, true);
        clock.report(reported(2, 0));
        clock.report(reported(0, 0));
        assert_eq!(clock.decide(), Decision::Wait(vec![1]));
        clock.report(reported(1, 0));
        let decision = clock.decide();
        assert_eq!(
            decision,
            Decision::Commit(vec![reported(0, 0), reported(1, 0), reported(2, 0)])
        );
        settle(&mut clock, &decision);
        assert_eq!(clock.version(), 1);
        assert_eq!(clock.decide(), Decision::Wait(vec![0, 1, 2]));
    }

    #[test]
    fn a_backup_worker_that_comes_late_is_dropped() {
        let mut clock = clock(2, true);
        clock.report(reported(2, 0));
        assert_eq!(clock.decide(), Decision::Wait(vec![0, 1]));
        clock.report(reported(0, 0));
        let decision = clock.decide();
        assert_eq!(decision, Decision::Commit(vec![reported(0, 0), reported(2, 0)]));
        settle(&mut clock, &decision);
        clock.report(reported(1, 0));
        assert_eq!(clock.decide(), Decision::Drop(vec![reported(1, 0)]));
    }

    #[test]
    fn asynchronous_takes_each_as_it_comes_within_the_bound() {
        let mut clock = clock(0, false);
        for replica in [1, 0] {
            clock.report(reported(replica, 0));
        }
        for expected in [1, 0] {
            let decision = clock.decide();
            assert_eq!(decision, Decision::Commit(vec![reported(expected, 0)]));
            settle(&mut clock, &decision);
        }
        clock.report(reported(2, 0));
        assert_eq!(
            clock.decide(),
            Decision::Drop(vec![reported(2, 0)]),
            "two versions behind, one allowed"
        );
    }

    #[test]
    fn nobody_waits_for_a_rank_that_is_gone_and_what_it_reported_counts() {
        let mut clock = clock(0, true);
        clock.report(reported(0, 0));
        clock.report(reported(1, 0));
        assert!(clock.deactivate(2));
        assert!(clock.deactivate(1));
        let decision = clock.decide();
        assert_eq!(decision, Decision::Commit(vec![reported(0, 0), reported(1, 0)]));
        clock.begin(&decision);
        assert!(clock.uses(101), "its records are under way");
        assert_eq!(clock.forget(1), None, "a commit is using it");
        clock.committed();
        assert!(!clock.uses(101));
        assert!(clock.activate(2));
        assert_eq!(clock.decide(), Decision::Wait(vec![0, 2]));
    }

    #[test]
    fn with_fewer_replicas_than_a_step_wants_all_make_a_step() {
        let mut clock = clock(2, true);
        clock.deactivate(0);
        clock.deactivate(1);
        clock.report(reported(2, 0));
        assert_eq!(clock.decide(), Decision::Commit(vec![reported(2, 0)]));
    }

    #[test]
    fn a_report_can_be_taken_back() {
        let mut clock = clock(0, true);
        clock.report(reported(1, 0));
        assert_eq!(clock.forget(1), Some(reported(1, 0)));
        assert_eq!(clock.decide(), Decision::Wait(vec![0, 1, 2]));
    }
}
