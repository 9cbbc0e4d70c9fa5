//! Cross entropy of independent classes.

/// The sum over classes of the cross entropy of `sigmoid(logits)` with the one-hot target of which `column` is 1 (`None`: all are 0),
/// times `weight`; the reference's `WeightedSigmoidClassificationLoss`, summed as the single shot detector does.
pub fn loss(logits: &[f32], column: Option<usize>, weight: f32) -> f32 {
    let mut sum = 0.0;
    for &logit in logits {
        sum += logit.max(0.0) + (-logit.abs()).exp().ln_1p();
    }
    // max() drops NaN, which must show.
    if sum.is_nan() || logits.iter().any(|logit| logit.is_nan()) {
        return f32::NAN;
    }
    let hit = column.and_then(|column| logits.get(column)).copied().unwrap_or(0.0);
    weight * (sum - hit)
}

/// Writes the gradient of [`loss`] with respect to the logits, times `factor`, to `gradient` (as long as `logits`).
pub fn gradient(logits: &[f32], column: Option<usize>, weight: f32, factor: f32, gradient: &mut [f32]) {
    let scale = weight * factor;
    for (i, (to, &logit)) in gradient.iter_mut().zip(logits).enumerate() {
        let target = if Some(i) == column { 1.0 } else { 0.0 };
        *to = scale * (sigmoid(logit) - target);
    }
}

/// `1 / (1 + exp(-x))`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_logits_stay_finite() {
        assert_eq!(loss(&[100.0, -100.0], Some(0), 1.0), 0.0);
        assert_eq!(loss(&[-100.0, 100.0], Some(0), 0.5), 100.0);
        let mut to = [0.0; 2];
        gradient(&[-1e4, 1e4], Some(0), 1.0, 2.0, &mut to);
        assert_eq!(to, [-2.0, 2.0]);
    }

    #[test]
    fn nan_shows() {
        assert!(loss(&[0.0, f32::NAN], None, 1.0).is_nan());
    }
}
