//! Activation functions and their slopes, on vectors.

use super::simd::Simd;
use crate::network::Activation;

/// Which function. Made from the configuration's [`Activation`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Function {
    /// Limited to an interval.
    Clamp(Clamp),
    /// `x / (1 + exp(-x))`
    Swish,
    /// `x * relu6(x + 3) / 6`
    HardSwish,
    /// `relu6(x + 3) * 0.16667`
    HardSigmoid,
}

impl From<Activation> for Function {
    fn from(activation: Activation) -> Self {
        let clamp = |lo, hi| Self::Clamp(Clamp { lo, hi });
        match activation {
            Activation::None => clamp(f32::NEG_INFINITY, f32::INFINITY),
            Activation::Relu => clamp(0.0, f32::INFINITY),
            Activation::Relu6 => clamp(0.0, 6.0),
            Activation::Swish => Self::Swish,
            Activation::HardSwish => Self::HardSwish,
            Activation::HardSigmoid => Self::HardSigmoid,
        }
    }
}

/// A function of one variable.
///
/// # Safety
/// As those of [`Simd`].
pub(crate) trait Curve: Copy {
    /// The value at `z`.
    unsafe fn value<S: Simd>(self, z: S::V) -> S::V;
    /// `d` times the slope at `z`.
    unsafe fn slope<S: Simd>(self, z: S::V, d: S::V) -> S::V;
}

/// The identity between `lo` and `hi`; at and beyond them its slope is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clamp {
    lo: f32,
    hi: f32,
}

#[allow(clippy::inline_always)]
impl Curve for Clamp {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V) -> S::V {
        unsafe { S::clamp(z, S::splat(self.lo), S::splat(self.hi)) }
    }
    #[inline(always)]
    unsafe fn slope<S: Simd>(self, z: S::V, d: S::V) -> S::V {
        unsafe { S::inside(z, S::splat(self.lo), S::splat(self.hi), d) }
    }
}

/// `x * sigmoid(x)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swish;

#[allow(clippy::inline_always)]
impl Curve for Swish {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V) -> S::V {
        unsafe { S::mul(z, S::each(z, sigmoid)) }
    }
    #[inline(always)]
    unsafe fn slope<S: Simd>(self, z: S::V, d: S::V) -> S::V {
        unsafe {
            S::mul(
                d,
                S::each(z, |z| {
                    let s = sigmoid(z);
                    s * (1.0 + z * (1.0 - s))
                }),
            )
        }
    }
}

/// `relu6(x + 3)`
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn raised<S: Simd>(z: S::V) -> S::V {
    unsafe { S::clamp(S::add(z, S::splat(3.0)), S::zero(), S::splat(6.0)) }
}

/// See [`Function::HardSwish`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct HardSwish;

#[allow(clippy::inline_always)]
impl Curve for HardSwish {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V) -> S::V {
        unsafe { S::mul(S::mul(z, raised::<S>(z)), S::splat(1.0 / 6.0)) }
    }
    #[inline(always)]
    unsafe fn slope<S: Simd>(self, z: S::V, d: S::V) -> S::V {
        unsafe {
            let above = S::add(z, S::splat(3.0));
            let sum = S::add(raised::<S>(z), S::inside(above, S::zero(), S::splat(6.0), z));
            S::mul(S::mul(d, sum), S::splat(1.0 / 6.0))
        }
    }
}

/// See [`Function::HardSigmoid`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct HardSigmoid;

/// As MobileNet v3 rounds a sixth.
const SIXTH: f32 = 0.16667;

#[allow(clippy::inline_always)]
impl Curve for HardSigmoid {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V) -> S::V {
        unsafe { S::mul(raised::<S>(z), S::splat(SIXTH)) }
    }
    #[inline(always)]
    unsafe fn slope<S: Simd>(self, z: S::V, d: S::V) -> S::V {
        unsafe {
            let above = S::add(z, S::splat(3.0));
            S::inside(above, S::zero(), S::splat(6.0), S::mul(d, S::splat(SIXTH)))
        }
    }
}

/// `1 / (1 + exp(-x))`
#[inline(always)]
#[allow(clippy::inline_always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `exp(x)` to two units in the last place, for `x` limited to where neither it nor its inverse overflows. Without branches, so that the compiler
/// computes a vector of them at once: `2^n * exp(r)` with `|r| <= ln(2) / 2`, the polynomial is that of Cephes' `expf`.
#[inline(always)]
#[allow(clippy::inline_always)]
fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in a float's last bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln(2) in two parts, of which the first times a small integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -0.000_212_194_44];
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    (p * r * r + r + 1.0) * power
}

/// Runs `$body` with `$curve` being the function that `$function` names and `$type` its type.
macro_rules! with_curve {
    ($function:expr, $curve:ident, $type:ident => $body:expr) => {
        match $function {
            $crate::kernels::curves::Function::Clamp($curve) => {
                type $type = $crate::kernels::curves::Clamp;
                $body
            }
            $crate::kernels::curves::Function::Swish => {
                type $type = $crate::kernels::curves::Swish;
                let $curve = $crate::kernels::curves::Swish;
                $body
            }
            $crate::kernels::curves::Function::HardSwish => {
                type $type = $crate::kernels::curves::HardSwish;
                let $curve = $crate::kernels::curves::HardSwish;
                $body
            }
            $crate::kernels::curves::Function::HardSigmoid => {
                type $type = $crate::kernels::curves::HardSigmoid;
                let $curve = $crate::kernels::curves::HardSigmoid;
                $body
            }
        }
    };
}
pub(crate) use with_curve;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::kernels::rows::{Activation as Layer, activate, mask};

    /// Value and slope in double precision, written down once more.
    fn exact(activation: Activation, z: f64) -> (f64, f64) {
        let clamped = |lo: f64, hi: f64| (z.clamp(lo, hi), if z > lo && z < hi { 1.0 } else { 0.0 });
        let (raised, inside) = ((z + 3.0).clamp(0.0, 6.0), if z > -3.0 && z < 3.0 { 1.0 } else { 0.0 });
        let s = 1.0 / (1.0 + (-z).exp());
        match activation {
            Activation::None => (z, 1.0),
            Activation::Relu => clamped(0.0, f64::INFINITY),
            Activation::Relu6 => clamped(0.0, 6.0),
            Activation::Swish => (z * s, s * (1.0 + z * (1.0 - s))),
            Activation::HardSwish => (z * raised / 6.0, raised / 6.0 + z * inside / 6.0),
            Activation::HardSigmoid => (raised * 0.16667, inside * 0.16667),
        }
    }

    #[test]
    fn values_and_slopes_are_exact_on_every_instruction_set() {
        let (scale, shift, mean) = (vec![1.5_f32; 16], vec![0.25_f32; 16], vec![0.0_f32; 16]);
        let y: Vec<f32> = (0..16 * 200).map(|i| (i as f32 - 1600.0) * 0.0125).collect();
        let ones = vec![1.0_f32; y.len()];
        for activation in [
            Activation::None,
            Activation::Relu,
            Activation::Relu6,
            Activation::Swish,
            Activation::HardSwish,
            Activation::HardSigmoid,
        ] {
            for isa in Isa::available() {
                let act = Layer {
                    scale: scale.as_ptr(),
                    shift: shift.as_ptr(),
                    function: activation.into(),
                };
                let (mut values, mut slopes) = (vec![0.0_f32; y.len()], vec![0.0_f32; y.len()]);
                let mut sums = vec![0.0_f32; 32];
                // SAFETY: all slices hold 200 pixels of 16 channels.
                unsafe {
                    activate(isa, 200, 16, y.as_ptr(), 16, act, values.as_mut_ptr(), 16);
                    let (d, to) = (ones.as_ptr(), slopes.as_mut_ptr());
                    let none = std::ptr::null();
                    mask(
                        isa,
                        200,
                        16,
                        d,
                        16,
                        none,
                        y.as_ptr(),
                        act,
                        mean.as_ptr(),
                        to,
                        sums.as_mut_ptr(),
                    );
                }
                for ((&y, &value), &slope) in y.iter().zip(&values).zip(&slopes) {
                    let z = 1.5 * f64::from(y) + 0.25;
                    // Next to a corner, rounding decides on which side.
                    if [-3.0, 0.0, 3.0, 6.0].iter().any(|corner| (z - corner).abs() < 1e-4) {
                        continue;
                    }
                    let (v, s) = exact(activation, z);
                    let near = |found: f32, expected: f64| {
                        (f64::from(found) - expected).abs() < 2e-6 * expected.abs().max(1.0)
                    };
                    assert!(
                        near(value, v) && near(slope, s),
                        "{activation:?} {isa:?} at {z}: {value} {slope}, {v} {s}"
                    );
                }
            }
        }
    }

    #[test]
    fn nan_stays_nan_and_large_values_are_finite() {
        for x in [-1e30_f32, -200.0, -90.0, 90.0, 200.0, 1e30] {
            let found = sigmoid(x);
            assert!((found - if x > 0.0 { 1.0 } else { 0.0 }).abs() < 1e-30, "{x}: {found}");
        }
        assert!(sigmoid(f32::NAN).is_nan());
    }
}
