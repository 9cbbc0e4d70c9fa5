//! From the bytes of a JPEG or PNG file to RGB pixels, as TensorFlow decodes them.
//!
//! Grey becomes RGB, alpha is dropped, 16-bit samples keep their high byte, CMYK is converted with TensorFlow's
//! formula. The EXIF orientation is *not* applied, as in the reference: boxes refer to the stored pixels.

mod jpeg;
mod png;

use std::ops::Range;

/// Why an image cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither JPEG nor PNG.
    #[error("the image is {0}; JPEG and PNG are read\nhint: convert it to JPEG or PNG (of a video, its frames)")]
    Unsupported(String),
    /// The record holds no byte of it.
    #[error("the image is empty: image/encoded holds no byte")]
    Empty,
    /// Too large to be true, or to be decoded safely.
    #[error(
        "the image says {height} x {width} pixels, more than the limit of {max_pixels}\nhint: shrink the image and write the record again"
    )]
    TooLarge {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// The limit.
        max_pixels: usize,
    },
    /// The file ends too early.
    #[error("the JPEG ends before its last row: the file was cut short")]
    Truncated,
    /// Damaged, or a variant that the decoder lacks.
    #[error("the {format} cannot be decoded: {reason}")]
    Damaged {
        /// `JPEG` or `PNG`.
        format: &'static str,
        /// In the decoder's words.
        reason: String,
    },
}

/// RGB pixels, `[height, width, 3]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// From the top.
    pub rows: Range<usize>,
    /// From the left.
    pub columns: Range<usize>,
}

/// What a JPEG of that quality (0 to 100) leaves of an image (`tf.image.adjust_jpeg_quality`).
pub fn recompress(image: &Image, quality: i32) -> Result<Image, Error> {
    let bytes = jpeg::encode(image, quality)?;
    Decoder::new(Options::default()).decode(&bytes)
}

/// How to decode.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Images with more pixels than this are refused (a small file can claim to be huge).
    pub max_pixels: usize,
    /// The fast, less exact inverse DCT of libjpeg, which is TensorFlow's default.
    pub fast_dct: bool,
    /// JPEGs that training makes smaller anyway are decoded at a half, a quarter or an eighth of their size. Faster for large
    /// images; pixels are then means of what they would have been.
    pub scaled: bool,
    /// Three equal channels: what TensorFlow's decoders make of a file that is to have one channel, as an additional channel has. A
    /// JPEG's brightness, and a PNG's colours weighted with fractions cut off.
    pub grey: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_pixels: 1 << 26,
            fast_dct: true,
            scaled: false,
            grey: false,
        }
    }
}

/// Decodes images one after the other; keeps the codec's state and buffers. One a thread.
#[derive(Debug)]
pub struct Decoder {
    options: Options,
    jpeg: Option<jpeg::Codec>,
}

impl Decoder {
    /// A decoder with these options.
    pub fn new(options: Options) -> Self {
        Self { options, jpeg: None }
    }

    /// The height and width that the file claims, checked against the limit.
    pub fn size(&mut self, bytes: &[u8]) -> Result<(usize, usize), Error> {
        match format(bytes)? {
            Format::Jpeg => {
                let max_pixels = self.options.max_pixels;
                let (height, width) = self.jpeg()?.size(bytes)?;
                check_size(height, width, max_pixels)?;
                Ok((height, width))
            }
            Format::Png => png::size(bytes, self.options.max_pixels),
        }
    }

    /// Decodes into `image`, whose memory is used again.
    pub fn decode_into(&mut self, bytes: &[u8], image: &mut Image) -> Result<(), Error> {
        match format(bytes)? {
            Format::Jpeg => {
                let max_pixels = self.options.max_pixels;
                self.jpeg()?.decode(bytes, max_pixels, image)
            }
            Format::Png => self.decode_png(bytes, image),
        }
    }

    fn decode_png(&self, bytes: &[u8], image: &mut Image) -> Result<(), Error> {
        png::decode(bytes, self.options.max_pixels, image)?;
        if self.options.grey {
            let (pixels, _) = image.pixels.as_chunks_mut::<3>();
            pixels.iter_mut().for_each(|pixel| *pixel = [png::grey(*pixel); 3]);
        }
        Ok(())
    }

    /// Decodes at least `part`; returns the row and column where what is in `image` begins. Of a JPEG only the rows and
    /// blocks that are needed are decoded; the pixels are those of the whole image.
    pub fn decode_part(&mut self, bytes: &[u8], part: &Part, image: &mut Image) -> Result<(usize, usize), Error> {
        match format(bytes)? {
            Format::Jpeg => {
                let max_pixels = self.options.max_pixels;
                self.jpeg()?.decode_part(bytes, max_pixels, part, image)
            }
            Format::Png => self.decode_png(bytes, image).map(|()| (0, 0)),
        }
    }

    /// As [`Self::decode_part`], of a JPEG at a half, a quarter or an eighth of its size where `part` still has at least `least` rows and
    /// columns then and the options allow it. Also returns by how much its sides are divided.
    pub fn decode_part_scaled(
        &mut self,
        bytes: &[u8],
        part: &Part,
        least: (usize, usize),
        image: &mut Image,
    ) -> Result<((usize, usize), usize), Error> {
        let by = [8, 4, 2]
            .into_iter()
            .find(|by| part.rows.len() / by >= least.0 && part.columns.len() / by >= least.1);
        if let (true, Some(by), Ok(Format::Jpeg)) = (self.options.scaled, by, format(bytes)) {
            let max_pixels = self.options.max_pixels;
            let codec = self.jpeg()?;
            codec.size(bytes)?;
            if codec.is_scalable() {
                let start = codec.decode_part_scaled(bytes, max_pixels, (part, by), image)?;
                return Ok((start, by));
            }
        }
        Ok((self.decode_part(bytes, part, image)?, 1))
    }

    /// Whether an additional channel is as large as its image, which it must be.
    pub fn check_channel(&mut self, bytes: &[u8], (height, width): (usize, usize)) -> Result<(), Error> {
        let found = self.size(bytes)?;
        if found == (height, width) {
            return Ok(());
        }
        Err(Error::Damaged {
            format: "additional channel",
            reason: format!("it is {} x {} pixels, the image {height} x {width}", found.0, found.1),
        })
    }

    /// Decodes into a new image.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Image, Error> {
        let mut image = Image::default();
        self.decode_into(bytes, &mut image)?;
        Ok(image)
    }

    fn jpeg(&mut self) -> Result<&mut jpeg::Codec, Error> {
        if self.jpeg.is_none() {
            self.jpeg = Some(jpeg::Codec::new(self.options.fast_dct, self.options.grey)?);
        }
        self.jpeg.as_mut().ok_or(Error::Damaged {
            format: "JPEG",
            reason: "no decoder".to_owned(),
        })
    }
}

enum Format {
    Jpeg,
    Png,
}

/// Told by the first bytes, as TensorFlow does; `image/format` is often wrong.
fn format(bytes: &[u8]) -> Result<Format, Error> {
    let named = |name: &str| Err(Error::Unsupported(name.to_owned()));
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Ok(Format::Png),
        [b'G', b'I', b'F', b'8', ..] => named("a GIF"),
        [b'B', b'M', ..] => named("a BMP"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => named("a WebP"),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => named("a TIFF"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => named("a HEIC, an AVIF or a film, as telephones make them"),
        [b'<', ..] => named("a web page or an SVG: a download that failed, perhaps"),
        _ if bytes.starts_with(b"version https://git-lfs") => {
            named("a pointer of Git LFS: `git lfs pull` fetches the file itself")
        }
        [] => Err(Error::Empty),
        _ => {
            let start: Vec<_> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            named(&format!("of an unknown kind (it starts with {})", start.join(" ")))
        }
    }
}

fn check_size(height: usize, width: usize, max_pixels: usize) -> Result<(), Error> {
    match height.checked_mul(width) {
        Some(pixels) if pixels <= max_pixels => Ok(()),
        _ => Err(Error::TooLarge {
            height,
            width,
            max_pixels,
        }),
    }
}

#[cfg(test)]
mod tests;
