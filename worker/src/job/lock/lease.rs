//! The lock of a job's folder in a bucket: whoever makes `coati-job.lock/N` holds lease N, and writes it again every few seconds.
//!
//! A holder that is not seen to write for [`SILENCE`], by the watch of who waits, has lost it: the next one makes number N + 1, which
//! only one can. Clocks are not compared. A holder that was merely slow finds the larger number and says so; what it still decides is
//! refused, since the log of steps and the incarnation are the other one's by then.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Error, FILE, Holder, now};

/// Between two writes of a holder.
const BEAT: Duration = Duration::from_secs(5);
/// A holder that does not write for so long has lost the lease.
const SILENCE: Duration = Duration::from_secs(25);
/// Between two looks of who waits.
const LOOK: Duration = Duration::from_millis(500);

/// What a lease's object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    holder: Holder,
    /// Tells machines of one name apart, and a machine from what it was before it started anew.
    #[serde(default)]
    boot: String,
    /// Told apart from all others.
    #[serde(default)]
    nonce: u64,
    /// Grows with each write.
    #[serde(default)]
    beat: u64,
    /// Given back.
    #[serde(default)]
    released: bool,
}

/// Held until it is dropped, or its process ends.
#[derive(Debug)]
pub(super) struct Lease {
    stop: Option<Sender<()>>,
    beating: Option<JoinHandle<()>>,
}

fn object(folder: &Path, number: u64) -> PathBuf {
    folder.join(FILE).join(format!("{number:010}"))
}

fn newest(folder: &Path) -> std::io::Result<Option<(u64, Option<Record>)>> {
    let entries = coati_storage::list(&folder.join(FILE))?;
    let Some(number) = entries.iter().filter_map(|entry| entry.name.parse::<u64>().ok()).max() else {
        return Ok(None);
    };
    // One that cannot be understood is somebody's, who will be silent or not.
    let record = coati_storage::read(&object(folder, number))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(Some((number, record)))
}

/// Who holds the lease, or held it last.
pub(super) fn holder(folder: &Path) -> Option<Holder> {
    newest(folder).ok()??.1.map(|record| record.holder)
}

/// What who waits for a lease does.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Take,
    Wait,
    Held,
}

/// `seen` is what the lease said at first, `unchanged` for how long it says so; `is_gone` that its process is known to have ended.
fn decide(seen: Option<&Record>, found: Option<&Record>, unchanged: Duration, is_gone: bool) -> Next {
    if found.is_some_and(|record| record.released) || is_gone || unchanged >= SILENCE {
        Next::Take
    } else if found != seen {
        Next::Held
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
    // A container that starts again has the same name and number: then it is this process, which holds nothing yet.
    record.holder.pid == here.holder.pid && record.nonce != here.nonce
        || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
}

impl Lease {
    pub(super) fn take(folder: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: folder.join(FILE),
            source,
        };
        let here = Record {
            holder: Holder::here(),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            nonce: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), now()),
            beat: 0,
            released: false,
        };
        let mut seen: Option<(u64, Option<Record>)> = None;
        let mut since = Instant::now();
        let number = loop {
            let found = newest(folder).map_err(io)?;
            let Some((number, record)) = found else { break 1 };
            if seen.as_ref().is_none_or(|(known, _)| *known != number) {
                seen = Some((number, record.clone()));
                since = Instant::now();
            }
            let first = seen.as_ref().and_then(|(_, first)| first.as_ref());
            let gone = record.as_ref().is_some_and(|record| is_gone(record, &here));
            match decide(first, record.as_ref(), since.elapsed(), gone) {
                Next::Take => break number + 1,
                Next::Held => {
                    return Err(Error::Held {
                        folder: folder.to_owned(),
                        holder: record.map_or_else(
                            || "a process that cannot be told".to_owned(),
                            |record| record.holder.describe(now()),
                        ),
                    });
                }
                Next::Wait => {
                    if since.elapsed() < LOOK {
                        let holder =
                            first.map_or_else(|| "somebody".to_owned(), |record| record.holder.describe(now()));
                        let seconds = SILENCE.as_secs();
                        tracing::warn!(
                            "this job is held by {holder}; it is taken over if that is silent for {seconds} s"
                        );
                    }
                    std::thread::sleep(LOOK);
                }
            }
        };
        let bytes = serde_json::to_vec(&here).map_err(|error| io(error.into()))?;
        if !coati_storage::put_new(&object(folder, number), &bytes).map_err(io)? {
            return Err(Error::Held {
                folder: folder.to_owned(),
                holder: "a process that has just begun".to_owned(),
            });
        }
        remove_older(folder, number);
        Self::beat(folder.to_owned(), number, here).map_err(io)
    }

    fn beat(folder: PathBuf, number: u64, mut record: Record) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let beating = std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
            let path = object(&folder, number);
            let mut was_lost = false;
            loop {
                let ends = stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout);
                record.beat += 1;
                record.released = ends;
                let newest = newest(&folder).ok().flatten().map_or(number, |(newest, _)| newest);
                if newest > number {
                    if !std::mem::replace(&mut was_lost, true) {
                        tracing::error!(
                            "another coordinator has taken this job over; this one was silent for too long"
                        );
                    }
                } else if let Err(error) = serde_json::to_vec(&record)
                    .map_err(std::io::Error::from)
                    .and_then(|bytes| coati_storage::put(&path, &bytes))
                {
                    tracing::warn!(%error, "the job's lease cannot be written");
                }
                if ends {
                    return;
                }
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            beating: Some(beating),
        })
    }
}

fn remove_older(folder: &Path, number: u64) {
    let older = coati_storage::list(&folder.join(FILE)).unwrap_or_default();
    let older = older.iter().filter_map(|entry| entry.name.parse::<u64>().ok());
    let paths: Vec<PathBuf> = older
        .filter(|older| *older < number)
        .map(|older| object(folder, older))
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
            nonce: 1,
            beat,
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
            nonce: 2,
            ..record(0)
        };
        let before = Record {
            nonce: 1,
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
}
