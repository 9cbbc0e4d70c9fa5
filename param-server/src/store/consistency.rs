//! What is done about gradients that are computed from older variables than those they are applied to.

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_common::variables::VariableKind;
use coati_proto::coati::v1;

use crate::placement::Segment;

/// Added to the mean square before its root, as in the paper.
const EPSILON: f32 = 1e-7;

/// How old a gradient may be, and what its age changes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Consistency {
    /// Versions that a gradient may be behind the variables that it is applied to; 0 is synchronous training.
    pub max_staleness: u64,
    /// The learning rate of an update is that of the schedule divided by 1 + staleness.
    pub scale_learning_rate: bool,
    /// Makes up for what changed since the gradient's variables were pulled.
    pub delay_compensation: Option<DelayCompensation>,
}

impl From<u64> for Consistency {
    /// A bound and nothing else.
    fn from(max_staleness: u64) -> Self {
        Self {
            max_staleness,
            ..Self::default()
        }
    }
}

/// DC-ASGD (Zheng et al. 2017, algorithm 2): `g + lambda * g * g * (w - w_pulled)` in place of `g`, elementwise, where
/// `w_pulled` is what the replica computed `g` from. `lambda * g * g` stands for the diagonal of the Hessian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DelayCompensation {
    /// How much of it; 0.04 in the paper for the constant variant, 2 for the adaptive one.
    pub lambda: f32,
    /// The adaptive variant: lambda is divided by `sqrt(m + 1e-7)`, where `m` becomes `m * decay + g * g * (1 - decay)`
    /// before that with each gradient (0 at first). Elementwise; an optimiser's slot in checkpoints.
    pub mean_square_decay: Option<f32>,
}

impl DelayCompensation {
    /// Compensates a whole contribution (`gradient`, `[pushed_len]`). `now` and `pulled` are arenas; `mean_squares` is
    /// `[slotted_len]` in the adaptive variant and not looked at otherwise. Moving statistics are no gradients and stay.
    ///
    /// In float32, in this order: `d = now - pulled`, `q = g * g`, `g + lambda * q * d` or, adaptive,
    /// `m += (q - m) * (1 - decay)`, `g + lambda / sqrt(m + 1e-7) * q * d`. Where that overflows, `g` stays as it is.
    pub(crate) fn apply(
        self,
        segments: &[Segment],
        gradient: &mut [f32],
        now: &[f32],
        pulled: &[f32],
        mean_squares: &mut [f32],
    ) {
        for segment in segments
            .iter()
            .filter(|segment| segment.kind == VariableKind::Trainable)
        {
            let range = segment.offset..segment.offset + segment.length;
            let differences = now[range.clone()]
                .iter()
                .zip(&pulled[range.clone()])
                .map(|(now, pulled)| now - pulled);
            let elements = gradient[range.clone()].iter_mut().zip(differences);
            match self.mean_square_decay {
                None => {
                    for (g, difference) in elements {
                        *g = finite_or(*g + self.lambda * (*g * *g) * difference, *g);
                    }
                }
                Some(decay) => {
                    let keep = 1.0 - decay;
                    for ((g, difference), m) in elements.zip(&mut mean_squares[range]) {
                        let square = *g * *g;
                        *m = finite_or(*m + (square - *m) * keep, *m);
                        *g = finite_or(*g + self.lambda / (*m + EPSILON).sqrt() * square * difference, *g);
                    }
                }
            }
        }
    }
}

/// A gradient may be as large as it likes as long as it is finite; its square may not.
fn finite_or(value: f32, otherwise: f32) -> f32 {
    if value.is_finite() { value } else { otherwise }
}

/// The learning rate of an update with a gradient that is `staleness` versions old, when ages count:
/// `rate * (1 / (1 + staleness))` in float32.
pub(crate) fn scaled(rate: f32, staleness: u64) -> f32 {
    rate * (1.0 / (1.0 + staleness as f32))
}

impl TryFrom<&v1::ConfigureRequest> for Consistency {
    type Error = ServiceError;

    fn try_from(request: &v1::ConfigureRequest) -> Result<Self, ServiceError> {
        let refuse = |what: String| Err(ServiceError::new(ErrorCode::InvalidRequest, what));
        let delay_compensation = match request.delay_compensation {
            None => None,
            Some(wire) => {
                if !(wire.lambda.is_finite() && wire.lambda > 0.0) {
                    return refuse(format!(
                        "delay compensation with lambda {}: a number above 0 is needed",
                        wire.lambda
                    ));
                }
                if let Some(decay) = wire.mean_square_decay.filter(|decay| !(0.0..1.0).contains(decay)) {
                    return refuse(format!(
                        "delay compensation with a decay of {decay}: from 0 to below 1 is needed"
                    ));
                }
                Some(DelayCompensation {
                    lambda: wire.lambda,
                    mean_square_decay: wire.mean_square_decay,
                })
            }
        };
        Ok(Self {
            max_staleness: request.max_staleness,
            scale_learning_rate: request.scale_learning_rate,
            delay_compensation,
        })
    }
}

impl From<DelayCompensation> for v1::DelayCompensation {
    fn from(own: DelayCompensation) -> Self {
        Self {
            lambda: own.lambda,
            mean_square_decay: own.mean_square_decay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> [Segment; 2] {
        let segment = |offset, kind| Segment {
            offset,
            length: 2,
            kind,
        };
        [
            segment(0, VariableKind::Trainable),
            segment(2, VariableKind::MovingStatistic { decay: 0.9 }),
        ]
    }

    #[test]
    fn the_constant_variant_by_hand() {
        let compensation = DelayCompensation {
            lambda: 0.5,
            mean_square_decay: None,
        };
        let mut gradient = [2.0, -3.0, 4.0, 5.0];
        compensation.apply(
            &segments(),
            &mut gradient,
            &[1.5, 0.0, 9.0, 9.0],
            &[1.0, 0.25, 0.0, 0.0],
            &mut [],
        );
        // 2 + 0.5 * 4 * 0.5 and -3 + 0.5 * 9 * -0.25; what is no gradient stays.
        assert_eq!(gradient, [3.0, -4.125, 4.0, 5.0]);
    }

    #[test]
    fn the_adaptive_variant_by_hand() {
        let compensation = DelayCompensation {
            lambda: 2.0,
            mean_square_decay: Some(0.75),
        };
        let mut mean_squares = [0.0, 12.0];
        let mut gradient = [2.0, -4.0, 1.0, 1.0];
        compensation.apply(
            &segments(),
            &mut gradient,
            &[1.5, 1.0, 0.0, 0.0],
            &[1.0, 0.0, 1.0, 1.0],
            &mut mean_squares,
        );
        // 0 + (4 - 0) / 4 = 1, 12 + (16 - 12) / 4 = 13; the epsilon vanishes beside them in float32 or nearly so.
        assert_eq!(mean_squares, [1.0, 13.0]);
        assert_eq!(gradient[0], 2.0 + 2.0 / (1.0f32 + 1e-7).sqrt() * 4.0 * 0.5);
        assert_eq!(gradient[1], -4.0 + 2.0 / (13.0f32 + 1e-7).sqrt() * 16.0 * 1.0);
    }

    #[test]
    fn a_square_that_overflows_leaves_the_gradient() {
        for mean_square_decay in [None, Some(0.5)] {
            let compensation = DelayCompensation {
                lambda: 0.5,
                mean_square_decay,
            };
            let (mut gradient, mut mean_squares) = ([1e30, 1.0, 0.0, 0.0], [0.0; 2]);
            compensation.apply(&segments(), &mut gradient, &[0.0; 4], &[0.0; 4], &mut mean_squares);
            assert_eq!(gradient, [1e30, 1.0, 0.0, 0.0]);
            assert!(mean_squares.iter().all(|m| m.is_finite()), "{mean_squares:?}");
        }
    }

    #[test]
    fn age_divides_the_learning_rate() {
        assert_eq!([0, 1, 3].map(|age| scaled(0.5, age)), [0.5, 0.25, 0.125]);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let with = |lambda, mean_square_decay| {
            Consistency::try_from(&v1::ConfigureRequest {
                delay_compensation: Some(v1::DelayCompensation {
                    lambda,
                    mean_square_decay,
                }),
                ..v1::ConfigureRequest::default()
            })
        };
        assert!(with(0.04, None).is_ok() && with(2.0, Some(0.95)).is_ok());
        for (lambda, decay) in [
            (0.0, None),
            (-1.0, None),
            (f32::NAN, None),
            (1.0, Some(1.0)),
            (1.0, Some(f32::NAN)),
        ] {
            let error = with(lambda, decay).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{lambda} {decay:?}");
        }
    }
}
