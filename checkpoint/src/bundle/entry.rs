//! One tensor's entry in the index, checked.

use coati_proto::tensorflow::tensor_slice_proto::extent::HasLength;
use coati_proto::tensorflow::{BundleEntryProto, TensorShapeProto, TensorSliceProto};

use super::key::{self, StoredExtent};
use super::{DataType, SavedTensor, Slice, elements};

/// A tensor as the index describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// TensorFlow's name, without `:0`.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<i64>,
    /// The parts in which it is stored; empty when it is stored whole.
    pub slices: Vec<Slice>,
}

impl Entry {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        elements(&self.shape).unwrap_or(0)
    }
}

/// Bytes an element of this type takes in a data file; `None` for strings and unknown types.
pub fn dtype_bytes(dtype: DataType) -> Option<u64> {
    match dtype {
        DataType::DtUint8 | DataType::DtInt8 | DataType::DtBool => Some(1),
        DataType::DtInt16 | DataType::DtUint16 | DataType::DtHalf | DataType::DtBfloat16 => Some(2),
        DataType::DtFloat | DataType::DtInt32 | DataType::DtUint32 => Some(4),
        DataType::DtDouble | DataType::DtInt64 | DataType::DtUint64 | DataType::DtComplex64 => Some(8),
        DataType::DtString | DataType::DtInvalid => None,
    }
}

/// The name that users of TensorFlow know: `float32`, `int64`, …
pub fn dtype_name(dtype: DataType) -> &'static str {
    match dtype {
        DataType::DtInvalid => "of unknown type",
        DataType::DtFloat => "float32",
        DataType::DtDouble => "float64",
        DataType::DtInt32 => "int32",
        DataType::DtUint8 => "uint8",
        DataType::DtInt16 => "int16",
        DataType::DtInt8 => "int8",
        DataType::DtString => "string",
        DataType::DtComplex64 => "complex64",
        DataType::DtInt64 => "int64",
        DataType::DtBool => "bool",
        DataType::DtBfloat16 => "bfloat16",
        DataType::DtUint16 => "uint16",
        DataType::DtHalf => "float16",
        DataType::DtUint32 => "uint32",
        DataType::DtUint64 => "uint64",
    }
}

/// Where a tensor or a slice lies, in the index's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) shard: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) crc: u32,
}

/// What an entry says, its numbers checked as far as the entry itself goes.
pub(super) struct Parsed {
    pub(super) dtype: DataType,
    pub(super) shape: Vec<i64>,
    pub(super) place: Place,
    /// Each slice with the key of its own entry.
    pub(super) slices: Vec<(Slice, Vec<u8>)>,
}

/// Checks an entry; the error says what is wrong with it.
pub(super) fn parse(name: &str, entry: &BundleEntryProto, shard_count: i32) -> Result<Parsed, String> {
    let shape = entry
        .shape
        .as_ref()
        .map_or_else(Vec::new, |shape| shape.dim.iter().map(|dim| dim.size).collect());
    let count = elements(&shape).ok_or_else(|| format!("impossible shape {shape:?}"))?;
    let dtype = DataType::try_from(entry.dtype).unwrap_or(DataType::DtInvalid);

    let mut slices = Vec::with_capacity(entry.slices.len());
    for slice in &entry.slices {
        slices.push(parse_slice(name, slice, &shape)?);
    }
    let whole = slices.is_empty();

    let number = |value: i64, what: &str| u64::try_from(value).map_err(|_| format!("{what} is {value}"));
    let (offset, size) = (number(entry.offset, "offset")?, number(entry.size, "size")?);
    if !(0..shard_count).contains(&entry.shard_id) {
        return Err(format!("in data file {} of {shard_count}", entry.shard_id));
    }
    let wanted = dtype_bytes(dtype)
        .filter(|_| whole)
        .map(|bytes| count.checked_mul(bytes));
    if wanted.is_some_and(|wanted| wanted != Some(size)) {
        return Err(format!(
            "shape {shape:?} of {} does not take {size} bytes",
            dtype_name(dtype)
        ));
    }
    offset
        .checked_add(size)
        .ok_or_else(|| format!("offset {offset} and size {size} overflow"))?;
    let place = Place {
        shard: entry.shard_id as u32,
        offset,
        size,
        crc: entry.crc32c,
    };
    Ok(Parsed {
        dtype,
        shape,
        place,
        slices,
    })
}

fn parse_slice(name: &str, slice: &TensorSliceProto, shape: &[i64]) -> Result<(Slice, Vec<u8>), String> {
    // An extent without a length is the whole dimension; its key then says -1.
    let stored: Vec<StoredExtent> = slice
        .extent
        .iter()
        .map(|extent| {
            (
                extent.start,
                extent.has_length.map_or(-1, |HasLength::Length(length)| length),
            )
        })
        .collect();
    let length = stored
        .iter()
        .zip(shape)
        .map(|(&(_, length), &size)| if length == -1 { size } else { length });
    let box_ = Slice {
        start: stored.iter().map(|&(start, _)| start).collect(),
        length: length.collect(),
    };
    match box_.complaint(shape) {
        Some(what) => Err(what),
        None => Ok((box_, key::encode(name, &stored))),
    }
}

/// The shape message.
pub(super) fn shape_proto(shape: &[i64]) -> TensorShapeProto {
    use coati_proto::tensorflow::tensor_shape_proto::Dim;
    let dim = shape.iter().map(|&size| Dim { size, ..Dim::default() }).collect();
    TensorShapeProto {
        dim,
        unknown_rank: false,
    }
}

/// The slice message and its key, every extent with its length, as TensorFlow's own `Saver` writes them.
pub(super) fn slice_proto(name: &str, slice: &Slice) -> (TensorSliceProto, Vec<u8>) {
    use coati_proto::tensorflow::tensor_slice_proto::Extent;
    let extents: Vec<StoredExtent> = slice.start.iter().copied().zip(slice.length.iter().copied()).collect();
    let extent = extents.iter().map(|&(start, length)| Extent {
        start,
        has_length: Some(HasLength::Length(length)),
    });
    (
        TensorSliceProto {
            extent: extent.collect(),
        },
        key::encode(name, &extents),
    )
}

/// The slice that a saved tensor is, if it is not whole.
pub(super) fn saved_slice(saved: &SavedTensor) -> Option<Slice> {
    let slice = Slice {
        start: saved.slice_start.clone(),
        length: saved.slice_length.clone(),
    };
    let stored_whole = slice.start.is_empty() && slice.length.is_empty();
    (!stored_whole && !slice.is_whole(&saved.shape)).then_some(slice)
}
