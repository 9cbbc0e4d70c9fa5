//! From logits to scores.

use crate::losses::sigmoid::sigmoid;

/// The enum `PostProcessing.ScoreConverter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreConverter {
    /// Logits are scores.
    Identity,
    /// Independent classes.
    Sigmoid,
    /// Exclusive classes, the background among them.
    Softmax,
}

impl ScoreConverter {
    /// Scores of the columns from `first`: `[anchors, columns - first]` from `logits` (`[anchors, columns]`), which are divided by
    /// `scale` first.
    pub fn scores(self, logits: &[f32], columns: usize, first: usize, scale: f32) -> Vec<f32> {
        let inverse = 1.0 / scale;
        let rows = logits.chunks_exact(columns.max(1));
        let mut scores = Vec::with_capacity(logits.len());
        for row in rows {
            let scaled = row.iter().map(|&logit| logit * inverse);
            match self {
                Self::Identity => scores.extend(scaled.skip(first)),
                Self::Sigmoid => scores.extend(scaled.skip(first).map(sigmoid)),
                Self::Softmax => {
                    let most = scaled.clone().fold(f32::NEG_INFINITY, f32::max);
                    let sum: f32 = scaled.clone().map(|logit| (logit - most).exp()).sum();
                    scores.extend(scaled.skip(first).map(|logit| (logit - most).exp() / sum));
                }
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_column_goes() {
        let logits = [9.0, 0.0, 2.0, 0.0, -1.0, 4.0];
        assert_eq!(
            ScoreConverter::Identity.scores(&logits, 3, 1, 2.0),
            [0.0, 1.0, -0.5, 2.0]
        );
        assert_eq!(
            ScoreConverter::Sigmoid.scores(&logits[..3], 3, 1, 1.0),
            [0.5, 1.0 / (1.0 + (-2.0_f32).exp())]
        );
    }

    #[test]
    fn softmax_shares_one_with_the_background() {
        let scores = ScoreConverter::Softmax.scores(&[3.0_f32.ln(), 0.0, 0.0, 1000.0, 0.0, 1000.0], 3, 1, 1.0);
        for (score, expected) in scores.iter().zip([0.2, 0.2, 0.0, 0.5]) {
            assert!((score - expected).abs() < 1e-6, "{scores:?}");
        }
    }
}
