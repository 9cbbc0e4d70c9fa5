//! The records of a data set: files found by [`pattern`], indexed, read at random.

pub mod pattern;

use std::fmt;
use std::path::{Path, PathBuf};

use coati_common::tfrecord::{self, IndexedFile};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

/// Why a data set cannot be opened or a record not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The paths mean no files.
    #[error(transparent)]
    Pattern(#[from] pattern::Error),
    /// A file is damaged or a record of it cannot be read; names file, record and offset.
    #[error(transparent)]
    Record(#[from] tfrecord::Error),
    /// All files are there, and none has a record.
    #[error("{}: the data set is empty: no record in {} file(s)\nhint: import images into it with `coati data import`", first.display(), count)]
    Empty {
        /// The first file.
        first: PathBuf,
        /// How many files there are.
        count: usize,
    },
    /// There is no such record.
    #[error("record {record} does not exist: the data set has {count}")]
    NoSuchRecord {
        /// Counted through all files from 0.
        record: u64,
        /// How many there are.
        count: u64,
    },
}

/// Which record of which file, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// The record's number within the file, from 0.
    pub record: u64,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: record {}", self.file.display(), self.record)
    }
}

/// All records of a data set, numbered through its files from 0. Any number of threads may read at once.
#[derive(Debug)]
pub struct Source {
    files: Vec<IndexedFile>,
    /// The number of the first record of each file, then the number of all records.
    starts: Vec<u64>,
}

impl Source {
    /// Finds and indexes the files that `paths` mean (see [`pattern::expand`]). Reads every record's header, so
    /// that a truncated file is refused here and not in the middle of a job.
    pub fn open<S: AsRef<str>>(paths: &[S]) -> Result<Self, Error> {
        Self::open_files(&pattern::expand(paths)?)
    }

    /// As [`Source::open`], with the indexes that [`Source::keep`] left in `folder`: headers are not read again.
    pub fn open_kept<S: AsRef<str>>(paths: &[S], folder: &Path) -> Result<Self, Error> {
        Self::index(&pattern::expand(paths)?, |path| IndexedFile::open_kept(path, folder))
    }

    /// Indexes the given files.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self, Error> {
        Self::index(paths, IndexedFile::open)
    }

    /// Keeps the indexes of the files in `folder`, for others and for later; nothing that has failed matters.
    pub fn keep(&self, folder: &Path) {
        self.files.par_iter().for_each(|file| file.keep(folder));
    }

    fn index(
        paths: &[PathBuf],
        open: impl Fn(&Path) -> Result<IndexedFile, tfrecord::Error> + Sync,
    ) -> Result<Self, Error> {
        let files = paths.par_iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut starts = Vec::with_capacity(files.len() + 1);
        let mut count = 0;
        for file in &files {
            starts.push(count);
            count += file.len() as u64;
        }
        starts.push(count);
        if count == 0 {
            return Err(Error::Empty {
                first: paths.first().cloned().unwrap_or_default(),
                count: paths.len(),
            });
        }
        Ok(Self { files, starts })
    }

    /// How many records there are; at least 1.
    pub fn record_count(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The files, in order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(IndexedFile::path)
    }

    /// Tells whether two machines see the same records: SHA-256 (hexadecimal) of each file's name (without its
    /// folder), number of records and their sizes, in order.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for file in &self.files {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy();
            digest.update((name.len() as u64).to_le_bytes());
            digest.update(name.as_bytes());
            digest.update((file.len() as u64).to_le_bytes());
            for span in file.spans() {
                digest.update(span.length.to_le_bytes());
            }
        }
        coati_common::hex(&digest.finalize())
    }

    /// The bytes of a record. A wrong CRC is an error of this record alone ([`tfrecord::Error::is_local`]).
    pub fn read(&self, record: u64) -> Result<Vec<u8>, Error> {
        let missing = || Error::NoSuchRecord {
            record,
            count: self.record_count(),
        };
        let (file, index) = self.find(record).ok_or_else(missing)?;
        Ok(file.read(index).ok_or_else(missing)??)
    }

    /// Says that a record will be read soon ([`IndexedFile::prefetch`]).
    pub fn prefetch(&self, record: u64) {
        if let Some((file, index)) = self.find(record) {
            file.prefetch(index);
        }
    }

    /// Where a record lies. Of a record that does not exist, the end of the last file.
    pub fn location(&self, record: u64) -> Location {
        match self.find(record) {
            Some((file, index)) => Location {
                file: file.path().to_owned(),
                record: index as u64,
            },
            None => Location {
                file: self.files.last().map(|file| file.path().to_owned()).unwrap_or_default(),
                record: self.files.last().map_or(0, |file| file.len() as u64),
            },
        }
    }

    fn find(&self, record: u64) -> Option<(&IndexedFile, usize)> {
        let file = self.starts.partition_point(|&start| start <= record).checked_sub(1)?;
        Some((self.files.get(file)?, (record - self.starts[file]) as usize))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Writes shards with records "0-0", "0-1", ….
    fn shards(counts: &[usize]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        for (shard, &count) in counts.iter().enumerate() {
            let mut writer = tfrecord::Writer::new(Vec::new());
            for record in 0..count {
                writer.write(format!("{shard}-{record}").as_bytes()).unwrap();
            }
            let name = format!("a-{shard:05}-of-{:05}", counts.len());
            fs::write(folder.path().join(name), writer.into_inner()).unwrap();
        }
        let pattern = format!("{}/a@{}", folder.path().display(), counts.len());
        (folder, pattern)
    }

    #[test]
    fn records_are_numbered_through_all_files() {
        let (folder, pattern) = shards(&[2, 0, 3]);
        let source = Source::open(&[pattern]).unwrap();
        assert_eq!(source.record_count(), 5);
        let records: Vec<_> = (0..5)
            .map(|id| String::from_utf8(source.read(id).unwrap()).unwrap())
            .collect();
        assert_eq!(records, ["0-0", "0-1", "2-0", "2-1", "2-2"]);
        let last = folder.path().join("a-00002-of-00003");
        assert_eq!(
            source.location(3),
            Location {
                file: last.clone(),
                record: 1
            }
        );
        assert_eq!(source.location(3).to_string(), format!("{}: record 1", last.display()));
        assert!(matches!(
            source.read(5),
            Err(Error::NoSuchRecord { record: 5, count: 5 })
        ));
    }

    #[test]
    fn the_digest_tells_data_sets_apart_but_not_folders() {
        let (a, b, c) = (shards(&[2, 3]), shards(&[2, 3]), shards(&[3, 2]));
        let digest = |pattern: &str| Source::open(&[pattern]).unwrap().digest();
        assert_eq!(digest(&a.1), digest(&b.1));
        assert_ne!(digest(&a.1), digest(&c.1));
        assert_eq!(digest(&a.1).len(), 64);
    }

    #[test]
    fn an_empty_set_is_refused() {
        let (_folder, pattern) = shards(&[0, 0]);
        let error = Source::open(&[pattern]).unwrap_err().to_string();
        assert!(
            error.contains("the data set is empty: no record in 2 file(s)"),
            "{error}"
        );
    }

    #[test]
    fn a_truncated_file_is_refused_at_once() {
        let (folder, pattern) = shards(&[1, 3]);
        let path = folder.path().join("a-00001-of-00002");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
        let error = Source::open(&[pattern]).unwrap_err().to_string();
        assert!(
            error.contains("a-00001-of-00002") && error.contains("record 2"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_body_spoils_its_record_alone() {
        let (folder, pattern) = shards(&[3]);
        let path = folder.path().join("a-00000-of-00001");
        let mut bytes = fs::read(&path).unwrap();
        bytes[19 + 12] ^= 1;
        fs::write(&path, bytes).unwrap();
        let source = Source::open(&[pattern]).unwrap();
        assert!(source.read(0).is_ok() && source.read(2).is_ok());
        let Err(Error::Record(error)) = source.read(1) else {
            panic!("the damage went unnoticed")
        };
        assert!(error.is_local() && error.to_string().contains("record 1"), "{error}");
    }
}
