//! Files and objects behind one small interface: local paths, `gs://BUCKET/KEY` and `s3://BUCKET/KEY`.
//!
//! A place is a [`std::path::Path`] everywhere, whatever it points at: `join`, `parent` and `file_name` mean the same for a URL.
//! The functions here have the names and errors of `std::fs`, so a caller need not know where a path points. What a bucket lacks
//! (renames, appending, folders) is not offered: [`put`] replaces a whole object, [`put_new`] makes one unless it exists, and
//! [`create`] writes a large one in parts that appear together when it is finished.
//!
//! Everything is synchronous. Requests run on a small runtime of this package's own, so callers may be plain threads or tasks.

mod bucket;
mod cache;
mod connect;
mod error;
mod external;
mod file;
mod gate;
mod local;
mod location;
mod profile;
mod retry;
mod runtime;
mod sequential;
mod settings;
mod side;
mod store;
mod upload;

use std::io;
use std::path::{Path, PathBuf};

pub use error::{Error, hint_or};
pub use file::File;
pub use location::{Location, Scheme, is_remote};
pub use sequential::Sequential;
pub use side::local_side;
pub use store::{Entry, Stat, Store, Writer};

static LOCAL: local::Local = local::Local;
static BUCKETS: bucket::Buckets = bucket::Buckets;

/// Where a path points.
pub fn of(path: &Path) -> &'static dyn Store {
    if is_remote(path) { &BUCKETS } else { &LOCAL }
}

/// The whole content.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    of(path).read(path)
}

/// The whole content, which must be UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// Size and time of a file; `NotFound` where there is none. In a bucket, folders have none.
pub fn stat(path: &Path) -> io::Result<Stat> {
    of(path).stat(path)
}

/// Whether a file or a folder is there, as far as it can be told.
pub fn exists(path: &Path) -> bool {
    is_file(path) || is_dir(path)
}

/// Whether it is a file.
pub fn is_file(path: &Path) -> bool {
    stat(path).is_ok_and(|stat| !stat.is_dir)
}

/// Whether it is a folder. In a bucket: whether anything lies below it.
pub fn is_dir(path: &Path) -> bool {
    of(path).is_dir(path)
}

/// What lies in a folder, by name. A folder that does not exist is `NotFound`; in a bucket it is empty.
pub fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    of(folder).list(folder)
}

/// Replaces the whole content at once: readers see the old or the new.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    of(path).put(path, bytes)
}

/// Writes a whole file, and makes the folder for it. Readers of a local file may see a part of it meanwhile.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if is_remote(path) {
        return put(path, bytes);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, bytes)
}

/// Makes a file unless there is one. False where there is; of several at a time one succeeds.
pub fn put_new(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    of(path).put_new(path, bytes)
}

/// Starts a file of any size. In a bucket it appears when it is finished, and not at all otherwise.
pub fn create(path: &Path) -> io::Result<Box<dyn Writer>> {
    of(path).create(path)
}

/// Removes a file; one that is not there is `NotFound` on a disk and nothing in a bucket.
pub fn remove(path: &Path) -> io::Result<()> {
    of(path).remove(path)
}

/// The whole contents of several files, in their order; of a bucket's many at a time.
pub fn read_many(paths: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
    match paths.first() {
        Some(first) => of(first).read_many(paths),
        None => Ok(Vec::new()),
    }
}

/// Removes several files of one place; those that are not there are fine.
pub fn remove_many(paths: &[PathBuf]) -> io::Result<()> {
    match paths.first() {
        Some(first) => of(first).remove_many(paths),
        None => Ok(()),
    }
}

/// Makes a folder and those above it. A bucket has none.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    of(path).create_dir_all(path)
}
