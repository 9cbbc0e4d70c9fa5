//! `coati-cluster.json` in the job's directory: where the tasks of a job are, for people and for the commands that look at a
//! running job or change it. Written by the launcher at each change, marked when the job has ended.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The file's name.
pub const FILE: &str = "coati-cluster.json";
/// What [`Report::version`] must be.
pub const VERSION: u32 = 1;
/// A hundred tasks take some 20 KiB.
const LARGEST: u64 = 1 << 20;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of the format.
    pub version: u32,
    /// `COATI_JOB_ID` of every task.
    pub job_id: String,
    /// Process id of the launcher.
    pub launcher_pid: u32,
    /// The launcher's socket; none where it could not listen.
    pub control: Option<PathBuf>,
    /// How the job ended; none while it runs.
    pub ended: Option<Ended>,
    /// Milliseconds since 1970 at which this was written.
    pub written_unix_ms: u64,
    /// The master first.
    pub tasks: Vec<Task>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The launcher's exit status.
    pub exit_code: u8,
    /// Why, in a sentence.
    pub reason: String,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// `worker-1`
    pub task: String,
    /// `host:port`
    pub address: String,
    /// Process id; none while there is no process.
    pub pid: Option<i32>,
    /// What the launcher knows of it.
    pub state: TaskState,
    /// New starts after crashes.
    pub restarts: usize,
    /// How its newest process ended, in words; none while it runs.
    pub exit: Option<String>,
    /// Its output; relative to the job's directory.
    pub log: Option<PathBuf>,
}

/// What a task is doing, as seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Its process was started and, where it serves others, does not answer yet.
    Starting,
    /// Its process runs.
    Running,
    /// It crashed and will be started again.
    Restarting,
    /// It was told to leave.
    Leaving,
    /// It has ended and stays away.
    Ended,
}

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file.
    #[error(
        "there is no job in {0}: it has no {FILE}\nhint: give the --model_dir of a `coati train` that was started with a cluster file"
    )]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what the launcher writes.
    #[error("{} is no report of a job: {why}\nhint: the next start of the job writes it anew", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Replaces a file in one instant. It need not outlive the machine, so nobody waits for the disk.
pub(super) fn replace(job_dir: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let fresh = job_dir.join(format!("{name}.new"));
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, job_dir.join(name))
}

impl Report {
    /// Reads the report of the job in this directory.
    ///
    /// # Errors
    /// [`Error`] if there is none or it makes no sense.
    pub fn read(job_dir: &Path) -> Result<Self, Error> {
        let path = job_dir.join(FILE);
        let read = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing(job_dir.to_owned()),
            _ => Error::Read {
                path: path.clone(),
                source,
            },
        };
        let content = |why: String| Error::Content {
            path: path.clone(),
            why,
        };
        let mut text = Vec::new();
        let file = std::fs::File::open(&path).map_err(read)?;
        file.take(LARGEST + 1).read_to_end(&mut text).map_err(read)?;
        if text.len() as u64 > LARGEST {
            return Err(content(format!("it is longer than {LARGEST} bytes")));
        }
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| content(error.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                return Err(content(format!(
                    "it has version {version}, this program knows {VERSION}"
                )));
            }
            None => return Err(content("it has no version".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| content(error.to_string()))
    }

    /// Replaces the file in one instant: a reader sees the old report or this one.
    pub(super) fn write(&self, job_dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        replace(job_dir, FILE, &text)
    }

    /// Whether both say the same, whenever they were written.
    pub(super) fn says(&self, other: &Self) -> bool {
        let written_unix_ms = other.written_unix_ms;
        Self {
            written_unix_ms,
            ..self.clone()
        } == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            version: VERSION,
            job_id: "job-7".to_owned(),
            launcher_pid: 12,
            control: Some("/m/control.sock".into()),
            ended: None,
            written_unix_ms: 1,
            tasks: vec![Task {
                task: "ps-0".to_owned(),
                address: "127.0.0.1:2222".to_owned(),
                pid: Some(13),
                state: TaskState::Running,
                restarts: 2,
                exit: None,
                log: Some("logs/ps-0.log".into()),
            }],
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        report().write(directory.path()).unwrap();
        let ended = Report {
            ended: Some(Ended {
                exit_code: 0,
                reason: "the job is done".to_owned(),
            }),
            ..report()
        };
        ended.write(directory.path()).unwrap();
        assert_eq!(Report::read(directory.path()).unwrap(), ended);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_the_time_of_writing_is_no_change() {
        let later = Report {
            written_unix_ms: 9,
            ..report()
        };
        assert!(report().says(&later));
        let mut other = later;
        other.tasks[0].pid = None;
        assert!(!report().says(&other));
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"job_id":"job-7","launcher_pid":12,"control":"/m/control.sock","ended":null,"written_unix_ms":1,"tasks":[{"task":"ps-0","address":"127.0.0.1:2222","pid":13,"state":"running","restarts":2,"exit":null,"log":"logs/ps-0.log"}]}"#
        );
    }

    #[test]
    fn files_that_are_missing_broken_or_of_the_future_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let error = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(directory.path().join(FILE), text).unwrap();
            }
            Report::read(directory.path()).unwrap_err().to_string()
        };
        assert!(error(None).starts_with("there is no job in "));
        assert!(error(Some(r#"{"version": 2}"#)).contains("it has version 2, this program knows 1"));
        for text in ["", "{", "[]", r#"{"version": "1"}"#, r#"{"version": 1, "job_id": 3}"#] {
            assert!(error(Some(text)).contains(" is no report of a job: "), "{text}");
        }
        let long = "x".repeat(usize::try_from(LARGEST).unwrap() + 1);
        assert!(error(Some(&long)).contains("it is longer than"));
    }
}
