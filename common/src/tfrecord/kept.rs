//! Indexes that are kept: a big file's headers are walked once, by whichever process of a job comes first.
//!
//! An index is of use or it is not; it is never an error. What cannot be read, does not fit the file or cannot be written
//! costs a walk and is logged. Writers write a file of their own and rename it, so that any number of processes may read
//! and write at once.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use coati_proto::coati::v1::RecordIndex;
use coati_storage::{File, is_remote};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{FOOTER_BYTES, HEADER_BYTES, Reader, RecordSpan, Writer};

/// Of the format. A newer one is not read, an older one neither: making it anew costs little.
const VERSION: u32 = 1;
/// Read at either end of the file for its digest.
const ENDS: u64 = 64 << 10;
/// Records whose headers go into the digest.
const SAMPLES: usize = 64;
/// Temporary files of writers that died are removed after so long.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What the index of a file must agree with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    modified_ns: i64,
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let stat = file.stat()?;
        Ok(Self {
            bytes: stat.bytes,
            modified_ns: stat.modified_ns,
        })
    }
}

/// `FOLDER/NAME-0123456789abcdef.index`: the file's name for people, a hash of its whole path to tell files of one name
/// apart.
pub fn index_path(folder: &Path, records: &Path) -> PathBuf {
    let whole = fs::canonicalize(records).unwrap_or_else(|_| records.to_owned());
    let hash = Sha256::digest(whole.as_os_str().as_encoded_bytes());
    let name = records.file_name().unwrap_or_default().to_string_lossy();
    let short: String = name.chars().take(100).collect();
    folder.join(format!("{short}-{}.index", crate::hex(&hash[..8])))
}

/// The spans that an index tells, if it is one of this file as it is now; else why not.
pub(super) fn load(path: &Path, file: &File, stamp: Stamp) -> Result<Vec<RecordSpan>, String> {
    let mut reader = Reader::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    match reader.read_into(&mut bytes) {
        Ok(true) => {}
        Ok(false) => return Err("it is empty".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let index = RecordIndex::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    if index.version != VERSION {
        return Err(format!("version {}, not {VERSION}", index.version));
    }
    let found = Stamp {
        bytes: index.file_bytes,
        modified_ns: index.modified_ns,
    };
    if found != stamp {
        return Err("the file was changed since".to_owned());
    }
    let spans = spans(&index.lengths, stamp.bytes).ok_or("its records do not make up the file")?;
    let digest = digest(file, stamp.bytes, &spans).map_err(|error| error.to_string())?;
    if digest != index.digest {
        return Err("the file's content is another".to_owned());
    }
    Ok(spans)
}

/// Lengths to spans; nothing if they do not end where the file does.
fn spans(lengths: &[u64], bytes: u64) -> Option<Vec<RecordSpan>> {
    let mut offset = 0u64;
    let mut spans = Vec::with_capacity(lengths.len());
    for &length in lengths {
        spans.push(RecordSpan { offset, length });
        offset = offset.checked_add(length)?.checked_add(HEADER_BYTES + FOOTER_BYTES)?;
    }
    (offset == bytes).then_some(spans)
}

/// A little of the file's content: enough to notice one that was replaced with its size and time kept.
fn digest(file: &File, bytes: u64, spans: &[RecordSpan]) -> io::Result<Vec<u8>> {
    let mut digest = Sha256::new();
    if let Some(tag) = file.stat()?.tag {
        // A bucket says itself when the content is another.
        digest.update(tag);
        return Ok(digest.finalize().to_vec());
    }
    let mut read = |offset: u64, count: u64| -> io::Result<()> {
        let mut block = vec![0; count as usize];
        file.read_exact_at(&mut block, offset)?;
        digest.update(&block);
        Ok(())
    };
    let end = bytes.min(ENDS);
    read(0, end)?;
    read(bytes - end, end)?;
    for span in spans.iter().step_by(spans.len().div_ceil(SAMPLES).max(1)) {
        read(span.offset, HEADER_BYTES)?;
    }
    Ok(digest.finalize().to_vec())
}

/// Keeps an index. `stamp` is the file's from before it was walked: one that was changed meanwhile is not kept.
pub(super) fn store(path: &Path, file: &File, stamp: Stamp, spans: &[RecordSpan]) -> io::Result<()> {
    if Stamp::of(file)? != stamp {
        return Err(io::Error::other("the file is being written to"));
    }
    let index = RecordIndex {
        version: VERSION,
        file_bytes: stamp.bytes,
        modified_ns: stamp.modified_ns,
        digest: digest(file, stamp.bytes, spans)?.into(),
        lengths: spans.iter().map(|span| span.length).collect(),
    };
    if is_remote(path) {
        let mut writer = Writer::new(Vec::new());
        writer.write(&index.encode_to_vec())?;
        return coati_storage::put(path, &writer.into_inner());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    remove_abandoned(folder);
    let temporary = temporary(path);
    let written = write(&temporary, &index.encode_to_vec()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut writer = Writer::new(fs::File::create_new(path)?);
    writer.write(bytes)?;
    let mut file = writer.into_inner();
    file.flush()?;
    // After a crash of the machine the name must not stand for an empty file; that would be noticed, and cost a walk.
    file.sync_all()
}

/// A name that no other writer uses.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy().replace('/', "_");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{host}-{}-{count}.tmp", std::process::id()));
    name.into()
}

/// What writers that died left behind. Failures do not matter: the next one tries again.
fn remove_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let old = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age > ABANDONED);
        if path.extension().is_some_and(|ending| ending == "tmp")
            && entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(old)
        {
            let _ = fs::remove_file(path);
        }
    }
}
