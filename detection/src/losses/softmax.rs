//! Cross entropy of classes that exclude each other.

/// The cross entropy of `softmax(logits / scale)` with the targets.
pub fn loss(logits: &[f32], scale: f32, target: impl Fn(usize) -> f32) -> f32 {
    let log_sum = log_sum(logits, scale);
    logits
        .iter()
        .enumerate()
        .map(|(i, &logit)| match target(i) {
            // What is not finite shows.
            0.0 => logit * 0.0,
            target => target * (log_sum - logit / scale),
        })
        .sum()
}

/// Writes the gradient of [`loss`] with respect to the logits, times `factor`.
pub fn gradient(logits: &[f32], scale: f32, target: impl Fn(usize) -> f32, factor: f32, to: &mut [f32]) {
    let log_sum = log_sum(logits, scale);
    let whole: f32 = (0..logits.len()).map(&target).sum();
    for (i, (to, &logit)) in to.iter_mut().zip(logits).enumerate() {
        let p = (logit / scale - log_sum).exp();
        *to = factor / scale * (whole * p - target(i));
    }
}

/// Probabilities from targets that are logits.
pub fn soft_targets(columns: usize, scale: f32, target: impl Fn(usize) -> f32) -> Vec<f32> {
    let targets: Vec<f32> = (0..columns).map(target).collect();
    let log_sum = log_sum(&targets, scale);
    targets.iter().map(|target| (target / scale - log_sum).exp()).collect()
}

fn log_sum(logits: &[f32], scale: f32) -> f32 {
    let most = logits
        .iter()
        .fold(f32::NEG_INFINITY, |most, &logit| most.max(logit / scale));
    let sum: f32 = logits.iter().map(|logit| (logit / scale - most).exp()).sum();
    most + sum.ln()
}
