//! The tensor bundle: TensorFlow's V2 checkpoint format.
//!
//! `P.index` is an uncompressed `LevelDB` table. Its first key is empty and holds the header (number of data files); each
//! tensor's name leads to its entry (dtype, shape, data file, offset, size, masked CRC32C). A partitioned tensor's entry
//! lists its slices, and each slice has an entry of its own under a binary key. Data files are the tensors' bytes in C
//! order, little endian, one after the other.

mod data;
mod entry;
mod error;
mod header;
mod index;
mod key;
mod reader;
mod slice;
pub(crate) mod table;

use std::path::{Path, PathBuf};

pub use data::DataFileWriter;
pub use entry::{Entry, dtype_bytes, dtype_name};
pub use error::Error;
pub(crate) use index::encode as encode_index;
pub use index::{write_index, write_plain_index};
pub use reader::Reader;
pub use slice::{Slice, flat_range_slices};

pub use coati_proto::coati::v1::SavedTensor;
pub use coati_proto::tensorflow::DataType;

use crate::files::with_suffix;

/// `P.index`
pub fn index_path(prefix: &Path) -> PathBuf {
    with_suffix(prefix, ".index")
}

/// `P.data-0000i-of-0000n`
pub fn data_path(prefix: &Path, shard: u32, shard_count: u32) -> PathBuf {
    with_suffix(prefix, &format!(".data-{shard:05}-of-{shard_count:05}"))
}

/// Number of elements of a shape; `None` when a dimension is negative or the product overflows.
pub(crate) fn elements(shape: &[i64]) -> Option<u64> {
    shape
        .iter()
        .try_fold(1u64, |product, &size| product.checked_mul(u64::try_from(size).ok()?))
}

/// A table of any keys and values (in order), for the fuzz tests.
#[cfg(test)]
pub(crate) fn fuzz_table(pairs: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut builder = table::Builder::new();
    for (key, value) in pairs {
        builder.add(key, value);
    }
    builder.finish()
}

/// A header, for the fuzz tests.
#[cfg(test)]
pub(crate) fn fuzz_header(shards: i32) -> Vec<u8> {
    prost::Message::encode_to_vec(&header::Header::new(shards, false))
}
