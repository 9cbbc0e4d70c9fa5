//! The message `ClassificationLoss`.

use super::dice::Dice;
use super::{bootstrapped, focal, penalty_reduced, sigmoid, softmax};

/// Which class loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Classification {
    /// `weighted_sigmoid`
    Sigmoid,
    /// `weighted_sigmoid_focal`
    SigmoidFocal(focal::SigmoidFocal),
    /// `weighted_softmax`; logits are divided by the scale first.
    Softmax {
        /// `logit_scale`
        scale: f32,
    },
    /// `weighted_logits_softmax`: targets are logits too.
    SoftmaxAgainstLogits {
        /// `logit_scale`
        scale: f32,
    },
    /// `bootstrapped_sigmoid`
    Bootstrapped(bootstrapped::Bootstrapped),
    /// `penalty_reduced_logistic_focal_loss`
    PenaltyReduced(penalty_reduced::PenaltyReduced),
    /// `weighted_dice_classification_loss`: of a whole image, see [`Dice::image`].
    Dice(Dice),
}

/// The predictions of one anchor.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a, T, W> {
    /// One a column.
    pub logits: &'a [f32],
    /// What each column should be: 0 to 1, or a logit.
    pub target: T,
    /// Of each column.
    pub weight: W,
}

/// The target of an anchor of one class.
pub(crate) fn one_hot(column: Option<usize>) -> impl Fn(usize) -> f32 + Copy {
    move |at| if Some(at) == column { 1.0 } else { 0.0 }
}

impl Classification {
    /// The loss of an anchor: the sum over its columns; with softmax, one number times the mean of the weights. [`Classification::Dice`]
    /// knows no single anchors: 0.
    pub fn loss<T: Fn(usize) -> f32, W: Fn(usize) -> f32>(&self, row: &Row<'_, T, W>) -> f32 {
        let sum = |entry: &dyn Fn(f32, f32) -> f32| {
            let all = row.logits.iter().enumerate();
            all.map(|(i, &logit)| (row.weight)(i) * entry(logit, (row.target)(i)))
                .sum()
        };
        match self {
            Self::Sigmoid => sum(&sigmoid::entry),
            Self::SigmoidFocal(focal) => sum(&|logit, target| focal.loss(logit, target)),
            Self::Bootstrapped(loss) => sum(&|logit, target| loss.loss(logit, target)),
            Self::PenaltyReduced(loss) => sum(&|logit, target| loss.loss(logit, target)),
            Self::Softmax { scale } => mean_weight(row) * softmax::loss(row.logits, *scale, &row.target),
            Self::SoftmaxAgainstLogits { scale } => {
                let targets = softmax::soft_targets(row.logits.len(), *scale, &row.target);
                mean_weight(row) * softmax::loss(row.logits, *scale, |i| targets[i])
            }
            Self::Dice(_) => 0.0,
        }
    }

    /// Writes the gradient of [`Classification::loss`] with respect to the logits, times `factor`, to `to` (as long as the logits).
    pub fn gradient<T: Fn(usize) -> f32, W: Fn(usize) -> f32>(&self, row: &Row<'_, T, W>, factor: f32, to: &mut [f32]) {
        let mut each = |entry: &dyn Fn(f32, f32) -> f32| {
            for (i, (to, &logit)) in to.iter_mut().zip(row.logits).enumerate() {
                *to = factor * (row.weight)(i) * entry(logit, (row.target)(i));
            }
        };
        match self {
            Self::Sigmoid => each(&|logit, target| sigmoid::sigmoid(logit) - target),
            Self::SigmoidFocal(focal) => each(&|logit, target| focal.gradient(logit, target)),
            Self::Bootstrapped(loss) => each(&|logit, target| loss.gradient(logit, target)),
            Self::PenaltyReduced(loss) => each(&|logit, target| loss.gradient(logit, target)),
            Self::Softmax { scale } => {
                softmax::gradient(row.logits, *scale, &row.target, factor * mean_weight(row), to);
            }
            Self::SoftmaxAgainstLogits { scale } => {
                let targets = softmax::soft_targets(row.logits.len(), *scale, &row.target);
                softmax::gradient(row.logits, *scale, |i| targets[i], factor * mean_weight(row), to);
            }
            Self::Dice(_) => to.fill(0.0),
        }
    }
}

fn mean_weight<T, W: Fn(usize) -> f32>(row: &Row<'_, T, W>) -> f32 {
    let sum: f32 = (0..row.logits.len()).map(|i| (row.weight)(i)).sum();
    sum / row.logits.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [-2.0, 0.3, 1.7, 4.0];

    fn all() -> Vec<Classification> {
        let focal = |gamma, alpha| Classification::SigmoidFocal(focal::SigmoidFocal { gamma, alpha });
        let bootstrapped = |hard| Classification::Bootstrapped(bootstrapped::Bootstrapped { alpha: 0.8, hard });
        vec![
            Classification::Sigmoid,
            focal(2.0, Some(0.25)),
            focal(1.5, None),
            focal(0.0, Some(0.25)),
            bootstrapped(false),
            bootstrapped(true),
            Classification::PenaltyReduced(penalty_reduced::PenaltyReduced { alpha: 2.0, beta: 4.0 }),
            Classification::Softmax { scale: 2.0 },
            Classification::SoftmaxAgainstLogits { scale: 0.5 },
        ]
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        for loss in all() {
            for column in [None, Some(0), Some(2)] {
                let value = |logits: &[f32]| {
                    f64::from(loss.loss(&Row {
                        logits,
                        target: one_hot(column),
                        weight: |i| 0.5 + i as f32 / 4.0,
                    }))
                };
                let mut gradient = [0.0; 4];
                let row = Row {
                    logits: &LOGITS,
                    target: one_hot(column),
                    weight: |i| 0.5 + i as f32 / 4.0,
                };
                loss.gradient(&row, 1.0, &mut gradient);
                for i in 0..4 {
                    let (mut up, mut down) = (LOGITS, LOGITS);
                    up[i] += 5e-3;
                    down[i] -= 5e-3;
                    let slope = (value(&up) - value(&down)) / 1e-2;
                    assert!(
                        (slope - f64::from(gradient[i])).abs() < 2e-3,
                        "{loss:?} {column:?} {i}: {slope}, {gradient:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn large_logits_stay_finite_and_nan_shows() {
        for loss in all() {
            for logits in [[1e4, -1e4], [-1e4, 1e4]] {
                let row = Row {
                    logits: &logits,
                    target: one_hot(Some(0)),
                    weight: |_| 1.0,
                };
                let mut gradient = [0.0; 2];
                loss.gradient(&row, 1.0, &mut gradient);
                assert!(
                    loss.loss(&row).is_finite() && gradient.iter().all(|value| value.is_finite()),
                    "{loss:?} {gradient:?}"
                );
            }
            let row = Row {
                logits: &[f32::NAN, 0.0],
                target: one_hot(Some(0)),
                weight: |_| 1.0,
            };
            assert!(loss.loss(&row).is_nan(), "{loss:?}");
        }
    }
}
