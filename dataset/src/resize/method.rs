//! The four ways of `tf.image.resize_images` of TensorFlow 1, on floats of any number of channels.
//!
//! Pixels are points without half-pixel centres: output `i` lies at `i * in / out` of the input, with `align_corners` at
//! `i * (in - 1) / (out - 1)`. Nothing is smoothed before shrinking, and results are not rounded.

use coati_proto::object_detection::protos as config;

use super::interpolate;
use crate::pixels::Pixels;

/// Interpolation (`ResizeType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Between the four neighbours.
    #[default]
    Bilinear,
    /// The pixel at or before the point; with `align_corners` the nearest one.
    NearestNeighbor,
    /// Keys's kernel of four points with a = -0.75.
    Bicubic,
    /// Mean of what the output's pixel covers.
    Area,
}

impl From<config::ResizeType> for Method {
    fn from(method: config::ResizeType) -> Self {
        match method {
            config::ResizeType::Bilinear => Self::Bilinear,
            config::ResizeType::NearestNeighbor => Self::NearestNeighbor,
            config::ResizeType::Bicubic => Self::Bicubic,
            config::ResizeType::Area => Self::Area,
        }
    }
}

/// What an output position takes of the input: (index, weight).
type Taps = Vec<(usize, f32)>;

/// Resizes to `height` x `width`; a side of 0 gives an image without pixels.
#[must_use]
pub fn resize(image: &Pixels, height: usize, width: usize, method: Method, align_corners: bool) -> Pixels {
    if (height, width) == (image.height, image.width) {
        return image.clone();
    }
    let channels = image.channels;
    if image.height == 0 || image.width == 0 || channels == 0 {
        return Pixels::filled(height, width, channels, 0.0);
    }
    let rows = taps(image.height, height, method, align_corners);
    let columns = taps(image.width, width, method, align_corners);
    let mut values = Vec::with_capacity(height * width * channels);
    let mut mixed = vec![0.0_f32; image.width * channels];
    for taps in &rows {
        mix_rows(image, taps, method, &mut mixed);
        for taps in &columns {
            let start = values.len();
            match taps[..] {
                // As TensorFlow writes it: equal neighbours give exactly their value.
                [(low, _), (high, weight)] if method == Method::Bilinear => {
                    for channel in 0..channels {
                        let (low, high) = (mixed[low * channels + channel], mixed[high * channels + channel]);
                        values.push(low + (high - low) * weight);
                    }
                }
                _ => {
                    values.resize(start + channels, 0.0);
                    for &(index, weight) in taps {
                        let pixel = &mixed[index * channels..(index + 1) * channels];
                        for (sum, &value) in values[start..].iter_mut().zip(pixel) {
                            *sum += value * weight;
                        }
                    }
                }
            }
        }
    }
    Pixels {
        height,
        width,
        channels,
        values,
    }
}

/// Weighs rows together.
fn mix_rows(image: &Pixels, taps: &[(usize, f32)], method: Method, mixed: &mut [f32]) {
    let stride = mixed.len();
    let row = |index: usize| &image.values[index * stride..(index + 1) * stride];
    if let (Method::Bilinear, [(low, _), (high, weight)]) = (method, taps) {
        for ((mixed, &low), &high) in mixed.iter_mut().zip(row(*low)).zip(row(*high)) {
            *mixed = low + (high - low) * weight;
        }
        return;
    }
    mixed.fill(0.0);
    for &(index, weight) in taps {
        for (mixed, &value) in mixed.iter_mut().zip(row(index)) {
            *mixed += value * weight;
        }
    }
}

/// For each of `to` positions what it takes of `from` ones.
fn taps(from: usize, to: usize, method: Method, align_corners: bool) -> Vec<Taps> {
    // `CalculateResizeScale`
    let scale = if align_corners && to > 1 {
        (from - 1) as f32 / (to - 1) as f32
    } else {
        from as f32 / to as f32
    };
    let last = from - 1;
    let one = |index: usize| match method {
        Method::Bilinear => {
            let (low, high, weight) = interpolate(index, scale, from);
            vec![(low, 1.0 - weight), (high, weight)]
        }
        Method::NearestNeighbor => {
            let position = index as f32 * scale;
            let nearest = if align_corners {
                position.round()
            } else {
                position.floor()
            };
            vec![((nearest as usize).min(last), 1.0)]
        }
        Method::Bicubic => bicubic(index as f32 * scale, last),
        Method::Area => area(index, scale, last),
    };
    (0..to).map(one).collect()
}

/// Steps of the table that TensorFlow looks weights up in (`ResizeBicubic`).
const TABLE: f32 = 1024.0;

fn bicubic(position: f32, last: usize) -> Taps {
    const A: f64 = -0.75;
    let low = position.floor();
    let offset = ((position - low) * TABLE).round_ties_even();
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * (x + 1.0) - 5.0 * A) * (x + 1.0) + 8.0 * A) * (x + 1.0) - 4.0 * A;
    let (before, after) = (f64::from(offset / TABLE), f64::from((TABLE - offset) / TABLE));
    let weights = [far(before), near(before), near(after), far(after)];
    let at = |shift: i64| (low as i64 + shift).clamp(0, last as i64) as usize;
    (-1..)
        .zip(weights)
        .map(|(shift, weight)| (at(shift), weight as f32))
        .collect()
}

/// `ResizeArea`: pixels count by how much of them the output's pixel covers.
fn area(index: usize, scale: f32, last: usize) -> Taps {
    let (start, end) = (index as f32 * scale, (index + 1) as f32 * scale);
    let (first, beyond) = (start.floor() as i64, end.ceil() as i64);
    let covered = |pixel: i64| {
        let (from, to) = (pixel as f32, (pixel + 1) as f32);
        match (from < start, to > end) {
            // Not end - start: that would be rounded otherwise than there.
            (true, true) => scale,
            (true, false) => to - start,
            (false, true) => end - from,
            (false, false) => 1.0,
        }
    };
    (first..beyond)
        .map(|pixel| (pixel.clamp(0, last as i64) as usize, covered(pixel) / scale))
        .collect()
}
