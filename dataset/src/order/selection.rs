//! Which records an epoch is made of: all, every n-th, or shares of several data sets.

/// What `sample_1_of_n_examples` and `sample_from_datasets_weights` ask for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Records 0, n, 2n, … of each data set; 0 counts as 1.
    pub one_of: u64,
    /// For each data set, in order: how many records it has, and its weight. Empty for one data set that is all records.
    pub weights: Vec<(u64, f32)>,
}

/// Records that share an epoch's positions with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The first of them in the whole.
    pub first: u64,
    /// How many are used.
    pub count: u64,
    /// From one used record to the next.
    pub step: u64,
    /// How many positions of an epoch are theirs.
    pub quota: u64,
}

impl Selection {
    /// How many positions an epoch has when there are `records` in all.
    pub fn epoch_len(&self, records: u64) -> u64 {
        self.parts(records).iter().map(|part| part.quota).sum()
    }

    /// Data sets that are used, and how often. An epoch has as many positions as there are used records; each data set gets
    /// its weight's share of them, to the nearest whole number.
    pub(super) fn parts(&self, records: u64) -> Vec<Part> {
        let step = self.one_of.max(1);
        let used = |count: u64| count.div_ceil(step);
        if self.weights.is_empty() {
            let count = used(records);
            return vec![Part {
                first: 0,
                count,
                step,
                quota: count,
            }];
        }
        let weigh = |&(count, weight): &(u64, f32)| if count > 0 { f64::from(weight.max(0.0)) } else { 0.0 };
        let sum: f64 = self.weights.iter().map(weigh).sum();
        let taking = self.weights.iter().filter(|set| weigh(set) > 0.0);
        let total: u64 = taking.map(|&(count, _)| used(count)).sum();
        let (mut first, mut before, mut given) = (0, 0.0, 0);
        let mut parts = Vec::with_capacity(self.weights.len());
        for set in &self.weights {
            before += weigh(set);
            // Rounding the sums gives whole numbers that add up to the total.
            let upto = if sum > 0.0 {
                (total as f64 * (before / sum)).round() as u64
            } else {
                0
            };
            if weigh(set) > 0.0 {
                parts.push(Part {
                    first,
                    count: used(set.0),
                    step,
                    quota: upto - given,
                });
                given = upto;
            }
            first += set.0;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_weights_and_add_up() {
        let selection = Selection {
            one_of: 1,
            weights: vec![(100, 1.0), (50, 0.0), (200, 3.0)],
        };
        let parts = selection.parts(350);
        assert_eq!(
            parts.iter().map(|part| (part.first, part.quota)).collect::<Vec<_>>(),
            [(0, 75), (150, 225)]
        );
        assert_eq!(selection.epoch_len(350), 300);
        let third = Selection {
            one_of: 3,
            weights: Vec::new(),
        };
        assert_eq!([7, 6, 1, 0].map(|records| third.epoch_len(records)), [3, 2, 1, 0]);
        assert_eq!(Selection::default().epoch_len(9), 9);
    }

    #[test]
    fn nothing_is_left_of_weights_of_zero() {
        let selection = Selection {
            one_of: 0,
            weights: vec![(5, 0.0), (0, 2.0)],
        };
        assert_eq!(selection.epoch_len(5), 0);
    }
}
