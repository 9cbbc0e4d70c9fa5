//! Images on their way into records: taken as they are or written anew.

mod intact;

use std::path::Path;

use image::ImageEncoder as _;

use crate::decode::{self, Decoder};

/// What becomes of an image's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// They are copied. `decode` reads every pixel first; without it, the file's structure is checked from its first marker to its
    /// last, which finds files that were cut off and costs a hundredth.
    Unchanged {
        /// Decode each image to see whether that is possible.
        decode: bool,
    },
    /// Every image becomes a JPEG of this quality (1 to 100), without subsampling.
    Jpeg {
        /// libjpeg's quality.
        quality: u8,
    },
    /// Every image becomes a PNG.
    Png,
}

impl Default for Images {
    fn default() -> Self {
        Self::Unchanged { decode: false }
    }
}

/// An image that can go into a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The file's bytes.
    pub encoded: Vec<u8>,
    /// `jpeg` or `png`, told by the bytes.
    pub format: &'static str,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Reads an image file; the error is the reason why it cannot be used, with the file's name.
pub fn read(path: &Path, images: Images) -> Result<Picture, String> {
    let at = |reason: String| format!("{}: {reason}", path.display());
    let encoded = coati_storage::read(path).map_err(|error| at(error.to_string()))?;
    accept(encoded, images).map_err(at)
}

/// Checks an image's bytes, and writes them anew where that is asked for.
pub fn accept(encoded: Vec<u8>, images: Images) -> Result<Picture, String> {
    if encoded.is_empty() {
        return Err("the file is empty (0 bytes)".to_owned());
    }
    match images {
        Images::Unchanged { decode } => {
            let found = if decode { None } else { intact::check(&encoded) };
            let (format, height, width) = match found {
                Some(found) => found,
                // What a look at the structure does not settle, the decoder does: it is the one that training uses.
                None => decoded(&encoded)?,
            };
            Ok(Picture {
                encoded,
                format,
                width,
                height,
            })
        }
        Images::Jpeg { quality } => rewrite(&encoded, Some(quality)),
        Images::Png => rewrite(&encoded, None),
    }
}

fn format(encoded: &[u8]) -> &'static str {
    if encoded.starts_with(&[0xff, 0xd8]) {
        "jpeg"
    } else {
        "png"
    }
}

/// Format, height and width of an image that decodes whole.
fn decoded(encoded: &[u8]) -> Result<(&'static str, u32, u32), String> {
    let image = Decoder::new(decode::Options::default())
        .decode(encoded)
        .map_err(|error| error.to_string())?;
    Ok((format(encoded), image.height as u32, image.width as u32))
}

fn rewrite(encoded: &[u8], quality: Option<u8>) -> Result<Picture, String> {
    // The exact inverse DCT: this is done once, and everything after it builds on it.
    let options = decode::Options {
        fast_dct: false,
        ..decode::Options::default()
    };
    let image = Decoder::new(options)
        .decode(encoded)
        .map_err(|error| error.to_string())?;
    let (width, height) = (image.width as u32, image.height as u32);
    let mut out = Vec::new();
    let format = if let Some(quality) = quality {
        let source = turbojpeg::Image {
            pixels: image.pixels.as_slice(),
            width: image.width,
            pitch: image.width * 3,
            height: image.height,
            format: turbojpeg::PixelFormat::RGB,
        };
        out = turbojpeg::compress(source, i32::from(quality.clamp(1, 100)), turbojpeg::Subsamp::None)
            .map_err(|error| format!("cannot be written as JPEG: {error}"))?
            .to_vec();
        "jpeg"
    } else {
        image::codecs::png::PngEncoder::new(&mut out)
            .write_image(&image.pixels, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|error| format!("cannot be written as PNG: {error}"))?;
        "png"
    };
    Ok(Picture {
        encoded: out,
        format,
        width,
        height,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::image;

    #[test]
    fn good_images_pass_unchanged_or_anew() {
        for name in ["rgb420.jpg", "rgb.png", "grey.jpg", "progressive.jpg"] {
            let bytes = image(name);
            for decode in [false, true] {
                let picture = accept(bytes.clone(), Images::Unchanged { decode }).unwrap();
                assert_eq!((picture.width, picture.height), (34, 21), "{name}");
                assert_eq!(picture.encoded, bytes, "{name}");
            }
            for (images, format) in [(Images::Jpeg { quality: 95 }, "jpeg"), (Images::Png, "png")] {
                let picture = accept(bytes.clone(), images).unwrap();
                assert_eq!((picture.width, picture.height, picture.format), (34, 21, format));
                let again = accept(picture.encoded, Images::Unchanged { decode: true }).unwrap();
                assert_eq!(again.format, format);
            }
        }
    }

    #[test]
    fn bad_ones_say_why() {
        let reason = |bytes: &[u8]| accept(bytes.to_vec(), Images::default()).unwrap_err();
        assert_eq!(reason(&[]), "the file is empty (0 bytes)");
        assert!(reason(b"GIF89a").contains("a GIF"));
        for name in ["rgb420.jpg", "rgb.png", "progressive.jpg"] {
            let bytes = image(name);
            for length in [3, 40, bytes.len() / 2, bytes.len() - 20] {
                let reason = reason(&bytes[..length]);
                assert!(!reason.is_empty(), "{name} cut to {length}");
            }
        }
        // A header that says 65500 x 65500 over next to no data.
        let mut bomb = image("rgb420.jpg");
        let start = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bomb[start + 5..start + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        assert!(reason(&bomb).contains("more than the limit"), "{}", reason(&bomb));
    }
}
