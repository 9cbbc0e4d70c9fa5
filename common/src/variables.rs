//! What the trainer, the parameter servers and the checkpoints agree on about a model's variables.

use coati_proto::coati::v1;

/// What a variable is to the optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VariableKind {
    /// Updated by gradients; has the optimiser's slots.
    Trainable,
    /// Moving average of a batch statistic: `value = decay * value + (1 - decay) * batch` (slim's `assign_moving_average`).
    MovingStatistic {
        /// `batch_norm.decay`
        decay: f32,
    },
    /// Never changes while training: frozen weights, statistics of frozen batch norm.
    Constant,
}

/// A float32 variable, in TensorFlow's layout (convolutions HWIO, depthwise `[h, w, in, multiplier]`).
#[derive(Clone, Debug, PartialEq)]
pub struct VariableSpec {
    /// TensorFlow's name without `:0`, for example `FeatureExtractor/MobilenetV1/Conv2d_0/weights`.
    pub name: String,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<i64>,
    /// How it changes.
    pub kind: VariableKind,
}

impl VariableSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<i64>().max(0) as usize
    }
}

/// Total number of elements of the flat vector: all variables, in their declared order, C order each.
pub fn flat_elements(variables: &[VariableSpec]) -> usize {
    variables.iter().map(VariableSpec::elements).sum()
}

impl From<&VariableSpec> for v1::Variable {
    fn from(spec: &VariableSpec) -> Self {
        let (kind, decay) = match spec.kind {
            VariableKind::Trainable => (v1::VariableKind::Trainable, 0.0),
            VariableKind::MovingStatistic { decay } => (v1::VariableKind::MovingStatistic, decay),
            VariableKind::Constant => (v1::VariableKind::Constant, 0.0),
        };
        Self {
            name: spec.name.clone(),
            shape: spec.shape.clone(),
            kind: kind.into(),
            decay,
        }
    }
}

impl From<&v1::Variable> for VariableSpec {
    fn from(variable: &v1::Variable) -> Self {
        let kind = match variable.kind() {
            v1::VariableKind::MovingStatistic => VariableKind::MovingStatistic { decay: variable.decay },
            v1::VariableKind::Constant => VariableKind::Constant,
            v1::VariableKind::Trainable | v1::VariableKind::Unspecified => VariableKind::Trainable,
        };
        Self {
            name: variable.name.clone(),
            shape: variable.shape.clone(),
            kind,
        }
    }
}
