//! JPEG through libjpeg-turbo. The crate's safe wrapper cannot choose the fast DCT, so its C interface is used.

use std::ffi::CStr;
use std::ops::Range;
use std::os::raw::c_int;
use std::ptr::NonNull;

use turbojpeg::raw;

use super::png::grey;
use super::{Error, Image, Part, check_size};

/// Progressive files with more scans than this are refused: each scan costs a pass over the whole image.
const MAX_SCANS: c_int = 500;

/// A libjpeg-turbo decompressor.
#[derive(Debug)]
pub(super) struct Codec {
    handle: NonNull<std::ffi::c_void>,
    cmyk: Vec<u8>,
    /// Only brightness is decoded, and stands in all three channels.
    grey: bool,
    plane: Vec<u8>,
}

// SAFETY: the handle is a heap object without ties to the thread that made it, and `Codec` is its only user.
unsafe impl Send for Codec {}

impl Codec {
    pub(super) fn new(fast_dct: bool, grey: bool) -> Result<Self, Error> {
        // SAFETY: no preconditions; null means failure.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let handle = NonNull::new(handle.cast()).ok_or_else(|| damaged("libjpeg-turbo cannot be started"))?;
        let codec = Self {
            handle,
            cmyk: Vec::new(),
            grey,
            plane: Vec::new(),
        };
        codec.set(raw::TJPARAM_TJPARAM_FASTDCT, c_int::from(fast_dct))?;
        codec.set(raw::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS)?;
        Ok(codec)
    }

    /// Height and width in the header.
    pub(super) fn size(&mut self, bytes: &[u8]) -> Result<(usize, usize), Error> {
        // SAFETY: the handle is alive, the pointer and length are those of `bytes`.
        let result = unsafe { raw::tj3DecompressHeader(self.pointer(), bytes.as_ptr(), bytes.len() as raw::size_t) };
        if let Err(error) = self.check(result, bytes) {
            // After an error in a header the decompressor stays in the middle of it, and every later file would fail.
            *self = Self::new(self.get(raw::TJPARAM_TJPARAM_FASTDCT) != 0, self.grey)?;
            return Err(error);
        }
        // A file of tables alone passes for whole, and the size would be the one of the file before.
        if !bytes.windows(2).any(|pair| pair == [0xFF, 0xDA]) {
            return Err(damaged("it holds no image"));
        }
        let side = |parameter| usize::try_from(self.get(parameter)).unwrap_or(0);
        let (height, width) = (
            side(raw::TJPARAM_TJPARAM_JPEGHEIGHT),
            side(raw::TJPARAM_TJPARAM_JPEGWIDTH),
        );
        if height == 0 || width == 0 {
            return Err(damaged("it has no pixels"));
        }
        Ok((height, width))
    }

    /// Decodes at least `part` of the image; returns where that begins: row and column.
    ///
    /// The pixels are the same as those of the whole image. A block's colours depend on the blocks beside it
    /// (chroma is interpolated), so one more block on each side is decoded. What lies below is not even read: that the
    /// file is whole is told by its end.
    pub(super) fn decode_part(
        &mut self,
        bytes: &[u8],
        max_pixels: usize,
        part: &Part,
        image: &mut Image,
    ) -> Result<(usize, usize), Error> {
        self.decode_part_scaled(bytes, max_pixels, (part, 1), image)
    }

    /// As [`Self::decode_part`], of an image whose sides are divided by 1, 2, 4 or 8 (rounded up) while it is decoded. `part` is in
    /// pixels of the whole image, and what is returned in those of the smaller one.
    pub(super) fn decode_part_scaled(
        &mut self,
        bytes: &[u8],
        max_pixels: usize,
        (part, by): (&Part, usize),
        image: &mut Image,
    ) -> Result<(usize, usize), Error> {
        let (height, width) = self.size(bytes)?;
        check_size(height, width, max_pixels)?;
        let region = match self.region(part, height, width) {
            Some(region) => region,
            None if by > 1 && self.is_scalable() => Part {
                rows: 0..height,
                columns: 0..width,
            },
            None => {
                self.decode(bytes, max_pixels, image)?;
                return Ok((0, 0));
            }
        };
        if !ends(bytes) {
            return Err(Error::Truncated);
        }
        let side = |value: usize| c_int::try_from(value).map_err(|_| damaged("a side is too long"));
        // Blocks have 8 rows and columns or twice as many, so that their starts can be divided.
        let smaller = |range: Range<usize>| range.start / by..range.end.div_ceil(by);
        let (rows, columns) = (smaller(region.rows), smaller(region.columns));
        let wanted = raw::tjregion {
            x: side(columns.start)?,
            y: side(rows.start)?,
            w: side(columns.len())?,
            h: side(rows.len())?,
        };
        (image.height, image.width) = (rows.len(), columns.len());
        image.pixels.resize(image.height * image.width * 3, 0);
        self.scale(side(by)?)?;
        let pitch = image.width * 3;
        let result = self
            .crop(wanted)
            .and_then(|()| self.decompress_colors(bytes, &mut image.pixels, pitch));
        self.crop(WHOLE)?;
        self.scale(1)?;
        result?;
        Ok((rows.start, columns.start))
    }

    /// Whether the image whose header was read last can be decoded at another size: one of inks is converted afterwards.
    pub(super) fn is_scalable(&self) -> bool {
        let colors = self.get(raw::TJPARAM_TJPARAM_COLORSPACE);
        colors != raw::TJCS_TJCS_CMYK as c_int && colors != raw::TJCS_TJCS_YCCK as c_int
    }

    /// Divides the sides of what is decoded.
    fn scale(&self, by: c_int) -> Result<(), Error> {
        let factor = raw::tjscalingfactor { num: 1, denom: by };
        // SAFETY: the handle is alive; the factor is checked there.
        let result = unsafe { raw::tj3SetScalingFactor(self.pointer(), factor) };
        if result == 0 {
            Ok(())
        } else {
            Err(damaged("libjpeg-turbo refuses to scale the image"))
        }
    }

    /// What has to be decoded for `part`, in whole blocks; `None` when all has to be.
    fn region(&self, part: &Part, height: usize, width: usize) -> Option<Part> {
        if !self.is_scalable() {
            return None;
        }
        let subsampling = usize::try_from(self.get(raw::TJPARAM_TJPARAM_SUBSAMP)).ok()?;
        let [block_height, block_width] = *BLOCKS.get(subsampling)?;
        let around = |range: &Range<usize>, block: usize, side: usize| {
            let low = (range.start / block).saturating_sub(1) * block;
            let high = (range.end.div_ceil(block) + 1) * block;
            low..high.min(side)
        };
        let region = Part {
            rows: around(&part.rows, block_height, height),
            columns: around(&part.columns, block_width, width),
        };
        let all = region.rows == (0..height) && region.columns == (0..width);
        (!all && !region.rows.is_empty() && !region.columns.is_empty()).then_some(region)
    }

    /// Sets what is decoded of the image whose header was read last.
    fn crop(&self, region: raw::tjregion) -> Result<(), Error> {
        // SAFETY: the handle is alive; the region is checked there.
        let result = unsafe { raw::tj3SetCroppingRegion(self.pointer(), region) };
        if result == 0 {
            Ok(())
        } else {
            Err(damaged("libjpeg-turbo refuses a part of the image"))
        }
    }

    pub(super) fn decode(&mut self, bytes: &[u8], max_pixels: usize, image: &mut Image) -> Result<(), Error> {
        let (height, width) = self.size(bytes)?;
        check_size(height, width, max_pixels)?;
        image.pixels.resize(height * width * 3, 0);
        (image.height, image.width) = (height, width);
        if self.is_scalable() {
            return self.decompress_colors(bytes, &mut image.pixels, width * 3);
        }
        let mut cmyk = std::mem::take(&mut self.cmyk);
        cmyk.resize(height * width * 4, 0);
        let result = self.decompress(bytes, &mut cmyk, width * 4, raw::TJPF_TJPF_CMYK);
        if result.is_ok() {
            cmyk_to_rgb(&cmyk, has_adobe_marker(bytes), &mut image.pixels);
            if self.grey {
                // TensorFlow makes no channel of inks; their colours' brightness is the closest thing.
                let (pixels, _) = image.pixels.as_chunks_mut::<3>();
                pixels.iter_mut().for_each(|pixel| *pixel = [grey(*pixel); 3]);
            }
        }
        self.cmyk = cmyk;
        result
    }

    /// As [`Self::decompress`], to three channels.
    fn decompress_colors(&mut self, bytes: &[u8], output: &mut [u8], pitch: usize) -> Result<(), Error> {
        if !self.grey {
            return self.decompress(bytes, output, pitch, raw::TJPF_TJPF_RGB);
        }
        let mut plane = std::mem::take(&mut self.plane);
        plane.resize(output.len() / 3, 0);
        let result = self.decompress(bytes, &mut plane, pitch / 3, raw::TJPF_TJPF_GRAY);
        let (pixels, _) = output.as_chunks_mut::<3>();
        for (pixel, &value) in pixels.iter_mut().zip(&plane) {
            *pixel = [value; 3];
        }
        self.plane = plane;
        result
    }

    /// `output` must hold `pitch` bytes for each row of the image whose header was read last, from the same `bytes`.
    fn decompress(&mut self, bytes: &[u8], output: &mut [u8], pitch: usize, format: raw::TJPF) -> Result<(), Error> {
        let pitch = c_int::try_from(pitch).map_err(|_| damaged("a row is too long"))?;
        // SAFETY: the handle is alive; `bytes` is read within its length; the header, parsed from the same bytes just
        // before, gave the height and width for which the caller sized `output`, or they are those of the region that it
        // has set, divided as its scaling says.
        let result = unsafe {
            raw::tj3Decompress8(
                self.pointer(),
                bytes.as_ptr(),
                bytes.len() as raw::size_t,
                output.as_mut_ptr(),
                pitch,
                format as c_int,
            )
        };
        self.check(result, bytes)
    }

    /// Tells errors from the warnings that TensorFlow lets pass (stray bytes between markers and the like). A file
    /// that ends too early is an error there too.
    fn check(&self, result: c_int, bytes: &[u8]) -> Result<(), Error> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the handle is alive; the string lives until the next call on it.
        let (code, message) = unsafe {
            let message = CStr::from_ptr(raw::tj3GetErrorStr(self.pointer()))
                .to_string_lossy()
                .into_owned();
            (raw::tj3GetErrorCode(self.pointer()), message)
        };
        if message.contains("Premature end") {
            return Err(Error::Truncated);
        }
        if code != raw::TJERR_TJERR_WARNING as c_int {
            return Err(damaged(&message));
        }
        // Only the first warning is kept, so look for the end of the image ourselves.
        if ends(bytes) { Ok(()) } else { Err(Error::Truncated) }
    }

    fn set(&self, parameter: raw::TJPARAM, value: c_int) -> Result<(), Error> {
        // SAFETY: the handle is alive.
        let result = unsafe { raw::tj3Set(self.pointer(), parameter as c_int, value) };
        if result == 0 {
            Ok(())
        } else {
            Err(damaged("libjpeg-turbo refuses a setting"))
        }
    }

    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is alive.
        unsafe { raw::tj3Get(self.pointer(), parameter as c_int) }
    }

    fn pointer(&self) -> raw::tjhandle {
        self.handle.as_ptr().cast()
    }
}

impl Drop for Codec {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used again.
        unsafe { raw::tj3Destroy(self.pointer()) }
    }
}

/// Rows and columns of a block of all components, by `TJSAMP`: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1.
const BLOCKS: [[usize; 2]; 7] = [[8, 8], [8, 16], [16, 16], [8, 8], [16, 8], [8, 32], [32, 8]];

const WHOLE: raw::tjregion = raw::tjregion { x: 0, y: 0, w: 0, h: 0 };

/// Whether the marker of an image's end is there.
fn ends(bytes: &[u8]) -> bool {
    bytes.windows(2).rev().any(|pair| pair == [0xFF, 0xD9])
}

/// A JPEG of that quality, chroma at half the size, as `tf.image.encode_jpeg` makes it.
pub(super) fn encode(image: &Image, quality: i32) -> Result<Vec<u8>, Error> {
    let side = |value: usize| c_int::try_from(value).map_err(|_| damaged("a side is too long"));
    let (height, width, pitch) = (side(image.height)?, side(image.width)?, side(image.width * 3)?);
    if image.pixels.len() != image.height * image.width * 3 || image.pixels.is_empty() {
        return Err(damaged("it has no pixels"));
    }
    // SAFETY: no preconditions; null means failure.
    let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_COMPRESS as c_int) };
    if handle.is_null() {
        return Err(damaged("libjpeg-turbo cannot be started"));
    }
    let (mut buffer, mut size): (*mut u8, raw::size_t) = (std::ptr::null_mut(), 0);
    // SAFETY: the handle is alive until it is destroyed here; the pixels are `height` rows of `pitch` bytes, checked
    // above; the library makes the buffer, of which `size` bytes are filled on success, and which is freed once copied.
    unsafe {
        raw::tj3Set(handle, raw::TJPARAM_TJPARAM_QUALITY as c_int, quality.clamp(1, 100));
        raw::tj3Set(
            handle,
            raw::TJPARAM_TJPARAM_SUBSAMP as c_int,
            raw::TJSAMP_TJSAMP_420 as c_int,
        );
        let format = raw::TJPF_TJPF_RGB as c_int;
        let pixels = image.pixels.as_ptr();
        let result = raw::tj3Compress8(
            handle,
            pixels,
            width,
            pitch,
            height,
            format,
            &raw mut buffer,
            &raw mut size,
        );
        let bytes =
            (result == 0 && !buffer.is_null()).then(|| std::slice::from_raw_parts(buffer, size as usize).to_vec());
        raw::tj3Free(buffer.cast());
        raw::tj3Destroy(handle);
        bytes.ok_or_else(|| damaged("libjpeg-turbo cannot write it"))
    }
}

fn damaged(reason: &str) -> Error {
    Error::Damaged {
        format: "JPEG",
        reason: reason.to_owned(),
    }
}

/// TensorFlow's conversion (`jpeg_mem.cc`): files with an Adobe marker store the inks inverted.
fn cmyk_to_rgb(cmyk: &[u8], inverted: bool, rgb: &mut [u8]) {
    let (inks, _) = cmyk.as_chunks::<4>();
    let (colors, _) = rgb.as_chunks_mut::<3>();
    for (&[c, m, y, k], color) in inks.iter().zip(colors) {
        let one = |ink: u8| {
            let (ink, key) = if inverted { (ink, k) } else { (255 - ink, 255 - k) };
            (u16::from(ink) * u16::from(key) / 255) as u8
        };
        *color = [one(c), one(m), one(y)];
    }
}

/// Whether an APP14 segment "Adobe" stands before the first scan.
fn has_adobe_marker(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let [0xFF, marker, after @ ..] = rest {
        match (marker, after) {
            (0xFF, _) => rest = &rest[1..],
            (0x01 | 0xD0..=0xD8, _) => rest = after,
            (0xD9 | 0xDA, _) => return false,
            (_, [high, low, ..]) => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(segment) = after.get(2..length) else {
                    return false;
                };
                if *marker == 0xEE && segment.starts_with(b"Adobe") && segment.len() >= 12 {
                    return true;
                }
                rest = after.get(length..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
}
