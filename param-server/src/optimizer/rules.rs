use super::Rule;

/// Adam's `beta1_power` and `beta2_power`: the betas to the power of the coming step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamPowers {
    /// `beta1_power`
    pub beta1: f32,
    /// `beta2_power`
    pub beta2: f32,
}

impl AdamPowers {
    /// Before the first step; `None` for rules that have none.
    pub fn initial(rule: &Rule) -> Option<Self> {
        match *rule {
            Rule::Adam { beta1, beta2, .. } => Some(Self { beta1, beta2 }),
            _ => None,
        }
    }

    /// After one more step.
    #[must_use]
    pub fn next(self, rule: &Rule) -> Self {
        match *rule {
            Rule::Adam { beta1, beta2, .. } => Self {
                beta1: self.beta1 * beta1,
                beta2: self.beta2 * beta2,
            },
            _ => self,
        }
    }
}

/// One step over `values` and the slots `first` and `second` (which the rule may not have: then they are empty).
///
/// The order of float32 operations is that of TensorFlow's CPU kernels (`ApplyMomentum`, `ApplyRMSProp`,
/// `ApplyAdam` in `core/kernels/training_ops.cc`), so that results agree bit for bit.
pub fn update(
    rule: &Rule,
    rate: f32,
    powers: Option<AdamPowers>,
    gradient: &[f32],
    values: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    match *rule {
        Rule::Momentum {
            momentum,
            nesterov: false,
        } => {
            for ((v, m), g) in values.iter_mut().zip(first).zip(gradient) {
                *m = *m * momentum + g;
                *v -= *m * rate;
            }
        }
        Rule::Momentum {
            momentum,
            nesterov: true,
        } => {
            for ((v, m), g) in values.iter_mut().zip(first).zip(gradient) {
                *m = *m * momentum + g;
                *v -= g * rate + *m * momentum * rate;
            }
        }
        Rule::RmsProp {
            decay,
            momentum,
            epsilon,
        } => {
            let keep = 1.0 - decay;
            for (((v, ms), mom), g) in values.iter_mut().zip(first).zip(second).zip(gradient) {
                *ms += (g * g - *ms) * keep;
                *mom = *mom * momentum + (g * rate) / (*ms + epsilon).sqrt();
                *v -= *mom;
            }
        }
        Rule::Adam { beta1, beta2, epsilon } => {
            let powers = powers.unwrap_or(AdamPowers { beta1, beta2 });
            let alpha = rate * (1.0 - powers.beta2).sqrt() / (1.0 - powers.beta1);
            let (keep1, keep2) = (1.0 - beta1, 1.0 - beta2);
            for (((v, m), s), g) in values.iter_mut().zip(first).zip(second).zip(gradient) {
                *m += (g - *m) * keep1;
                *s += (g * g - *s) * keep2;
                *v -= (*m * alpha) / (s.sqrt() + epsilon);
            }
        }
    }
}

/// `average = decay * average + (1 - decay) * value`, as `assign_moving_average` computes it.
pub fn moving_average(decay: f32, average: &mut [f32], value: &[f32]) {
    let keep = 1.0 - decay;
    for (a, v) in average.iter_mut().zip(value) {
        *a -= (*a - v) * keep;
    }
}
