//! One output of inference: whether it is complete, who makes it, and how it appears under its name only when it is whole.
//!
//! Beside the outputs lies a folder, `OUTPUT.infer`. A shard is written there; when it is whole, a note says what it was made from, and only then it gets
//! its name. So a file under an output's name is whole or was not made here, and the note tells which.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use coati_checkpoint::files::write_atomic;
use coati_common::tfrecord;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::lease::{Lease, Look, Watch};

/// Of the notes' format.
const VERSION: u32 = 1;

/// What a shard was made from, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    version: u32,
    /// SHA-256 of the model, the input's name, size and time of change, and the flags.
    made_from: String,
    /// Of the output.
    bytes: u64,
    records: u64,
    #[serde(default)]
    detections: u64,
    /// Records that are as they were, for want of a usable image.
    #[serde(default)]
    without_image: u64,
}

/// What there is of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing, or what is incomplete.
    Missing,
    /// All of it.
    Complete,
    /// A file that was made from something else, or not here.
    Other(String),
}

/// An input, its output, and what the output is made from.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    input: PathBuf,
    output: PathBuf,
    note: PathBuf,
    partial: PathBuf,
    made_from: String,
    /// Who is at it, in a bucket.
    claim: Arc<Mutex<Watch>>,
}

/// What became of a shard's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub records: u64,
    pub detections: u64,
    pub without_image: u64,
}

/// Whose a shard is.
pub(super) enum Claimed {
    /// It is complete.
    Complete,
    /// Another process is at it. In a bucket it may also have died; whether it lives is `known` after some looks.
    Elsewhere { known: bool },
    /// This one makes it. `again`: something incomplete was there.
    Ours { writer: Writer, again: bool },
}

impl Shard {
    /// `place` is its number and how many there are, `model` the detector's digest.
    pub(super) fn new(
        input: &Path,
        output: &Path,
        folder: &Path,
        (index, count): (usize, usize),
        model: &str,
        discard: bool,
    ) -> Result<Self, Error> {
        let found = coati_storage::stat(input).map_err(failed(input, "read"))?;
        let changed = (found.modified_ns, found.tag);
        let name = input.file_name().unwrap_or_default().to_string_lossy();
        let mut digest = Sha256::new();
        digest.update(format!("{model} {discard} {} {changed:?} {name}", found.bytes));
        let stem = format!("{index:05}-of-{count:05}");
        Ok(Self {
            input: input.to_owned(),
            output: output.to_owned(),
            note: folder.join(format!("{stem}.json")),
            partial: folder.join(format!("{stem}.partial")),
            claim: Arc::new(Mutex::new(Watch::new(
                folder.join(format!("{stem}.claim")),
                "another process makes this shard too, since this one was silent for too long; both make the same",
            ))),
            made_from: coati_common::hex(&digest.finalize()),
        })
    }

    pub(super) fn input(&self) -> &Path {
        &self.input
    }

    pub(super) fn output(&self) -> &Path {
        &self.output
    }

    /// Where it is written until it is whole.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// What there is of it.
    pub(super) fn state(&self) -> Result<State, Error> {
        let bytes = match coati_storage::stat(&self.output) {
            Ok(found) => found.bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Missing),
            Err(error) => return Err(failed(&self.output, "read")(error)),
        };
        Ok(match self.read_note() {
            None => State::Other("is there already, and was not made by this command".to_owned()),
            Some(note) if note.made_from != self.made_from => {
                State::Other("was made from another model, other input or with other flags".to_owned())
            }
            // Shortened since, by a copy that failed for example.
            Some(note) if note.bytes != bytes => State::Missing,
            Some(_) => State::Complete,
        })
    }

    /// What the note of a complete shard says.
    pub(super) fn counts(&self) -> Option<Counts> {
        let note = self.read_note().filter(|note| note.made_from == self.made_from)?;
        Some(Counts {
            records: note.records,
            detections: note.detections,
            without_image: note.without_image,
        })
    }

    /// Whether the output is in a bucket.
    pub(super) fn is_remote(&self) -> bool {
        coati_storage::is_remote(&self.output)
    }

    /// How much whoever has the shard has written of it, and when last; in a bucket it says how much with its beats.
    pub(super) fn progress(&self) -> Option<(u64, SystemTime)> {
        if self.is_remote() {
            return Some((self.watch().progress()?, SystemTime::UNIX_EPOCH));
        }
        let partial = fs::metadata(&self.partial).ok()?;
        Some((partial.len(), partial.modified().ok()?))
    }

    fn read_note(&self) -> Option<Note> {
        let note: Note = serde_json::from_slice(&coati_storage::read(&self.note).ok()?).ok()?;
        (note.version == VERSION).then_some(note)
    }

    /// Takes it unless it is complete or somebody is at it. What is there under its name and not complete is removed.
    pub(super) fn claim(&self) -> Result<Claimed, Error> {
        if self.is_remote() {
            return self.claim_remote();
        }
        for folder in [self.partial.parent(), self.output.parent()].into_iter().flatten() {
            if !folder.as_os_str().is_empty() {
                fs::create_dir_all(folder).map_err(failed(folder, "create"))?;
            }
        }
        loop {
            let state = self.state()?;
            if state == State::Complete {
                return Ok(Claimed::Complete);
            }
            let again = state == State::Missing && (self.partial.exists() || self.output.exists());
            let mut open = OpenOptions::new();
            let file = open.read(true).write(true).create(true).truncate(false);
            let file = file.open(&self.partial).map_err(failed(&self.partial, "write"))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(Claimed::Elsewhere { known: true }),
                Err((_, error)) => return Err(failed(&self.partial, "lock")(error.into())),
            };
            // Whoever held it before may have finished it meanwhile: then this file has another name by now.
            let same = |named: fs::Metadata| file.metadata().is_ok_and(|ours| ours.ino() == named.ino());
            if !fs::metadata(&self.partial).is_ok_and(same) {
                continue;
            }
            if self.output.exists() {
                fs::remove_file(&self.output).map_err(failed(&self.output, "remove"))?;
            }
            let emptied = file.set_len(0).and_then(|()| file.try_clone());
            let emptied = emptied.map_err(failed(&self.partial, "write"))?;
            let writer = Writer {
                records: tfrecord::Writer::new(Target::Disk {
                    file: BufWriter::with_capacity(1 << 20, emptied),
                    _lock: file,
                }),
                path: self.partial.clone(),
                count: 0,
            };
            return Ok(Claimed::Ours { writer, again });
        }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A bucket knows no locks: a lease keeps others away. Should its holder lose it by being slow, two make the shard, both the same.
    fn claim_remote(&self) -> Result<Claimed, Error> {
        if self.state()? == State::Complete {
            return Ok(Claimed::Complete);
        }
        let lease = match self.watch().look().map_err(failed(&self.output, "claim"))? {
            Look::Ours(lease) => lease,
            Look::Held(_) => return Ok(Claimed::Elsewhere { known: true }),
            Look::Silent(_) => return Ok(Claimed::Elsewhere { known: false }),
        };
        // Whoever had it before may have finished it since the first look.
        if self.state()? == State::Complete {
            lease.finish();
            return Ok(Claimed::Complete);
        }
        let again = lease.is_inherited();
        let writer = coati_storage::create(&self.output).map_err(failed(&self.output, "write"))?;
        let target = Target::Bucket(Counted {
            writer,
            bytes: 0,
            lease,
        });
        let writer = Writer {
            records: tfrecord::Writer::new(target),
            path: self.output.clone(),
            count: 0,
        };
        Ok(Claimed::Ours { writer, again })
    }
}

/// Writes a shard that this process has claimed. Dropped before [`Writer::finish`], it leaves what the next run makes again.
pub(super) struct Writer {
    records: tfrecord::Writer<Target>,
    path: PathBuf,
    count: u64,
}

/// Where a shard is made.
enum Target {
    Disk {
        file: BufWriter<File>,
        /// Held until the shard has its name.
        _lock: Flock<File>,
    },
    Bucket(Counted),
}

/// An object in the making, which appears when it is whole.
struct Counted {
    writer: Box<dyn coati_storage::Writer>,
    bytes: u64,
    /// Held until the object is there.
    lease: Lease,
}

impl io::Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Disk { file, .. } => file.write(bytes),
            Self::Bucket(counted) => {
                let written = counted.writer.write(bytes)?;
                counted.bytes += written as u64;
                counted.lease.set_progress(counted.bytes);
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Disk { file, .. } => file.flush(),
            Self::Bucket(counted) => counted.writer.flush(),
        }
    }
}

impl Writer {
    /// Appends a record.
    pub(super) fn write(&mut self, record: &[u8]) -> Result<(), Error> {
        self.count += 1;
        self.records.write(record).map_err(failed(&self.path, "write"))
    }

    /// Makes what was written visible to those who wait for this shard, on a disk.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        if let Target::Bucket(_) = self.records.get_ref() {
            return Ok(());
        }
        self.records.flush().map_err(failed(&self.path, "write"))
    }

    /// Gives the shard its name.
    pub(super) fn finish(self, shard: &Shard, counts: Counts) -> Result<(), Error> {
        let failed = failed(&self.path, "write");
        let note = |bytes: u64| -> Result<(), Error> {
            let note = Note {
                version: VERSION,
                made_from: shard.made_from.clone(),
                bytes,
                records: self.count,
                detections: counts.detections,
                without_image: counts.without_image,
            };
            let text = serde_json::to_vec(&note).map_err(|error| failed(error.into()))?;
            write_atomic(&shard.note, &text).map_err(|error| failed(io::Error::other(error.to_string())))
        };
        match self.records.into_inner() {
            Target::Disk { mut file, _lock } => {
                let synced = file.flush().and_then(|()| {
                    file.get_ref().sync_all()?;
                    file.get_ref().metadata()
                });
                note(synced.map_err(&failed)?.len())?;
                fs::rename(&shard.partial, &shard.output).map_err(&failed)
            }
            Target::Bucket(counted) => {
                note(counted.bytes)?;
                counted.writer.finish().map_err(&failed)?;
                counted.lease.finish();
                Ok(())
            }
        }
    }
}

fn failed(path: &Path, action: &'static str) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        path: path.clone(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(folder: &Path, model: &str) -> Shard {
        let input = folder.join("in.record");
        if !input.exists() {
            fs::write(&input, "records").unwrap();
        }
        let state = folder.join("out.record.infer");
        Shard::new(&input, &folder.join("out.record"), &state, (0, 1), model, false).unwrap()
    }

    fn ours(shard: &Shard) -> (Writer, bool) {
        match shard.claim().unwrap() {
            Claimed::Ours { writer, again } => (writer, again),
            Claimed::Complete => panic!("complete"),
            Claimed::Elsewhere { .. } => panic!("elsewhere"),
        }
    }

    #[test]
    fn a_shard_appears_whole_and_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), "model");
        let (mut writer, again) = ours(&shard);
        writer.write(b"one").unwrap();
        assert!(!again && !shard.output().exists());
        assert!(
            matches!(shard.claim().unwrap(), Claimed::Elsewhere { known: true }),
            "one process at a time"
        );
        writer.finish(&shard, Counts::default()).unwrap();
        assert_eq!(shard.state().unwrap(), State::Complete);
        assert_eq!(
            shard.counts(),
            Some(Counts {
                records: 1,
                ..Counts::default()
            })
        );
        assert!(matches!(shard.claim().unwrap(), Claimed::Complete));
        assert_eq!(fs::metadata(shard.output()).unwrap().len(), 16 + 3);
    }

    #[test]
    fn what_is_half_written_is_made_again_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), "model");
        let (mut writer, _) = ours(&shard);
        writer.write(&[7; 100]).unwrap();
        drop(writer);
        assert_eq!(shard.state().unwrap(), State::Missing);
        let (mut writer, again) = ours(&shard);
        writer.write(b"x").unwrap();
        writer.finish(&shard, Counts::default()).unwrap();
        assert!(again);
        assert_eq!(fs::metadata(shard.output()).unwrap().len(), 17);
        // Shortened afterwards.
        File::options()
            .write(true)
            .open(shard.output())
            .unwrap()
            .set_len(9)
            .unwrap();
        assert_eq!(shard.state().unwrap(), State::Missing);
        assert!(ours(&shard).1);
    }

    #[test]
    fn what_was_made_otherwise_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let first = shard(folder.path(), "model");
        ours(&first).0.finish(&first, Counts::default()).unwrap();
        let other = shard(folder.path(), "another model");
        assert!(matches!(other.state().unwrap(), State::Other(why) if why.contains("another model")));
        fs::remove_file(&first.note).unwrap();
        assert!(matches!(first.state().unwrap(), State::Other(why) if why.contains("not made by this command")));
    }
}
