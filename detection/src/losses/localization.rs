//! The message `LocalizationLoss`.

use super::smooth_l1::error;
use super::{iou, smooth_l1};
use crate::Corners;

/// Which localisation loss. Targets that are NaN count as met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Localization {
    /// `weighted_smooth_l1`
    SmoothL1 {
        /// Where it turns linear.
        delta: f32,
    },
    /// `weighted_l2`: half the squared error; the weight is squared too.
    L2,
    /// `l1_localization_loss`: the absolute error, summed over the code.
    L1,
    /// `weighted_iou`
    Iou,
    /// `weighted_giou`
    Giou,
}

impl Localization {
    /// The loss of one anchor's code.
    pub fn loss(&self, prediction: &[f32], target: &[f32], weight: f32) -> f32 {
        let sum = |of: &dyn Fn(f32) -> f32| -> f32 {
            let pairs = prediction.iter().zip(target);
            pairs.map(|(&prediction, &target)| of(error(prediction, target))).sum()
        };
        match *self {
            Self::SmoothL1 { delta } => smooth_l1::loss(prediction, target, weight, delta),
            Self::L2 => sum(&|error| 0.5 * (weight * error) * (weight * error)),
            Self::L1 => weight * sum(&f32::abs),
            Self::Iou => corners(prediction, target).map_or(0.0, |(p, t)| iou::loss(p, t, weight)),
            Self::Giou => corners(prediction, target).map_or(0.0, |(p, t)| iou::generalised_loss(p, t, weight)),
        }
    }

    /// Writes the gradient of [`Localization::loss`] with respect to the prediction, times `factor`.
    pub fn gradient(&self, prediction: &[f32], target: &[f32], weight: f32, factor: f32, to: &mut [f32]) {
        let each = |to: &mut [f32], of: &dyn Fn(f32) -> f32| {
            for ((to, &prediction), &target) in to.iter_mut().zip(prediction).zip(target) {
                *to = factor * of(error(prediction, target));
            }
        };
        let four = |to: &mut [f32], slope: fn(Corners, Corners, f32) -> Corners| {
            let found = corners(prediction, target).map_or([0.0; 4], |(p, t)| slope(p, t, weight));
            for ((to, found), target) in to.iter_mut().zip(found).zip(target) {
                *to = if target.is_nan() { 0.0 } else { factor * found };
            }
        };
        match *self {
            Self::SmoothL1 { delta } => smooth_l1::gradient(prediction, target, weight * factor, delta, to),
            Self::L2 => each(to, &|error| weight * weight * error),
            // The slope at 0 is 0, as TensorFlow's `sign` has it.
            Self::L1 => each(to, &|error| if error == 0.0 { 0.0 } else { weight * error.signum() }),
            Self::Iou => four(to, iou::gradient),
            Self::Giou => four(to, iou::generalised_gradient),
        }
    }
}

/// As corners; targets that are NaN are taken from the prediction.
fn corners(prediction: &[f32], target: &[f32]) -> Option<(Corners, Corners)> {
    let (prediction, target): (&Corners, &Corners) = (prediction.first_chunk()?, target.first_chunk()?);
    let met = std::array::from_fn(|i| if target[i].is_nan() { prediction[i] } else { target[i] });
    Some((*prediction, met))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_are_nan_cost_nothing_and_predictions_that_are_show() {
        let nan = f32::NAN;
        for loss in [
            Localization::SmoothL1 { delta: 1.0 },
            Localization::L2,
            Localization::L1,
        ] {
            assert_eq!(loss.loss(&[3.0, 1.0], &[nan, 1.0], 2.0), 0.0, "{loss:?}");
            let mut to = [9.0; 2];
            loss.gradient(&[3.0, 1.0], &[nan, 1.0], 2.0, 1.0, &mut to);
            assert_eq!(to, [0.0, 0.0], "{loss:?}");
            assert!(loss.loss(&[nan, 1.0], &[0.0, 1.0], 1.0).is_nan(), "{loss:?}");
        }
        for loss in [Localization::Iou, Localization::Giou] {
            assert!(
                loss.loss(&[nan, 0.0, 1.0, 1.0], &[0.0, 0.0, 1.0, 1.0], 1.0).is_nan(),
                "{loss:?}"
            );
            assert_eq!(
                loss.loss(&[0.0, 0.0, 1.0, 1.0], &[nan, 0.0, 1.0, 1.0], 1.0),
                0.0,
                "{loss:?}"
            );
        }
    }

    #[test]
    fn the_absolute_error() {
        let mut to = [0.0; 3];
        Localization::L1.gradient(&[1.0, 2.0, 3.0], &[2.0, 2.0, 1.0], 0.5, 2.0, &mut to);
        assert_eq!(to, [-1.0, 0.0, 1.0]);
        assert_eq!(Localization::L1.loss(&[1.0, 2.0, 3.0], &[2.0, 2.0, 1.0], 0.5), 1.5);
    }
}
