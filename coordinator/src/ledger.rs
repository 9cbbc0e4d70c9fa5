//! Who may use which records, and which have been used: positions of the endless record sequence.
//!
//! In synchronous training with every replica in every step, batch `k` of rank `r` of `R` is block `k * R + r`: what a
//! replica gets does not depend on who asks first. Otherwise blocks go out in the order of asking. Blocks that come back
//! (dropped contributions, replicas that are gone) go out first. When replicas come or go, the assignment begins anew behind
//! everything that was handed out ([`Ledger::rebase`]).

use std::collections::{BTreeMap, VecDeque};

use coati_checkpoint::manifest::{DataPosition, OpenRange};
use coati_common::invariants::{Invariant, check};

/// How ranges are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Training replicas.
    pub replicas: u32,
    /// Records a batch.
    pub batch: u32,
    /// Every replica contributes to every step: fixed assignment, and the end is known.
    pub lockstep: bool,
}

/// A range on its way to one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Names it.
    pub id: u64,
    /// First position.
    pub first: u64,
    /// Number of positions.
    pub count: u64,
    /// Who has it.
    pub replica: u32,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Ledger {
    options: Options,
    /// Positions below were used before this run (but for those that came back).
    start: u64,
    /// Ranks that share the blocks from `start` on, ascending, and the blocks that each got, in lockstep.
    shares: BTreeMap<u32, u64>,
    /// The next block, otherwise.
    next_block: u64,
    next_id: u64,
    returned: VecDeque<OpenRange>,
    open: BTreeMap<u64, Lease>,
    /// Used ranges above the watermark: first position to end.
    used: BTreeMap<u64, u64>,
    /// Every position below is used.
    watermark: u64,
    records: u64,
}

impl Ledger {
    /// Goes on from what a checkpoint says was used.
    pub fn new(options: Options, from: &DataPosition) -> Self {
        let options = Options {
            replicas: options.replicas.max(1),
            batch: options.batch.max(1),
            ..options
        };
        let mut ledger = Self {
            options,
            start: from.position,
            shares: (0..options.replicas).map(|rank| (rank, 0)).collect(),
            next_block: 0,
            next_id: 1,
            returned: VecDeque::new(),
            open: BTreeMap::new(),
            used: BTreeMap::new(),
            watermark: from.position,
            records: 0,
        };
        if let Some(first) = from.open.iter().map(|range| range.start).min() {
            // Used ranges between the open ones lie above the watermark.
            let mut end = first;
            let mut open: Vec<OpenRange> = from.open.iter().copied().filter(|range| range.count > 0).collect();
            open.sort_by_key(|range| range.start);
            for range in &open {
                if range.start > end {
                    ledger.used.insert(end, range.start);
                }
                end = end.max(range.start + range.count);
            }
            if from.position > end {
                ledger.used.insert(end, from.position);
            }
            ledger.watermark = first;
            ledger.returned = open.into();
        }
        ledger
    }

    /// The next batch of a replica.
    pub fn lease(&mut self, replica: u32) -> Lease {
        if self.options.lockstep && !self.shares.contains_key(&replica) {
            let ranks: Vec<u32> = self.shares.keys().copied().chain([replica]).collect();
            self.rebase(ranks);
        }
        let (first, count) = self.next_range(replica);
        let lease = Lease {
            id: self.next_id,
            first,
            count,
            replica,
        };
        self.next_id += 1;
        self.open.insert(lease.id, lease);
        lease
    }

    fn next_range(&mut self, replica: u32) -> (u64, u64) {
        let batch = u64::from(self.options.batch);
        if let Some(range) = self.returned.pop_front() {
            if range.count > batch {
                self.returned.push_front(OpenRange {
                    start: range.start + batch,
                    count: range.count - batch,
                });
            }
            return (range.start, range.count.min(batch));
        }
        let sharing = self.shares.len() as u64;
        let place = self.shares.range(..replica).count() as u64;
        let share = self.shares.get_mut(&replica).filter(|_| self.options.lockstep);
        let block = if let Some(taken) = share {
            *taken += 1;
            (*taken - 1) * sharing + place
        } else {
            self.next_block += 1;
            self.next_block - 1
        };
        (self.start + block * batch, batch)
    }

    /// Begins the assignment anew for these ranks, behind everything that was handed out. Blocks between that were meant
    /// for others go to whoever asks next.
    pub fn rebase(&mut self, ranks: impl IntoIterator<Item = u32>) {
        self.shares = ranks.into_iter().map(|rank| (rank, 0)).collect();
        if !self.options.lockstep {
            return;
        }
        let open = self.open.values().map(|lease| (lease.first, lease.first + lease.count));
        let used = self.used.iter().map(|(&first, &end)| (first, end));
        let returned = self
            .returned
            .iter()
            .map(|range| (range.start, range.start + range.count));
        let mut taken: Vec<(u64, u64)> = open.chain(used).chain(returned).collect();
        taken.sort_unstable();
        let mut end = self.watermark;
        for (first, until) in taken {
            if first > end {
                self.returned.push_back(OpenRange {
                    start: end,
                    count: first - end,
                });
            }
            end = end.max(until);
        }
        self.start = end;
    }

    /// A lease that is open.
    pub fn lease_of(&self, id: u64) -> Option<Lease> {
        self.open.get(&id).copied()
    }

    /// Leases whose fate is not decided.
    pub fn open(&self) -> impl Iterator<Item = Lease> {
        self.open.values().copied()
    }

    /// How many of them a rank has.
    pub fn open_of(&self, replica: u32) -> u64 {
        self.open.values().filter(|lease| lease.replica == replica).count() as u64
    }

    /// Records that committed steps of this run have used.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// A committed step used this lease.
    pub fn complete(&mut self, id: u64) {
        let lease = self.open.remove(&id);
        check(Invariant::LeaseCommittedOnce, lease.is_some(), || {
            format!("lease {id} is not open")
        });
        let Some(lease) = lease else { return };
        self.records += lease.count;
        self.use_range(lease.first, lease.count);
    }

    /// These positions were used by a step that was committed before this ledger was made.
    pub fn replay(&mut self, first: u64, count: u64) {
        // A resumed job hands out what came back before it goes on.
        let mut rest = VecDeque::new();
        for range in std::mem::take(&mut self.returned) {
            let end = range.start + range.count;
            if end <= first || range.start >= first + count {
                rest.push_back(range);
                continue;
            }
            for (from, to) in [(range.start, first), (first + count, end)] {
                if to > from {
                    rest.push_back(OpenRange {
                        start: from,
                        count: to - from,
                    });
                }
            }
        }
        self.returned = rest;
        self.use_range(first, count);
    }

    fn use_range(&mut self, first: u64, count: u64) {
        check(
            Invariant::PositionUsedOnce,
            count == 0 || !self.is_used(first, count),
            || format!("records from position {first}, {count} of them, are used again"),
        );
        self.used.insert(first, first + count);
        while let Some(entry) = self.used.first_entry().filter(|entry| *entry.key() <= self.watermark) {
            self.watermark = self.watermark.max(entry.remove());
        }
    }

    /// Whether any of these positions was used.
    fn is_used(&self, first: u64, count: u64) -> bool {
        let before = self.used.range(..first + count).next_back();
        first < self.watermark || before.is_some_and(|(_, &end)| end > first)
    }

    /// The lease was not used: its records go to whoever asks next.
    pub fn give_back(&mut self, id: u64) {
        if let Some(lease) = self.open.remove(&id) {
            self.returned.push_back(OpenRange {
                start: lease.first,
                count: lease.count,
            });
        }
    }

    /// What a checkpoint must know.
    pub fn position(&self) -> DataPosition {
        let Some((_, &end)) = self.used.last_key_value() else {
            return DataPosition {
                position: self.watermark,
                open: Vec::new(),
            };
        };
        let mut open = Vec::new();
        let mut from = self.watermark;
        for (&start, &stop) in &self.used {
            if start > from {
                open.push(OpenRange {
                    start: from,
                    count: start - from,
                });
            }
            from = stop;
        }
        DataPosition { position: end, open }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use coati_common::invariants::broken_count;

    use super::*;

    fn ledger(replicas: u32, lockstep: bool) -> Ledger {
        Ledger::new(
            Options {
                replicas,
                batch: 4,
                lockstep,
            },
            &DataPosition::default(),
        )
    }

    #[test]
    fn lockstep_does_not_depend_on_who_asks_first() {
        let (mut one, mut two) = (ledger(3, true), ledger(3, true));
        let forward: Vec<u64> = [0, 1, 2, 0, 1, 2].iter().map(|&r| one.lease(r).first).collect();
        let mut backward: Vec<u64> = [2, 1, 0, 2, 1, 0].iter().map(|&r| two.lease(r).first).collect();
        backward.sort_unstable();
        assert_eq!(forward, [0, 4, 8, 12, 16, 20]);
        assert_eq!(backward, forward);
    }

    #[test]
    fn what_comes_back_goes_out_first() {
        let mut ledger = ledger(2, false);
        let (a, b) = (ledger.lease(0), ledger.lease(1));
        ledger.complete(b.id);
        ledger.give_back(a.id);
        assert_eq!(
            ledger.position(),
            DataPosition {
                position: 8,
                open: vec![OpenRange { start: 0, count: 4 }]
            }
        );
        assert_eq!(ledger.lease(1).first, 0);
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic = "PositionUsedOnce")]
    fn a_record_that_two_steps_use_is_found() {
        let before = broken_count(Invariant::PositionUsedOnce);
        let mut ledger = ledger(2, false);
        ledger.replay(4, 4);
        ledger.replay(0, 4);
        assert_eq!(broken_count(Invariant::PositionUsedOnce), before);
        ledger.replay(10, 4);
        for first in [3, 7, 8, 12] {
            ledger.replay(first, 3);
        }
        assert_eq!(broken_count(Invariant::PositionUsedOnce), before + 4);
    }

    #[test]
    fn when_a_rank_goes_the_others_share_what_was_meant_for_it() {
        let mut ledger = ledger(3, true);
        let mine: Vec<Lease> = (0..2).map(|_| ledger.lease(0)).collect();
        let lost = ledger.lease(1);
        ledger.complete(mine[0].id);
        ledger.give_back(lost.id);
        ledger.rebase([0, 2]);
        // Blocks 1 (came back) and 2 (never went out), then those behind everything that went out.
        let firsts: Vec<u64> = [0, 2, 0, 2, 0].iter().map(|&rank| ledger.lease(rank).first).collect();
        assert_eq!(firsts, [4, 8, 16, 20, 24]);
        assert_eq!((ledger.open_of(0), ledger.open_of(2)), (4, 2));
    }

    #[test]
    fn replayed_steps_leave_the_ledger_as_the_steps_did() {
        let mut lived = ledger(2, true);
        let leases: Vec<Lease> = [0, 1, 0, 1].iter().map(|&rank| lived.lease(rank)).collect();
        let from = lived.position();
        let mut replayed = Ledger::new(lived.options, &from);
        for lease in [leases[0], leases[1], leases[3]] {
            lived.complete(lease.id);
            replayed.replay(lease.first, lease.count);
        }
        assert_eq!(replayed.position(), lived.position());
        // And from there on, nothing goes out twice: 8 to 12 is open, 16 comes next.
        let mut resumed = Ledger::new(lived.options, &replayed.position());
        assert_eq!([resumed.lease(0).first, resumed.lease(0).first], [8, 16]);
        resumed.replay(12, 0);
        // A range that came back and was used after all does not go out again.
        let mut resumed = Ledger::new(lived.options, &replayed.position());
        resumed.replay(8, 4);
        assert_eq!(resumed.lease(0).first, 16);
        assert_eq!(resumed.position().open, []);
    }

    proptest! {
        /// Whatever is leased, committed, given back and resumed in between: each position is used once.
        #[test]
        fn each_position_is_used_once(actions in prop::collection::vec((0_u32..3, 0_u8..5), 1..200), lockstep: bool) {
            let mut ledger = ledger(3, lockstep);
            let mut open: Vec<Lease> = Vec::new();
            let mut used: BTreeMap<u64, u64> = BTreeMap::new();
            for (replica, action) in actions {
                match action {
                    0 | 1 => open.push(ledger.lease(replica)),
                    2 if !open.is_empty() => {
                        let lease = open.remove(replica as usize % open.len());
                        ledger.complete(lease.id);
                        for position in lease.first..lease.first + lease.count {
                            *used.entry(position).or_default() += 1;
                        }
                    }
                    3 if !open.is_empty() => ledger.give_back(open.remove(0).id),
                    4 if replica == 0 => {
                        let position = ledger.position();
                        ledger = Ledger::new(ledger.options, &position);
                        open.clear();
                    }
                    4 => {
                        // The rank goes, or comes back.
                        for lease in open.extract_if(.., |lease| lease.replica == replica) {
                            ledger.give_back(lease.id);
                        }
                        let mut ranks: Vec<u32> = ledger.shares.keys().copied().filter(|&rank| rank != replica).collect();
                        if ranks.len() == ledger.shares.len() {
                            ranks.push(replica);
                        }
                        ledger.rebase(ranks);
                    }
                    _ => {}
                }
            }
            prop_assert!(used.values().all(|&times| times == 1), "{used:?}");
            let position = ledger.position();
            let open: u64 = position.open.iter().map(|range| range.count).sum();
            prop_assert_eq!(used.len() as u64, position.position - open);
        }
    }
}
