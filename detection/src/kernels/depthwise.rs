//! 3 x 3 depthwise convolution, row by row. Input rows come activated and with their horizontal padding written out, so that no kernel
//! has edges: column `j` of such a row is image column `j - left`.

use super::isa::multiversion;
use super::simd::Simd;

/// Output pixels a step: weights are loaded once for so many.
const STEP: usize = 4;

/// Three consecutive rows of the input of a 3 x 3 window.
pub(crate) type Rows = [*const f32; 3];

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn row_step<S: Simd, const STRIDE: usize, const P: usize>(
    channels: usize,
    rows: Rows,
    weights: *const f32,
    out: *mut f32,
) {
    unsafe {
        let mut c = 0;
        while c < channels {
            let mut sums = [S::zero(); P];
            for (ky, row) in rows.iter().enumerate() {
                for kx in 0..3 {
                    let w = S::load(weights.add((ky * 3 + kx) * channels + c));
                    for (p, sum) in sums.iter_mut().enumerate() {
                        *sum = S::mul_add(S::load(row.add((p * STRIDE + kx) * channels + c)), w, *sum);
                    }
                }
            }
            for (p, &sum) in sums.iter().enumerate() {
                S::store(out.add(p * channels + c), sum);
            }
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn row_stride<S: Simd, const STRIDE: usize>(
    pixels: usize,
    channels: usize,
    rows: Rows,
    weights: *const f32,
    out: *mut f32,
) {
    let mut x = 0;
    while x < pixels {
        unsafe {
            let here = rows.map(|row| row.add(x * STRIDE * channels));
            if x + STEP <= pixels {
                row_step::<S, STRIDE, STEP>(channels, here, weights, out.add(x * channels));
                x += STEP;
            } else {
                row_step::<S, STRIDE, 1>(channels, here, weights, out.add(x * channels));
                x += 1;
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn row_kernel<S: Simd>(
    stride: usize,
    pixels: usize,
    channels: usize,
    rows: Rows,
    weights: *const f32,
    out: *mut f32,
) {
    unsafe {
        if stride == 1 {
            row_stride::<S, 1>(pixels, channels, rows, weights, out);
        } else {
            row_stride::<S, 2>(pixels, channels, rows, weights, out);
        }
    }
}

multiversion! {
    /// One row of `pixels` outputs; `weights` is `[3, 3, channels]`, `stride` 1 or 2.
    ///
    /// # Safety
    /// The rows hold `(pixels - 1) * stride + 3` padded columns of `channels`, `out` holds `pixels * channels`.
    pub(crate) unsafe fn row = row_kernel(
        stride: usize, pixels: usize, channels: usize, rows: Rows, weights: *const f32, out: *mut f32,
    )
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn weights_stride<S: Simd, const STRIDE: usize>(
    pixels: usize,
    channels: usize,
    rows: Rows,
    dy: *const f32,
    sums: *mut f32,
) {
    unsafe {
        let mut c = 0;
        while c < channels {
            let mut taps = [S::zero(); 9];
            for (k, tap) in taps.iter_mut().enumerate() {
                *tap = S::load(sums.add(k * channels + c));
            }
            let mut here = rows.map(|row| row.add(c));
            let mut d = dy.add(c);
            for _ in 0..pixels {
                let v = S::load(d);
                for (ky, row) in here.iter().enumerate() {
                    for kx in 0..3 {
                        taps[ky * 3 + kx] = S::mul_add(S::load(row.add(kx * channels)), v, taps[ky * 3 + kx]);
                    }
                }
                here = here.map(|row| row.wrapping_add(STRIDE * channels));
                d = d.wrapping_add(channels);
            }
            for (k, &tap) in taps.iter().enumerate() {
                S::store(sums.add(k * channels + c), tap);
            }
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn weights_kernel<S: Simd>(
    stride: usize,
    pixels: usize,
    channels: usize,
    rows: Rows,
    dy: *const f32,
    sums: *mut f32,
) {
    unsafe {
        if stride == 1 {
            weights_stride::<S, 1>(pixels, channels, rows, dy, sums);
        } else {
            weights_stride::<S, 2>(pixels, channels, rows, dy, sums);
        }
    }
}

multiversion! {
    /// Adds one output row's part of the weights' gradient to `sums` (`[3, 3, channels]`).
    ///
    /// # Safety
    /// As [`row`], with `dy` in place of the output.
    pub(crate) unsafe fn weights_gradient = weights_kernel(
        stride: usize, pixels: usize, channels: usize, rows: Rows, dy: *const f32, sums: *mut f32,
    )
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn input_taps<S: Simd, const R: usize>(
    pixels: usize,
    left: usize,
    channels: usize,
    rows: [(*const f32, *const f32); R],
    out: *mut f32,
) {
    unsafe {
        for x in 0..pixels {
            let column = x + left;
            let (at, even) = (column / 2, column.is_multiple_of(2));
            let mut c = 0;
            while c < channels {
                let mut sum = S::zero();
                for (dy, w) in rows {
                    // One column of padding stands before column 0.
                    let here = S::load(dy.add((at + 1) * channels + c));
                    if even {
                        sum = S::mul_add(here, S::load(w.add(c)), sum);
                        let before = S::load(dy.add(at * channels + c));
                        sum = S::mul_add(before, S::load(w.add(2 * channels + c)), sum);
                    } else {
                        sum = S::mul_add(here, S::load(w.add(channels + c)), sum);
                    }
                }
                S::store(out.add(x * channels + c), sum);
                c += S::LANES;
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn input_kernel<S: Simd>(
    pixels: usize,
    left: usize,
    channels: usize,
    first: (*const f32, *const f32),
    second: (*const f32, *const f32),
    out: *mut f32,
) {
    unsafe {
        match (first.0.is_null(), second.0.is_null()) {
            (false, false) => input_taps::<S, 2>(pixels, left, channels, [first, second], out),
            (false, true) => input_taps::<S, 1>(pixels, left, channels, [first], out),
            (true, false) => input_taps::<S, 1>(pixels, left, channels, [second], out),
            (true, true) => input_taps::<S, 0>(pixels, left, channels, [], out),
        }
    }
}

multiversion! {
    /// One row of the input's gradient with stride 2: `out` is made of up to two (output-gradient row, row of weights `[3, channels]`);
    /// a null row is left out. Gradient rows have one column of zeros on either side. `left` is the convolution's padding.
    ///
    /// # Safety
    /// The rows hold the columns that `pixels` input columns reach, `out` holds `pixels * channels`.
    pub(crate) unsafe fn input_gradient_stride2 = input_kernel(
        pixels: usize, left: usize, channels: usize, first: (*const f32, *const f32), second: (*const f32, *const f32), out: *mut f32,
    )
}
