//! Vectors of `f32` behind one trait, so that each kernel is written once and compiled for each instruction set.
//!
//! The trait's functions are only sound inside a function compiled with the instruction set's features: kernels are reached through
//! [`multiversion!`](super::multiversion), which makes such functions and picks among them by an [`Isa`](super::Isa).

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _CMP_GT_OQ, _CMP_LT_OQ, _mm256_add_ps, _mm256_and_ps, _mm256_cmp_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    _mm256_sub_ps, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_cmp_ps_mask,
    _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps, _mm512_sub_ps,
};

/// One instruction set's vector of `f32`.
///
/// # Safety
/// Every function requires that the processor has the instruction set, and pointers valid for [`Simd::LANES`] elements.
#[allow(clippy::inline_always)]
pub(crate) trait Simd: Copy {
    /// Elements of a vector; divides 16.
    const LANES: usize;
    /// Rows of the largest tile that the matrix product keeps in registers, with [`Simd::NV`] vectors a row.
    const MR: usize;
    /// Vectors across such a tile.
    const NV: usize;
    /// The register.
    type V: Copy;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `a * b + c`, fused where the machine can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `f` of each lane.
    #[inline(always)]
    unsafe fn each(x: Self::V, f: impl Fn(f32) -> f32) -> Self::V {
        let mut lanes = [0.0; 16];
        unsafe {
            Self::store(lanes.as_mut_ptr(), x);
            for lane in &mut lanes[..Self::LANES] {
                *lane = f(*lane);
            }
            Self::load(lanes.as_ptr())
        }
    }
    /// `x` limited to `[lo, hi]`; a NaN stays one, so that a diverged run is seen.
    unsafe fn clamp(x: Self::V, lo: Self::V, hi: Self::V) -> Self::V;
    /// `x` where `lo < z < hi`, elsewhere 0.
    unsafe fn inside(z: Self::V, lo: Self::V, hi: Self::V, x: Self::V) -> Self::V;
}

/// AVX-512: sixteen lanes, 24 accumulators of 32 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const MR: usize = 12;
    const NV: usize = 2;
    type V = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn clamp(x: __m512, lo: __m512, hi: __m512) -> __m512 {
        // The instruction returns its second operand when one is NaN.
        unsafe { _mm512_min_ps(hi, _mm512_max_ps(lo, x)) }
    }
    #[inline(always)]
    unsafe fn inside(z: __m512, lo: __m512, hi: __m512, x: __m512) -> __m512 {
        unsafe {
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(z, lo);
            _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(above, z, hi), x)
        }
    }
}

/// AVX2 with FMA: eight lanes, 12 accumulators of 16 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const MR: usize = 6;
    const NV: usize = 2;
    type V = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn clamp(x: __m256, lo: __m256, hi: __m256) -> __m256 {
        unsafe { _mm256_min_ps(hi, _mm256_max_ps(lo, x)) }
    }
    #[inline(always)]
    unsafe fn inside(z: __m256, lo: __m256, hi: __m256, x: __m256) -> __m256 {
        unsafe {
            let above = _mm256_cmp_ps::<_CMP_GT_OQ>(z, lo);
            _mm256_and_ps(x, _mm256_and_ps(above, _mm256_cmp_ps::<_CMP_LT_OQ>(z, hi)))
        }
    }
}

/// Whatever the target has by default: four lanes, which the compiler maps to SSE2 or NEON.
#[derive(Clone, Copy)]
pub(crate) struct Baseline;

#[inline(always)]
#[allow(clippy::inline_always)]
fn map2(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[allow(clippy::inline_always)]
impl Simd for Baseline {
    const LANES: usize = 4;
    const MR: usize = 4;
    const NV: usize = 2;
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        if cfg!(target_arch = "aarch64") {
            [
                a[0].mul_add(b[0], c[0]),
                a[1].mul_add(b[1], c[1]),
                a[2].mul_add(b[2], c[2]),
                a[3].mul_add(b[3], c[3]),
            ]
        } else {
            // Without the instruction `f32::mul_add` is a library call.
            map2(map2(a, b, |x, y| x * y), c, |x, y| x + y)
        }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        map2(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        map2(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        map2(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn clamp(x: [f32; 4], lo: [f32; 4], hi: [f32; 4]) -> [f32; 4] {
        let raised = map2(x, lo, |x, lo| if x < lo { lo } else { x });
        map2(raised, hi, |x, hi| if x > hi { hi } else { x })
    }
    #[inline(always)]
    unsafe fn inside(z: [f32; 4], lo: [f32; 4], hi: [f32; 4], x: [f32; 4]) -> [f32; 4] {
        let above = map2(z, lo, |z, lo| if z > lo { 1.0 } else { 0.0 });
        let within = map2(z, hi, |z, hi| if z < hi { 1.0 } else { 0.0 });
        let keep = map2(above, within, |a, b| a * b);
        map2(x, keep, |x, keep| if keep > 0.0 { x } else { 0.0 })
    }
}
