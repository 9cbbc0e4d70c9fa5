//! In which order records are used: a pure function of the seed, the epoch and the number of records.
//!
//! The order of an epoch is a permutation computed record by record with the swap-or-not shuffle
//! (Hoang, Morris and Rogaway, 2012): no table is kept, any number of records will do, and every machine
//! computes the same.

mod selection;

pub use selection::Selection;

use crate::random::{Stream, scale};
use selection::Part;

/// Rounds of the shuffle. Each halves what is left of the original order; 128 leave nothing measurable.
const ROUNDS: usize = 128;
const PURPOSE: [u8; 8] = *b"order.v1";

/// The order of one epoch: a bijection of `0..n`.
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    /// Pivot and key of each round; empty for the identity.
    rounds: Vec<(u64, u64)>,
}

impl Permutation {
    /// Records in file order.
    pub fn identity(n: u64) -> Self {
        Self { n, rounds: Vec::new() }
    }

    /// The number of records.
    pub fn len(&self) -> u64 {
        self.n
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The record at `index` (below `n`; larger ones wrap) of this epoch. 0 when there are no records.
    pub fn record(&self, index: u64) -> u64 {
        if self.n == 0 {
            return 0;
        }
        let mut x = index % self.n;
        for &(pivot, key) in &self.rounds {
            // pivot < n and x < n, so this is (pivot - x) mod n.
            let partner = if pivot >= x { pivot - x } else { self.n - (x - pivot) };
            if mix(x.max(partner) ^ key) & 1 == 1 {
                x = partner;
            }
        }
        x
    }
}

/// The order of epoch `epoch` of `n` records under `seed`.
pub fn epoch_permutation(seed: u64, epoch: u64, n: u64) -> Permutation {
    let mut stream = Stream::new(PURPOSE, seed, epoch, n);
    let rounds = (0..ROUNDS).map(|_| (scale(stream.bits(), n), stream.bits())).collect();
    Permutation { n, rounds }
}

/// What stands at a position of the endless sequence epoch 0, epoch 1, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How many times all records were used before.
    pub epoch: u64,
    /// Which record, counted through all files in order.
    pub record: u64,
}

/// The endless sequence of records. Keeps the permutations of the last epochs asked for.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    /// Positions of an epoch.
    n: u64,
    shuffle: bool,
    parts: Vec<Part>,
    current: Option<(u64, Permutation)>,
    /// Of each part, where there are several.
    own: Vec<Option<(u64, Permutation)>>,
}

impl Order {
    /// Records `0..n`; without `shuffle` (`input_reader.shuffle: false`) in file order in each epoch.
    pub fn new(seed: u64, n: u64, shuffle: bool) -> Self {
        Self::select(seed, n, shuffle, &Selection::default())
    }

    /// Those of `records` records that are selected. Weighted data sets share each epoch's positions by their weights; each
    /// runs through its own records in its own epochs.
    pub fn select(seed: u64, records: u64, shuffle: bool, selection: &Selection) -> Self {
        let parts = selection.parts(records);
        Self {
            seed,
            n: parts.iter().map(|part| part.quota).sum(),
            shuffle,
            own: vec![None; parts.len()],
            parts,
            current: None,
        }
    }

    /// The epoch and record of position `p`; `None` when there are no records. Of weighted data sets, the epoch is the one of
    /// the record's own data set.
    pub fn place(&mut self, position: u64) -> Option<Place> {
        let epoch = position.checked_div(self.n)?;
        let mut index = position % self.n;
        if self.shuffle {
            index = permute(&mut self.current, self.seed, epoch, self.n, index);
        }
        if let [part] = self.parts[..] {
            let record = part.first + index * part.step;
            return Some(Place { epoch, record });
        }
        for (number, (part, own)) in self.parts.iter().zip(&mut self.own).enumerate() {
            if index >= part.quota {
                index -= part.quota;
                continue;
            }
            // Which of this data set's turns it is, counted through all epochs.
            let turn = epoch.wrapping_mul(part.quota).wrapping_add(index);
            let (epoch, mut index) = (turn.checked_div(part.count)?, turn % part.count);
            if self.shuffle {
                index = permute(own, mix(self.seed ^ mix(number as u64 + 1)), epoch, part.count, index);
            }
            return Some(Place {
                epoch,
                record: part.first + index * part.step,
            });
        }
        None
    }
}

/// Where `index` goes in an epoch's permutation, which is kept.
fn permute(kept: &mut Option<(u64, Permutation)>, seed: u64, epoch: u64, n: u64, index: u64) -> u64 {
    let permutation = match kept.take() {
        Some((cached, permutation)) if cached == epoch => permutation,
        _ => epoch_permutation(seed, epoch, n),
    };
    let record = permutation.record(index);
    *kept = Some((epoch, permutation));
    record
}

/// The finaliser of splitmix64: every input bit changes every output bit with probability near 1/2.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn whole(seed: u64, epoch: u64, n: u64) -> Vec<u64> {
        let permutation = epoch_permutation(seed, epoch, n);
        (0..n).map(|index| permutation.record(index)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn each_record_comes_once_an_epoch(seed: u64, epoch: u64, n in 1_u64..2000) {
            let mut records = whole(seed, epoch, n);
            records.sort_unstable();
            prop_assert!(records.iter().copied().eq(0..n));
        }

        #[test]
        fn huge_sets_stay_in_range(seed: u64, index: u64, n in 1_u64..) {
            prop_assert!(epoch_permutation(seed, 0, n).record(index) < n);
        }
    }

    #[test]
    fn the_order_is_pinned() {
        // Positions are part of checkpoints: a changed order would repeat and skip records after a resume.
        assert_eq!(whole(42, 0, 10), [2, 8, 4, 1, 0, 3, 5, 7, 9, 6]);
        assert_eq!(whole(42, 1, 10), [3, 6, 9, 7, 8, 2, 4, 5, 0, 1]);
    }

    #[test]
    fn all_orders_of_four_are_equally_likely() {
        let mut counts: HashMap<Vec<u64>, u32> = HashMap::new();
        for seed in 0..2400 {
            *counts.entry(whole(seed, 0, 4)).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        // Chi-square with 23 degrees of freedom: 49.7 has probability 0.001.
        let chi: f64 = counts
            .values()
            .map(|&count| (f64::from(count) - 100.0).powi(2) / 100.0)
            .sum();
        assert!(chi < 49.7, "chi-square {chi}");
    }

    #[test]
    fn a_large_order_looks_random() {
        let n = 10_000;
        let records = whole(7, 3, n);
        let fixed = records
            .iter()
            .enumerate()
            .filter(|&(index, &record)| index as u64 == record)
            .count();
        assert!(fixed < 8, "{fixed} records stayed in place, one is expected");
        // Rank correlation with file order, and between neighbours; the standard deviation is 0.01.
        let mean = (n - 1) as f64 / 2.0;
        let variance = (n * n - 1) as f64 / 12.0;
        let correlate = |pairs: &mut dyn Iterator<Item = (f64, f64)>| {
            pairs.map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>() / n as f64 / variance
        };
        let with_order = correlate(&mut records.iter().enumerate().map(|(i, &r)| (i as f64, r as f64)));
        let with_next = correlate(&mut records.windows(2).map(|pair| (pair[0] as f64, pair[1] as f64)));
        assert!(
            with_order.abs() < 0.04 && with_next.abs() < 0.04,
            "{with_order} {with_next}"
        );
    }

    #[test]
    fn positions_run_through_the_epochs() {
        let mut order = Order::new(5, 7, true);
        let first = epoch_permutation(5, 0, 7);
        let second = epoch_permutation(5, 1, 7);
        // Out of order on purpose: a lease may come back.
        for position in [0, 8, 6, 13, 7] {
            let expected = if position < 7 {
                first.record(position)
            } else {
                second.record(position - 7)
            };
            assert_eq!(
                order.place(position),
                Some(Place {
                    epoch: position / 7,
                    record: expected
                })
            );
        }
        assert_ne!(whole(5, 0, 7), whole(5, 1, 7));
    }

    #[test]
    fn without_shuffling_the_files_order_is_kept() {
        let mut order = Order::new(5, 3, false);
        let records: Vec<_> = (0..7)
            .filter_map(|position| order.place(position))
            .map(|place| place.record)
            .collect();
        assert_eq!(records, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(Order::new(5, 0, true).place(3), None);
    }

    #[test]
    fn every_third_record_comes_once_an_epoch() {
        let third = Selection {
            one_of: 3,
            weights: Vec::new(),
        };
        let mut order = Order::select(5, 8, true, &third);
        for epoch in 0..3 {
            let mut records: Vec<_> = (0..3)
                .filter_map(|index| order.place(epoch * 3 + index))
                .map(|place| place.record)
                .collect();
            records.sort_unstable();
            assert_eq!(records, [0, 3, 6]);
        }
    }

    #[test]
    fn weighted_sets_share_every_epoch_and_each_record_has_its_turn() {
        let selection = Selection {
            one_of: 1,
            weights: vec![(10, 3.0), (30, 1.0)],
        };
        for shuffle in [true, false] {
            let mut order = Order::select(5, 40, shuffle, &selection);
            let places: Vec<_> = (0..120).filter_map(|position| order.place(position)).collect();
            for epoch in places.chunks(40) {
                let of_first = epoch.iter().filter(|place| place.record < 10).count();
                assert_eq!(of_first, 30, "three quarters of an epoch");
            }
            // After 90 turns each record of the first was there nine times, after 30 each of the second once, and no (epoch,
            // record) came twice: augmentation is never repeated.
            let mut counts: HashMap<u64, u32> = HashMap::new();
            let mut seen = std::collections::HashSet::new();
            for place in &places {
                *counts.entry(place.record).or_default() += 1;
                assert!(seen.insert((place.epoch, place.record)), "{place:?} came twice");
            }
            assert!(
                (0..40).all(|record| counts.get(&record) == Some(if record < 10 { &9 } else { &1 })),
                "{counts:?}"
            );
        }
    }
}
