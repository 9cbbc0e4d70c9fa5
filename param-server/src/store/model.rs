//! One server's arenas and how a commit changes them.

use std::ops::Range;
use std::sync::Arc;

use coati_common::invariants::{self, Invariant};
use coati_common::variables::VariableKind;

use crate::optimizer::{self, AdamPowers, OptimizerConfig, Rule};
use crate::placement::{Segment, ServerLayout};
use crate::pool::{Buffer, Shelf, replaced};

/// Elements handled at a time: a block of all vectors together stays in the cache.
const BLOCK: usize = 8 << 10;

/// Smaller arenas are not worth a thread: starting one costs as much as updating some hundred thousand elements.
const ELEMENTS_PER_THREAD: usize = 2 << 20;

/// How many threads a commit over so many elements is worth, at most `available`.
pub(crate) fn threads_for(elements: usize, available: usize) -> usize {
    available.min(elements / ELEMENTS_PER_THREAD).max(1)
}

/// Values, slots and moving averages of one version. Cloning is cheap; a clone is never changed.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// `[arena_len]`
    pub(crate) values: Arc<Vec<f32>>,
    /// One for each slot of the rule, `[slotted_len]`.
    pub(crate) slots: Vec<Arc<Vec<f32>>>,
    /// `[slotted_len]`, when moving averages are kept.
    pub(crate) averages: Option<Arc<Vec<f32>>>,
    pub(crate) powers: Option<AdamPowers>,
    /// `[slotted_len]`, for adaptive delay compensation.
    pub(crate) mean_squares: Option<Arc<Vec<f32>>>,
}

impl Model {
    /// Slots as before the first step, averages equal to the variables.
    pub(crate) fn new(values: Vec<f32>, server: &ServerLayout, optimizer: &OptimizerConfig) -> Self {
        let slots = optimizer.rule.slots();
        let averages = optimizer
            .moving_average_decay
            .map(|_| Arc::new(values[..server.slotted_len].to_vec()));
        Self {
            slots: slots
                .iter()
                .map(|slot| Arc::new(vec![slot.initial; server.slotted_len]))
                .collect(),
            averages,
            powers: AdamPowers::initial(&optimizer.rule),
            mean_squares: None,
            values: Arc::new(values),
        }
    }

    /// Applies the weighted mean of `contributions` (`[pushed_len]` and their samples, in order of summation). The
    /// first contribution's buffer is used for the mean.
    pub(crate) fn apply(
        &mut self,
        server: &ServerLayout,
        optimizer: &OptimizerConfig,
        rate: f32,
        contributions: &mut [(Buffer, u32)],
        shelf: &mut Shelf,
        threads: usize,
    ) {
        let Some(((mean, first_samples), others)) = contributions.split_first_mut() else {
            return;
        };
        let weights = Weights::new(*first_samples, others.iter().map(|(_, samples)| *samples));
        let others: Vec<&[f32]> = others.iter().map(|(buffer, _)| buffer.data.as_slice()).collect();
        invariants::check(
            Invariant::StagedComplete,
            mean.data.len() == server.pushed_len && others.iter().all(|o| o.len() == server.pushed_len),
            || format!("arena of {}, staged {}", server.pushed_len, mean.data.len()),
        );
        // What readers hold (pulls under way, a checkpoint that is being written) stays as it is: those blocks are brought over
        // one by one, when they are in the cache anyway.
        let old_values = shelf.writable(&mut self.values);
        let old_slots: Vec<_> = self.slots.iter_mut().map(|slot| replaced(slot, || None)).collect();
        let old_averages = self.averages.as_mut().and_then(|averages| replaced(averages, || None));
        let values = owned(&mut self.values);
        let (values, tail) = values.split_at_mut(server.pushed_len);
        if let Some(old) = &old_values {
            tail.copy_from_slice(&old[server.pushed_len..]);
        }
        let slots = self.slots.iter_mut().zip(&old_slots);
        let mut slots = slots.map(|(slot, old)| Target::new(owned(slot), old.as_ref()));
        let step = Step {
            segments: &server.segments,
            optimizer,
            rate,
            powers: self.powers,
            weights,
            others: &others,
        };
        let vectors = Vectors {
            from: 0,
            mean: &mut mean.data,
            values: Target::new(values, old_values.as_ref()),
            first: slots.next().unwrap_or_default(),
            second: slots.next().unwrap_or_default(),
            averages: self
                .averages
                .as_mut()
                .map(|averages| Target::new(owned(averages), old_averages.as_ref()))
                .unwrap_or_default(),
        };
        step.run_on(vectors, threads.max(1));
        self.powers = self.powers.map(|powers| powers.next(&optimizer.rule));
    }
}

/// The weighted mean of `contributions` (`[pushed_len]` and their samples, in order of summation), as [`Model::apply`] forms
/// it: with that mean as its only contribution, it does the same to the last bit.
pub(crate) fn mean(server: &ServerLayout, mut contributions: Vec<(Buffer, u32)>, threads: usize) -> Option<Buffer> {
    let ((mean, first_samples), others) = contributions.split_first_mut()?;
    let weights = Weights::new(*first_samples, others.iter().map(|(_, samples)| *samples));
    let others: Vec<&[f32]> = others.iter().map(|(buffer, _)| buffer.data.as_slice()).collect();
    let share = server.pushed_len.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let mut shares = mean.data.chunks_mut(share).enumerate();
        let own = shares.next();
        let reduce = |(index, part): (usize, &mut [f32])| {
            for (block, mean) in part.chunks_mut(BLOCK).enumerate() {
                let from = index * share + block * BLOCK;
                weights.reduce(mean, &others, from..from + mean.len());
            }
        };
        for part in shares {
            scope.spawn(move || reduce(part));
        }
        own.into_iter().for_each(reduce);
    });
    Some(contributions.swap_remove(0).0)
}

/// Nobody else holds it: see [`replaced`].
fn owned(vector: &mut Arc<Vec<f32>>) -> &mut [f32] {
    Arc::<Vec<f32>>::make_mut(vector)
}

/// How a weighted mean is formed.
#[derive(Clone, Debug)]
enum Weights {
    /// Plain sum, divided by the number of contributions (as TensorFlow's `ConditionalAccumulator` does).
    Equal(f32),
    /// Sum of samples times gradient, divided by all samples.
    Samples { first: f32, others: Vec<f32>, total: f32 },
}

impl Weights {
    fn new(first: u32, others: impl Iterator<Item = u32> + Clone) -> Self {
        if others.clone().all(|samples| samples == first) {
            return Self::Equal(others.count() as f32 + 1.0);
        }
        let total = others
            .clone()
            .fold(u64::from(first), |sum, samples| sum + u64::from(samples));
        Self::Samples {
            first: first as f32,
            others: others.map(|samples| samples as f32).collect(),
            total: total as f32,
        }
    }

    /// `mean` holds the first contribution and receives the mean.
    fn reduce(&self, mean: &mut [f32], others: &[&[f32]], range: Range<usize>) {
        match self {
            Self::Equal(count) => {
                for other in others {
                    mean.iter_mut().zip(&other[range.clone()]).for_each(|(m, o)| *m += o);
                }
                if *count > 1.0 {
                    divide(mean, *count);
                }
            }
            Self::Samples {
                first,
                others: weights,
                total,
            } => {
                for m in mean.iter_mut() {
                    *m *= first;
                }
                for (other, weight) in others.iter().zip(weights) {
                    mean.iter_mut()
                        .zip(&other[range.clone()])
                        .for_each(|(m, o)| *m += o * weight);
                }
                divide(mean, *total);
            }
        }
    }
}

fn divide(values: &mut [f32], by: f32) {
    for value in values {
        *value /= by;
    }
}

/// What is the same for all elements of one commit.
struct Step<'a> {
    segments: &'a [Segment],
    optimizer: &'a OptimizerConfig,
    rate: f32,
    powers: Option<AdamPowers>,
    weights: Weights,
    others: &'a [&'a [f32]],
}

/// A range of all vectors that begins at arena element `from`. Slots and averages may be shorter (or empty).
struct Vectors<'a> {
    from: usize,
    mean: &'a mut [f32],
    values: Target<'a>,
    first: Target<'a>,
    second: Target<'a>,
    averages: Target<'a>,
}

/// A range of a vector that is written to.
#[derive(Default)]
struct Target<'a> {
    elements: &'a mut [f32],
    /// Where its elements are until they are brought over; empty when they are in place.
    old: &'a [f32],
}

impl<'a> Target<'a> {
    fn new(elements: &'a mut [f32], old: Option<&'a Arc<Vec<f32>>>) -> Self {
        let old = old.map_or(&[][..], |old| &old[..elements.len()]);
        Self { elements, old }
    }

    fn split(self, at: usize) -> (Self, Self) {
        let (now, later) = self.elements.split_at_mut(at.min(self.elements.len()));
        let (old_now, old_later) = self.old.split_at(at.min(self.old.len()));
        let now = Self {
            elements: now,
            old: old_now,
        };
        let later = Self {
            elements: later,
            old: old_later,
        };
        (now, later)
    }

    fn bring(self) -> &'a mut [f32] {
        if !self.old.is_empty() {
            self.elements.copy_from_slice(self.old);
        }
        self.elements
    }
}

impl Vectors<'_> {
    fn split(self, at: usize) -> (Self, Self) {
        let (m0, m1) = self.mean.split_at_mut(at.min(self.mean.len()));
        let (v0, v1) = self.values.split(at);
        let ((f0, f1), (s0, s1), (a0, a1)) = (self.first.split(at), self.second.split(at), self.averages.split(at));
        (
            Self {
                from: self.from,
                mean: m0,
                values: v0,
                first: f0,
                second: s0,
                averages: a0,
            },
            Self {
                from: self.from + at,
                mean: m1,
                values: v1,
                first: f1,
                second: s1,
                averages: a1,
            },
        )
    }
}

impl Step<'_> {
    /// Elementwise, so the number of threads does not change the result.
    fn run_on(&self, mut vectors: Vectors<'_>, threads: usize) {
        if threads == 1 {
            return self.run(vectors);
        }
        let share = vectors.values.elements.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let (now, rest) = vectors.split(share);
                vectors = rest;
                scope.spawn(move || self.run(now));
            }
            self.run(vectors);
        });
    }

    fn run(&self, mut vectors: Vectors<'_>) {
        for segment in self.segments {
            let end = segment.offset + segment.length;
            while vectors.from < end && !vectors.values.elements.is_empty() {
                let count = (end - vectors.from).min(BLOCK).min(vectors.values.elements.len());
                let (block, rest) = vectors.split(count);
                self.block(segment.kind, block);
                vectors = rest;
            }
        }
    }

    fn block(&self, kind: VariableKind, block: Vectors<'_>) {
        let values = block.values.bring();
        let (first, second, averages) = (block.first.bring(), block.second.bring(), block.averages.bring());
        let range = block.from..block.from + values.len();
        match kind {
            VariableKind::Constant => {}
            VariableKind::MovingStatistic { decay } => {
                self.weights.reduce(block.mean, self.others, range);
                optimizer::moving_average(decay, values, block.mean);
            }
            VariableKind::Trainable => {
                self.weights.reduce(block.mean, self.others, range);
                let rule: &Rule = &self.optimizer.rule;
                optimizer::update(rule, self.rate, self.powers, block.mean, values, first, second);
                if let Some(decay) = self.optimizer.moving_average_decay {
                    optimizer::moving_average(decay, averages, values);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Layout, Strategy, plan};
    use crate::pool::Pool;
    use crate::schedule::LearningRate;
    use coati_common::variables::VariableSpec;

    fn spec(name: &str, elements: i64, kind: VariableKind) -> VariableSpec {
        VariableSpec {
            name: name.into(),
            shape: vec![elements],
            kind,
        }
    }

    fn all(model: &Model) -> Vec<f32> {
        let mut all = model.values.to_vec();
        all.extend(model.averages.iter().chain(&model.slots).flat_map(|v| v.iter()));
        all
    }

    /// Everything that is held after a commit, for which somebody reads it meanwhile or not.
    fn run(threads: usize, samples: &[u32], read: bool) -> Vec<f32> {
        let specs = [
            spec("w", 100_000, VariableKind::Trainable),
            spec("m", 50, VariableKind::MovingStatistic { decay: 0.9 }),
            spec("c", 7, VariableKind::Constant),
        ];
        let layout = Layout::new(&plan(&specs, 1, Strategy::Balanced).unwrap()).unwrap();
        let server = layout.server(0).unwrap();
        let optimizer = OptimizerConfig {
            rule: Rule::Adam {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
            },
            learning_rate: LearningRate::Constant(0.1),
            moving_average_decay: Some(0.99),
        };
        let values: Vec<f32> = (0..server.arena_len).map(|i| i as f32 * 1e-3).collect();
        let mut model = Model::new(values, server, &optimizer);
        let reader = read.then(|| model.clone());
        let before = all(&model);
        let pool = Pool::new(server.pushed_len);
        let mut contributions: Vec<_> = samples
            .iter()
            .enumerate()
            .map(|(r, &samples)| {
                let mut buffer = pool.take();
                buffer
                    .data
                    .extend((0..server.pushed_len).map(|i| ((i * 31 + r * 7) % 101) as f32 * 0.01 - 0.5));
                (buffer, samples)
            })
            .collect();
        model.apply(
            server,
            &optimizer,
            0.1,
            &mut contributions,
            &mut Shelf::default(),
            threads,
        );
        assert!(
            reader.is_none_or(|reader| all(&reader) == before),
            "a reader keeps its version"
        );
        all(&model)
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let one = run(1, &[8, 8, 3], false);
        assert_eq!(one, run(3, &[8, 8, 3], false));
        assert_eq!(one, run(2, &[8, 8, 3], true), "nor does somebody who reads meanwhile");
        assert_eq!(
            one[100_050..100_057],
            (100_050..100_057).map(|i| i as f32 * 1e-3).collect::<Vec<_>>()
        );
        assert_ne!(
            one[..100_050],
            (0..100_050).map(|i| i as f32 * 1e-3).collect::<Vec<_>>()
        );
    }

    #[test]
    fn equal_samples_are_a_plain_mean_and_one_contribution_is_itself() {
        let mut mean = vec![1.0, 2.0];
        Weights::new(5, [5, 5].into_iter()).reduce(&mut mean, &[&[2.0, 4.0], &[6.0, 0.0]], 0..2);
        assert_eq!(mean, [3.0, 2.0]);
        let mut one = vec![0.1, f32::MIN_POSITIVE / 2.0];
        Weights::new(7, [].into_iter()).reduce(&mut one, &[], 0..2);
        assert_eq!(one, [0.1, f32::MIN_POSITIVE / 2.0]);
        let mut weighted = vec![1.0];
        Weights::new(3, [1].into_iter()).reduce(&mut weighted, &[&[5.0]], 0..1);
        assert_eq!(weighted, [2.0]);
    }
}
