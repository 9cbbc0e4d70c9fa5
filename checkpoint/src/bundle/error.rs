//! What can be wrong with a bundle.

use std::path::PathBuf;

use super::{DataType, dtype_name};
use crate::files;

/// A bundle that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// There is no such checkpoint.
    #[error("{}: no such checkpoint: {}.index does not exist\nhint: {hint}", prefix.display(), prefix.display())]
    NoCheckpoint {
        /// As it was given.
        prefix: PathBuf,
        /// What may have been meant.
        hint: String,
    },
    /// A checkpoint without its data.
    #[error("{}: the checkpoint's index is there, but {} is not\nhint: {hint}", prefix.display(), path.display())]
    NoData {
        /// As it was given.
        prefix: PathBuf,
        /// The first data file that is missing.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// The index is not a table, or a damaged one.
    #[error("{}: not a readable checkpoint index: {what}\nhint: copy the file again, or use another checkpoint", path.display())]
    Table {
        /// The index file.
        path: PathBuf,
        /// What is wrong, with the place and the values.
        what: String,
    },
    /// A tensor's entry contradicts itself or the rest.
    #[error("{}: entry of {name:?}: {what}\nhint: copy the checkpoint again, or use another one", path.display())]
    Entry {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The checkpoint has no such tensor.
    #[error("{}: no tensor {name:?}{}", prefix.display(), nearest.as_ref().map(|name| format!("\nhint: the nearest name is {name:?}")).unwrap_or_default())]
    NoTensor {
        /// The checkpoint.
        prefix: PathBuf,
        /// What was asked for.
        name: String,
        /// A similar name that exists.
        nearest: Option<String>,
    },
    /// The tensor has another type than the caller needs.
    #[error("{}: tensor {name:?} is {}, {wanted} expected", prefix.display(), dtype_name(*dtype))]
    Type {
        /// The checkpoint.
        prefix: PathBuf,
        /// The tensor.
        name: String,
        /// What it is.
        dtype: DataType,
        /// What was needed.
        wanted: &'static str,
    },
    /// A range reaches beyond the tensor.
    #[error("{}: elements {start}..{start}+{length} of tensor {name:?} asked for, which has {elements}", prefix.display())]
    Range {
        /// The checkpoint.
        prefix: PathBuf,
        /// The tensor.
        name: String,
        /// First element.
        start: u64,
        /// Number of elements.
        length: u64,
        /// What there is.
        elements: u64,
    },
    /// A data file ends before a tensor does.
    #[error(
        "{}: tensor {name:?} lies at bytes {offset}..{offset}+{size}, but the file has {found}\nhint: the file was cut short; copy the checkpoint again",
        path.display()
    )]
    ShortData {
        /// The data file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        size: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A tensor's bytes do not agree with the CRC in the index.
    #[error(
        "{}: tensor {name:?} at bytes {offset}..{offset}+{size}: CRC is {computed:#010x}, the index says {stored:#010x}\nhint: data file and index do not belong together, or the file is damaged; use another checkpoint",
        path.display()
    )]
    DataCrc {
        /// The data file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        size: u64,
        /// In the index, masked.
        stored: u32,
        /// Of the bytes in the file, masked.
        computed: u32,
    },
    /// The caller wants to write something that is no tensor.
    #[error("{}: cannot write tensor {name:?}: {what}", path.display())]
    Tensor {
        /// The file being written.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The slices to be written do not make up the tensor.
    #[error(
        "{}: the slices of {name:?} (shape {shape:?}) hold {covered} of {elements} elements\nhint: a parameter server did not save its part",
        path.display()
    )]
    Incomplete {
        /// The file being written.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Of the whole tensor.
        shape: Vec<i64>,
        /// Elements in the slices.
        covered: u64,
        /// Elements of the whole.
        elements: u64,
    },
    /// Two slices hold the same element.
    #[error("{}: slices {} of {name:?} overlap", path.display(), slices.join(" and "))]
    Overlap {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The two, as TensorFlow prints slices.
        slices: [String; 2],
    },
}

impl Error {
    /// True when a file's content is wrong, whatever is asked of it.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Table { .. }
                | Self::Entry { .. }
                | Self::ShortData { .. }
                | Self::DataCrc { .. }
                | Self::Incomplete { .. }
                | Self::Overlap { .. }
        )
    }
}
