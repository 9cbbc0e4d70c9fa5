//! Talking to the launcher of a running job: lines of JSON over a socket in the job's directory.
//!
//! Each request is one line, `{"command": "scale", "workers": 4}`, and so is each reply: `{"ok": true, "message": "…"}` or
//! `{"ok": false, "message": "…"}`, where the message is for people. Only the user who started the job is listened to.

mod serve;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coati_common::cluster::TaskId;
use serde::{Deserialize, Serialize};

use super::report::{self, Report};

pub(super) use self::serve::{Call, Claim, Control};

/// Longest line in either direction, in bytes.
const LONGEST_LINE: u64 = 16 << 10;

/// The longest wait for a reply: starting some processes takes far less.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked of a launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The job shall have this many workers beside the master.
    Scale {
        /// Their number.
        workers: u32,
    },
    /// The process of a task is killed, so that a new one takes its place: it hangs.
    Restart {
        /// `worker-1`
        task: String,
        /// Its process; one that was replaced meanwhile is left alone. None: whichever it is.
        #[serde(default)]
        pid: Option<i32>,
        /// Milliseconds after which a process is meant whatever its number: it should have been heard of by then.
        #[serde(default)]
        older_than_ms: Option<u64>,
        /// Why, for the log.
        reason: String,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// What was done, or why it was not.
    pub message: String,
    /// Tasks with a new process, or that get one as soon as their old one has left.
    #[serde(default)]
    pub started: Vec<String>,
    /// Tasks that were told to leave.
    #[serde(default)]
    pub leaving: Vec<String>,
}

impl Reply {
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self {
            ok: false,
            message: message.into(),
            started: Vec::new(),
            leaving: Vec::new(),
        }
    }

    pub(super) fn done(message: impl Into<String>, started: &[TaskId], leaving: &[TaskId]) -> Self {
        let names = |tasks: &[TaskId]| tasks.iter().map(ToString::to_string).collect();
        Self {
            ok: true,
            message: message.into(),
            started: names(started),
            leaving: names(leaving),
        }
    }
}

/// Why nothing could be asked. What the launcher itself refuses is a [`Reply`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no job.
    #[error(transparent)]
    Report(#[from] report::Error),
    /// The job is over.
    #[error("job {job_id} in {} has ended: {reason}\nhint: start it again with `coati train`; it goes on from its newest checkpoint", job_dir.display())]
    Ended {
        /// The job's directory.
        job_dir: PathBuf,
        /// Its name.
        job_id: String,
        /// How it ended.
        reason: String,
    },
    /// The launcher does not listen.
    #[error("job {job_id} in {} cannot be changed: its launcher could not make a socket, as its log says", job_dir.display())]
    NoSocket {
        /// The job's directory.
        job_dir: PathBuf,
        /// The job's name.
        job_id: String,
    },
    /// Nobody listens any more, or the launcher hangs.
    #[error("the launcher of job {job_id} (pid {pid}) does not answer on {}: {source}\nhint: {}", socket.display(), gone(source))]
    Silent {
        /// The job's name.
        job_id: String,
        /// The launcher's process id when it wrote its report.
        pid: u32,
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn gone(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "it was killed, and its tasks with it; the same `coati train` goes on from the newest checkpoint"
        }
        io::ErrorKind::PermissionDenied => "only the user who started the job may change it",
        _ => "try again",
    }
}

/// Whether the job's launcher is there.
pub fn is_alive(report: &Report) -> bool {
    let connects = |socket: &PathBuf| UnixStream::connect(socket).is_ok();
    report.ended.is_none() && report.control.as_ref().is_some_and(connects)
}

/// Asks the launcher of the job in this directory. Blocks, for ten seconds at most.
///
/// # Errors
/// [`Error`] if there is no launcher that answers.
pub fn request(job_dir: &Path, request: &Request) -> Result<Reply, Error> {
    // What a launcher leaves for others lies on its machine, where the job's folder is in a bucket.
    let job_dir = &*coati_storage::local_side(job_dir);
    let report = Report::read(job_dir)?;
    if let Some(ended) = report.ended {
        return Err(Error::Ended {
            job_dir: job_dir.to_owned(),
            job_id: report.job_id,
            reason: ended.reason,
        });
    }
    let Some(socket) = report.control else {
        return Err(Error::NoSocket {
            job_dir: job_dir.to_owned(),
            job_id: report.job_id,
        });
    };
    ask(&socket, request).map_err(|source| Error::Silent {
        job_id: report.job_id,
        pid: report.launcher_pid,
        socket,
        source,
    })
}

fn ask(socket: &Path, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    BufReader::new(stream).take(LONGEST_LINE).read_line(&mut reply)?;
    if reply.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it hung up: the job has just ended",
        ));
    }
    Ok(serde_json::from_str(&reply)?)
}
