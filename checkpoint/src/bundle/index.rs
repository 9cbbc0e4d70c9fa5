//! Writing the index: the entries of all data files, merged.

use std::collections::BTreeMap;
use std::path::Path;

use coati_proto::tensorflow::{BundleEntryProto, TensorSliceProto};
use prost::Message as _;

use super::entry::{saved_slice, shape_proto, slice_proto};
use super::header::Header;
use super::table::Builder;
use super::{Error, SavedTensor, Slice, elements, index_path};
use crate::files;

/// Slices a tensor may have; checking them costs the square of it.
pub(super) const MAX_SLICES: usize = 4096;

/// Writes `P.index` of a job's checkpoint from the entries of all its data files: atomically and synced. The checkpoint
/// counts only when its manifest is there too ([`crate::manifest`]); TensorFlow reads it at once.
pub fn write_index(prefix: &Path, shard_count: u32, tensors: &[SavedTensor]) -> Result<(), Error> {
    let path = index_path(prefix);
    let bytes = encode(&path, shard_count, tensors, true)?;
    Ok(files::write_atomic(&path, &bytes)?)
}

/// As [`write_index`], for a checkpoint without a manifest, byte for byte as TensorFlow would write it.
pub fn write_plain_index(prefix: &Path, shard_count: u32, tensors: &[SavedTensor]) -> Result<(), Error> {
    let path = index_path(prefix);
    let bytes = encode(&path, shard_count, tensors, false)?;
    Ok(files::write_atomic(&path, &bytes)?)
}

/// The index's bytes; `path` is for errors.
pub(crate) fn encode(
    path: &Path,
    shard_count: u32,
    tensors: &[SavedTensor],
    needs_manifest: bool,
) -> Result<Vec<u8>, Error> {
    let mut pairs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let header = Header::new(i32::try_from(shard_count).unwrap_or(i32::MAX), needs_manifest);
    if let Some(what) = header.complaint() {
        return Err(Error::Table {
            path: path.to_owned(),
            what,
        });
    }
    pairs.insert(Vec::new(), header.encode_to_vec());
    let mut partitioned: BTreeMap<&str, Vec<(Slice, &SavedTensor)>> = BTreeMap::new();
    for tensor in tensors {
        let refuse = |what: String| Error::Tensor {
            path: path.to_owned(),
            name: tensor.name.clone(),
            what,
        };
        if tensor.shard >= shard_count {
            return Err(refuse(format!("in data file {} of {shard_count}", tensor.shard)));
        }
        let slice = saved_slice(tensor);
        if let Some(what) = slice.as_ref().and_then(|slice| slice.complaint(&tensor.shape)) {
            return Err(refuse(what));
        }
        let (key, stored_shape) = match &slice {
            Some(slice) => (slice_proto(&tensor.name, slice).1, slice.length.clone()),
            None => (tensor.name.clone().into_bytes(), tensor.shape.clone()),
        };
        if pairs
            .insert(key, entry(tensor, &stored_shape).encode_to_vec())
            .is_some()
        {
            return Err(refuse("given twice, or its name is empty".to_owned()));
        }
        if let Some(slice) = slice {
            partitioned.entry(&tensor.name).or_default().push((slice, tensor));
        }
    }
    for (name, slices) in partitioned {
        let whole = merge(path, name, slices)?;
        if pairs.insert(name.as_bytes().to_vec(), whole.encode_to_vec()).is_some() {
            let what = "given both whole and in slices".to_owned();
            return Err(Error::Tensor {
                path: path.to_owned(),
                name: name.to_owned(),
                what,
            });
        }
    }

    let mut builder = Builder::new();
    for (key, value) in &pairs {
        builder.add(key, value);
    }
    Ok(builder.finish())
}

fn entry(tensor: &SavedTensor, stored_shape: &[i64]) -> BundleEntryProto {
    BundleEntryProto {
        dtype: tensor.dtype,
        shape: Some(shape_proto(stored_shape)),
        shard_id: tensor.shard as i32,
        offset: tensor.offset as i64,
        size: tensor.size as i64,
        crc32c: tensor.crc32c,
        slices: Vec::new(),
    }
}

/// The entry of a whole tensor that lies in slices, which must make it up exactly.
fn merge(path: &Path, name: &str, mut slices: Vec<(Slice, &SavedTensor)>) -> Result<BundleEntryProto, Error> {
    slices.sort_by(|(a, _), (b, _)| a.start.cmp(&b.start));
    let first = slices
        .first()
        .map_or_else(SavedTensor::default, |(_, tensor)| (*tensor).clone());
    if let Some((_, other)) = slices
        .iter()
        .find(|(_, other)| other.shape != first.shape || other.dtype != first.dtype)
    {
        let what = format!(
            "its slices disagree on the shape: {:?} and {:?}",
            first.shape, other.shape
        );
        return Err(Error::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            what,
        });
    }
    let boxes: Vec<&Slice> = slices.iter().map(|(slice, _)| slice).collect();
    check_cover(path, name, &first.shape, &boxes)?;
    let slices: Vec<TensorSliceProto> = boxes.iter().map(|slice| slice_proto(name, slice).0).collect();
    Ok(BundleEntryProto {
        dtype: first.dtype,
        shape: Some(shape_proto(&first.shape)),
        slices,
        ..BundleEntryProto::default()
    })
}

/// Slices must hold each element of the tensor once. Each of them must lie within the shape.
pub(super) fn check_cover(path: &Path, name: &str, shape: &[i64], slices: &[&Slice]) -> Result<(), Error> {
    if slices.len() > MAX_SLICES {
        let what = format!("{} slices, at most {MAX_SLICES} are supported", slices.len());
        return Err(Error::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            what,
        });
    }
    for (index, first) in slices.iter().enumerate() {
        if let Some(second) = slices[index + 1..].iter().find(|second| first.overlaps(second)) {
            let slices = [first.to_string(), second.to_string()];
            return Err(Error::Overlap {
                path: path.to_owned(),
                name: name.to_owned(),
                slices,
            });
        }
    }
    let covered = slices.iter().map(|slice| slice.elements()).sum();
    let elements = elements(shape).unwrap_or(0);
    if covered == elements {
        return Ok(());
    }
    Err(Error::Incomplete {
        path: path.to_owned(),
        name: name.to_owned(),
        shape: shape.to_vec(),
        covered,
        elements,
    })
}
