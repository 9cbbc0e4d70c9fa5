//! PNG through the crate `image`, samples reduced as TensorFlow's `decode_png` with three channels does.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{DynamicImage, ImageDecoder as _, Limits};

use super::{Error, Image, check_size};

fn damaged(error: &image::ImageError) -> Error {
    Error::Damaged {
        format: "PNG",
        reason: error.to_string(),
    }
}

type Decoder<'a> = PngDecoder<Cursor<&'a [u8]>>;

/// A decoder that has read the header, and the height and width found there.
fn open(bytes: &[u8], max_pixels: usize) -> Result<(Decoder<'_>, usize, usize), Error> {
    let mut limits = Limits::default();
    // Four 16-bit channels, and as much again for the decoder's own buffers.
    limits.max_alloc = Some((max_pixels as u64).saturating_mul(16).saturating_add(1 << 20));
    let decoder = Decoder::with_limits(Cursor::new(bytes), limits).map_err(|error| damaged(&error))?;
    let (width, height) = decoder.dimensions();
    let (height, width) = (height as usize, width as usize);
    check_size(height, width, max_pixels)?;
    Ok((decoder, height, width))
}

/// Height and width in the header.
pub(super) fn size(bytes: &[u8], max_pixels: usize) -> Result<(usize, usize), Error> {
    let (_, height, width) = open(bytes, max_pixels)?;
    Ok((height, width))
}

/// As libpng does it, in fixed point.
pub(super) fn grey([r, g, b]: [u8; 3]) -> u8 {
    if r == g && g == b {
        return r;
    }
    ((9797 * u32::from(r) + 19234 * u32::from(g) + 3737 * u32::from(b)) >> 15) as u8
}

pub(super) fn decode(bytes: &[u8], max_pixels: usize, image: &mut Image) -> Result<(), Error> {
    let (decoder, height, width) = open(bytes, max_pixels)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| damaged(&error))?;
    (image.height, image.width) = (height, width);
    image.pixels.clear();
    image.pixels.reserve(height * width * 3);
    let high = |sample: u16| (sample >> 8) as u8;
    let pixels = &mut image.pixels;
    match decoded {
        DynamicImage::ImageRgb8(rgb) => *pixels = rgb.into_raw(),
        DynamicImage::ImageRgba8(rgba) => pixels.extend(rgba.pixels().flat_map(|&image::Rgba([r, g, b, _])| [r, g, b])),
        DynamicImage::ImageLuma8(grey) => pixels.extend(grey.pixels().flat_map(|&image::Luma([y])| [y; 3])),
        DynamicImage::ImageLumaA8(grey) => pixels.extend(grey.pixels().flat_map(|&image::LumaA([y, _])| [y; 3])),
        DynamicImage::ImageLuma16(grey) => pixels.extend(grey.pixels().flat_map(|&image::Luma([y])| [high(y); 3])),
        DynamicImage::ImageLumaA16(grey) => {
            pixels.extend(grey.pixels().flat_map(|&image::LumaA([y, _])| [high(y); 3]));
        }
        DynamicImage::ImageRgb16(rgb) => pixels.extend(rgb.pixels().flat_map(|image::Rgb(rgb)| rgb.map(high))),
        DynamicImage::ImageRgba16(rgba) => {
            pixels.extend(rgba.pixels().flat_map(|&image::Rgba([r, g, b, _])| [r, g, b].map(high)));
        }
        other => *pixels = other.into_rgb8().into_raw(),
    }
    if image.pixels.len() == height * width * 3 {
        Ok(())
    } else {
        Err(Error::Damaged {
            format: "PNG",
            reason: "it has fewer pixels than its header says".to_owned(),
        })
    }
}
