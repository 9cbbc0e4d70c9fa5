//! Scale tiers of Cloud ML Engine: clusters of a fixed shape.
//!
//! Source: the service's documentation of `ScaleTier`.

use std::fmt;

use super::machine::Refusal;
use super::suggest;

/// `scaleTier`: a fixed cluster, or `CUSTOM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleTier {
    /// One machine.
    Basic,
    /// One machine with a GPU.
    BasicGpu,
    /// Four workers, three parameter servers.
    Standard1,
    /// 19 workers, eleven parameter servers.
    Premium1,
    /// What the file says.
    Custom,
}

/// The cluster that a tier stands for: counts, and the machine type of each role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierShape {
    /// Machine type of the master.
    pub master: &'static str,
    /// Number of workers and their machine type.
    pub workers: (u32, &'static str),
    /// Number of parameter servers and their machine type.
    pub parameter_servers: (u32, &'static str),
}

impl ScaleTier {
    /// The tiers that can be run.
    pub const ALL: [Self; 5] = [
        Self::Basic,
        Self::BasicGpu,
        Self::Standard1,
        Self::Premium1,
        Self::Custom,
    ];

    /// As written in cluster files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Basic => "BASIC",
            Self::BasicGpu => "BASIC_GPU",
            Self::Standard1 => "STANDARD_1",
            Self::Premium1 => "PREMIUM_1",
            Self::Custom => "CUSTOM",
        }
    }

    /// The documented cluster of the tier; none for `CUSTOM`.
    pub const fn shape(self) -> Option<TierShape> {
        let (master, workers, parameter_servers) = match self {
            Self::Basic => ("standard", (0, "standard"), (0, "standard")),
            Self::BasicGpu => ("standard_gpu", (0, "standard_gpu"), (0, "standard")),
            Self::Standard1 => ("complex_model_s", (4, "complex_model_s"), (3, "standard")),
            Self::Premium1 => ("complex_model_m", (19, "complex_model_m"), (11, "large_model")),
            Self::Custom => return None,
        };
        Some(TierShape {
            master,
            workers,
            parameter_servers,
        })
    }

    /// The tier of this name. Upper and lower case are the same, as in `gcloud`.
    pub fn find(name: &str) -> Result<Self, Refusal> {
        let upper = name.to_ascii_uppercase();
        if let Some(tier) = Self::ALL.into_iter().find(|tier| tier.name() == upper) {
            return Ok(tier);
        }
        if upper == "BASIC_TPU" {
            return Err(Refusal::new(
                "scale tier `BASIC_TPU` is not supported: Coati trains on CPUs and NVIDIA GPUs",
                Some("use BASIC, BASIC_GPU, STANDARD_1, PREMIUM_1 or CUSTOM".to_owned()),
            ));
        }
        let hint = suggest::nearest(&upper, Self::ALL.map(Self::name)).map_or_else(
            || "known are BASIC, BASIC_GPU, STANDARD_1, PREMIUM_1 and CUSTOM".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        Err(Refusal::new(format!("unknown scale tier `{name}`"), Some(hint)))
    }
}

impl fmt::Display for ScaleTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::ScaleTier;
    use crate::cluster::machine::find;

    #[test]
    fn tiers_have_their_documented_shapes() {
        let counts = |tier: ScaleTier| tier.shape().map(|shape| (shape.workers.0, shape.parameter_servers.0));
        assert_eq!(counts(ScaleTier::Basic), Some((0, 0)));
        assert_eq!(counts(ScaleTier::BasicGpu), Some((0, 0)));
        assert_eq!(counts(ScaleTier::Standard1), Some((4, 3)));
        assert_eq!(counts(ScaleTier::Premium1), Some((19, 11)));
        assert_eq!(counts(ScaleTier::Custom), None);
        for tier in ScaleTier::ALL {
            assert_eq!(ScaleTier::find(&tier.name().to_lowercase()), Ok(tier));
            if let Some(shape) = tier.shape() {
                for name in [shape.master, shape.workers.1, shape.parameter_servers.1] {
                    assert!(find(name).is_ok(), "{tier}: {name}");
                }
            }
        }
        assert_eq!(
            ScaleTier::find("STANDARD").unwrap_err().hint.as_deref(),
            Some("did you mean `STANDARD_1`?")
        );
        assert!(
            ScaleTier::find("basic_tpu")
                .unwrap_err()
                .message
                .contains("`BASIC_TPU` is not supported")
        );
    }
}
