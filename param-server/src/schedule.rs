//! Learning-rate schedules of the Object Detection API (`utils/learning_schedules.py`), in its float32 arithmetic.

use coati_proto::object_detection::protos;

/// Why a schedule cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// No schedule is chosen.
    #[error(
        "learning_rate is not set\nhint: choose one of constant_learning_rate, exponential_decay_learning_rate, \
         manual_step_learning_rate, cosine_decay_learning_rate"
    )]
    Missing,
    /// A value that makes the schedule meaningless.
    #[error("{key} is {value}: {reason}")]
    Value {
        /// The field's name.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it must be.
        reason: &'static str,
    },
}

/// A schedule: a pure function of the global step (read before it is incremented).
#[derive(Clone, Debug, PartialEq)]
pub enum LearningRate {
    /// The same rate always.
    Constant(f32),
    /// `tf.train.exponential_decay` after a constant burn-in (`exponential_decay_with_burnin`).
    ExponentialDecay {
        /// Rate at the end of the burn-in.
        initial: f32,
        /// Steps of one decay.
        decay_steps: u32,
        /// Factor of one decay.
        factor: f32,
        /// Decay in jumps.
        staircase: bool,
        /// Rate during the burn-in; 0 means `initial`.
        burnin: f32,
        /// Length of the burn-in.
        burnin_steps: u32,
        /// Never below this, burn-in included.
        minimum: f32,
    },
    /// Constant between steps (`manual_stepping`).
    ManualStep {
        /// Rate before the first boundary.
        initial: f32,
        /// `(first step, rate)`, ascending.
        boundaries: Vec<(u32, f32)>,
        /// Linear from `initial` to the first boundary's rate.
        warmup: bool,
    },
    /// Linear warm-up, a plateau, then half a cosine to zero (`cosine_decay_with_warmup`).
    CosineDecay {
        /// Rate after the warm-up.
        base: f32,
        /// At this step the rate reaches zero.
        total_steps: u32,
        /// Rate at step 0.
        warmup: f32,
        /// Length of the warm-up.
        warmup_steps: u32,
        /// Length of the plateau.
        hold_steps: u32,
    },
}

/// The rate that the update of `step` uses (`step` updates were made before).
pub fn learning_rate(schedule: &LearningRate, step: u64) -> f32 {
    match *schedule {
        LearningRate::Constant(rate) => rate,
        LearningRate::ExponentialDecay {
            initial,
            decay_steps,
            factor,
            staircase,
            burnin,
            burnin_steps,
            minimum,
        } => {
            let rate = if step < u64::from(burnin_steps) {
                if burnin == 0.0 { initial } else { burnin }
            } else {
                let power = (step - u64::from(burnin_steps)) as f32 / decay_steps as f32;
                initial * factor.powf(if staircase { power.floor() } else { power })
            };
            rate.max(minimum)
        }
        LearningRate::ManualStep {
            initial,
            ref boundaries,
            warmup,
        } => manual_step(initial, boundaries, warmup, step),
        LearningRate::CosineDecay {
            base,
            total_steps,
            warmup,
            warmup_steps,
            hold_steps,
        } => {
            let (total, until_base) = (u64::from(total_steps), u64::from(warmup_steps) + u64::from(hold_steps));
            if step > total {
                0.0
            } else if step < u64::from(warmup_steps) {
                let slope = (f64::from(base) - f64::from(warmup)) / f64::from(warmup_steps);
                slope as f32 * step as f32 + warmup
            } else if (hold_steps > 0 && step <= until_base) || total <= until_base {
                base
            } else {
                let decayed = step as f32 - warmup_steps as f32 - hold_steps as f32;
                // TensorFlow folds the constants of `pi * decayed / length` into one factor before it computes; its
                // cosine is correctly rounded. Near zero the rate is sensitive to both.
                let factor = std::f32::consts::PI * (1.0 / total.saturating_sub(until_base) as f32);
                let cosine = f64::from(decayed * factor).cos() as f32;
                0.5 * base * (1.0 + cosine)
            }
        }
    }
}

fn manual_step(initial: f32, boundaries: &[(u32, f32)], warmup: bool, step: u64) -> f32 {
    if let Some(&(first, rate)) = boundaries.first().filter(|_| warmup)
        && step < u64::from(first)
    {
        let slope = (f64::from(rate) - f64::from(initial)) / f64::from(first);
        return (f64::from(initial) + slope * step as f64) as f32;
    }
    boundaries
        .iter()
        .rev()
        .find(|(from, _)| step >= u64::from(*from))
        .map_or(initial, |&(_, rate)| rate)
}

impl TryFrom<&protos::LearningRate> for LearningRate {
    type Error = Error;

    fn try_from(proto: &protos::LearningRate) -> Result<Self, Error> {
        use protos::learning_rate::LearningRate as Kind;
        let schedule = match proto.learning_rate.as_ref().ok_or(Error::Missing)? {
            Kind::ConstantLearningRate(c) => Self::Constant(finite("learning_rate", c.learning_rate())?),
            Kind::ExponentialDecayLearningRate(c) => Self::ExponentialDecay {
                initial: finite("initial_learning_rate", c.initial_learning_rate())?,
                decay_steps: positive("decay_steps", c.decay_steps())?,
                factor: finite("decay_factor", c.decay_factor())?,
                staircase: c.staircase(),
                burnin: finite("burnin_learning_rate", c.burnin_learning_rate())?,
                burnin_steps: c.burnin_steps(),
                minimum: finite("min_learning_rate", c.min_learning_rate())?,
            },
            Kind::ManualStepLearningRate(c) => {
                let boundaries: Vec<_> = c.schedule.iter().map(|s| (s.step(), s.learning_rate())).collect();
                for pair in boundaries.windows(2) {
                    if pair[1].0 <= pair[0].0 {
                        let value = format!("{} after {}", pair[1].0, pair[0].0);
                        return Err(Error::Value {
                            key: "schedule.step",
                            value,
                            reason: "steps must grow",
                        });
                    }
                }
                for (_, rate) in &boundaries {
                    finite("schedule.learning_rate", *rate)?;
                }
                let initial = finite("initial_learning_rate", c.initial_learning_rate())?;
                Self::ManualStep {
                    initial,
                    boundaries,
                    warmup: c.warmup(),
                }
            }
            Kind::CosineDecayLearningRate(c) => {
                let until_base = u64::from(c.warmup_steps()) + u64::from(c.hold_base_rate_steps());
                if u64::from(c.total_steps()) < until_base {
                    let value = c.total_steps().to_string();
                    let reason = "must be at least warmup_steps + hold_base_rate_steps";
                    return Err(Error::Value {
                        key: "total_steps",
                        value,
                        reason,
                    });
                }
                if c.warmup_steps() > 0 && c.learning_rate_base() < c.warmup_learning_rate() {
                    let value = c.learning_rate_base().to_string();
                    let reason = "must be at least warmup_learning_rate";
                    return Err(Error::Value {
                        key: "learning_rate_base",
                        value,
                        reason,
                    });
                }
                Self::CosineDecay {
                    base: finite("learning_rate_base", c.learning_rate_base())?,
                    total_steps: c.total_steps(),
                    warmup: finite("warmup_learning_rate", c.warmup_learning_rate())?,
                    warmup_steps: c.warmup_steps(),
                    hold_steps: c.hold_base_rate_steps(),
                }
            }
        };
        Ok(schedule)
    }
}

fn finite(key: &'static str, value: f32) -> Result<f32, Error> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::Value {
            key,
            value: value.to_string(),
            reason: "must be a finite number",
        })
    }
}

fn positive(key: &'static str, value: u32) -> Result<u32, Error> {
    if value > 0 {
        Ok(value)
    } else {
        Err(Error::Value {
            key,
            value: "0".to_owned(),
            reason: "must be at least 1",
        })
    }
}
