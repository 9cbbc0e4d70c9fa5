//! Files that must be wholly there or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use coati_storage::is_remote;

use crate::fault;

/// The operating system refused something.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}{}: {source}{}", path.display(), Wanted(*bytes), coati_storage::hint_or(source, hint(source)))]
pub struct Error {
    /// The file or folder.
    pub path: PathBuf,
    /// `write`, `open`, …
    pub action: &'static str,
    /// How much was to be written or read, where it matters.
    pub bytes: Option<u64>,
    /// Why.
    pub source: io::Error,
}

struct Wanted(Option<u64>);

impl std::fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |bytes| write!(formatter, " {bytes} bytes"))
    }
}

impl Error {
    /// True when the disk (or the quota, or the largest file size) is what stands in the way.
    pub fn is_out_of_space(&self) -> bool {
        out_of_space(&self.source)
    }
}

fn out_of_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn hint(error: &io::Error) -> &'static str {
    if out_of_space(error) {
        "\nhint: free some space there or keep fewer checkpoints; those already complete are untouched"
    } else {
        match error.kind() {
            io::ErrorKind::NotFound => "\nhint: check the path",
            io::ErrorKind::PermissionDenied => "\nhint: check who owns the folder",
            _ => "",
        }
    }
}

/// Makes an [`Error`] of an [`io::Error`].
pub(crate) fn error<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error {
        path: path.to_owned(),
        action,
        bytes: None,
        source,
    }
}

/// As [`error`], for a known number of bytes.
pub(crate) fn sized_error<'a>(path: &'a Path, action: &'static str, bytes: u64) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error {
        path: path.to_owned(),
        action,
        bytes: Some(bytes),
        source,
    }
}

/// `path` with `suffix` appended to its last component.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The folder that holds `path`; `.` for a bare name.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Ending of a file that is being written and will be renamed.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Replaces `path` by `bytes` at once: whoever reads it, after a crash too, sees the old or the new content. In a bucket that is what
/// writing an object does; elsewhere a file takes the other's name.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if is_remote(path) {
        return coati_storage::put(path, bytes).map_err(sized_error(path, "write", bytes.len() as u64));
    }
    let temporary = with_suffix(path, TEMPORARY);
    let written = write_synced(&temporary, bytes).and_then(|()| rename(&temporary, path));
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_folder(folder(path))
}

/// Writes a file and makes its content last.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fault::point();
    File::create(path)
        .and_then(|mut file| {
            fault::writing(bytes, |half| file.write_all(half))?;
            file.write_all(bytes)?;
            fault::point();
            file.sync_all()
        })
        .map_err(sized_error(path, "write", bytes.len() as u64))
}

/// Renames within a folder.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fault::point();
    fs::rename(from, to).map_err(error(to, "rename a file to this"))
}

/// Makes names in a folder last.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Error> {
    if is_remote(path) {
        return Ok(());
    }
    fault::point();
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(error(path, "sync"))
}

/// Removes a file; one that is already gone is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    fault::point();
    match coati_storage::remove(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(path, "remove")(source)),
        _ => Ok(()),
    }
}

/// Size of a file; `None` when it does not exist.
pub(crate) fn size(path: &Path) -> Result<Option<u64>, Error> {
    match coati_storage::stat(path) {
        Ok(stat) => Ok(Some(stat.bytes)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(error(path, "stat")(source)),
    }
}
