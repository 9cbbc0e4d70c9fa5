//! What Coati needs of a place that keeps files.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

/// What is known of a file without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Its size.
    pub bytes: u64,
    /// When it was written last, in nanoseconds since 1970; 0 where nobody knows.
    pub modified_ns: i64,
    /// The content's entity tag, in a bucket.
    pub tag: Option<String>,
    /// A folder (on a disk only: a bucket's folders have no properties).
    pub is_dir: bool,
}

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Without the folder.
    pub name: String,
    /// Whether it is a file, and no folder or pipe.
    pub is_file: bool,
    /// Its size; 0 for a folder.
    pub bytes: u64,
}

/// A file in the making. One that is dropped without [`Writer::finish`] does not appear in a bucket, and stays cut off on a disk.
pub trait Writer: io::Write + Debug + Send {
    /// Makes the file appear, whole and to last.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A place that keeps files. Paths are whole ones: [`crate::of`] finds the store for a path.
pub trait Store: Debug + Send + Sync {
    /// Size and time of a file.
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// The whole content.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The bytes from `offset`; fewer than asked for are `UnexpectedEof`.
    fn read_range(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// What lies in a folder, by name.
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>>;
    /// Whether it is a folder.
    fn is_dir(&self, path: &Path) -> bool;
    /// Replaces the whole content at once.
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file unless there is one; false where there is.
    fn put_new(&self, path: &Path, bytes: &[u8]) -> io::Result<bool>;
    /// Starts a file of any size.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Writer>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The contents of several files of this place.
    fn read_many(&self, paths: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
        paths.iter().map(|path| self.read(path)).collect()
    }
    /// Removes several files of this place; those that are not there are fine.
    fn remove_many(&self, paths: &[PathBuf]) -> io::Result<()> {
        paths.iter().try_for_each(|path| match self.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }
    /// Makes a folder and those above it.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
}
