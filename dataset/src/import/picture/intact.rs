//! A look at an image file's structure from the first byte to the last, without decoding.
//!
//! It says yes only to files that are laid out as their format wants and end where they should; of everything else it says
//! nothing. Pixels inside a scan may still be damaged: decoders show those as they can, and `coati data validate` decodes.

use crate::decode;

/// Format, height and width of a file that looks whole; `None` where that is not clear.
pub(super) fn check(bytes: &[u8]) -> Option<(&'static str, u32, u32)> {
    let (format, height, width) = match bytes {
        [0xff, 0xd8, rest @ ..] => jpeg(rest).map(|(height, width)| ("jpeg", height, width))?,
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, rest @ ..] => {
            png(rest).map(|(height, width)| ("png", height, width))?
        }
        _ => return None,
    };
    let pixels = u64::from(height) * u64::from(width);
    let most = decode::Options::default().max_pixels as u64;
    (pixels > 0 && pixels <= most).then_some((format, height, width))
}

/// Height and width, from behind the start marker to the end marker (ITU T.81, annex B).
fn jpeg(mut bytes: &[u8]) -> Option<(u32, u32)> {
    let mut size = None;
    let mut scanned = false;
    loop {
        let [0xff, marker, rest @ ..] = bytes else { return None };
        bytes = rest;
        match marker {
            // Fill bytes before a marker are rare: let the decoder see to them.
            0xff => return None,
            0xd9 => return size.filter(|_| scanned),
            _ => {
                let (length, _) = bytes.split_first_chunk::<2>()?;
                let length = usize::from(u16::from_be_bytes(*length));
                let (segment, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                match marker {
                    // Baseline, extended and progressive Huffman frames of 8 bits: what decoders have.
                    0xc0..=0xc2 => {
                        let [_, _, 8, h1, h0, w1, w0, 1 | 3, ..] = *segment else {
                            return None;
                        };
                        if size.is_some() {
                            return None;
                        }
                        let number = |high, low| u32::from(u16::from_be_bytes([high, low]));
                        size = Some((number(h1, h0), number(w1, w0)));
                    }
                    // Other frames: lossless, hierarchical, arithmetic.
                    0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return None,
                    0xda => {
                        bytes = after_scan(bytes)?;
                        scanned = true;
                    }
                    0xc4 | 0xdb | 0xdd | 0xe0..=0xef | 0xfe => {}
                    _ => return None,
                }
            }
        }
    }
}

/// The rest from the next marker on that does not belong to the scan's data.
fn after_scan(bytes: &[u8]) -> Option<&[u8]> {
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|&byte| byte == 0xff)?;
        match bytes.get(at + 1)? {
            // A stuffed byte, or a restart marker.
            0x00 | 0xd0..=0xd7 => from = at + 2,
            _ => return bytes.get(at..),
        }
    }
}

/// Height and width; every chunk's CRC is checked (RFC 2083).
fn png(mut bytes: &[u8]) -> Option<(u32, u32)> {
    let mut size = None;
    let mut data = false;
    loop {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (chunk, rest) = rest.split_at_checked(length.checked_add(4)?)?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        bytes = rest;
        let mut found = flate2::Crc::new();
        found.update(chunk);
        if found.sum() != u32::from_be_bytes(*crc) {
            return None;
        }
        let (name, content) = chunk.split_first_chunk::<4>()?;
        match (name, size) {
            (b"IHDR", None) => {
                let (width, rest) = content.split_first_chunk::<4>()?;
                let (height, _) = rest.split_first_chunk::<4>()?;
                size = Some((u32::from_be_bytes(*height), u32::from_be_bytes(*width)));
            }
            (_, None) => return None,
            (b"IDAT", _) => data = true,
            (b"IEND", _) => return size.filter(|_| data),
            _ => {}
        }
    }
}
