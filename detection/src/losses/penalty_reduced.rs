//! Focal loss for targets between 0 and 1 (arXiv:1904.07850, equation 1).

use super::sigmoid::sigmoid;

/// Probabilities are kept away from 0 and 1 by so much: the reference's `sigmoid_clip_value`.
const CLIP: f32 = 1e-4;

/// The reference's `PenaltyReducedLogisticFocalLoss`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PenaltyReduced {
    /// The greater, the less well classified examples count.
    pub alpha: f32,
    /// The greater, the less negatives near a positive count.
    pub beta: f32,
}

impl PenaltyReduced {
    /// Of one logit.
    pub fn loss(&self, logit: f32, target: f32) -> f32 {
        let p = clipped(sigmoid(logit));
        if target == 1.0 {
            -(1.0 - p).powf(self.alpha) * p.ln()
        } else {
            -(1.0 - target).powf(self.beta) * p.powf(self.alpha) * (1.0 - p).ln()
        }
    }

    /// The slope of [`PenaltyReduced::loss`]; 0 where the probability is clipped.
    pub fn gradient(&self, logit: f32, target: f32) -> f32 {
        let plain = sigmoid(logit);
        let p = clipped(plain);
        // Written so that NaN stays.
        if p != plain && !plain.is_nan() {
            return 0.0;
        }
        let alpha = self.alpha;
        let by_p = if target == 1.0 {
            alpha * (1.0 - p).powf(alpha - 1.0) * p.ln() - (1.0 - p).powf(alpha) / p
        } else {
            let near = (1.0 - target).powf(self.beta);
            near * (p.powf(alpha) / (1.0 - p) - alpha * p.powf(alpha - 1.0) * (1.0 - p).ln())
        };
        by_p * p * (1.0 - p)
    }
}

/// NaN stays.
fn clipped(p: f32) -> f32 {
    p.clamp(CLIP, 1.0 - CLIP)
}
