//! What happened so far.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use coati_common::cluster::TaskId;
use coati_common::exit::ExitCode;
use nix::sys::signal;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// There was none: the system could not start it.
    Unstarted,
}

impl Exit {
    /// What our own exit codes say; none for signals and foreign codes.
    pub fn meaning(self) -> Option<ExitCode> {
        match self {
            Self::Code(code) => ExitCode::from_code(code),
            Self::Signal(_) | Self::Unstarted => None,
        }
    }

    /// As displayed, without a guess at the cause.
    pub(in super::super) fn brief(self) -> String {
        match self {
            Self::Signal(libc::SIGKILL) => "was killed by SIGKILL".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether this is how a task ends that was told to stop, or was killed because it did not.
    pub(super) fn is_orderly_stop(self) -> bool {
        match self {
            Self::Code(_) => matches!(
                self.meaning(),
                Some(ExitCode::Success | ExitCode::Interrupted | ExitCode::TimeLimit)
            ),
            Self::Signal(number) => {
                [signal::SIGTERM as i32, signal::SIGINT as i32, signal::SIGKILL as i32].contains(&number)
            }
            Self::Unstarted => false,
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(number)) => Self::Signal(number),
            (None, None) => Self::Code(-1),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => match self.meaning() {
                Some(meaning) => write!(f, "exited with code {code} ({meaning})"),
                None => write!(f, "exited with code {code}"),
            },
            Self::Signal(number) => match signal::Signal::try_from(*number) {
                Ok(signal::Signal::SIGKILL) => f.write_str("was killed by SIGKILL (perhaps because memory ran out)"),
                Ok(known) => write!(f, "was killed by {known}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            Self::Unstarted => f.write_str("could not be started"),
        }
    }
}

/// How hard a task is told to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// Facts about one task.
#[derive(Debug, Clone)]
pub struct TaskState {
    /// Which task.
    pub id: TaskId,
    /// Where it listens.
    pub address: String,
    /// Whether it must accept connections.
    pub probed: bool,
    /// When its newest process was started; what follows is about this process.
    pub started: Instant,
    /// When it first did.
    pub ready: Option<Instant>,
    /// When and how it ended.
    pub exit: Option<(Instant, Exit)>,
    /// The hardest signal sent to it.
    pub told: Option<Signal>,
    /// When it was started again after a crash.
    pub restarts: Vec<Instant>,
    /// Since when this process is not wanted any more: somebody made the job smaller.
    pub leaving: Option<Instant>,
    /// Whether the task is wanted again when the process that is leaving has left.
    pub returns: bool,
}

/// Facts about the job.
#[derive(Debug, Clone)]
pub struct State {
    /// When the tasks were started.
    pub started: Instant,
    /// The tasks, the master first.
    pub tasks: Vec<TaskState>,
    /// When somebody asked to stop, the first request first.
    pub stops: Vec<Instant>,
    /// Who asked first: `Ctrl-C`.
    pub asked_by: String,
}
