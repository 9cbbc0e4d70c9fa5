//! The safetensors format (version of 2023): eight bytes with the length of a JSON header, the header, the tensors' bytes.
//!
//! Names and layouts stay TensorFlow's, so that converting back gives the checkpoint that there was.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use coati_storage::File;
use serde::{Deserialize, Serialize};

use crate::bundle::{self, DataFileWriter, DataType, Reader, dtype_bytes};
use crate::files::{self, with_suffix};

/// The format's own limit on its header.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// A file that is no safetensors file, or cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The checkpoint.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// Not readable.
    #[error("{}: not a readable safetensors file: {what}\nhint: copy the file again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What was converted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of their values.
    pub bytes: u64,
    /// Tensors that the other format cannot hold.
    pub left_out: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn name_of(dtype: DataType) -> Option<&'static str> {
    Some(match dtype {
        DataType::DtFloat => "F32",
        DataType::DtDouble => "F64",
        DataType::DtHalf => "F16",
        DataType::DtBfloat16 => "BF16",
        DataType::DtInt64 => "I64",
        DataType::DtInt32 => "I32",
        DataType::DtInt16 => "I16",
        DataType::DtInt8 => "I8",
        DataType::DtUint64 => "U64",
        DataType::DtUint32 => "U32",
        DataType::DtUint16 => "U16",
        DataType::DtUint8 => "U8",
        DataType::DtBool => "BOOL",
        DataType::DtString | DataType::DtComplex64 | DataType::DtInvalid => return None,
    })
}

fn dtype_of(name: &str) -> Option<DataType> {
    use DataType::{
        DtBfloat16, DtBool, DtDouble, DtFloat, DtHalf, DtInt8, DtInt16, DtInt32, DtInt64, DtUint8, DtUint16, DtUint32,
        DtUint64,
    };
    [
        DtFloat, DtDouble, DtHalf, DtBfloat16, DtInt64, DtInt32, DtInt16, DtInt8, DtUint64, DtUint32, DtUint16,
        DtUint8, DtBool,
    ]
    .into_iter()
    .find(|dtype| name_of(*dtype) == Some(name))
}

/// Writes the checkpoint as one safetensors file, under a temporary name first.
///
/// # Errors
/// A damaged checkpoint, or a file that cannot be written; then nothing is left behind.
pub fn write(reader: &Reader, path: &Path) -> Result<Report, Error> {
    if coati_storage::is_remote(path) {
        // It appears when it is whole.
        return write_as(reader, path);
    }
    let temporary = with_suffix(path, files::TEMPORARY);
    let written = write_as(reader, &temporary);
    match written {
        Ok(report) => {
            files::rename(&temporary, path)?;
            Ok(report)
        }
        Err(error) => {
            let _ = files::remove(&temporary);
            Err(error)
        }
    }
}

fn write_as(reader: &Reader, path: &Path) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut entries = Vec::new();
    for entry in reader.entries() {
        match name_of(entry.dtype).zip(dtype_bytes(entry.dtype)) {
            Some((dtype, bytes)) => entries.push((entry, dtype, bytes)),
            None => report.left_out.push(entry.name.clone()),
        }
    }
    // The widest first, so that every tensor lies at a multiple of its elements' size.
    entries.sort_by_key(|(entry, _, bytes)| (std::cmp::Reverse(*bytes), entry.name.clone()));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!({"format": "tf"}));
    for (entry, dtype, bytes) in &entries {
        let end = report.bytes + entry.elements() * bytes;
        let info = serde_json::json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [report.bytes, end]});
        header.insert(entry.name.clone(), info);
        report.bytes = end;
        report.tensors += 1;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let failed = files::error(path, "write");
    let mut file = BufWriter::new(coati_storage::create(path).map_err(files::error(path, "create"))?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
    file.write_all(&header).map_err(&failed)?;
    for (entry, _, _) in &entries {
        file.write_all(&reader.read_raw(&entry.name)?).map_err(&failed)?;
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.finish().map_err(files::error(path, "sync"))?;
    Ok(report)
}

/// Writes the tensors of a safetensors file as the TensorFlow checkpoint `prefix`.
///
/// # Errors
/// A file that is not what it should be, or a checkpoint that cannot be written.
pub fn read(path: &Path, prefix: &Path) -> Result<Report, Error> {
    let (file, tensors, start) = open(path)?;
    let mut report = Report::default();
    let mut data = DataFileWriter::create(prefix, 0, 1)?;
    for (name, (dtype, info)) in &tensors {
        let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        let [from, to] = info.data_offsets;
        let mut bytes = vec![0; (to - from) as usize];
        file.read_exact_at(&mut bytes, start + from)
            .map_err(files::error(path, "read"))?;
        data.append_bytes(name, *dtype, &shape, &bytes)?;
        report.tensors += 1;
        report.bytes += to - from;
    }
    let saved = data.finish()?;
    bundle::write_plain_index(prefix, 1, &saved)?;
    Ok(report)
}

type Tensors = BTreeMap<String, (DataType, Info)>;

/// The file, its tensors by name, and where their bytes begin; every number in the header has been checked.
fn open(path: &Path) -> Result<(File, Tensors, u64), Error> {
    let wrong = |what: String| Error::Format {
        path: path.to_owned(),
        what,
    };
    let file = File::open_for_blocks(path).map_err(files::error(path, "open"))?;
    let size = file.len().map_err(files::error(path, "stat"))?;
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)
        .map_err(|_| wrong(format!("it has {size} bytes, the header's length alone takes 8")))?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER_BYTES || length > size.saturating_sub(8) {
        return Err(wrong(format!(
            "its header should have {length} bytes, the file has {size}"
        )));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8).map_err(files::error(path, "read"))?;
    let header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| wrong(format!("its header is no JSON object: {error}")))?;
    let start = 8 + length;
    let mut tensors = Tensors::new();
    for (name, value) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let refuse = |what: String| wrong(format!("tensor {name:?}: {what}"));
        let info: Info = serde_json::from_value(value).map_err(|error| refuse(error.to_string()))?;
        let dtype = dtype_of(&info.dtype).ok_or_else(|| refuse(format!("type {:?} is not known here", info.dtype)))?;
        let bytes = dtype_bytes(dtype).unwrap_or(0);
        let wanted = info.shape.iter().try_fold(bytes, |product, &size| {
            i64::try_from(size).ok().and_then(|_| product.checked_mul(size))
        });
        let [from, to] = info.data_offsets;
        let held = to.checked_sub(from).filter(|_| to <= size - start);
        if wanted.is_none() || wanted != held {
            return Err(refuse(format!(
                "shape {:?} of {} does not fill bytes {from}..{to} of {}",
                info.shape,
                info.dtype,
                size - start
            )));
        }
        tensors.insert(name, (dtype, info));
    }
    Ok((file, tensors, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saver;

    #[test]
    fn there_and_back_gives_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let weights: Vec<f32> = (0..12).map(|i| i as f32 / 7.0).collect();
        let tensors: [saver::Tensor; 3] = [
            ("a/weights", &[3, 4], &weights),
            ("b", &[], &[f32::NAN]),
            ("empty", &[0, 2], &[]),
        ];
        saver::save(&at("a.ckpt"), &tensors, &[("global_step", 7)], None).unwrap();
        let report = write(&Reader::open(&at("a.ckpt")).unwrap(), &at("a.safetensors")).unwrap();
        assert_eq!(
            (report.tensors, report.bytes, report.left_out.len()),
            (4, 48 + 4 + 8, 0)
        );
        assert_eq!(read(&at("a.safetensors"), &at("b.ckpt")).unwrap(), report);
        for ending in [".index", ".data-00000-of-00001"] {
            let file = |name: &str| std::fs::read(at(&format!("{name}{ending}"))).unwrap();
            assert_eq!(file("a.ckpt"), file("b.ckpt"), "{ending}");
        }
        // As the format's own description has it: the length, then JSON, then int64 before float32.
        let bytes = std::fs::read(at("a.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        assert_eq!(length % 8, 0);
        assert_eq!(
            header["a/weights"],
            serde_json::json!({"dtype": "F32", "shape": [3, 4], "data_offsets": [8, 56]})
        );
        assert_eq!(bytes[8 + length..8 + length + 8], 7_i64.to_le_bytes());
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let header = |text: &str| {
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.extend([0; 4]);
            bytes
        };
        for (bytes, words) in [
            (vec![1, 2], "header's length alone takes 8"),
            (u64::MAX.to_le_bytes().to_vec(), "the file has 8"),
            (header("[]"), "no JSON object"),
            (
                header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#),
                "does not fill bytes 0..8 of 4",
            ),
            (
                header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#),
                "does not fill",
            ),
            (
                header(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,4]}}"#),
                "does not fill",
            ),
            (
                header(r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}"#),
                "\"Q4\" is not known here",
            ),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let text = read(&path, &folder.path().join("out.ckpt")).unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
