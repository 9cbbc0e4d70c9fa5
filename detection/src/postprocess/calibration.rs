//! Scores made to mean what they say: the message `CalibrationConfig`; the reference's `calibration_builder`.

use std::collections::BTreeMap;

/// How scores are corrected.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Calibration {
    /// Not at all.
    #[default]
    None,
    /// `temperature_scaling_calibration`: logits are divided by this before they become scores.
    Temperature(f32),
    /// `function_approximation`: the same curve for all classes.
    Curve(Curve),
    /// `class_id_function_approximations`: a curve a class column (0 is the background); others stay as they are.
    Curves(BTreeMap<usize, Curve>),
}

impl Calibration {
    /// What logits are divided by.
    pub fn temperature(&self) -> f32 {
        match self {
            Self::Temperature(scaler) => *scaler,
            Self::None | Self::Curve(_) | Self::Curves(_) => 1.0,
        }
    }

    /// Corrects scores (`[anchors, classes]`); their first column is column `first` of the class predictions.
    pub fn correct(&self, scores: &mut [f32], classes: usize, first: usize) {
        match self {
            Self::None | Self::Temperature(_) => {}
            Self::Curve(curve) => scores.iter_mut().for_each(|score| *score = curve.at(*score)),
            Self::Curves(curves) => {
                let own: Vec<Option<&Curve>> = (0..classes).map(|class| curves.get(&(class + first))).collect();
                for row in scores.chunks_exact_mut(classes.max(1)) {
                    for (score, curve) in row.iter_mut().zip(&own) {
                        if let Some(curve) = curve {
                            *score = curve.at(*score);
                        }
                    }
                }
            }
        }
    }
}

/// Points joined by straight lines; left of the first it stays level, right of the last for 1 further.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Curve {
    /// Through these points, of which each is right of the one before; none without a point, or where that is not so.
    pub fn new(points: &[(f32, f32)]) -> Option<Self> {
        let rising = points.windows(2).all(|pair| pair[1].0 > pair[0].0);
        let finite = points.iter().all(|(x, y)| x.is_finite() && y.is_finite());
        let (first, last) = (points.first()?, points.last()?);
        let ends = [(first.0 - 1.0, first.1)].into_iter().chain(points.iter().copied());
        let (x, y) = ends.chain([(last.0 + 1.0, last.1)]).unzip();
        (rising && finite).then_some(Self { x, y })
    }

    /// The value at `x`; NaN stays.
    pub fn at(&self, x: f32) -> f32 {
        if x.is_nan() {
            return x;
        }
        // The reference looks for the last point that is not right of x, and where that is none or the very last it takes the first
        // interval: beyond the right end its curve starts again.
        let after = self.x.partition_point(|&point| point <= x);
        let at = if after == self.x.len() {
            0
        } else {
            after.saturating_sub(1)
        };
        let alpha = (x - self.x[at]) / (self.x[at + 1] - self.x[at]);
        (1.0 - alpha) * self.y[at] + alpha * self.y[at + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        Curve::new(&[(0.0, 0.1), (0.5, 0.3), (1.0, 0.9)]).unwrap()
    }

    #[test]
    fn straight_lines_between_points() {
        for (x, y) in [
            (0.0, 0.1),
            (0.25, 0.2),
            (0.5, 0.3),
            (0.75, 0.6),
            (1.0, 0.9),
            (-0.5, 0.1),
            (-7.0, 0.1),
            (1.5, 0.9),
            (2.5, 0.1),
        ] {
            assert!((curve().at(x) - y).abs() < 1e-6, "{x}: {}", curve().at(x));
        }
        assert!(curve().at(f32::NAN).is_nan());
        assert!(Curve::new(&[]).is_none() && Curve::new(&[(0.5, 0.0), (0.5, 1.0)]).is_none());
    }

    #[test]
    fn a_curve_a_class() {
        let mut scores = [0.5, 0.5, 0.5, 1.0, 1.0, 1.0];
        Calibration::Curves([(2, curve())].into()).correct(&mut scores, 3, 1);
        assert_eq!(scores, [0.5, 0.3, 0.5, 1.0, 0.9, 1.0]);
        Calibration::Curve(curve()).correct(&mut scores[..1], 3, 1);
        assert_eq!(scores[0], 0.3);
        assert_eq!(Calibration::Temperature(2.0).temperature(), 2.0);
    }
}
