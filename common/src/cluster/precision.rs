//! `coati.precision` and `coati.tf32`: which numbers a network computes with. Variables, gradients between processes and optimisers are
//! float32 in any case.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `coati.precision`, or `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// What the device is made for: float32 on CPUs, bfloat16 on GPUs that multiply it, float16 on older ones.
    #[default]
    Auto,
    /// float32 throughout.
    Float32,
    /// Convolutions in bfloat16: float32's range, 8 bits of precision.
    Bf16,
    /// Convolutions in float16: 11 bits of precision and a small range, so gradients are scaled.
    Fp16,
}

impl Precision {
    /// As they are written.
    pub const NAMES: [&'static str; 4] = ["auto", "float32", "bf16", "fp16"];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }

    /// Whether convolutions have fewer bits than float32.
    pub const fn is_low(self) -> bool {
        matches!(self, Self::Bf16 | Self::Fp16)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no precision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no precision; known are auto, float32, bf16, fp16")]
pub struct Unknown(String);

impl FromStr for Precision {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        match text {
            "auto" => Ok(Self::Auto),
            "float32" => Ok(Self::Float32),
            "bf16" => Ok(Self::Bf16),
            "fp16" => Ok(Self::Fp16),
            _ => Err(Unknown(text.to_owned())),
        }
    }
}

/// What training is asked to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Numerics {
    /// `coati.precision`
    pub precision: Precision,
    /// `coati.tf32`: products of float32 may be made from its first 11 bits, which GPUs from 2020 on do many times faster.
    pub tf32: bool,
}

impl Numerics {
    /// Where only a GPU (or libtorch in its place) can do as asked: which setting asks for it, as it is written.
    pub fn needs_accelerator(self) -> Option<String> {
        match self.precision {
            Precision::Bf16 | Precision::Fp16 => Some(format!("precision {}", self.precision)),
            Precision::Auto | Precision::Float32 => self.tf32.then(|| "tf32".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_are_read_as_they_are_written() {
        for name in Precision::NAMES {
            let precision: Precision = name.parse().unwrap();
            assert_eq!((precision.name(), precision.to_string()), (name, name.to_owned()));
            assert_eq!(serde_json::to_string(&precision).unwrap(), format!("{name:?}"));
        }
        let error = "float16".parse::<Precision>().unwrap_err().to_string();
        assert!(error.contains("float16") && error.contains("fp16"), "{error}");
    }

    #[test]
    fn what_needs_an_accelerator_is_named() {
        let needs = |precision, tf32| Numerics { precision, tf32 }.needs_accelerator();
        assert_eq!(needs(Precision::Auto, false), None);
        assert_eq!(needs(Precision::Float32, false), None);
        assert_eq!(needs(Precision::Float32, true).as_deref(), Some("tf32"));
        assert_eq!(needs(Precision::Bf16, false).as_deref(), Some("precision bf16"));
        assert_eq!(needs(Precision::Fp16, true).as_deref(), Some("precision fp16"));
    }
}
