//! Patches of images and feature maps as rows of a matrix (im2col), and back.

use std::ops::Range;

use super::isa::Isa;
use super::rows::{Activation, activate};

/// How a window meets the image's edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    /// TensorFlow's `SAME`: as many zeros as the output size needs, the larger half after the image.
    Same,
    /// The reference's `use_explicit_padding` and `conv2d_same`: `(kernel - 1) / 2` zeros before, whatever the size. As many outputs as `SAME`.
    Explicit,
    /// No zeros: only windows that lie inside the image.
    Valid,
}

/// A window that slides over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns of the window.
    pub kernel: (usize, usize),
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Input height and width.
    pub input: (usize, usize),
    /// Output height and width.
    pub output: (usize, usize),
    /// Padding before the first row and before the first column; the rest goes after the last.
    pub before: (usize, usize),
}

impl Window {
    /// A window with a given padding; `None` if none fits.
    pub(crate) fn new(kernel: (usize, usize), stride: usize, padding: Padding, input: (usize, usize)) -> Option<Self> {
        let along = |size: usize, kernel: usize| {
            let out = size.div_ceil(stride);
            Some(match padding {
                Padding::Same => {
                    let zeros = (out.saturating_sub(1) * stride + kernel).saturating_sub(size);
                    (out, zeros / 2)
                }
                Padding::Explicit => (out, (kernel - 1) / 2),
                Padding::Valid => (size.checked_sub(kernel)? / stride + 1, 0),
            })
        };
        let ((oh, top), (ow, left)) = (along(input.0, kernel.0)?, along(input.1, kernel.1)?);
        Some(Self {
            kernel,
            stride,
            input,
            output: (oh, ow),
            before: (top, left),
        })
    }

    /// Elements of the window.
    pub(crate) fn area(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Whether the patches are the input itself.
    pub(crate) fn pointwise(&self) -> bool {
        self.kernel == (1, 1) && self.stride == 1
    }

    /// Padding after the last row and after the last column.
    pub fn after(&self) -> (usize, usize) {
        let along = |out: usize, kernel: usize, input: usize, before: usize| {
            (out.saturating_sub(1) * self.stride + kernel).saturating_sub(input + before)
        };
        (
            along(self.output.0, self.kernel.0, self.input.0, self.before.0),
            along(self.output.1, self.kernel.1, self.input.1, self.before.1),
        )
    }

    /// Output pixels of one image.
    pub(crate) fn outputs(&self) -> usize {
        self.output.0 * self.output.1
    }

    /// Input pixels of one image.
    pub(crate) fn inputs(&self) -> usize {
        self.input.0 * self.input.1
    }

    /// (image, row, column) of an output pixel counted over the batch.
    fn place(&self, pixel: usize) -> (usize, usize, usize) {
        let (image, rest) = (pixel / self.outputs(), pixel % self.outputs());
        (image, rest / self.output.1, rest % self.output.1)
    }
}

/// Patches of images, `multiplier * x + offset` (an offset a channel) with zero padding after it; rows of `width >= area * channels`,
/// the rest zero.
///
/// # Safety
/// `out` holds `count` rows of `ldo >= width`, `images` the whole batch, with as many channels as there are offsets.
pub(crate) unsafe fn from_images(
    window: &Window,
    pixels: (usize, usize),
    images: *const f32,
    (multiplier, offset): (f32, &[f32]),
    out: *mut f32,
    size: (usize, usize),
) {
    unsafe {
        // Nearly all images; the compiler unrolls what has a known length.
        match <&[f32; 3]>::try_from(offset) {
            Ok(rgb) => gather(window, pixels, images, (multiplier, rgb), out, size),
            Err(_) => gather(window, pixels, images, (multiplier, offset), out, size),
        }
    }
}

#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "the number of channels must be known to the compiler"
)]
unsafe fn gather(
    window: &Window,
    (first, count): (usize, usize),
    images: *const f32,
    (multiplier, offset): (f32, &[f32]),
    out: *mut f32,
    (width, ldo): (usize, usize),
) {
    let (h, w) = window.input;
    let (rows, k) = window.kernel;
    let channels = offset.len();
    for i in 0..count {
        let (n, oy, ox) = window.place(first + i);
        unsafe {
            let row = out.add(i * ldo);
            let x0 = (ox * window.stride) as isize - window.before.1 as isize;
            let whole = x0 >= 0 && x0 as usize + k <= w;
            for ky in 0..rows {
                let to = row.add(ky * k * channels);
                let iy = (oy * window.stride + ky) as isize - window.before.0 as isize;
                if iy < 0 || iy as usize >= h {
                    to.write_bytes(0, k * channels);
                } else {
                    let line = images.add((n * h + iy as usize) * w * channels);
                    if whole {
                        let from = line.add(x0 as usize * channels);
                        for kx in 0..k {
                            for (c, offset) in offset.iter().enumerate() {
                                *to.add(kx * channels + c) = *from.add(kx * channels + c) * multiplier + offset;
                            }
                        }
                    } else {
                        for kx in 0..k {
                            let ix = x0 + kx as isize;
                            let inside = ix >= 0 && (ix as usize) < w;
                            for (c, offset) in offset.iter().enumerate() {
                                *to.add(kx * channels + c) = if inside {
                                    *line.add(ix as usize * channels + c) * multiplier + offset
                                } else {
                                    0.0
                                };
                            }
                        }
                    }
                }
            }
            row.add(rows * k * channels).write_bytes(0, width - rows * k * channels);
        }
    }
}

/// Patches of an activated feature map: rows `[window, channels]` of `clamp(scale * y + shift)`, zero outside.
///
/// # Safety
/// `y` holds the batch, `out` holds `count` rows of `ldo >= area * channels`.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn from_features(
    isa: Isa,
    window: &Window,
    (first, count): (usize, usize),
    channels: usize,
    y: *const f32,
    act: Activation,
    out: *mut f32,
    ldo: usize,
) {
    if window.pointwise() {
        unsafe { activate(isa, count, channels, y.add(first * channels), channels, act, out, ldo) };
        return;
    }
    let (h, w) = window.input;
    let (rows, k) = window.kernel;
    for i in 0..count {
        let (n, oy, ox) = window.place(first + i);
        for ky in 0..rows {
            let iy = (oy * window.stride + ky) as isize - window.before.0 as isize;
            for kx in 0..k {
                let ix = (ox * window.stride + kx) as isize - window.before.1 as isize;
                unsafe {
                    let to = out.add(i * ldo + (ky * k + kx) * channels);
                    if iy < 0 || ix < 0 || iy as usize >= h || ix as usize >= w {
                        to.write_bytes(0, channels);
                    } else {
                        let from = y.add(((n * h + iy as usize) * w + ix as usize) * channels);
                        activate(isa, 1, channels, from, channels, act, to, channels);
                    }
                }
            }
        }
    }
}

/// Calls `each(row, length, source)` for runs of the pixels `first..first + count` of a batch of maps: `source` is the first pixel of those that the
/// run finds when shifted by (rows, columns) into the maps `to`, `None` where these end. `row` counts from `first`.
fn runs(
    (from, to): ((usize, usize), (usize, usize)),
    shift: (isize, isize),
    (first, count): (usize, usize),
    mut each: impl FnMut(usize, usize, Option<usize>),
) {
    let mut row = 0;
    while row < count {
        let (line, x) = ((first + row) / from.1, (first + row) % from.1);
        let (image, y) = (line / from.0, line % from.0);
        let len = (from.1 - x).min(count - row);
        let (y, x) = (y as isize + shift.0, x as isize + shift.1);
        if y < 0 || y as usize >= to.0 {
            each(row, len, None);
        } else {
            let before = (-x).clamp(0, len as isize) as usize;
            let end = (to.1 as isize - x).clamp(before as isize, len as isize) as usize;
            if before > 0 {
                each(row, before, None);
            }
            if end > before {
                let source = (image * to.0 + y as usize) * to.1 + (x + before as isize) as usize;
                each(row + before, end - before, Some(source));
            }
            if len > end {
                each(row + end, len - end, None);
            }
        }
        row += len;
    }
}

/// Rows and columns from the top left of a window to one of its places.
fn place(window: &Window, place: usize) -> (isize, isize) {
    ((place / window.kernel.1) as isize, (place % window.kernel.1) as isize)
}

/// One place of the windows of the output pixels `first..first + count` of an activated feature map: rows of `f(scale * y + shift)` of some
/// of its `channels`, zero outside. The window's stride is 1.
///
/// # Safety
/// `y` holds the batch, `out` holds `count` rows of `ldo >= some.len()`.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn activate_shifted(
    isa: Isa,
    window: &Window,
    pixels: (usize, usize),
    channels: usize,
    (at, some): (usize, Range<usize>),
    y: *const f32,
    act: Activation,
    out: *mut f32,
    ldo: usize,
) {
    let (ky, kx) = place(window, at);
    let shift = (ky - window.before.0 as isize, kx - window.before.1 as isize);
    let act = Activation {
        scale: act.scale.wrapping_add(some.start),
        shift: act.shift.wrapping_add(some.start),
        ..act
    };
    runs(
        (window.output, window.input),
        shift,
        pixels,
        |row, len, source| unsafe {
            let out = out.add(row * ldo);
            match source {
                Some(source) => {
                    let from = y.add(source * channels + some.start);
                    activate(isa, len, some.len(), from, channels, act, out, ldo);
                }
                None => (0..len).for_each(|i| out.add(i * ldo).write_bytes(0, some.len())),
            }
        },
    );
}

/// The same for the way back: of the input pixels `first..first + count`, rows of what the output pixels hold that have them at one place of
/// their window.
///
/// # Safety
/// As above.
pub(crate) unsafe fn copy_shifted(
    window: &Window,
    pixels: (usize, usize),
    channels: usize,
    (at, some): (usize, Range<usize>),
    y: *const f32,
    out: *mut f32,
    ldo: usize,
) {
    let (ky, kx) = place(window, at);
    let shift = (window.before.0 as isize - ky, window.before.1 as isize - kx);
    runs(
        (window.input, window.output),
        shift,
        pixels,
        |row, len, source| unsafe {
            for i in 0..len {
                let out = out.add((row + i) * ldo);
                match source {
                    Some(source) => {
                        let from = y.add((source + i) * channels + some.start);
                        std::ptr::copy_nonoverlapping(from, out, some.len());
                    }
                    None => out.write_bytes(0, some.len()),
                }
            }
        },
    );
}

/// Gradient of one row of a feature map from the gradients of the patches (`[batch * outputs, window, channels]`, dense).
///
/// # Safety
/// `patches` holds the batch, `out` holds one row of `channels` a pixel.
pub(crate) unsafe fn gather_row(
    window: &Window,
    (image, iy): (usize, usize),
    channels: usize,
    patches: *const f32,
    out: *mut f32,
) {
    let (rows, k) = window.kernel;
    let (oh, ow) = window.output;
    unsafe {
        out.write_bytes(0, window.input.1 * channels);
        for ky in 0..rows {
            let Some(y) = (iy + window.before.0).checked_sub(ky) else {
                continue;
            };
            if y % window.stride != 0 || y / window.stride >= oh {
                continue;
            }
            let oy = y / window.stride;
            for ix in 0..window.input.1 {
                for kx in 0..k {
                    let Some(x) = (ix + window.before.1).checked_sub(kx) else {
                        continue;
                    };
                    if x % window.stride != 0 || x / window.stride >= ow {
                        continue;
                    }
                    let pixel = (image * oh + oy) * ow + x / window.stride;
                    let from = patches.add(pixel * rows * k * channels + (ky * k + kx) * channels);
                    let to = out.add(ix * channels);
                    for c in 0..channels {
                        *to.add(c) += *from.add(c);
                    }
                }
            }
        }
    }
}
