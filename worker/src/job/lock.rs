//! One coordinator at a time for a job's folder: a lock that the system takes back when its process ends, however it ends. In a bucket,
//! which knows no locks, a [`Lease`]: what keeps a slow holder harmless there is the log of steps and the incarnation.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::lease::{self, Lease, Look, SILENCE, Watch};

/// Name of the locked file; it stays when the lock is gone, and says who held it last.
pub const FILE: &str = "coati-job.lock";

/// How long a lock that is held is tried for.
const PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks of who waits for a lease.
const LOOK: Duration = Duration::from_millis(500);

/// Who holds a lock, for people on other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Of the machine.
    pub host: String,
    /// Of the process on it.
    pub pid: u32,
    /// When it took the lock, in seconds since 1970.
    pub started: u64,
}

impl Holder {
    pub(crate) fn here() -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        Self {
            host: host.to_string_lossy().into_owned(),
            pid: std::process::id(),
            started: now(),
        }
    }

    /// `process 4711 on host-3, for 12 min`
    fn describe(&self, now: u64) -> String {
        let seconds = now.saturating_sub(self.started);
        let since = match seconds {
            0..120 => format!("{seconds} s"),
            120..7200 => format!("{} min", seconds / 60),
            _ => format!("{} h", seconds / 3600),
        };
        format!("process {} on {}, for {since}", self.pid, self.host)
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another coordinator runs.
    #[error(
        "{}: another coordinator runs this job: {holder}\nhint: wait for it to end or stop it, or choose another --model_dir",
        folder.display()
    )]
    Held {
        /// The job's folder.
        folder: PathBuf,
        /// Who, as far as the file says.
        holder: String,
    },
    /// The file cannot be opened or written.
    #[error("{path}: {source}\nhint: --model_dir must be a folder that can be written, on a disk with room", path = path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Held until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Lock {
    _held: Held,
}

#[derive(Debug)]
enum Held {
    File(#[allow(dead_code, reason = "it is held, not read")] File),
    Lease(#[allow(dead_code, reason = "it is held, not read")] Lease),
}

impl Lock {
    /// Takes the lock of `folder`, which must exist, or says at once who has it. On a disk that knows no locks the job runs
    /// without one, with a warning.
    pub fn take(folder: &Path) -> Result<Self, Error> {
        if coati_storage::is_remote(folder) {
            return take_lease(folder).map(|lease| Self {
                _held: Held::Lease(lease),
            });
        }
        let path = folder.join(FILE);
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(folder, &mut file)),
            Err(TryLockError::Error(error)) => {
                let path = path.display();
                tracing::warn!(%path, %error, "no lock: nothing keeps a second coordinator from this job");
            }
        }
        let text = serde_json::to_vec(&Holder::here()).map_err(|error| io(error.into()))?;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(&text))
            .map_err(io)?;
        Ok(Self {
            _held: Held::File(file),
        })
    }
}

fn take_lease(folder: &Path) -> Result<Lease, Error> {
    let place = folder.join(FILE);
    let io = |source| Error::Io {
        path: place.clone(),
        source,
    };
    let lost = "another coordinator has taken this job over; this one was silent for too long";
    let mut watch = Watch::new(place.clone(), lost);
    let mut is_said = false;
    loop {
        match watch.look().map_err(io)? {
            Look::Ours(lease) => return Ok(lease),
            Look::Held(holder) => {
                return Err(Error::Held {
                    folder: folder.to_owned(),
                    holder: holder.map_or_else(
                        || "a process that has just begun".to_owned(),
                        |holder| holder.describe(now()),
                    ),
                });
            }
            Look::Silent(holder) => {
                if !std::mem::replace(&mut is_said, true) {
                    let holder = holder.map_or_else(|| "somebody".to_owned(), |holder| holder.describe(now()));
                    let seconds = SILENCE.as_secs();
                    tracing::warn!("this job is held by {holder}; it is taken over if that is silent for {seconds} s");
                }
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// Tries a little longer than somebody who only looks ([`check`]) takes.
fn lock(file: &File) -> Result<(), TryLockError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// Says who holds the lock of `folder`, if anybody does. Takes nothing and makes nothing.
pub fn check(folder: &Path) -> Result<(), Error> {
    if coati_storage::is_remote(folder) {
        // Whether a holder is alive takes a while to see; who takes the lease does.
        return Ok(());
    }
    // Whatever else is wrong with the folder is said by those who look at it.
    let Ok(mut file) = File::open(folder.join(FILE)) else {
        return Ok(());
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(held(folder, &mut file)),
        _ => Ok(()),
    }
}

fn held(folder: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    let read = file.read_to_string(&mut text);
    let holder = read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    Error::Held {
        folder: folder.to_owned(),
        // Taken a moment ago, and not written yet.
        holder: holder.map_or_else(
            || "a process that has just begun".to_owned(),
            |holder| holder.describe(now()),
        ),
    }
}

/// The one who holds the lock or held it last, if anybody ever did.
pub fn holder(folder: &Path) -> Option<Holder> {
    if coati_storage::is_remote(folder) {
        return lease::holder(&folder.join(FILE));
    }
    serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_hears_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        check(folder.path()).unwrap();
        assert!(!folder.path().join(FILE).exists(), "looking makes nothing");
        let lock = Lock::take(folder.path()).unwrap();
        let own = holder(folder.path()).unwrap();
        assert_eq!(own.pid, std::process::id());
        for error in [
            Lock::take(folder.path()).unwrap_err(),
            check(folder.path()).unwrap_err(),
        ] {
            let text = error.to_string();
            let words = [
                folder.path().display().to_string(),
                format!(
                    "another coordinator runs this job: process {} on {}, for ",
                    own.pid, own.host
                ),
                "hint: ".to_owned(),
            ];
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        drop(lock);
        check(folder.path()).unwrap();
        Lock::take(folder.path()).unwrap();
    }

    #[test]
    fn times_are_for_people() {
        let holder = Holder {
            host: "h".to_owned(),
            pid: 7,
            started: 1000,
        };
        let words = [1005, 1000 + 600, 1000 + 30_000, 0].map(|now| holder.describe(now));
        assert_eq!(words[0], "process 7 on h, for 5 s");
        assert_eq!(words[1], "process 7 on h, for 10 min");
        assert_eq!(words[2], "process 7 on h, for 8 h");
        assert_eq!(words[3], "process 7 on h, for 0 s", "clocks differ");
    }
}
