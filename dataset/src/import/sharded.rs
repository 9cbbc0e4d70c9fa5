//! Writes records into `-00000-of-0000n` files that appear under their names only when they are whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use coati_common::tfrecord::Writer;

use super::Error;

/// The shards' names: `path` itself without a shard count, as the reference's scripts name them otherwise, some of which put an
/// `ending` behind the number.
pub fn names(path: &Path, shards: Option<u32>, ending: &str) -> Vec<PathBuf> {
    match shards {
        None => vec![path.to_owned()],
        Some(count) => (0..count)
            .map(|index| {
                let mut name = path.as_os_str().to_owned();
                name.push(format!("-{index:05}-of-{count:05}{ending}"));
                PathBuf::from(name)
            })
            .collect(),
    }
}

/// Writes a file that appears under its name only when it is whole.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = replace_with(path)?;
    file.write(bytes)?;
    file.finish()
}

/// A file that is written bit by bit and appears under its name when it is whole.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    file: Target,
}

/// Begins to write `path` anew. Dropped before [`Replacement::finish`], what stands under the name stays.
pub fn replace_with(path: &Path) -> Result<Replacement, Error> {
    make_folder(path)?;
    Ok(Replacement {
        path: path.to_owned(),
        file: Target::create(path)?,
    })
}

impl Replacement {
    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(failed(&self.path))
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<(), Error> {
        self.file.finish().map_err(failed(&self.path))
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write {
        path: path.clone(),
        source,
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => coati_storage::create_dir_all(folder).map_err(failed(folder)),
        None => Ok(()),
    }
}

/// A file in the making, which is nothing under its name until it is finished: a bucket's appears then, a disk's has another name.
#[derive(Debug)]
enum Target {
    Disk(Partial),
    Bucket(Box<dyn coati_storage::Writer>),
}

impl Target {
    fn create(path: &Path) -> Result<Self, Error> {
        if coati_storage::is_remote(path) {
            let writer = coati_storage::create(path).map_err(failed(path))?;
            return Ok(Self::Bucket(writer));
        }
        let partial = temporary(path);
        let file = File::create(&partial).map_err(failed(&partial))?;
        Ok(Self::Disk(Partial {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            done: false,
        }))
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Bucket(writer) => writer.finish(),
            Self::Disk(mut partial) => {
                partial.file.flush()?;
                partial.file.get_ref().sync_all()?;
                fs::rename(temporary(&partial.path), &partial.path)?;
                partial.done = true;
                Ok(())
            }
        }
    }
}

impl io::Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Disk(partial) => partial.file.write(bytes),
            Self::Bucket(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Disk(partial) => partial.file.flush(),
            Self::Bucket(writer) => writer.flush(),
        }
    }
}

#[derive(Debug)]
struct Partial {
    path: PathBuf,
    file: BufWriter<File>,
    done: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(temporary(&self.path));
        }
    }
}

/// Writers of all shards. Dropped before [`Shards::finish`], it leaves nothing under the final names.
pub struct Shards {
    names: Vec<PathBuf>,
    writers: Vec<Writer<Target>>,
    next: usize,
}

impl Shards {
    /// Opens temporary files beside the final names. Of those in a bucket up to 8 MiB each are held in memory.
    pub fn create(names: Vec<PathBuf>) -> Result<Self, Error> {
        if let Some(first) = names.first() {
            make_folder(first)?;
        }
        let writers = names.iter().map(|name| Target::create(name).map(Writer::new));
        Ok(Self {
            writers: writers.collect::<Result<_, _>>()?,
            names,
            next: 0,
        })
    }

    /// Appends to the shards in turn.
    pub fn write(&mut self, record: &[u8]) -> Result<(), Error> {
        let index = self.next;
        self.next = (index + 1) % self.writers.len().max(1);
        let Some(writer) = self.writers.get_mut(index) else {
            return Ok(());
        };
        writer.write(record).map_err(failed(&self.names[index]))
    }

    /// Gives the files their names.
    pub fn finish(self) -> Result<Vec<PathBuf>, Error> {
        for (writer, name) in self.writers.into_iter().zip(&self.names) {
            writer.into_inner().finish().map_err(failed(name))?;
        }
        Ok(self.names)
    }
}

fn temporary(name: &Path) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    path.push(".partial");
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_reference_has_them() {
        assert_eq!(names(Path::new("a/t.record"), None, ""), [PathBuf::from("a/t.record")]);
        assert_eq!(
            names(Path::new("t.record"), Some(2), "")[1],
            PathBuf::from("t.record-00001-of-00002")
        );
        assert_eq!(
            names(Path::new("coco/train"), Some(32), ".tfrecord")[0],
            PathBuf::from("coco/train-00000-of-00032.tfrecord")
        );
    }

    #[test]
    fn nothing_stays_of_an_import_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let mut shards = Shards::create(names(&folder.path().join("t.record"), Some(3), "")).unwrap();
        shards.write(b"x").unwrap();
        drop(shards);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
