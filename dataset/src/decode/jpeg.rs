//! JPEG through libjpeg-turbo. The crate's safe wrapper cannot choose the fast DCT, so its C interface is used.

use std::ffi::CStr;
use std::os::raw::c_int;
use std::ptr::NonNull;

use turbojpeg::raw;

use super::{Error, Image, check_size};

/// Progressive files with more scans than this are refused: each scan costs a pass over the whole image.
const MAX_SCANS: c_int = 500;

/// A libjpeg-turbo decompressor.
#[derive(Debug)]
pub(super) struct Codec {
    handle: NonNull<std::ffi::c_void>,
    cmyk: Vec<u8>,
}

// SAFETY: the handle is a heap object without ties to the thread that made it, and `Codec` is its only user.
unsafe impl Send for Codec {}

impl Codec {
    pub(super) fn new(fast_dct: bool) -> Result<Self, Error> {
        // SAFETY: no preconditions; null means failure.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let handle = NonNull::new(handle.cast()).ok_or_else(|| damaged("libjpeg-turbo cannot be started"))?;
        let codec = Self {
            handle,
            cmyk: Vec::new(),
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
            *self = Self::new(self.get(raw::TJPARAM_TJPARAM_FASTDCT) != 0)?;
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

    pub(super) fn decode(&mut self, bytes: &[u8], max_pixels: usize, image: &mut Image) -> Result<(), Error> {
        let (height, width) = self.size(bytes)?;
        check_size(height, width, max_pixels)?;
        image.pixels.resize(height * width * 3, 0);
        (image.height, image.width) = (height, width);
        let colors = self.get(raw::TJPARAM_TJPARAM_COLORSPACE);
        if colors == raw::TJCS_TJCS_CMYK as c_int || colors == raw::TJCS_TJCS_YCCK as c_int {
            let mut cmyk = std::mem::take(&mut self.cmyk);
            cmyk.resize(height * width * 4, 0);
            let result = self.decompress(bytes, &mut cmyk, width * 4, raw::TJPF_TJPF_CMYK);
            if result.is_ok() {
                cmyk_to_rgb(&cmyk, has_adobe_marker(bytes), &mut image.pixels);
            }
            self.cmyk = cmyk;
            result
        } else {
            self.decompress(bytes, &mut image.pixels, width * 3, raw::TJPF_TJPF_RGB)
        }
    }

    /// `output` must hold `pitch` bytes for each row of the image whose header was read last, from the same `bytes`.
    fn decompress(&mut self, bytes: &[u8], output: &mut [u8], pitch: usize, format: raw::TJPF) -> Result<(), Error> {
        let pitch = c_int::try_from(pitch).map_err(|_| damaged("a row is too long"))?;
        // SAFETY: the handle is alive; `bytes` is read within its length; the header, parsed from the same bytes just
        // before, gave the height and width for which the caller sized `output`, and no scaling or cropping is set.
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
        if bytes.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]) {
            Ok(())
        } else {
            Err(Error::Truncated)
        }
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
