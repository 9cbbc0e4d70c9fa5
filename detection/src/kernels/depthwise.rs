//! Depthwise convolution with square windows, row by row. Input rows come activated and with their horizontal padding written out, so that no
//! kernel has edges: column `j` of such a row is image column `j - left`. Windows of 3 x 3 and 5 x 5 have code of their own.

use super::isa::multiversion;
use super::simd::Simd;

/// Output pixels a step: weights are loaded once for so many.
const STEP: usize = 4;
/// Rows and columns of the largest window.
pub(crate) const LARGEST: usize = 9;

/// As many consecutive rows of the input as the window has.
pub(crate) type Rows<'a> = &'a [*const f32];

/// `K` and `STRIDE` are window and stride where the compiler is to know them, else 0.
#[derive(Clone, Copy)]
struct Shape<const K: usize, const STRIDE: usize> {
    kernel: usize,
    stride: usize,
}

impl<const K: usize, const STRIDE: usize> Shape<K, STRIDE> {
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn kernel(self) -> usize {
        if K > 0 { K } else { self.kernel }
    }
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn stride(self) -> usize {
        if STRIDE > 0 { STRIDE } else { self.stride }
    }
}

/// Runs `$body` with a [`Shape`] of type `$type` that the compiler knows, if it is among the usual ones.
macro_rules! with_shape {
    ($kernel:expr, $stride:expr, $shape:ident => $body:expr) => {{
        let (kernel, stride) = ($kernel, $stride);
        match (kernel, stride) {
            (3, 1) => {
                let $shape = Shape::<3, 1> { kernel, stride };
                $body
            }
            (3, 2) => {
                let $shape = Shape::<3, 2> { kernel, stride };
                $body
            }
            (5, 1) => {
                let $shape = Shape::<5, 1> { kernel, stride };
                $body
            }
            (5, 2) => {
                let $shape = Shape::<5, 2> { kernel, stride };
                $body
            }
            _ => {
                let $shape = Shape::<0, 0> { kernel, stride };
                $body
            }
        }
    }};
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn row_step<S: Simd, const K: usize, const STRIDE: usize, const P: usize>(
    shape: Shape<K, STRIDE>,
    channels: usize,
    (rows, x): (Rows, usize),
    weights: *const f32,
    out: *mut f32,
) {
    let (k, stride) = (shape.kernel(), shape.stride());
    unsafe {
        let mut c = 0;
        while c < channels {
            let mut sums = [S::zero(); P];
            for ky in 0..k {
                let row = rows.get_unchecked(ky).add(x * stride * channels);
                for kx in 0..k {
                    let w = S::load(weights.add((ky * k + kx) * channels + c));
                    for (p, sum) in sums.iter_mut().enumerate() {
                        *sum = S::mul_add(S::load(row.add((p * stride + kx) * channels + c)), w, *sum);
                    }
                }
            }
            for (p, &sum) in sums.iter().enumerate() {
                S::store(out.add((x + p) * channels + c), sum);
            }
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn row_shape<S: Simd, const K: usize, const STRIDE: usize>(
    shape: Shape<K, STRIDE>,
    pixels: usize,
    channels: usize,
    rows: Rows,
    weights: *const f32,
    out: *mut f32,
) {
    assert!(rows.len() >= shape.kernel());
    let mut x = 0;
    while x < pixels {
        unsafe {
            if x + STEP <= pixels {
                row_step::<S, K, STRIDE, STEP>(shape, channels, (rows, x), weights, out);
                x += STEP;
            } else {
                row_step::<S, K, STRIDE, 1>(shape, channels, (rows, x), weights, out);
                x += 1;
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn row_kernel<S: Simd>(
    kernel: usize,
    stride: usize,
    pixels: usize,
    channels: usize,
    rows: Rows,
    weights: *const f32,
    out: *mut f32,
) {
    with_shape!(kernel, stride, shape => unsafe {
        row_shape::<S, _, _>(shape, pixels, channels, rows, weights, out);
    });
}

multiversion! {
    /// One row of `pixels` outputs; `weights` is `[kernel, kernel, channels]`.
    ///
    /// # Safety
    /// The rows hold `(pixels - 1) * stride + kernel` padded columns of `channels`, `out` holds `pixels * channels`.
    pub(crate) unsafe fn row = row_kernel(
        kernel: usize, stride: usize, pixels: usize, channels: usize, rows: Rows<'_>, weights: *const f32, out: *mut f32,
    )
}

/// `R` rows of the window at a time: as many as leave their sums in registers.
#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn weights_rows<S: Simd, const K: usize, const STRIDE: usize, const R: usize>(
    shape: Shape<K, STRIDE>,
    pixels: usize,
    channels: usize,
    rows: &[*const f32],
    dy: *const f32,
    sums: *mut f32,
) {
    let (k, stride) = (shape.kernel(), shape.stride());
    assert!(rows.len() == R && k <= LARGEST);
    unsafe {
        let mut c = 0;
        while c < channels {
            let mut taps = [[S::zero(); LARGEST]; R];
            for (ky, taps) in taps.iter_mut().enumerate() {
                for (kx, tap) in taps.iter_mut().enumerate().take(k) {
                    *tap = S::load(sums.add((ky * k + kx) * channels + c));
                }
            }
            let mut at = c;
            let mut d = dy.wrapping_add(c);
            for _ in 0..pixels {
                let v = S::load(d);
                for (row, taps) in rows.iter().zip(&mut taps) {
                    let here = row.add(at);
                    for (kx, tap) in taps.iter_mut().enumerate().take(k) {
                        *tap = S::mul_add(S::load(here.add(kx * channels)), v, *tap);
                    }
                }
                at += stride * channels;
                d = d.wrapping_add(channels);
            }
            for (ky, taps) in taps.iter().enumerate() {
                for (kx, &tap) in taps.iter().enumerate().take(k) {
                    S::store(sums.add((ky * k + kx) * channels + c), tap);
                }
            }
            c += S::LANES;
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn weights_shape<S: Simd, const K: usize, const STRIDE: usize>(
    shape: Shape<K, STRIDE>,
    pixels: usize,
    channels: usize,
    rows: Rows,
    dy: *const f32,
    sums: *mut f32,
) {
    let k = shape.kernel();
    unsafe {
        if K == 3 {
            weights_rows::<S, K, STRIDE, 3>(shape, pixels, channels, &rows[..3], dy, sums);
            return;
        }
        for (ky, row) in rows[..k].iter().enumerate() {
            let sums = sums.add(ky * k * channels);
            weights_rows::<S, K, STRIDE, 1>(shape, pixels, channels, std::slice::from_ref(row), dy, sums);
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn weights_kernel<S: Simd>(
    kernel: usize,
    stride: usize,
    pixels: usize,
    channels: usize,
    rows: Rows,
    dy: *const f32,
    sums: *mut f32,
) {
    with_shape!(kernel, stride, shape => unsafe {
        weights_shape::<S, _, _>(shape, pixels, channels, rows, dy, sums);
    });
}

multiversion! {
    /// Adds one output row's part of the weights' gradient to `sums` (`[kernel, kernel, channels]`).
    ///
    /// # Safety
    /// As [`row`], with `dy` in place of the output.
    pub(crate) unsafe fn weights_gradient = weights_kernel(
        kernel: usize, stride: usize, pixels: usize, channels: usize, rows: Rows<'_>, dy: *const f32, sums: *mut f32,
    )
}

/// A row of output gradients, and the row of weights `[kernel, channels]` by which an input row reached it.
pub(crate) type Reached = (*const f32, *const f32);

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn input_any<S: Simd>(
    window: (usize, usize),
    columns: (usize, usize),
    left: usize,
    channels: usize,
    rows: &[Reached],
    out: *mut f32,
) {
    let ((kernel, stride), (pixels, outputs)) = (window, columns);
    for x in 0..pixels {
        // Output column `last - j` was reached by tap `first + j * stride`.
        let (last, first) = ((x + left) / stride, (x + left) % stride);
        let from = (last + 1).saturating_sub(outputs);
        let to = kernel.saturating_sub(first).div_ceil(stride).min(last + 1);
        unsafe {
            let mut c = 0;
            while c < channels {
                let mut sum = S::zero();
                for (dy, w) in rows {
                    for j in from..to {
                        let d = S::load(dy.add((last - j) * channels + c));
                        sum = S::mul_add(d, S::load(w.add((first + j * stride) * channels + c)), sum);
                    }
                }
                S::store(out.add(x * channels + c), sum);
                c += S::LANES;
            }
        }
    }
}

multiversion! {
    /// One row of the input's gradient for any window and stride: `pixels` columns from the rows of `outputs` columns that it reached.
    ///
    /// # Safety
    /// `out` holds `pixels * channels`, each row of gradients `outputs * channels`, each row of weights `kernel * channels`.
    pub(crate) unsafe fn input_gradient = input_any(
        window: (usize, usize), columns: (usize, usize), left: usize, channels: usize, rows: &[Reached], out: *mut f32,
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
