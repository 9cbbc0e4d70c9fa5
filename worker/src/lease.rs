//! Leases in a bucket, which knows no locks: whoever makes `PLACE/N` holds lease N of a place, and writes it again every few seconds.
//!
//! A holder that is not seen to write for [`SILENCE`], by the watch of who waits, has lost it: the next one makes number N + 1, which
//! only one can. Clocks are not compared. So a lease keeps two from doing the same by accident; what a slow holder does after it lost its
//! lease must be harmless for another reason, which its user knows.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::job::lock::{Holder, now};

/// Between two writes of a holder.
const BEAT: Duration = Duration::from_secs(5);
/// A holder that does not write for so long has lost the lease.
pub(crate) const SILENCE: Duration = Duration::from_secs(25);

/// Tells this process apart from all others, also from one of the same number in a container that started again.
static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(now()));
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// What a lease's object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    holder: Holder,
    /// Tells machines of one name apart, and a machine from what it was before it started anew.
    #[serde(default)]
    boot: String,
    /// See [`PROCESS`].
    #[serde(default)]
    process: u64,
    /// Counts a process's leases: two of them never look alike.
    #[serde(default)]
    nonce: u64,
    /// Grows with each write.
    #[serde(default)]
    beat: u64,
    /// How far the holder is, in whatever it counts.
    #[serde(default)]
    progress: u64,
    /// Given back.
    #[serde(default)]
    released: bool,
}

impl Record {
    fn here() -> Self {
        Self {
            holder: Holder::here(),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            process: *PROCESS,
            nonce: TAKEN.fetch_add(1, Ordering::Relaxed),
            beat: 0,
            progress: 0,
            released: false,
        }
    }
}

/// Held until it is dropped, or its process ends.
#[derive(Debug)]
pub(crate) struct Lease {
    place: PathBuf,
    number: u64,
    progress: Arc<AtomicU64>,
    stop: Option<Sender<()>>,
    beating: Option<JoinHandle<()>>,
}

fn object(place: &Path, number: u64) -> PathBuf {
    place.join(format!("{number:010}"))
}

fn newest(place: &Path) -> io::Result<Option<(u64, Option<Record>)>> {
    let Some(number) = numbers(place)?.into_iter().max() else {
        return Ok(None);
    };
    // One that cannot be understood is somebody's, who will be silent or not.
    let record = coati_storage::read(&object(place, number))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(Some((number, record)))
}

fn numbers(place: &Path) -> io::Result<Vec<u64>> {
    let entries = coati_storage::list(place)?;
    Ok(entries.iter().filter_map(|entry| entry.name.parse().ok()).collect())
}

/// Who holds the lease, or held it last.
pub(crate) fn holder(place: &Path) -> Option<Holder> {
    newest(place).ok()??.1.map(|record| record.holder)
}

/// What who waits for a lease does.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Take,
    Wait,
    Held,
}

/// `seen` is what the lease said when it was last looked at, `unchanged` for how long it says so; `is_gone` that its process is known to
/// have ended.
fn decide(seen: Option<&Record>, found: Option<&Record>, unchanged: Duration, is_gone: bool) -> Next {
    if found.is_some_and(|record| record.released) || is_gone {
        Next::Take
    } else if found != seen {
        Next::Held
    } else if unchanged >= SILENCE {
        Next::Take
    } else {
        Next::Wait
    }
}

/// Of a process of this machine it is known.
fn is_gone(record: &Record, here: &Record) -> bool {
    if record.holder.host != here.holder.host || record.boot.is_empty() || record.boot != here.boot {
        return false;
    }
    let pid = i32::try_from(record.holder.pid).unwrap_or(i32::MAX);
    // A container that starts again has the same name and number.
    record.holder.pid == here.holder.pid && record.process != here.process
        || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
}

/// What a look at a lease finds.
#[derive(Debug)]
pub(crate) enum Look {
    /// Nobody had it, or not any more.
    Ours(Lease),
    /// Somebody has it who was seen to write, or has just taken it.
    Held(Option<Holder>),
    /// Somebody has it, and nothing new was heard since the last look.
    Silent(Option<Holder>),
}

/// Looks at one lease again and again.
#[derive(Debug)]
pub(crate) struct Watch {
    place: PathBuf,
    /// Told to people when the lease is lost.
    lost: &'static str,
    here: Record,
    seen: Option<(u64, Option<Record>)>,
    since: Instant,
}

impl Watch {
    /// `lost` says what it means that somebody else took the lease of a holder that was slow.
    pub(crate) fn new(place: PathBuf, lost: &'static str) -> Self {
        Self {
            place,
            lost,
            here: Record::here(),
            seen: None,
            since: Instant::now(),
        }
    }

    /// How far the holder was when it was last looked at.
    pub(crate) fn progress(&self) -> Option<u64> {
        Some(self.seen.as_ref()?.1.as_ref()?.progress)
    }

    /// Takes the lease if nobody has it.
    pub(crate) fn look(&mut self) -> io::Result<Look> {
        let found = newest(&self.place)?;
        let next = match &found {
            None => Next::Take,
            Some((number, record)) => {
                if self.seen.as_ref().is_none_or(|(known, _)| known != number) {
                    (self.seen, self.since) = (found.clone(), Instant::now());
                }
                let seen = self.seen.as_ref().and_then(|(_, record)| record.as_ref());
                let gone = record.as_ref().is_some_and(|record| is_gone(record, &self.here));
                decide(seen, record.as_ref(), self.since.elapsed(), gone)
            }
        };
        let number = found.as_ref().map_or(0, |(number, _)| *number);
        let holder = || found.as_ref()?.1.as_ref().map(|record| record.holder.clone());
        match next {
            Next::Wait => Ok(Look::Silent(holder())),
            Next::Held => {
                let holder = holder();
                (self.seen, self.since) = (found, Instant::now());
                Ok(Look::Held(holder))
            }
            Next::Take => {
                let bytes = serde_json::to_vec(&self.here)?;
                if !coati_storage::put_new(&object(&self.place, number + 1), &bytes)? {
                    return Ok(Look::Held(None));
                }
                remove_older(&self.place, number + 1);
                let record = std::mem::replace(&mut self.here, Record::here());
                Lease::beat(self.place.clone(), number + 1, record, self.lost).map(Look::Ours)
            }
        }
    }
}

impl Lease {
    fn beat(place: PathBuf, number: u64, mut record: Record, lost: &'static str) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let progress = Arc::new(AtomicU64::new(0));
        let (folder, made) = (place.clone(), Arc::clone(&progress));
        let beating = std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
            let path = object(&folder, number);
            let mut was_lost = false;
            loop {
                let ends = stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout);
                record.beat += 1;
                record.progress = made.load(Ordering::Relaxed);
                record.released = ends;
                let newest = newest(&folder).ok().flatten().map_or(number, |(newest, _)| newest);
                if newest > number {
                    if !std::mem::replace(&mut was_lost, true) {
                        tracing::error!("{lost}");
                    }
                } else if let Err(error) = serde_json::to_vec(&record)
                    .map_err(io::Error::from)
                    .and_then(|bytes| coati_storage::put(&path, &bytes))
                {
                    tracing::warn!(%error, "a lease cannot be written");
                }
                if ends {
                    return;
                }
            }
        })?;
        Ok(Self {
            place,
            number,
            progress,
            stop: Some(stop),
            beating: Some(beating),
        })
    }

    /// Whether somebody had it before, and did not give up its traces.
    pub(crate) fn is_inherited(&self) -> bool {
        self.number > 1
    }

    /// Tells others how far its holder is, with the next beat.
    pub(crate) fn set_progress(&self, progress: u64) {
        self.progress.store(progress, Ordering::Relaxed);
    }

    /// Gives it back and removes its traces, when what it guarded is done.
    pub(crate) fn finish(self) {
        let (place, number) = (self.place.clone(), self.number);
        drop(self);
        remove_older(&place, number + 1);
    }
}

fn remove_older(place: &Path, number: u64) {
    let older = numbers(place).unwrap_or_default().into_iter();
    let paths: Vec<PathBuf> = older
        .filter(|older| *older < number)
        .map(|older| object(place, older))
        .collect();
    // They count for nothing; the next one removes what stays.
    let _ = coati_storage::remove_many(&paths);
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(beating) = self.beating.take() {
            let _ = beating.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(beat: u64) -> Record {
        Record {
            holder: Holder {
                host: "h".to_owned(),
                pid: 7,
                started: 0,
            },
            boot: "b".to_owned(),
            process: 1,
            nonce: 0,
            beat,
            progress: 0,
            released: false,
        }
    }

    #[test]
    fn a_silent_holder_loses_the_lease_and_one_that_writes_keeps_it() {
        let (first, later) = (record(3), record(4));
        let decide = |found: &Record, unchanged, gone| decide(Some(&first), Some(found), unchanged, gone);
        assert_eq!(decide(&first, SILENCE / 2, false), Next::Wait);
        assert_eq!(decide(&first, SILENCE, false), Next::Take);
        assert_eq!(decide(&later, SILENCE / 2, false), Next::Held);
        assert_eq!(decide(&first, Duration::ZERO, true), Next::Take);
        let given_back = Record {
            released: true,
            ..record(4)
        };
        assert_eq!(decide(&given_back, Duration::ZERO, false), Next::Take);
    }

    #[test]
    fn of_processes_of_this_machine_it_is_known_whether_they_live() {
        let own = Record {
            holder: Holder {
                pid: std::process::id(),
                ..record(0).holder
            },
            process: 2,
            ..record(0)
        };
        let before = Record {
            process: 1,
            ..own.clone()
        };
        assert!(
            is_gone(&before, &own),
            "the same number in a container that started again"
        );
        let mut other = record(0);
        other.holder.pid = 1;
        assert!(!is_gone(&other, &own), "process 1 always lives");
        other.holder.pid = i32::MAX as u32;
        assert!(is_gone(&other, &own));
        other.boot = "another".to_owned();
        assert!(!is_gone(&other, &own));
    }

    #[test]
    fn one_at_a_time_has_it_and_others_see_how_far_it_is() {
        let place = tempfile::tempdir().unwrap();
        let watch = || Watch::new(place.path().to_owned(), "lost");
        let (mut first, mut second) = (watch(), watch());
        let Look::Ours(lease) = first.look().unwrap() else {
            panic!("nobody has it");
        };
        assert!(!lease.is_inherited());
        assert!(matches!(second.look().unwrap(), Look::Silent(Some(_))));
        // A beat is heard.
        let path = object(place.path(), 1);
        let mut record: Record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (record.beat, record.progress) = (1, 17);
        coati_storage::put(&path, &serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(second.look().unwrap(), Look::Held(Some(_))));
        assert_eq!(second.progress(), Some(17));
        assert!(matches!(second.look().unwrap(), Look::Silent(Some(_))), "nothing new");
        // Given back, it leaves a trace; done, it leaves none.
        drop(lease);
        let Look::Ours(lease) = second.look().unwrap() else {
            panic!("it was given back");
        };
        assert!(lease.is_inherited());
        lease.finish();
        assert_eq!(numbers(place.path()).unwrap(), [] as [u64; 0]);
    }

    #[test]
    fn silence_is_counted_from_what_was_heard_last() {
        let place = tempfile::tempdir().unwrap();
        let elsewhere = |beat| {
            let bytes = serde_json::to_vec(&record(beat)).unwrap();
            coati_storage::put(&object(place.path(), 4), &bytes).unwrap();
        };
        elsewhere(0);
        let mut watch = Watch::new(place.path().to_owned(), "lost");
        assert!(matches!(watch.look().unwrap(), Look::Silent(_)));
        let earlier = |watch: &mut Watch| watch.since = watch.since.checked_sub(SILENCE).unwrap();
        earlier(&mut watch);
        elsewhere(1);
        // Overdue, and the beat came just before the look: who takes it now takes it from somebody who lives.
        assert!(matches!(watch.look().unwrap(), Look::Held(_)));
        assert!(matches!(watch.look().unwrap(), Look::Silent(_)));
        earlier(&mut watch);
        let Look::Ours(lease) = watch.look().unwrap() else {
            panic!("it was silent for too long");
        };
        assert_eq!(lease.number, 5);
        assert_eq!(numbers(place.path()).unwrap(), [5]);
    }
}
