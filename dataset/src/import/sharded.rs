//! Writes records into `-00000-of-0000n` files that appear under their names only when they are whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use coati_common::tfrecord::Writer;

use super::Error;

/// The shards' names: `path` itself without a shard count, as the reference's scripts name them otherwise.
pub fn names(path: &Path, shards: Option<u32>) -> Vec<PathBuf> {
    match shards {
        None => vec![path.to_owned()],
        Some(count) => (0..count)
            .map(|index| {
                let mut name = path.as_os_str().to_owned();
                name.push(format!("-{index:05}-of-{count:05}"));
                PathBuf::from(name)
            })
            .collect(),
    }
}

/// Writes a file that appears under its name only when it is whole.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let partial = temporary(path);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(failed)
}

/// A file that is written bit by bit and appears under its name when it is whole.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    file: BufWriter<File>,
    done: bool,
}

/// Begins to write `path` anew. Dropped before [`Replacement::finish`], what stands under the name stays.
pub fn replace_with(path: &Path) -> Result<Replacement, Error> {
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = File::create(temporary(path)).map_err(failed)?;
    Ok(Replacement {
        path: path.to_owned(),
        file: BufWriter::with_capacity(1 << 20, file),
        done: false,
    })
}

impl Replacement {
    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> Result<(), Error> {
        let written = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(temporary(&self.path), &self.path));
        written.map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(temporary(&self.path));
        }
    }
}

/// Writers of all shards. Dropped before [`Shards::finish`], it leaves nothing under the final names.
pub struct Shards {
    names: Vec<PathBuf>,
    writers: Vec<Writer<BufWriter<File>>>,
    next: usize,
}

impl Shards {
    /// Opens temporary files beside the final names.
    pub fn create(path: &Path, shards: Option<u32>) -> Result<Self, Error> {
        let names = names(path, shards);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|source| Error::Write {
                path: folder.to_owned(),
                source,
            })?;
        }
        let mut writers = Vec::with_capacity(names.len());
        for name in &names {
            let path = temporary(name);
            let file = File::create(&path).map_err(|source| Error::Write { path, source })?;
            writers.push(Writer::new(BufWriter::with_capacity(1 << 20, file)));
        }
        Ok(Self {
            names,
            writers,
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
        writer.write(record).map_err(|source| Error::Write {
            path: self.names[index].clone(),
            source,
        })
    }

    /// Gives the files their names.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        for (writer, name) in std::mem::take(&mut self.writers).into_iter().zip(&self.names) {
            let failed = |source| Error::Write {
                path: name.clone(),
                source,
            };
            let mut file = writer.into_inner();
            file.flush().map_err(failed)?;
            file.get_ref().sync_all().map_err(failed)?;
            fs::rename(temporary(name), name).map_err(failed)?;
        }
        Ok(std::mem::take(&mut self.names))
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = fs::remove_file(temporary(name));
        }
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
        assert_eq!(names(Path::new("a/t.record"), None), [PathBuf::from("a/t.record")]);
        assert_eq!(
            names(Path::new("t.record"), Some(2))[1],
            PathBuf::from("t.record-00001-of-00002")
        );
    }

    #[test]
    fn nothing_stays_of_an_import_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let mut shards = Shards::create(&folder.path().join("t.record"), Some(3)).unwrap();
        shards.write(b"x").unwrap();
        drop(shards);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
