use coati_common::optimizer::Rule;
use coati_proto::object_detection::protos;
use prost::Message as _;

use crate::schedule::{self, LearningRate};

/// Why an optimiser cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// None is chosen.
    #[error("optimizer is not set\nhint: choose momentum_optimizer, rms_prop_optimizer or adam_optimizer")]
    Missing,
    /// The schedule is wrong.
    #[error("{optimizer}: {source}")]
    Schedule {
        /// Which optimiser it belongs to.
        optimizer: &'static str,
        /// What is wrong.
        source: schedule::Error,
    },
    /// A value out of range.
    #[error("{key} is {value}: {reason}")]
    Value {
        /// The field's name.
        key: &'static str,
        /// What it is.
        value: f32,
        /// What it must be.
        reason: &'static str,
    },
    /// Not a serialised `object_detection.protos.Optimizer`.
    #[error("the optimizer message cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// An optimiser with its schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// The update.
    pub rule: Rule,
    /// Its learning rate.
    pub learning_rate: LearningRate,
    /// Decay of the moving averages kept of trainable variables, if any are kept.
    pub moving_average_decay: Option<f32>,
}

impl OptimizerConfig {
    /// From the bytes of an `object_detection.protos.Optimizer`, as `ConfigureRequest` carries it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Self::try_from(&protos::Optimizer::decode(bytes)?)
    }
}

impl TryFrom<&protos::Optimizer> for OptimizerConfig {
    type Error = Error;

    fn try_from(proto: &protos::Optimizer) -> Result<Self, Error> {
        use protos::optimizer::Optimizer as Kind;
        let (name, rule, learning_rate) = match proto.optimizer.as_ref().ok_or(Error::Missing)? {
            Kind::MomentumOptimizer(c) => {
                let momentum = unit("momentum_optimizer_value", c.momentum_optimizer_value())?;
                (
                    "momentum_optimizer",
                    Rule::Momentum {
                        momentum,
                        nesterov: false,
                    },
                    c.learning_rate.as_ref(),
                )
            }
            Kind::RmsPropOptimizer(c) => {
                let rule = Rule::RmsProp {
                    decay: unit("decay", c.decay())?,
                    momentum: unit("momentum_optimizer_value", c.momentum_optimizer_value())?,
                    epsilon: not_negative("epsilon", c.epsilon())?,
                };
                ("rms_prop_optimizer", rule, c.learning_rate.as_ref())
            }
            Kind::AdamOptimizer(c) => {
                // The reference leaves both betas at tf.train.AdamOptimizer's defaults.
                let rule = Rule::Adam {
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: not_negative("epsilon", c.epsilon())?,
                };
                ("adam_optimizer", rule, c.learning_rate.as_ref())
            }
        };
        let schedule = |source| Error::Schedule {
            optimizer: name,
            source,
        };
        let learning_rate = learning_rate.ok_or(schedule::Error::Missing).map_err(schedule)?;
        let learning_rate = LearningRate::try_from(learning_rate).map_err(schedule)?;
        let moving_average_decay = proto
            .use_moving_average()
            .then(|| unit("moving_average_decay", proto.moving_average_decay()))
            .transpose()?;
        Ok(Self {
            rule,
            learning_rate,
            moving_average_decay,
        })
    }
}

fn unit(key: &'static str, value: f32) -> Result<f32, Error> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(Error::Value {
            key,
            value,
            reason: "must be from 0 to 1",
        })
    }
}

fn not_negative(key: &'static str, value: f32) -> Result<f32, Error> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(Error::Value {
            key,
            value,
            reason: "must be a finite number, 0 or more",
        })
    }
}
