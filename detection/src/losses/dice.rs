//! Dice loss (arXiv:1606.04797): how much of a class's area prediction and target share.

use super::sigmoid::sigmoid;

/// The reference's `WeightedDiceClassificationLoss`. It looks at all anchors of an image at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dice {
    /// Probabilities and targets are squared first.
    pub squared_normalization: bool,
    /// Predictions are probabilities; otherwise logits.
    pub is_prediction_probability: bool,
}

/// An image's predictions.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a, T, W> {
    /// `[anchors, columns]`
    pub predictions: &'a [f32],
    /// Columns.
    pub columns: usize,
    /// What (anchor, column) should be.
    pub target: T,
    /// Of (anchor, column).
    pub weight: W,
}

impl Dice {
    /// The loss of each column, in their order; with `gradients`, the gradients of their sum times `factor` are written there
    /// (`[anchors, columns]`).
    pub fn image<T: Fn(usize, usize) -> f32, W: Fn(usize, usize) -> f32>(
        &self,
        image: &Image<'_, T, W>,
        factor: f32,
        gradients: &mut [f32],
    ) -> Vec<f32> {
        let columns = image.columns.max(1);
        let anchors = image.predictions.len() / columns;
        let at = |anchor: usize, column: usize| image.predictions[anchor * columns + column];
        let target = |anchor, column| {
            let target = (image.target)(anchor, column);
            if self.squared_normalization {
                target * target
            } else {
                target
            }
        };
        (0..columns)
            .map(|column| {
                let (mut area, mut shared) = (0.0_f64, 0.0_f64);
                for anchor in 0..anchors {
                    let weight = f64::from((image.weight)(anchor, column));
                    let (p, t) = (
                        f64::from(self.probability(at(anchor, column)).0),
                        f64::from(target(anchor, column)),
                    );
                    area += (p + t) * weight;
                    shared += p * weight * t * weight;
                }
                // Written so that NaN stays.
                let divisor = if area < 1.0 { 1.0 } else { area };
                let moves = if area < 1.0 { 0.0 } else { 1.0 };
                for anchor in 0..anchors {
                    let weight = f64::from((image.weight)(anchor, column));
                    let slope = f64::from(self.probability(at(anchor, column)).1) * weight;
                    let by_p = -2.0 * f64::from(target(anchor, column)) * weight / divisor
                        + 2.0 * shared / (divisor * divisor) * moves;
                    if let Some(to) = gradients.get_mut(anchor * columns + column) {
                        *to = factor * (by_p * slope) as f32;
                    }
                }
                (1.0 - 2.0 * shared / divisor) as f32
            })
            .collect()
    }

    /// What counts as probability, and its slope.
    fn probability(&self, prediction: f32) -> (f32, f32) {
        let (p, slope) = if self.is_prediction_probability {
            (prediction, 1.0)
        } else {
            let p = sigmoid(prediction);
            (p, p * (1.0 - p))
        };
        if self.squared_normalization {
            (p * p, 2.0 * p * slope)
        } else {
            (p, slope)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREDICTIONS: [f32; 6] = [0.5, -1.0, 2.0, 0.1, 0.2, 0.9];

    fn loss(dice: Dice, predictions: &[f32], gradients: &mut [f32]) -> Vec<f32> {
        let image = Image {
            predictions,
            columns: 2,
            target: |anchor: usize, column: usize| f32::from(u8::from(anchor % 2 == column)),
            weight: |anchor: usize, _: usize| 1.0 + anchor as f32,
        };
        dice.image(&image, 1.0, gradients)
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        for choice in 0..4 {
            let dice = Dice {
                squared_normalization: choice % 2 == 1,
                is_prediction_probability: choice > 1,
            };
            let mut gradient = [0.0; 6];
            let values = loss(dice, &PREDICTIONS, &mut gradient);
            assert_eq!(values.len(), 2);
            for i in 0..6 {
                let (mut up, mut down) = (PREDICTIONS, PREDICTIONS);
                up[i] += 5e-3;
                down[i] -= 5e-3;
                let sum = |predictions: &[f32]| loss(dice, predictions, &mut [0.0; 6]).iter().sum::<f32>();
                let slope = (sum(&up) - sum(&down)) / 1e-2;
                assert!(
                    (slope - gradient[i]).abs() < 1e-3,
                    "{dice:?} {i}: {slope}, {gradient:?}"
                );
            }
        }
    }

    #[test]
    fn what_agrees_costs_nothing() {
        let dice = Dice {
            squared_normalization: false,
            is_prediction_probability: true,
        };
        let image = Image {
            predictions: &[1.0, 0.0],
            columns: 2,
            target: |_: usize, column: usize| f32::from(u8::from(column == 0)),
            weight: |_: usize, _: usize| 1.0,
        };
        assert_eq!(dice.image(&image, 1.0, &mut []), [0.0, 1.0]);
    }
}
