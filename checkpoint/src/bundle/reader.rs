//! Reading a bundle.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coati_common::tfrecord::mask;
use coati_proto::tensorflow::BundleEntryProto;
use coati_storage::File;
use prost::Message as _;

use super::entry::{self, Parsed, Place};
use super::header::Header;
use super::index::check_cover;
use super::{DataType, Entry, Error, Slice, data_path, dtype_bytes, index_path, table};
use crate::{files, locate};

/// Bytes read and checked at once.
const PIECE_BYTES: usize = 1 << 18;

/// Reads tensors of one checkpoint; usable from any number of threads. The index is read and checked when it is opened,
/// data files when they are needed.
#[derive(Debug)]
pub struct Reader {
    prefix: PathBuf,
    shard_count: u32,
    needs_manifest: bool,
    tensors: BTreeMap<String, Tensor>,
    files: Mutex<BTreeMap<u32, Arc<Shard>>>,
    /// Parts whose CRC has been found right, so that further ranges of them need not read them whole.
    verified: Mutex<HashSet<Place>>,
}

#[derive(Debug)]
struct Tensor {
    entry: Entry,
    /// One for each slice, or the whole.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Reader {
    /// Opens checkpoint `prefix` (`…/model.ckpt-2000`, without `.index`).
    pub fn open(prefix: &Path) -> Result<Self, Error> {
        let path = index_path(prefix);
        let bytes = coati_storage::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoCheckpoint {
                prefix: prefix.to_owned(),
                hint: locate::hint(prefix),
            },
            _ => Error::File(files::error(&path, "read")(source)),
        })?;
        let broken = |what| Error::Table {
            path: path.clone(),
            what,
        };
        let mut pairs: BTreeMap<_, _> = table::parse(&bytes).map_err(broken)?.into_iter().collect();
        let header = pairs
            .remove(&Vec::new())
            .ok_or_else(|| broken("it has no header".to_owned()))?;
        let header = Header::decode(header.as_slice()).map_err(|error| broken(format!("header: {error}")))?;
        if let Some(what) = header.complaint() {
            return Err(broken(what));
        }
        let shard_count = header.num_shards;
        let read = |name: &str, key: &[u8]| -> Result<Parsed, Error> {
            let refuse = |what| Error::Entry {
                path: path.clone(),
                name: name.to_owned(),
                what,
            };
            let value = pairs
                .get(key)
                .ok_or_else(|| refuse("one of its slices has no entry".to_owned()))?;
            let value = BundleEntryProto::decode(value.as_slice()).map_err(|error| refuse(error.to_string()))?;
            entry::parse(name, &value, shard_count).map_err(refuse)
        };

        let mut tensors = BTreeMap::new();
        for key in pairs.keys().filter(|key| key.first() != Some(&0)) {
            let name = std::str::from_utf8(key)
                .map_err(|_| broken(format!("key {:?} is no name", String::from_utf8_lossy(key))))?;
            let whole = read(name, key)?;
            let mut places = Vec::new();
            for (slice, key) in &whole.slices {
                let part = read(name, key)?;
                if part.shape != slice.length || part.dtype != whole.dtype {
                    let what = format!("slice {slice} is stored as shape {:?}", part.shape);
                    return Err(Error::Entry {
                        path,
                        name: name.to_owned(),
                        what,
                    });
                }
                places.push(part.place);
            }
            if places.is_empty() {
                places.push(whole.place);
            } else {
                let slices: Vec<&Slice> = whole.slices.iter().map(|(slice, _)| slice).collect();
                check_cover(&path, name, &whole.shape, &slices)?;
            }
            let slices = whole.slices.into_iter().map(|(slice, _)| slice).collect();
            let entry = Entry {
                name: name.to_owned(),
                dtype: whole.dtype,
                shape: whole.shape,
                slices,
            };
            tensors.insert(name.to_owned(), Tensor { entry, places });
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            shard_count: shard_count as u32,
            needs_manifest: header.needs_manifest,
            tensors,
            files: Mutex::default(),
            verified: Mutex::default(),
        })
    }

    /// The checkpoint's prefix, as it was opened.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Number of data files.
    pub fn shard_count(&self) -> u32 {
        self.shard_count
    }

    /// True for a job's checkpoint, which does not count without its manifest.
    pub fn needs_manifest(&self) -> bool {
        self.needs_manifest
    }

    /// All tensors, in bytewise order of their names.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.tensors.values().map(|tensor| &tensor.entry)
    }

    /// A tensor's entry, if the checkpoint has it.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name).map(|tensor| &tensor.entry)
    }

    /// Reads a float32 tensor, in C order.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let elements = self.find(name)?.entry.elements();
        self.read_f32_range(name, 0, elements)
    }

    /// Reads `length` elements of a float32 tensor from element `start` (C order), however it is stored.
    pub fn read_f32_range(&self, name: &str, start: u64, length: u64) -> Result<Vec<f32>, Error> {
        let tensor = self.typed(name, DataType::DtFloat, "float32")?;
        self.check_range(tensor, start, length)?;
        let mut values = vec![0.0; length as usize];
        self.read_range(tensor, start, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// As [`Self::read_f32_range`], into memory that is already there.
    pub fn read_f32_range_into(&self, name: &str, start: u64, values: &mut [f32]) -> Result<(), Error> {
        let tensor = self.typed(name, DataType::DtFloat, "float32")?;
        self.check_range(tensor, start, values.len() as u64)?;
        self.read_range(tensor, start, bytemuck::cast_slice_mut(values))
    }

    /// Reads an int64 or int32 tensor.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, Error> {
        if self.find(name)?.entry.dtype == DataType::DtInt32 {
            let bytes = self.read_raw(name)?;
            let values = bytes
                .chunks_exact(4)
                .filter_map(|four| four.try_into().ok())
                .map(i32::from_le_bytes);
            return Ok(values.map(i64::from).collect());
        }
        let tensor = self.typed(name, DataType::DtInt64, "int64")?;
        self.check_range(tensor, 0, tensor.entry.elements())?;
        let mut values = vec![0i64; tensor.entry.elements() as usize];
        self.read_range(tensor, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Reads a tensor of any fixed-size type: its elements in C order, little endian.
    pub fn read_raw(&self, name: &str) -> Result<Vec<u8>, Error> {
        let tensor = self.find(name)?;
        let bytes = self.element_bytes(tensor)?;
        self.check_range(tensor, 0, tensor.entry.elements())?;
        let mut values = vec![0; (tensor.entry.elements() * bytes) as usize];
        self.read_range(tensor, 0, &mut values)?;
        Ok(values)
    }

    /// Checks that every data file is there and long enough for what the index says (no CRCs). Returns the bytes of all
    /// data files together.
    pub fn check_files(&self) -> Result<u64, Error> {
        let mut total = 0;
        for shard in 0..self.shard_count {
            total += self.shard(shard)?.bytes;
        }
        for tensor in self.tensors.values() {
            for &place in &tensor.places {
                self.check_place(tensor, place)?;
            }
        }
        Ok(total)
    }

    /// Reads every byte of every tensor and checks its CRC; keeps nothing.
    pub fn verify(&self) -> Result<(), Error> {
        for tensor in self.tensors.values() {
            for &place in &tensor.places {
                self.read_stored(tensor, place, 0, &mut [])?;
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<&Tensor, Error> {
        self.tensors.get(name).ok_or_else(|| {
            let prefix = self.prefix.clone();
            Error::NoTensor {
                prefix,
                name: name.to_owned(),
                nearest: nearest(name, self.tensors.keys()),
            }
        })
    }

    fn typed(&self, name: &str, dtype: DataType, wanted: &'static str) -> Result<&Tensor, Error> {
        let tensor = self.find(name)?;
        if tensor.entry.dtype == dtype {
            return Ok(tensor);
        }
        let (prefix, name, dtype) = (self.prefix.clone(), name.to_owned(), tensor.entry.dtype);
        Err(Error::Type {
            prefix,
            name,
            dtype,
            wanted,
        })
    }

    fn element_bytes(&self, tensor: &Tensor) -> Result<u64, Error> {
        dtype_bytes(tensor.entry.dtype).ok_or_else(|| {
            let (prefix, name, dtype) = (self.prefix.clone(), tensor.entry.name.clone(), tensor.entry.dtype);
            Error::Type {
                prefix,
                name,
                dtype,
                wanted: "numbers",
            }
        })
    }

    /// Refuses ranges beyond the tensor, and tensors beyond their files: what is read after this fits into memory that the
    /// files justify.
    fn check_range(&self, tensor: &Tensor, start: u64, length: u64) -> Result<(), Error> {
        let elements = tensor.entry.elements();
        if start.checked_add(length).is_none_or(|end| end > elements) {
            let (prefix, name) = (self.prefix.clone(), tensor.entry.name.clone());
            return Err(Error::Range {
                prefix,
                name,
                start,
                length,
                elements,
            });
        }
        tensor
            .places
            .iter()
            .try_for_each(|&place| self.check_place(tensor, place).map(drop))
    }

    fn check_place(&self, tensor: &Tensor, place: Place) -> Result<Arc<Shard>, Error> {
        let shard = self.shard(place.shard)?;
        if place.offset + place.size <= shard.bytes {
            return Ok(shard);
        }
        let (offset, size, found) = (place.offset, place.size, shard.bytes);
        Err(Error::ShortData {
            path: shard.path.clone(),
            name: tensor.entry.name.clone(),
            offset,
            size,
            found,
        })
    }

    fn shard(&self, number: u32) -> Result<Arc<Shard>, Error> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = files.get(&number) {
            return Ok(Arc::clone(shard));
        }
        let path = data_path(&self.prefix, number, self.shard_count);
        let file = File::open_for_blocks(&path).map_err(files::error(&path, "open"))?;
        let bytes = file.len().map_err(files::error(&path, "stat"))?;
        let shard = Arc::new(Shard { path, file, bytes });
        files.insert(number, Arc::clone(&shard));
        Ok(shard)
    }

    /// Fills `out` with the tensor's bytes from element `start`; the range has been checked.
    fn read_range(&self, tensor: &Tensor, start: u64, out: &mut [u8]) -> Result<(), Error> {
        let bytes = self.element_bytes(tensor)?;
        if tensor.entry.slices.is_empty() {
            return tensor
                .places
                .iter()
                .try_for_each(|&place| self.read_stored(tensor, place, start.saturating_mul(bytes), out));
        }
        let end = start + out.len() as u64 / bytes;
        let shape = &tensor.entry.shape;
        for (slice, &place) in tensor.entry.slices.iter().zip(&tensor.places) {
            let mut runs = slice.runs(shape);
            runs.retain(|run| run.full < end && run.full + run.length > start);
            let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
                continue;
            };
            // Only from the first to the last element that is wanted, which for a slice of rows is nothing but them.
            let from = first.slice + start.saturating_sub(first.full);
            let to = last.slice + last.length.min(end - last.full);
            let mut part = vec![0; ((to - from) * bytes) as usize];
            self.read_stored(tensor, place, from * bytes, &mut part)?;
            for run in runs {
                let (low, high) = (run.full.max(start), (run.full + run.length).min(end));
                let source = ((run.slice + (low - run.full) - from) * bytes) as usize;
                let target = ((low - start) * bytes) as usize;
                let count = ((high - low) * bytes) as usize;
                out[target..target + count].copy_from_slice(&part[source..source + count]);
            }
        }
        Ok(())
    }

    /// Fills `out` with what is stored at `place` from byte `skip`. The first time, all of it is read to check its CRC.
    fn read_stored(&self, tensor: &Tensor, place: Place, skip: u64, out: &mut [u8]) -> Result<(), Error> {
        let shard = self.check_place(tensor, place)?;
        let io = files::sized_error(&shard.path, "read", place.size);
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified().contains(&place) {
            return shard
                .file
                .read_exact_at(out, place.offset + skip)
                .map_err(|error| io(error).into());
        }

        let (wanted_from, wanted_to) = (skip, skip + out.len() as u64);
        let mut scratch = Vec::new();
        let (mut crc, mut at) = (0, 0);
        while at < place.size {
            // Pieces end where the wanted part starts and ends, so that it is read straight to where it belongs.
            let stop = [wanted_from, wanted_to, place.size]
                .into_iter()
                .find(|&stop| stop > at)
                .unwrap_or(place.size);
            let count = (stop - at).min(PIECE_BYTES as u64) as usize;
            let piece = if at >= wanted_from && at < wanted_to {
                let from = (at - wanted_from) as usize;
                &mut out[from..from + count]
            } else {
                scratch.resize(PIECE_BYTES, 0);
                &mut scratch[..count]
            };
            shard.file.read_exact_at(piece, place.offset + at).map_err(&io)?;
            crc = crc32c::crc32c_append(crc, piece);
            at += count as u64;
        }
        let computed = mask(crc);
        if computed != place.crc {
            let (path, name) = (shard.path.clone(), tensor.entry.name.clone());
            let (offset, size, stored) = (place.offset, place.size, place.crc);
            return Err(Error::DataCrc {
                path,
                name,
                offset,
                size,
                stored,
                computed,
            });
        }
        verified().insert(place);
        Ok(())
    }
}

/// The name with most of its ending or beginning in common with `name`, if that is much of it.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Option<String> {
    let score = |other: &str| {
        let front = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let back = name
            .bytes()
            .rev()
            .zip(other.bytes().rev())
            .take_while(|(a, b)| a == b)
            .count();
        (front + back).min(name.len().min(other.len()))
    };
    let best = names.max_by_key(|other| (score(other), std::cmp::Reverse(other.len().abs_diff(name.len()))))?;
    (score(best) * 4 >= name.len() * 3).then(|| best.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_finds_its_name() {
        let names = ["FeatureExtractor/Conv2d_0/weights", "BoxPredictor_0/biases"].map(str::to_owned);
        assert_eq!(
            nearest("FeatureExtractor/Conv2d_0/weight", names.iter()),
            Some(names[0].clone())
        );
        assert_eq!(
            nearest("model/FeatureExtractor/Conv2d_0/weights", names.iter()),
            Some(names[0].clone())
        );
        assert_eq!(nearest("zzz", names.iter()), None);
    }
}
