//! Smooth L1, also called Huber's loss (arXiv:1504.08083, equation 3): quadratic up to `delta`, linear beyond.

/// The sum over a code of the losses of its numbers; the reference's `WeightedSmoothL1LocalizationLoss`. Targets that are NaN count
/// as met.
pub fn loss(prediction: &[f32], target: &[f32], weight: f32, delta: f32) -> f32 {
    let mut sum = 0.0;
    for (&prediction, &target) in prediction.iter().zip(target) {
        let error = error(prediction, target);
        let quadratic = error.abs().min(delta);
        sum += 0.5 * quadratic * quadratic + delta * (error.abs() - quadratic);
    }
    sum * weight
}

/// Writes the gradient of [`loss`] with respect to the prediction.
pub fn gradient(prediction: &[f32], target: &[f32], weight: f32, delta: f32, to: &mut [f32]) {
    for ((to, &prediction), &target) in to.iter_mut().zip(prediction).zip(target) {
        *to = weight * error(prediction, target).max(-delta).min(delta);
    }
}

/// 0 where the target is NaN.
pub(super) fn error(prediction: f32, target: f32) -> f32 {
    if target.is_nan() { 0.0 } else { prediction - target }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_are_nan_cost_nothing() {
        let target = [f32::NAN, 0.0, 0.0, 0.0];
        let code = [5.0, 0.5, 0.0, 0.0];
        assert_eq!(loss(&code, &target, 1.0, 1.0), 0.125);
        let mut to = [9.0; 4];
        gradient(&code, &target, 2.0, 1.0, &mut to);
        assert_eq!(to, [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn predictions_that_are_nan_show() {
        assert!(loss(&[f32::NAN, 0.0, 0.0, 0.0], &[0.0; 4], 1.0, 1.0).is_nan());
    }
}
