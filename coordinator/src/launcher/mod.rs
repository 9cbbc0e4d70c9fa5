//! Runs a whole cluster on this machine: one process a task, each of the same binary with its own `TF_CONFIG`.
//!
//! What is decided when (a task died, Ctrl-C was pressed, time is up) is the pure function [`decide::decide`]; the rest of
//! this module starts processes, follows their output and carries the decisions out.
//!
//! A task that crashes is started again, at the same address, up to a limit; the rest of the job finds out by itself.
//!
//! Promises:
//! - No process remains behind. Children are in process groups of their own, so that the terminal's Ctrl-C reaches the
//!   launcher alone; the kernel kills them when the launcher dies, whatever it dies of (Linux).
//! - Every wait has a deadline and names the task and address it waits for.
//! - A task that ends abnormally is named, with how it ended and its last lines.

pub mod control;
pub mod decide;
pub mod progress;
pub mod report;
pub mod resources;

mod gpus;
mod logs;
mod ports;
mod probe;
mod process;
mod supervise;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use coati_common::cluster::{Address, ClusterPlan, TaskId};
use coati_common::exit::ExitCode;
use tokio::sync::mpsc;

pub use self::decide::{Exit, Limits};
pub use self::logs::{LogLine, LogSink, stderr_sink, without_info};

/// Environment variable that tells every task of a job the job's name.
pub const JOB_ID_VARIABLE: &str = "COATI_JOB_ID";

/// Environment variable that tells a task how many processes it had before this one: `0` at first.
pub const RESTARTS_VARIABLE: &str = "COATI_RESTARTS";

/// What to run and how.
#[derive(Clone)]
pub struct Options {
    /// The cluster.
    pub plan: ClusterPlan,
    /// The program of every task.
    pub binary: PathBuf,
    /// Its arguments, the same for every task.
    pub args: Vec<OsString>,
    /// Further environment of every task; wins over what the launcher sets.
    pub env: Vec<(OsString, OsString)>,
    /// Name of the job, `COATI_JOB_ID` of every task.
    pub job_id: String,
    /// Directory of the model on this machine. Each task's output is kept in `logs/<task>.log` below it; without it, it is
    /// only passed on.
    pub job_dir: Option<PathBuf>,
    /// Where lines of output go.
    pub on_log: LogSink,
    /// Deadlines.
    pub limits: Limits,
    /// Whether to wait until master and parameter servers accept connections, and fail if they do not in time.
    pub probe: bool,
    /// CPUs and GPUs to share out. None: those that this machine has.
    pub inventory: Option<resources::Inventory>,
}

impl Options {
    /// Everything else at its default: output to stderr, a job named after the plan or the time, `maxRunningTime` as planned.
    pub fn new(plan: ClusterPlan, binary: PathBuf, args: Vec<OsString>) -> Self {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let job_id = plan
            .job_id
            .clone()
            .unwrap_or_else(|| format!("job-{seconds}-{}", std::process::id()));
        let limits = Limits {
            max_running: plan.max_running_time,
            restart: plan.restart.clone(),
            ..Limits::default()
        };
        Self {
            plan,
            binary,
            args,
            env: Vec::new(),
            job_id,
            job_dir: None,
            on_log: stderr_sink(),
            limits,
            probe: true,
            inventory: None,
        }
    }
}

/// A task that ended as it should not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which task.
    pub task: TaskId,
    /// Its address.
    pub address: Address,
    /// What happened: `exited with code 1`, `was killed by SIGSEGV`, `did not answer on 127.0.0.1:2222 within 2m`.
    pub what: String,
    /// The last lines that it wrote, oldest first; at most twenty.
    pub last_lines: Vec<String>,
    /// Where all its lines are.
    pub log: Option<PathBuf>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.task, self.what)?;
        if self.last_lines.is_empty() {
            write!(f, " and wrote nothing")?;
        } else {
            write!(f, "; its last lines:")?;
        }
        for line in &self.last_lines {
            write!(f, "\n    {line}")?;
        }
        match &self.log {
            Some(log) => write!(f, "\nhint: the whole log is in {}", log.display()),
            None => Ok(()),
        }
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the launcher's own exit status must be.
    pub exit: ExitCode,
    /// One sentence.
    pub reason: String,
    /// Tasks that failed by themselves, the first one first. Empty unless the job failed.
    pub failures: Vec<Failure>,
    /// Things worth knowing that did not change the outcome: a server that crashed after the job was done.
    pub warnings: Vec<String>,
}

/// Why a cluster could not be run at all. How a running job ends is an [`Outcome`] instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be started.
    #[error("cannot start {task} ({}): {source}", binary.display())]
    Spawn {
        /// Which task.
        task: TaskId,
        /// The program.
        binary: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No ports for the tasks.
    #[error("cannot find {count} free ports on 127.0.0.1: {source}")]
    Ports {
        /// How many tasks need one.
        count: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log directory or a file in it cannot be written.
    #[error("cannot write log {}: {source}\nhint: choose another model directory, or make room on its disk", path.display())]
    Log {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another launcher runs a job there.
    #[error(
        "a job is already running in {}{}\nhint: `coati status --model_dir {}` shows it; stop it first, or choose another --model_dir",
        job_dir.display(),
        running.as_ref().map_or_else(String::new, |running| format!(": {running}")),
        job_dir.display()
    )]
    Running {
        /// The job's directory.
        job_dir: PathBuf,
        /// `job-7, launcher pid 1234`, if it says so.
        running: Option<String>,
    },
    /// GPUs asked for are not there.
    #[error(transparent)]
    Resources(#[from] resources::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The process that starts children is gone.
    #[error("the thread that starts tasks ended unexpectedly")]
    Spawner,
}

impl Error {
    /// The exit code that fits: what the user asked for cannot be had, or the machine failed.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Resources(_) | Self::Running { .. } => ExitCode::UserError,
            _ => ExitCode::JobFailure,
        }
    }
}

/// Runs the cluster to its end. SIGINT, SIGTERM and SIGHUP stop it in order, a second one kills it.
///
/// # Errors
/// [`Error`] if it could not be started; then nothing is left running. A job that started and failed is an [`Outcome`].
pub async fn run(options: Options) -> Result<Outcome, Error> {
    let (sender, stops) = mpsc::unbounded_channel();
    let listener = process::listen_for_signals(sender).map_err(Error::Signals)?;
    let outcome = run_with(options, stops).await;
    listener.abort();
    outcome
}

/// As [`run`], with stop requests from a channel instead of the process's signals. The text says who asks: `Ctrl-C`.
///
/// # Errors
/// As [`run`].
pub async fn run_with(options: Options, stops: mpsc::UnboundedReceiver<String>) -> Result<Outcome, Error> {
    supervise::Supervisor::start(options).await?.run(stops).await
}
