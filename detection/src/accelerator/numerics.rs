//! Which numbers convolutions are made of, once the device is known: what was asked for, or what the device is made for.

use coati_common::cluster::{Numerics, Precision};

/// What convolutions compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// float32
    #[default]
    Float32,
    /// bfloat16
    Bf16,
    /// float16, with scaled gradients.
    Fp16,
}

impl Arithmetic {
    /// As it crosses the border to the library.
    pub const fn code(self) -> u32 {
        match self {
            Self::Float32 => 0,
            Self::Bf16 => 1,
            Self::Fp16 => 2,
        }
    }

    /// The one with this code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Float32),
            1 => Some(Self::Bf16),
            2 => Some(Self::Fp16),
            _ => None,
        }
    }

    /// The setting that asks for it.
    pub const fn precision(self) -> Precision {
        match self {
            Self::Float32 => Precision::Float32,
            Self::Bf16 => Precision::Bf16,
            Self::Fp16 => Precision::Fp16,
        }
    }
}

/// What libtorch computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// The CPU: knows all precisions, so that they can be tested, and is in no hurry with any.
    TorchCpu,
    /// A GPU.
    Gpu(Gpu),
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// As the driver names it.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
}

impl Gpu {
    /// Tensor cores for float16 came with 7.0.
    const FP16: (i32, i32) = (7, 0);
    /// Those for bfloat16 and TF32 with 8.0.
    const BF16: (i32, i32) = (8, 0);

    fn lacks(&self, what: &str, hint: &str) -> String {
        let (major, minor) = self.capability;
        format!(
            "{what} is asked for, which {} (compute capability {major}.{minor}) does not compute in\nhint: {hint}",
            self.name
        )
    }
}

/// What to compute with, or why not as asked, with a hint.
pub fn choose(wish: Numerics, hardware: &Hardware) -> Result<Arithmetic, String> {
    let gpu = match hardware {
        Hardware::TorchCpu if wish.tf32 => {
            return Err("tf32 is asked for, which is a format of GPUs\nhint: leave coati.tf32 (--tf32) out".to_owned());
        }
        Hardware::TorchCpu => {
            return Ok(match wish.precision {
                Precision::Auto | Precision::Float32 => Arithmetic::Float32,
                Precision::Bf16 => Arithmetic::Bf16,
                Precision::Fp16 => Arithmetic::Fp16,
            });
        }
        Hardware::Gpu(gpu) => gpu,
    };
    let (fp16, bf16) = (gpu.capability >= Gpu::FP16, gpu.capability >= Gpu::BF16);
    if wish.tf32 && !bf16 {
        return Err(gpu.lacks(
            "tf32",
            "leave coati.tf32 (--tf32) out: products are then made of whole float32",
        ));
    }
    let wanted = match wish.precision {
        // Who asks for TF32 asks for float32.
        Precision::Auto if wish.tf32 => Precision::Float32,
        Precision::Auto if bf16 => Precision::Bf16,
        Precision::Auto if fp16 => Precision::Fp16,
        Precision::Auto => Precision::Float32,
        given => given,
    };
    match wanted {
        Precision::Auto | Precision::Float32 => Ok(Arithmetic::Float32),
        Precision::Bf16 if bf16 => Ok(Arithmetic::Bf16),
        Precision::Bf16 if fp16 => Err(gpu.lacks(
            "precision bf16",
            "precision fp16 is as fast on this GPU; gradients are scaled then",
        )),
        Precision::Fp16 if fp16 => Ok(Arithmetic::Fp16),
        low => Err(gpu.lacks(&format!("precision {low}"), "use precision float32")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(capability: (i32, i32), precision: Precision, tf32: bool) -> Result<Arithmetic, String> {
        let gpu = Gpu {
            name: "Tesla T4".to_owned(),
            capability,
        };
        choose(Numerics { precision, tf32 }, &Hardware::Gpu(gpu))
    }

    #[test]
    fn a_device_computes_in_what_it_is_made_for() {
        for (capability, expected) in [
            ((9, 0), Arithmetic::Bf16),
            ((8, 0), Arithmetic::Bf16),
            ((7, 5), Arithmetic::Fp16),
            ((6, 1), Arithmetic::Float32),
        ] {
            assert_eq!(on(capability, Precision::Auto, false), Ok(expected), "{capability:?}");
        }
        assert_eq!(on((9, 0), Precision::Auto, true), Ok(Arithmetic::Float32));
        assert_eq!(
            choose(Numerics::default(), &Hardware::TorchCpu),
            Ok(Arithmetic::Float32)
        );
    }

    #[test]
    fn what_is_asked_for_is_what_is_computed_in() {
        for precision in [Precision::Float32, Precision::Bf16, Precision::Fp16] {
            let wish = Numerics { precision, tf32: false };
            assert_eq!(choose(wish, &Hardware::TorchCpu).unwrap().precision(), precision);
            assert_eq!(on((8, 6), precision, true).unwrap().precision(), precision);
        }
    }

    #[test]
    fn what_the_device_lacks_is_refused_with_what_it_has() {
        let turing = on((7, 5), Precision::Bf16, false).unwrap_err();
        for part in ["precision bf16", "Tesla T4", "7.5", "hint: precision fp16"] {
            assert!(turing.contains(part), "{turing}");
        }
        let pascal = on((6, 1), Precision::Fp16, false).unwrap_err();
        assert!(
            pascal.contains("precision fp16") && pascal.contains("hint: use precision float32"),
            "{pascal}"
        );
        let pascal = on((6, 1), Precision::Bf16, false).unwrap_err();
        assert!(pascal.contains("hint: use precision float32"), "{pascal}");
        let tf32 = on((7, 5), Precision::Float32, true).unwrap_err();
        assert!(
            tf32.contains("tf32") && tf32.contains("hint: leave coati.tf32"),
            "{tf32}"
        );
        let wish = Numerics {
            precision: Precision::Auto,
            tf32: true,
        };
        assert!(
            choose(wish, &Hardware::TorchCpu)
                .unwrap_err()
                .contains("hint: leave coati.tf32")
        );
    }

    #[test]
    fn codes_are_read_back() {
        for arithmetic in [Arithmetic::Float32, Arithmetic::Bf16, Arithmetic::Fp16] {
            assert_eq!(Arithmetic::from_code(arithmetic.code()), Some(arithmetic));
        }
        assert_eq!(Arithmetic::from_code(3), None);
    }
}
