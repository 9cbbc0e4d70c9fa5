//! Cross entropy against targets that the model's own predictions soften (arXiv:1412.6596), for labels that are often wrong.

use super::sigmoid::{entry, sigmoid};

/// The reference's `BootstrappedSigmoidClassificationLoss`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrapped {
    /// Share of the label in the target; the prediction has the rest.
    pub alpha: f32,
    /// The prediction counts as 0 or 1; otherwise as its probability.
    pub hard: bool,
}

impl Bootstrapped {
    fn target(&self, p: f32, target: f32) -> f32 {
        let own = match (self.hard, p > 0.5) {
            (false, _) => p,
            (true, above) => f32::from(u8::from(above)),
        };
        self.alpha * target + (1.0 - self.alpha) * own
    }

    /// Of one logit.
    pub fn loss(&self, logit: f32, target: f32) -> f32 {
        entry(logit, self.target(sigmoid(logit), target))
    }

    /// The slope of [`Bootstrapped::loss`]; the soft target's own slope is part of it, as in the reference.
    pub fn gradient(&self, logit: f32, target: f32) -> f32 {
        let p = sigmoid(logit);
        let moved = if self.hard {
            0.0
        } else {
            let slope = p * (1.0 - p);
            // A logit far out moves nothing any more.
            if slope == 0.0 {
                0.0
            } else {
                logit * (1.0 - self.alpha) * slope
            }
        };
        p - self.target(p, target) - moved
    }
}
