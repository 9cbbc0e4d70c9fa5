//! Reads `coati-steps.log` while a job writes it: every step that was decided, with the records that it used.
//!
//! The job replaces the file at each checkpoint and each new beginning. A file that was opened keeps its content, so nothing
//! is missed as long as each one is opened once; a gap would be seen by the versions.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coati_proto::coati::v1;
use coati_proto::coati::v1::step_log_record::Record;
use prost::Message as _;

/// Between two looks: files are tens of steps long.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Of a TFRecord: length (8 bytes) and its CRC before the data, the data's CRC behind.
const HEADER: usize = 12;
const FOOTER: usize = 4;

/// A replica's share of a decided step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its rank.
    pub replica: u32,
    /// Number of its contribution.
    pub sequence: u64,
    /// Position of its first record.
    pub first: u64,
    /// Number of its records.
    pub count: u64,
}

/// What stands in the log, in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The log begins anew.
    Begin {
        /// Of the job.
        incarnation: u64,
        /// Steps before.
        version: u64,
    },
    /// `version + 1` is made.
    Step {
        /// What it is made from.
        version: u64,
        /// In ascending order of rank.
        shares: Vec<Share>,
    },
}

#[derive(Default)]
struct Shared {
    entries: Mutex<Vec<Entry>>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a job's log on a thread of its own.
pub struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Of the job in this directory, which need not be there yet.
    pub fn start(job_dir: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let (path, own) = (job_dir.join("coati-steps.log"), Arc::clone(&shared));
        let thread = thread::spawn(move || follow(&path, &own));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Everything so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.lock().clone()
    }

    /// The number of entries so far.
    pub fn len(&self) -> usize {
        self.shared.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What `look` finds in the entries from `from` on; waits for it until `deadline`.
    pub fn find<T>(&self, from: usize, deadline: Instant, look: impl Fn(&[Entry]) -> Option<T>) -> Option<T> {
        let mut entries = self.shared.lock();
        loop {
            if let Some(found) = look(entries.get(from..).unwrap_or_default()) {
                return Some(found);
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())?;
            let waited = self.shared.changed.wait_timeout(entries, left);
            entries = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads what is left, and stops.
    pub fn finish(mut self) -> Vec<Entry> {
        self.stop();
        std::mem::take(&mut *self.shared.lock())
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

fn follow(path: &Path, shared: &Shared) {
    let mut open: Option<Opened> = None;
    loop {
        let last = shared.stop.load(Ordering::SeqCst);
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata().map_or(0, |metadata| metadata.ino());
                if open.as_ref().is_none_or(|open| open.inode != inode) {
                    // What was written to the old one after the last look.
                    read(open.as_mut(), shared);
                    open = Some(Opened {
                        path: path.to_owned(),
                        file,
                        inode,
                        rest: Vec::new(),
                    });
                }
            }
            Err(error) => debug_assert_eq!(error.kind(), ErrorKind::NotFound, "{}", path.display()),
        }
        read(open.as_mut(), shared);
        if last {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// A log file, whatever its name is by now.
struct Opened {
    path: PathBuf,
    file: File,
    inode: u64,
    /// The beginning of a record whose end is not written yet.
    rest: Vec<u8>,
}

fn read(open: Option<&mut Opened>, shared: &Shared) {
    let Some(open) = open else { return };
    crate::or_panic(open.file.read_to_end(&mut open.rest), open.path.display());
    let mut fresh = Vec::new();
    let used = records(&open.rest, |record| fresh.extend(entry(record)));
    open.rest.drain(..used);
    if !fresh.is_empty() {
        shared.lock().extend(fresh);
        shared.changed.notify_all();
    }
}

/// Everything whole that these bytes of a log say.
pub(crate) fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    records(bytes, |record| found.extend(entry(record)));
    found
}

/// Calls `found` with each whole record; returns how many bytes they take.
fn records(bytes: &[u8], mut found: impl FnMut(&[u8])) -> usize {
    let mut at = 0;
    while let Some(length) = bytes.get(at..at + 8) {
        let length = length.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)) as usize;
        let Some(data) = bytes
            .get(at + HEADER..)
            .and_then(|rest| rest.get(..length.saturating_add(FOOTER)))
        else {
            break;
        };
        found(&data[..length]);
        at += HEADER + length + FOOTER;
    }
    at
}

fn entry(record: &[u8]) -> Option<Entry> {
    match v1::StepLogRecord::decode(record).ok()?.record? {
        Record::Begin(begin) => Some(Entry::Begin {
            incarnation: begin.job.map_or(0, |job| job.incarnation),
            version: begin.version,
        }),
        Record::Step(step) => {
            let shares = step.contributors.iter().map(|part| {
                let (by, records) = (part.contributor.unwrap_or_default(), part.records.unwrap_or_default());
                Share {
                    replica: by.replica,
                    sequence: by.sequence,
                    first: records.first,
                    count: records.count,
                }
            });
            Some(Entry::Step {
                version: step.version,
                shares: shares.collect(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn record(record: Record) -> Vec<u8> {
        let message = v1::StepLogRecord { record: Some(record) };
        let data = message.encode_to_vec();
        let mut framed = (data.len() as u64).to_le_bytes().to_vec();
        framed.extend([0; 4]);
        framed.extend(data);
        framed.extend([0; 4]);
        framed
    }

    fn begin(version: u64) -> Vec<u8> {
        record(Record::Begin(v1::LogBegin {
            version,
            ..v1::LogBegin::default()
        }))
    }

    fn step(version: u64) -> Vec<u8> {
        record(Record::Step(v1::LogStep {
            version,
            contributors: Vec::new(),
        }))
    }

    #[test]
    fn what_is_appended_and_what_replaces_the_file_is_seen_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coati-steps.log");
        let follower = Follower::start(folder.path());
        let mut file = File::create(&path).unwrap();
        file.write_all(&begin(0)).unwrap();
        let (head, tail) = (&step(0)[..9], &step(0)[9..]);
        file.write_all(head).unwrap();
        let far = Instant::now() + Duration::from_secs(30);
        let seen = |count: usize| follower.find(0, far, |entries| (entries.len() == count).then_some(()));
        assert!(seen(1).is_some());
        file.write_all(tail).unwrap();
        assert!(seen(2).is_some());
        // Written just before the file is replaced.
        file.write_all(&step(1)).unwrap();
        std::fs::write(folder.path().join("new"), begin(2)).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(seen(4).is_some());
        let versions: Vec<u64> = follower
            .finish()
            .iter()
            .map(|entry| match entry {
                Entry::Begin { version, .. } | Entry::Step { version, .. } => *version,
            })
            .collect();
        assert_eq!(versions, [0, 0, 1, 2]);
    }
}
