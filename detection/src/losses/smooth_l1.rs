//! Smooth L1, also called Huber's loss (arXiv:1504.08083, equation 3): quadratic up to `delta`, linear beyond.

use crate::box_coder::CODE_SIZE;

/// The sum over a code of the losses of its numbers; the reference's `WeightedSmoothL1LocalizationLoss`. Targets that are NaN count
/// as met.
pub fn loss(prediction: [f32; CODE_SIZE], target: [f32; CODE_SIZE], weight: f32, delta: f32) -> f32 {
    let mut sum = 0.0;
    for error in errors(prediction, target) {
        let quadratic = error.abs().min(delta);
        sum += 0.5 * quadratic * quadratic + delta * (error.abs() - quadratic);
    }
    sum * weight
}

/// The gradient of [`loss`] with respect to the prediction.
pub fn gradient(prediction: [f32; CODE_SIZE], target: [f32; CODE_SIZE], weight: f32, delta: f32) -> [f32; CODE_SIZE] {
    errors(prediction, target).map(|error| weight * error.max(-delta).min(delta))
}

fn errors(prediction: [f32; CODE_SIZE], target: [f32; CODE_SIZE]) -> [f32; CODE_SIZE] {
    std::array::from_fn(|i| {
        if target[i].is_nan() {
            0.0
        } else {
            prediction[i] - target[i]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_are_nan_cost_nothing() {
        let target = [f32::NAN, 0.0, 0.0, 0.0];
        assert_eq!(loss([5.0, 0.5, 0.0, 0.0], target, 1.0, 1.0), 0.125);
        assert_eq!(gradient([5.0, 0.5, 0.0, 0.0], target, 2.0, 1.0), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn predictions_that_are_nan_show() {
        assert!(loss([f32::NAN, 0.0, 0.0, 0.0], [0.0; 4], 1.0, 1.0).is_nan());
    }
}
