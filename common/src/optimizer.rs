//! The rules by which gradients change variables: parameter servers, ranks and devices follow the same.

use serde::{Deserialize, Serialize};

/// How a gradient changes a variable and its slots.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// `tf.train.MomentumOptimizer`
    Momentum {
        /// Decay of the accumulator.
        momentum: f32,
        /// Look ahead by one step.
        nesterov: bool,
    },
    /// `tf.train.RMSPropOptimizer`, not centred.
    RmsProp {
        /// Decay of the mean square.
        decay: f32,
        /// Decay of the step.
        momentum: f32,
        /// Added inside the root.
        epsilon: f32,
    },
    /// `tf.train.AdamOptimizer`
    Adam {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added outside the bias correction.
        epsilon: f32,
    },
}

/// One extra value that an optimiser keeps for each element of a trainable variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// Last component of its name in checkpoints: `VAR/Momentum`.
    pub suffix: &'static str,
    /// Value before the first step.
    pub initial: f32,
}

impl Rule {
    /// The slots, in the order in which every implementation of the rule takes them.
    pub fn slots(&self) -> &'static [Slot] {
        match self {
            Self::Momentum { .. } => &[Slot {
                suffix: "Momentum",
                initial: 0.0,
            }],
            // The mean square starts at one, the step at zero.
            Self::RmsProp { .. } => &[
                Slot {
                    suffix: "RMSProp",
                    initial: 1.0,
                },
                Slot {
                    suffix: "RMSProp_1",
                    initial: 0.0,
                },
            ],
            Self::Adam { .. } => &[
                Slot {
                    suffix: "Adam",
                    initial: 0.0,
                },
                Slot {
                    suffix: "Adam_1",
                    initial: 0.0,
                },
            ],
        }
    }

    /// Whether an element that never had a gradient has a step of 0 / 0.
    pub fn may_divide_by_zero(&self) -> bool {
        match *self {
            Self::Momentum { .. } => false,
            Self::RmsProp { epsilon, .. } | Self::Adam { epsilon, .. } => epsilon == 0.0,
        }
    }
}
