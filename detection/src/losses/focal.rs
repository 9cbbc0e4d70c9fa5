//! Focal loss (arXiv:1708.02002): well classified examples count less.

use super::sigmoid::{entry, sigmoid};

/// The reference's `SigmoidFocalClassificationLoss`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SigmoidFocal {
    /// Exponent of `1 - p`, where `p` is the probability of what is right; 0: plain cross entropy.
    pub gamma: f32,
    /// Weight of targets that are 1, those that are 0 weigh the rest to 1; `None`: both weigh 1.
    pub alpha: Option<f32>,
}

impl SigmoidFocal {
    /// Of one logit.
    pub fn loss(&self, logit: f32, target: f32) -> f32 {
        self.balance(target) * self.modulation(sigmoid(logit), target) * entry(logit, target)
    }

    /// The slope of [`SigmoidFocal::loss`].
    pub fn gradient(&self, logit: f32, target: f32) -> f32 {
        let p = sigmoid(logit);
        let own = self.modulation(p, target) * (p - target);
        let modulated = if self.gamma == 0.0 {
            0.0
        } else {
            let right = target * p + (1.0 - target) * (1.0 - p);
            let slope = (2.0 * target - 1.0) * p * (1.0 - p);
            // Where nothing is wrong the slope is 0, which a fractional exponent would make NaN of infinity.
            if slope == 0.0 {
                0.0
            } else {
                -self.gamma * (1.0 - right).powf(self.gamma - 1.0) * slope * entry(logit, target)
            }
        };
        self.balance(target) * (own + modulated)
    }

    fn modulation(&self, p: f32, target: f32) -> f32 {
        if self.gamma == 0.0 {
            return 1.0;
        }
        let right = target * p + (1.0 - target) * (1.0 - p);
        (1.0 - right).powf(self.gamma)
    }

    fn balance(&self, target: f32) -> f32 {
        self.alpha
            .map_or(1.0, |alpha| target * alpha + (1.0 - target) * (1.0 - alpha))
    }
}
