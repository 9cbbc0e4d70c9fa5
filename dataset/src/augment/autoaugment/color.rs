//! Steps that change bytes where they are.

use crate::decode::Image;

/// A change of bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    /// Each channel's range becomes 0 to 255.
    AutoContrast,
    /// Each channel's histogram becomes flat, as PIL does it.
    Equalize,
    /// Keeps that many bits.
    Posterize(u32),
    /// Inverts bytes from this one on.
    Solarize(u32),
    /// Adds to bytes below 128.
    SolarizeAdd(u8),
    /// Away from grey by that factor, as the next ones.
    Color(f32),
    /// Away from one value.
    Contrast(f32),
    /// Away from black.
    Brightness(f32),
    /// Away from a smoothed image.
    Sharpness(f32),
}

impl Change {
    pub(super) fn apply(self, image: &mut Image) {
        let each = |image: &mut Image, change: &dyn Fn(u8) -> u8| {
            image.pixels.iter_mut().for_each(|byte| *byte = change(*byte));
        };
        match self {
            Self::AutoContrast => per_channel(image, auto_contrast),
            Self::Equalize => per_channel(image, equalize),
            Self::Posterize(bits) => {
                // TensorFlow shifts by no more than 7.
                let shift = (8_u32.saturating_sub(bits)).min(7);
                each(image, &|byte| (byte >> shift) << shift);
            }
            Self::Solarize(threshold) => {
                each(image, &|byte| {
                    if u32::from(byte) < threshold { byte } else { 255 - byte }
                });
            }
            Self::SolarizeAdd(addition) => {
                each(image, &|byte| {
                    if byte < 128 {
                        byte.saturating_add(addition)
                    } else {
                        byte
                    }
                });
            }
            Self::Color(factor) => {
                let (pixels, _) = image.pixels.as_chunks_mut::<3>();
                for pixel in pixels {
                    let grey = gray(*pixel);
                    *pixel = pixel.map(|byte| blend(grey, byte, factor));
                }
            }
            Self::Contrast(factor) => {
                // Not the mean of the image but its number of pixels / 256: so does the reference.
                let mean = (image.height as f32 * image.width as f32 / 256.0).clamp(0.0, 255.0) as u8;
                each(image, &|byte| blend(mean, byte, factor));
            }
            Self::Brightness(factor) => each(image, &|byte| blend(0, byte, factor)),
            Self::Sharpness(factor) => sharpness(image, factor),
        }
    }
}

/// `tf.image.rgb_to_grayscale` of bytes.
fn gray(pixel: [u8; 3]) -> u8 {
    let [r, g, b] = pixel.map(|byte| f32::from(byte) * (1.0 / 255.0));
    ((r * 0.2989 + g * 0.587 + b * 0.114) * 255.5) as u8
}

/// From `first` (factor 0) over `second` (factor 1) beyond it; fractions are cut off.
fn blend(first: u8, second: u8, factor: f32) -> u8 {
    if factor == 0.0 {
        return first;
    }
    if factor == 1.0 {
        return second;
    }
    let (first, second) = (f32::from(first), f32::from(second));
    (first + factor * (second - first)).clamp(0.0, 255.0) as u8
}

/// Changes each channel by a table made of its histogram.
fn per_channel(image: &mut Image, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
    for channel in 0..3 {
        let mut histogram = [0; 256];
        let bytes = image.pixels.iter().skip(channel).step_by(3);
        bytes.for_each(|&byte| histogram[usize::from(byte)] += 1);
        if let Some(table) = table(&histogram) {
            let bytes = image.pixels.iter_mut().skip(channel).step_by(3);
            bytes.for_each(|byte| *byte = table[usize::from(*byte)]);
        }
    }
}

fn auto_contrast(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let low = histogram.iter().position(|&count| count > 0)? as f32;
    let high = histogram.iter().rposition(|&count| count > 0)? as f32;
    if high <= low {
        return None;
    }
    let scale = 255.0 / (high - low);
    let offset = -low * scale;
    Some(std::array::from_fn(|byte| {
        (byte as f32 * scale + offset).clamp(0.0, 255.0) as u8
    }))
}

fn equalize(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let last = histogram.iter().rev().find(|&&count| count > 0)?;
    let step = (histogram.iter().sum::<u32>() - last) / 255;
    if step == 0 {
        return None;
    }
    let mut table = [0; 256];
    let mut below = 0;
    for (entry, count) in table.iter_mut().skip(1).zip(histogram) {
        below += count;
        *entry = ((below + step / 2) / step).min(255) as u8;
    }
    Some(table)
}

/// Borders stay as they are.
fn sharpness(image: &mut Image, factor: f32) {
    let (height, width) = (image.height, image.width);
    let before = image.pixels.clone();
    let stride = width * 3;
    for row in 1..height.saturating_sub(1) {
        for index in row * stride + 3..(row + 1) * stride - 3.min(stride) {
            let mut sum = 4.0 * f32::from(before[index]);
            for above in [index - stride, index, index + stride] {
                sum += f32::from(before[above - 3]) + f32::from(before[above]) + f32::from(before[above + 3]);
            }
            let smooth = (sum / 13.0).clamp(0.0, 255.0) as u8;
            image.pixels[index] = blend(smooth, before[index], factor);
        }
    }
}
