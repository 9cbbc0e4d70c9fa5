//! Elementwise passes over rows of `[pixels, channels]`, channels a multiple of 16, with per-channel coefficients.

use super::curves::{Curve, Function, with_curve};
use super::isa::multiversion;
use super::simd::Simd;

/// Pixels a step: per-channel coefficients are loaded once for so many.
const STEP: usize = 4;

/// Normalisation and activation of a layer per channel: `a = f(scale * y + shift)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activation {
    pub(crate) scale: *const f32,
    pub(crate) shift: *const f32,
    pub(crate) function: Function,
}

// SAFETY: the pointers are only read, and outlive the tasks that read them (`network` keeps the vectors).
unsafe impl Send for Activation {}
unsafe impl Sync for Activation {}

/// Gradient through normalisation per channel: `dy = k1 * dz + k2 * (y - mean) + k3`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormGradient {
    pub(crate) k1: *const f32,
    pub(crate) k2: *const f32,
    pub(crate) k3: *const f32,
    pub(crate) mean: *const f32,
}

// SAFETY: as above.
unsafe impl Send for NormGradient {}
unsafe impl Sync for NormGradient {}

macro_rules! over_pixels {
    ($pixels:expr, $body:ident::<[$($s:ty),+]>($pixel:ident => $($arg:expr),* $(,)?)) => {{
        let mut $pixel = 0;
        while $pixel + STEP <= $pixels {
            $body::<$($s),+, STEP>($($arg),*);
            $pixel += STEP;
        }
        while $pixel < $pixels {
            $body::<$($s),+, 1>($($arg),*);
            $pixel += 1;
        }
    }};
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn activate_step<S: Simd, C: Curve, const P: usize>(
    channels: usize,
    y: *const f32,
    ldy: usize,
    act: Activation,
    curve: C,
    out: *mut f32,
    ldo: usize,
) {
    unsafe {
        let mut c = 0;
        while c < channels {
            let (scale, shift) = (S::load(act.scale.add(c)), S::load(act.shift.add(c)));
            for p in 0..P {
                let z = S::mul_add(S::load(y.add(p * ldy + c)), scale, shift);
                S::store(out.add(p * ldo + c), curve.value::<S>(z));
            }
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn activate_rows<S: Simd>(
    pixels: usize,
    channels: usize,
    y: *const f32,
    ldy: usize,
    act: Activation,
    out: *mut f32,
    ldo: usize,
) {
    with_curve!(act.function, curve, C => unsafe {
        over_pixels!(pixels, activate_step::<[S, C]>(
            p => channels, y.add(p * ldy), ldy, act, curve, out.add(p * ldo), ldo,
        ));
    });
}

multiversion! {
    /// `out = f(scale * y + shift)`.
    ///
    /// # Safety
    /// `y` and `out` hold `pixels` rows of `channels` at their leading dimensions.
    pub(crate) unsafe fn activate = activate_rows(
        pixels: usize, channels: usize, y: *const f32, ldy: usize, act: Activation, out: *mut f32, ldo: usize,
    )
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn gradient_step<S: Simd, const P: usize>(
    channels: usize,
    dz: *const f32,
    y: *const f32,
    k: NormGradient,
    out: *mut f32,
    ldo: usize,
) {
    unsafe {
        let mut c = 0;
        while c < channels {
            let (k1, k2) = (S::load(k.k1.add(c)), S::load(k.k2.add(c)));
            let (k3, mean) = (S::load(k.k3.add(c)), S::load(k.mean.add(c)));
            for p in 0..P {
                let at = p * channels + c;
                let centred = S::mul_add(S::sub(S::load(y.add(at)), mean), k2, k3);
                S::store(out.add(p * ldo + c), S::mul_add(S::load(dz.add(at)), k1, centred));
            }
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn gradient_rows<S: Simd>(
    pixels: usize,
    channels: usize,
    dz: *const f32,
    y: *const f32,
    k: NormGradient,
    out: *mut f32,
    ldo: usize,
) {
    unsafe {
        over_pixels!(pixels, gradient_step::<[S]>(
            p => channels, dz.add(p * channels), y.add(p * channels), k, out.add(p * ldo), ldo,
        ));
    }
}

multiversion! {
    /// `out = k1 * dz + k2 * (y - mean) + k3`; `dz` and `y` are dense.
    ///
    /// # Safety
    /// `dz` and `y` hold `pixels * channels` elements, `out` as many at its leading dimension.
    pub(crate) unsafe fn gradient = gradient_rows(
        pixels: usize, channels: usize, dz: *const f32, y: *const f32, k: NormGradient, out: *mut f32, ldo: usize,
    )
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn statistics_step<S: Simd, const P: usize>(channels: usize, y: *const f32, ldy: usize, sums: *mut f32) {
    unsafe {
        let mut c = 0;
        while c < channels {
            let mut sum = S::load(sums.add(c));
            let mut square = S::load(sums.add(channels + c));
            for p in 0..P {
                let v = S::load(y.add(p * ldy + c));
                sum = S::add(sum, v);
                square = S::mul_add(v, v, square);
            }
            S::store(sums.add(c), sum);
            S::store(sums.add(channels + c), square);
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn statistics_rows<S: Simd>(pixels: usize, channels: usize, y: *const f32, ldy: usize, sums: *mut f32) {
    unsafe {
        over_pixels!(pixels, statistics_step::<[S]>(p => channels, y.add(p * ldy), ldy, sums));
    }
}

multiversion! {
    /// Adds the sum and the sum of squares of each channel to `sums` (`[2, channels]`).
    ///
    /// # Safety
    /// `y` holds `pixels` rows at its leading dimension, `sums` `2 * channels` elements.
    pub(crate) unsafe fn statistics = statistics_rows(
        pixels: usize, channels: usize, y: *const f32, ldy: usize, sums: *mut f32,
    )
}

#[inline(always)]
#[allow(clippy::inline_always, clippy::too_many_arguments)]
unsafe fn mask_step<S: Simd, C: Curve, const P: usize>(
    channels: usize,
    da: *const f32,
    ldd: usize,
    side: *const f32,
    y: *const f32,
    act: Activation,
    curve: C,
    mean: *const f32,
    dz: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        let mut c = 0;
        while c < channels {
            let (scale, shift) = (S::load(act.scale.add(c)), S::load(act.shift.add(c)));
            let mean = S::load(mean.add(c));
            let mut sum = S::load(sums.add(c));
            let mut product = S::load(sums.add(channels + c));
            for p in 0..P {
                let at = p * channels + c;
                let mut d = S::load(da.add(p * ldd + c));
                if !side.is_null() {
                    d = S::add(d, S::load(side.add(at)));
                }
                let v = S::load(y.add(at));
                let d = curve.slope::<S>(S::mul_add(v, scale, shift), d);
                S::store(dz.add(at), d);
                sum = S::add(sum, d);
                product = S::mul_add(d, S::sub(v, mean), product);
            }
            S::store(sums.add(c), sum);
            S::store(sums.add(channels + c), product);
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always, clippy::too_many_arguments)]
unsafe fn mask_rows<S: Simd>(
    pixels: usize,
    channels: usize,
    da: *const f32,
    ldd: usize,
    side: *const f32,
    y: *const f32,
    act: Activation,
    mean: *const f32,
    dz: *mut f32,
    sums: *mut f32,
) {
    with_curve!(act.function, curve, C => unsafe {
        // The branch on `side` is hoisted out of the loops by having two copies of them.
        if side.is_null() {
            over_pixels!(pixels, mask_step::<[S, C]>(
                p => channels, da.add(p * ldd), ldd, std::ptr::null(), y.add(p * channels), act, curve, mean,
                dz.add(p * channels), sums,
            ));
        } else {
            over_pixels!(pixels, mask_step::<[S, C]>(
                p => channels, da.add(p * ldd), ldd, side.add(p * channels), y.add(p * channels), act, curve, mean,
                dz.add(p * channels), sums,
            ));
        }
    });
}

multiversion! {
    /// Gradient through the activation: `dz = (da + side) * f'(z)`; adds the sums of `dz` and of
    /// `dz * (y - mean)` of each channel to `sums`. `side` may be null; all but `da` are dense.
    ///
    /// # Safety
    /// The pointers hold `pixels` rows of `channels`; `sums` holds `2 * channels`; `dz` may be `da` when that is dense.
    pub(crate) unsafe fn mask = mask_rows(
        pixels: usize, channels: usize, da: *const f32, ldd: usize, side: *const f32, y: *const f32, act: Activation,
        mean: *const f32, dz: *mut f32, sums: *mut f32,
    )
}
