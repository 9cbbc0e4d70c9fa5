//! Writing one data file.

use std::io;
use std::path::{Path, PathBuf};

use coati_common::tfrecord::mask;
use coati_storage::{Writer, is_remote};

use super::{DataType, Error, SavedTensor, Slice, data_path, dtype_bytes, elements};
use crate::{fault, files};

/// CRC and write go over pieces of this size, so that the second finds the bytes in the cache.
const PIECE_BYTES: usize = 1 << 18;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "tensors are written from memory as they are"
);

/// Writes tensors one after the other into one data file, under its final name. Unless it is finished, the file is
/// removed when this is dropped; in a bucket it has not appeared then.
#[derive(Debug)]
pub struct DataFileWriter {
    path: PathBuf,
    file: Option<Box<dyn Writer>>,
    buffer: Vec<u8>,
    shard: u32,
    offset: u64,
    tensors: Vec<SavedTensor>,
}

impl DataFileWriter {
    /// Starts data file `shard` of `shard_count` of checkpoint `prefix`.
    pub fn create(prefix: &Path, shard: u32, shard_count: u32) -> Result<Self, Error> {
        Self::create_at(data_path(prefix, shard, shard_count), shard)
    }

    /// Starts a data file under another name, to be renamed later.
    pub(crate) fn create_at(path: PathBuf, shard: u32) -> Result<Self, Error> {
        fault::point();
        let file = coati_storage::create(&path).map_err(files::error(&path, "create"))?;
        let buffer = Vec::with_capacity(PIECE_BYTES);
        Ok(Self {
            path,
            file: Some(file),
            buffer,
            shard,
            offset: 0,
            tensors: Vec::new(),
        })
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// Appends a float32 tensor of this (full) shape, or one slice of it, given as consecutive chunks in C order.
    pub fn append_f32<'a>(
        &mut self,
        name: &str,
        shape: &[i64],
        slice: Option<&Slice>,
        chunks: impl IntoIterator<Item = &'a [f32]>,
    ) -> Result<(), Error> {
        self.append(
            name,
            DataType::DtFloat,
            shape,
            slice,
            chunks.into_iter().map(bytemuck::cast_slice),
        )
    }

    /// Appends an int64 tensor, `global_step` for example.
    pub fn append_i64(&mut self, name: &str, shape: &[i64], values: &[i64]) -> Result<(), Error> {
        self.append(name, DataType::DtInt64, shape, None, [bytemuck::cast_slice(values)])
    }

    /// Appends a tensor of any type of fixed size: its elements in C order, little endian.
    pub fn append_bytes(&mut self, name: &str, dtype: DataType, shape: &[i64], values: &[u8]) -> Result<(), Error> {
        self.append(name, dtype, shape, None, [values])
    }

    fn append<'a>(
        &mut self,
        name: &str,
        dtype: DataType,
        shape: &[i64],
        slice: Option<&Slice>,
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        let refuse = |what: String| Error::Tensor {
            path: self.path.clone(),
            name: name.to_owned(),
            what,
        };
        if name.is_empty() || name.starts_with('\0') {
            return Err(refuse("a name must not be empty or start with a zero byte".to_owned()));
        }
        if let Some(what) = slice.and_then(|slice| slice.complaint(shape)) {
            return Err(refuse(what));
        }
        let stored_shape = slice.map_or(shape, |slice| &slice.length);
        let wanted = elements(stored_shape)
            .zip(dtype_bytes(dtype))
            .and_then(|(count, bytes)| count.checked_mul(bytes))
            .ok_or_else(|| refuse(format!("impossible shape {shape:?}")))?;

        let offset = self.offset;
        let mut crc = 0;
        for piece in chunks.into_iter().flat_map(|chunk| chunk.chunks(PIECE_BYTES)) {
            crc = crc32c::crc32c_append(crc, piece);
            self.write(piece, wanted)?;
        }
        let written = self.offset - offset;
        if written != wanted {
            let what = format!("{written} bytes given, shape {stored_shape:?} takes {wanted}");
            return Err(Error::Tensor {
                path: self.path.clone(),
                name: name.to_owned(),
                what,
            });
        }
        let (slice_start, slice_length) =
            slice.map_or_else(Default::default, |slice| (slice.start.clone(), slice.length.clone()));
        self.tensors.push(SavedTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype: dtype.into(),
            slice_start,
            slice_length,
            shard: self.shard,
            offset,
            size: wanted,
            crc32c: mask(crc),
        });
        Ok(())
    }

    /// `wanted` is the tensor's size, for the error.
    fn write(&mut self, piece: &[u8], wanted: u64) -> Result<(), Error> {
        if self.buffer.len() + piece.len() > PIECE_BYTES {
            self.flush(wanted)?;
        }
        if piece.len() == PIECE_BYTES {
            raw_write(self.file.as_mut(), piece).map_err(files::sized_error(&self.path, "write", wanted))?;
        } else {
            self.buffer.extend_from_slice(piece);
        }
        self.offset += piece.len() as u64;
        Ok(())
    }

    fn flush(&mut self, wanted: u64) -> Result<(), Error> {
        raw_write(self.file.as_mut(), &self.buffer).map_err(files::sized_error(&self.path, "write", wanted))?;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the file last (fsync) and returns what it holds.
    pub fn finish(mut self) -> Result<Vec<SavedTensor>, Error> {
        self.flush(self.buffer.len() as u64)?;
        if let Some(file) = self.file.take() {
            fault::point();
            file.finish().map_err(|source| {
                remove(&self.path);
                files::sized_error(&self.path, "sync", self.offset)(source)
            })?;
        }
        Ok(std::mem::take(&mut self.tensors))
    }
}

fn raw_write(file: Option<&mut Box<dyn Writer>>, bytes: &[u8]) -> io::Result<()> {
    let Some(file) = file else { return Ok(()) };
    fault::writing(bytes, |half| file.write_all(half))?;
    file.write_all(bytes)
}

impl Drop for DataFileWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            remove(&self.path);
        }
    }
}

/// Nobody can act on a failure here; a file left behind has no index and is cleaned up later.
fn remove(path: &Path) {
    if !is_remote(path) {
        let _ = coati_storage::remove(path);
    }
}
