//! Launches of shell scripts, observed through their output and through a pipe that every process holds open.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coati_common::cluster::ClusterFile;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use tokio::sync::{mpsc, oneshot};

use super::super::resources::Inventory;
use super::super::{Error, LogLine, Options, Outcome, run, run_with};

/// Longer than anything here takes on a busy machine.
pub(super) const WAIT: Duration = Duration::from_secs(60);

const SCRIPT: &str = "COATI_TEST_SCRIPT";
const DIRECTORY: &str = "COATI_TEST_DIRECTORY";

type Hook = Box<dyn FnMut(&str) -> bool + Send>;

/// One master, two workers, three parameter servers, each `/bin/sh -c SCRIPT`.
pub(super) struct Launch {
    pub(super) options: Options,
    pub(super) directory: tempfile::TempDir,
    /// The reading end; it is hung up when the last process that holds the other end is gone.
    alive: std::fs::File,
    lines: Arc<Mutex<Vec<String>>>,
    /// Called with each line until they answer true.
    hooks: Arc<Mutex<Vec<Hook>>>,
    stops: mpsc::UnboundedSender<String>,
    inbox: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
}

fn options(script: &str, directory: &Path) -> Options {
    let text = "trainingInput: {scaleTier: CUSTOM, masterType: standard, workerCount: 2, workerType: standard, \
                parameterServerCount: 3, parameterServerType: standard}\n";
    let plan = ClusterFile::parse(Path::new("c.yaml"), text).unwrap();
    let script = format!("exec 9>{}\n{script}", directory.join("alive").display());
    let args: Vec<OsString> = vec!["-c".into(), script.into()];
    let mut options = Options::new(plan, "/bin/sh".into(), args);
    options.job_dir = Some(directory.to_owned());
    options.probe = false;
    // A crash ends the job, unless a test says otherwise.
    options.limits.restart.max = 0;
    options.inventory = Some(Inventory {
        cpus: 6,
        gpus: Vec::new(),
        visible: None,
    });
    options
}

impl Launch {
    pub(super) fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("alive");
        nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
        let alive = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&pipe)
            .unwrap();
        let mut options = options(script, directory.path());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let hooks: Arc<Mutex<Vec<Hook>>> = Arc::default();
        options.on_log = {
            let (lines, hooks) = (lines.clone(), hooks.clone());
            Arc::new(move |line: LogLine<'_>| {
                let line = line.to_string();
                hooks.lock().unwrap().retain_mut(|hook| !hook(&line));
                lines.lock().unwrap().push(line);
            })
        };
        let (stops, inbox) = mpsc::unbounded_channel();
        Self {
            options,
            directory,
            alive,
            lines,
            hooks,
            stops,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    /// Asks to stop when a line with this beginning appears.
    pub(super) fn stop_on(&self, beginning: &str) {
        let (beginning, stops) = (beginning.to_owned(), self.stops.clone());
        self.hooks.lock().unwrap().push(Box::new(move |line| {
            line.starts_with(&beginning) && stops.send("Ctrl-C".to_owned()).is_ok()
        }));
    }

    /// For tests that ask to stop themselves.
    pub(super) fn stopper(&self) -> mpsc::UnboundedSender<String> {
        self.stops.clone()
    }

    /// Answers when a line with this beginning appears.
    pub(super) fn began(&self, beginning: &str) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let (beginning, mut sender) = (beginning.to_owned(), Some(sender));
        self.hooks.lock().unwrap().push(Box::new(move |line| {
            line.starts_with(&beginning) && sender.take().is_some_and(|sender| sender.send(()).is_ok())
        }));
        receiver
    }

    /// Answers when the line appears.
    pub(super) fn seen(&self, wanted: &str) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let (wanted, mut sender) = (wanted.to_owned(), Some(sender));
        self.hooks.lock().unwrap().push(Box::new(move |line| {
            line == wanted && sender.take().is_some_and(|sender| sender.send(()).is_ok())
        }));
        receiver
    }

    /// Does something with each line that contains `part` and keeps the results.
    pub(super) fn on_line<T: Send + 'static>(
        &self,
        part: &str,
        mut action: impl FnMut(&str) -> T + Send + 'static,
    ) -> Arc<Mutex<Vec<T>>> {
        let results = Arc::new(Mutex::new(Vec::new()));
        let (part, kept) = (part.to_owned(), results.clone());
        self.hooks.lock().unwrap().push(Box::new(move |line| {
            if line.contains(&part) {
                kept.lock().unwrap().push(action(line));
            }
            false
        }));
        results
    }

    pub(super) async fn run(&self) -> Result<Outcome, Error> {
        let inbox = self.inbox.lock().unwrap().take().expect("a launch runs once");
        let running = run_with(self.options.clone(), inbox);
        tokio::time::timeout(WAIT, running).await.expect("the launch must end")
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until no process of the launch holds the pipe any more.
    pub(super) fn nobody_is_left(&self) {
        let mut pipe = self.alive.try_clone().unwrap();
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let (sender, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(pipe.read(&mut [0]).unwrap()));
        assert_eq!(end.recv_timeout(WAIT), Ok(0), "processes are left after {WAIT:?}");
    }
}

/// A launcher in a process of its own: this test program, told to run [`as_process`] alone.
pub(super) fn launcher_process(script: &str) -> (Launch, Child) {
    let launch = Launch::new(script);
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "launcher::tests::harness::as_process", "--nocapture"])
        .env(SCRIPT, script)
        .env(DIRECTORY, launch.directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (launch, process)
}

/// Reads the launcher's output up to this line.
pub(super) fn wait_for_line(process: &mut Child, wanted: &str) {
    let stderr = process.stderr.as_mut().unwrap();
    // Unbuffered, so that nothing behind the line is lost to the next call.
    let mut reader = BufReader::with_capacity(1, stderr);
    let mut seen = String::new();
    loop {
        let start = seen.len();
        assert_ne!(reader.read_line(&mut seen).unwrap(), 0, "{wanted} never came:\n{seen}");
        if seen[start..].trim_end() == wanted {
            return;
        }
    }
}

/// The other side of [`launcher_process`]; without its environment it does nothing.
#[test]
fn as_process() {
    let (Ok(script), Ok(directory)) = (std::env::var(SCRIPT), std::env::var(DIRECTORY)) else {
        return;
    };
    let mut options = options(&script, Path::new(&directory));
    options.limits.drain = Duration::from_millis(100);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(async { tokio::time::timeout(WAIT, run(options)).await });
    let code = outcome.map_or(99, |outcome| {
        outcome.map_or(98, |outcome| i32::from(outcome.exit.code()))
    });
    std::process::exit(code);
}
