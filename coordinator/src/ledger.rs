//! Who may use which records, and which have been used: positions of the endless record sequence.
//!
//! In synchronous training with every replica in every step, batch `k` of rank `r` of `R` is block `k * R + r`: what a
//! replica gets does not depend on who asks first. Otherwise blocks go out in the order of asking. Blocks that come back
//! (dropped contributions) go out first.

use std::collections::{BTreeMap, VecDeque};

use coati_checkpoint::manifest::{DataPosition, OpenRange};

use crate::invariants::{Invariant, check};

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
    /// Batches that each rank got, in lockstep.
    batches: Vec<u64>,
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
            batches: vec![0; options.replicas as usize],
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
        let block = if self.options.lockstep {
            let rank = u64::from(replica);
            let taken = self.batches.get_mut(replica as usize);
            taken.map_or(rank, |taken| {
                *taken += 1;
                (*taken - 1) * u64::from(self.options.replicas) + rank
            })
        } else {
            self.next_block += 1;
            self.next_block - 1
        };
        (self.start + block * batch, batch)
    }

    /// Batches that a replica was given in lockstep.
    pub fn batches_of(&self, replica: u32) -> u64 {
        self.batches.get(replica as usize).copied().unwrap_or(0)
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
        self.used.insert(lease.first, lease.first + lease.count);
        while let Some(entry) = self.used.first_entry().filter(|entry| *entry.key() <= self.watermark) {
            self.watermark = self.watermark.max(entry.remove());
        }
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
                    4 => {
                        let position = ledger.position();
                        ledger = Ledger::new(ledger.options, &position);
                        open.clear();
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
