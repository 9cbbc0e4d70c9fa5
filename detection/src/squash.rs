//! A sigmoid inside the box predictor: `apply_sigmoid_to_scores` of the reference's `ConvolutionalBoxPredictor`, and `score_converter` of its
//! `WeightSharedConvolutionalBoxPredictor`. What post-processing converts comes on top.

use crate::network::Mode;

/// Which class predictions go through a sigmoid before anybody sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    /// None.
    #[default]
    Never,
    /// Those of inference.
    Inference,
    /// All; losses then take the results for logits, as in the reference.
    Always,
}

impl Squash {
    /// Whether predictions of this mode do.
    pub(crate) fn applies(self, mode: Mode) -> bool {
        match self {
            Self::Never => false,
            Self::Inference => mode == Mode::Eval,
            Self::Always => true,
        }
    }

    pub(crate) fn apply(self, mode: Mode, predictions: &mut [f32]) {
        if self.applies(mode) {
            predictions.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
        }
    }

    /// Gradients of what training's `predictions` were made of, from those of the predictions themselves.
    pub(crate) fn back(self, predictions: &[f32], gradients: &mut [f32]) {
        if self.applies(Mode::Train) {
            for (gradient, &p) in gradients.iter_mut().zip(predictions) {
                *gradient *= p * (1.0 - p);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_modes_that_are_meant_are_squashed_and_the_gradient_is_the_slope() {
        for (squash, train, eval) in [
            (Squash::Never, false, false),
            (Squash::Inference, false, true),
            (Squash::Always, true, true),
        ] {
            for (mode, squashed) in [(Mode::Train, train), (Mode::Eval, eval)] {
                let mut values = [0.0, 2.0, -200.0, 200.0];
                squash.apply(mode, &mut values);
                let expected = if squashed {
                    [0.5, 0.880_797, 0.0, 1.0]
                } else {
                    [0.0, 2.0, -200.0, 200.0]
                };
                for (found, expected) in values.into_iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-6, "{squash:?} {mode:?}: {found}");
                }
            }
        }
        let at = |x: f32| {
            let mut values = [x];
            Squash::Always.apply(Mode::Train, &mut values);
            values[0]
        };
        let mut gradient = [3.0];
        Squash::Always.back(&[at(0.7)], &mut gradient);
        let slope = (at(0.71) - at(0.69)) / 0.02;
        assert!((gradient[0] - 3.0 * slope).abs() < 1e-3, "{} {slope}", gradient[0]);
        Squash::Inference.back(&[0.5], &mut gradient);
        assert!((gradient[0] - 3.0 * slope).abs() < 1e-3);
    }
}
