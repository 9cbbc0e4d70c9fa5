//! TFRecord framing: `length: u64le, masked crc32c of those 8 bytes, data, masked crc32c of data`, repeated to the end of the file.
//!
//! Plain files, and ones packed by gzip or zlib ([`Compression`]), which are told by their first bytes. Every CRC is checked.

mod compressed;
mod error;
mod index;
mod kept;
mod reader;
mod writer;

pub use compressed::{Compression, Plain};
pub use error::{Error, Location};
pub use index::{IndexedFile, RecordSpan, index_file, read_at};
pub use kept::index_path;
pub use reader::Reader;
pub use writer::Writer;

/// Bytes before a record's data: its length and the length's CRC.
pub const HEADER_BYTES: u64 = 12;
/// Bytes after a record's data: the data's CRC.
pub const FOOTER_BYTES: u64 = 4;

const MASK_DELTA: u32 = 0xa282_ead8;

/// CRC32C of `data`, masked as TensorFlow and `LevelDB` store it.
pub fn masked_crc32c(data: &[u8]) -> u32 {
    mask(crc32c::crc32c(data))
}

/// Masks a plain CRC32C (`crc32c::Mask`), so that a CRC over data that holds CRCs stays meaningful.
pub fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK_DELTA)
}

/// The plain CRC32C behind a masked one.
pub fn unmask(masked: u32) -> u32 {
    masked.wrapping_sub(MASK_DELTA).rotate_left(15)
}

/// Header of a record with `length` bytes of data.
fn encode_header(length: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    let bytes = length.to_le_bytes();
    header[..8].copy_from_slice(&bytes);
    header[8..].copy_from_slice(&masked_crc32c(&bytes).to_le_bytes());
    header
}

/// The record's length, if the CRC beside it agrees.
fn decode_header(header: [u8; HEADER_BYTES as usize], location: impl Fn() -> Location) -> Result<u64, Error> {
    let [a, b, c, d, e, f, g, h, crc @ ..] = header;
    let length = [a, b, c, d, e, f, g, h];
    let (stored, computed) = (u32::from_le_bytes(crc), masked_crc32c(&length));
    if stored == computed {
        return Ok(u64::from_le_bytes(length));
    }
    Err(Error::LengthCrc {
        location: location(),
        stored,
        computed,
    })
}

#[cfg(test)]
mod tests;
