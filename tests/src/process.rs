//! A process that is watched: its lines, its end, and whether it leaves anybody behind.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Environment variable that marks a process and all that it starts.
const MARK: &str = "COATI_TEST_RUN";

/// How long a killed process may be seen in /proc.
const VANISH: Duration = Duration::from_secs(10);

/// A running `coati`.
#[derive(Debug)]
pub struct Process {
    command: String,
    pid: Pid,
    mark: String,
    deadline: Instant,
    started: Instant,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    closed: usize,
    ended: Option<ExitStatus>,
}

#[derive(Clone, Debug)]
struct Line {
    error: bool,
    text: String,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static, error: bool) {
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                shared.lock().lines.push(Line { error, text });
                shared.changed.notify_all();
                line.clear();
            }
            shared.lock().closed += 1;
            shared.changed.notify_all();
        });
    }

    fn attend(self: &Arc<Self>, mut child: Child) {
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let status = child.wait();
            shared.lock().ended = status.ok();
            shared.changed.notify_all();
        });
    }
}

impl Process {
    /// Starts `command`, which must end within `limit`.
    pub(crate) fn start(mut command: Command, limit: Duration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        command
            .env(MARK, &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = format!("{command:?}");
        let mut child = crate::or_panic(command.spawn(), format!("cannot start {name}"));
        let shared = Arc::new(Shared::default());
        if let Some(stdout) = child.stdout.take() {
            shared.follow(stdout, false);
        }
        if let Some(stderr) = child.stderr.take() {
            shared.follow(stderr, true);
        }
        let pid = Pid::from_raw(child.id().cast_signed());
        shared.attend(child);
        let started = Instant::now();
        Self {
            command: name,
            pid,
            mark,
            deadline: started + limit,
            started,
            shared,
        }
    }

    /// Waits until `done` is content, or panics with what was said.
    fn wait<T>(&self, what: &str, deadline: Instant, done: impl Fn(&State) -> Option<Result<T, String>>) -> T {
        let mut state = self.shared.lock();
        loop {
            let problem = match done(&state) {
                Some(Ok(found)) => return found,
                Some(Err(problem)) => Some(problem),
                None if Instant::now() >= deadline => {
                    Some(format!("nothing after {:.1} s", self.started.elapsed().as_secs_f64()))
                }
                None => None,
            };
            if let Some(problem) = problem {
                panic!(
                    "waiting for {what} of `{}`: {problem}; it said:\n{}",
                    self.command,
                    said(&state.lines)
                );
            }
            let left = deadline.saturating_duration_since(Instant::now());
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for a line that contains `part`, and returns it.
    pub fn wait_for(&self, part: &str) -> String {
        self.wait(&format!("a line with `{part}`"), self.deadline, |state| {
            let found = state.lines.iter().find(|line| line.text.contains(part));
            match found {
                Some(line) => Some(Ok(line.text.clone())),
                None if state.ended.is_some() && state.closed == 2 => Some(Err("it ended".to_owned())),
                None => None,
            }
        })
    }

    /// Sends a signal to this process alone.
    pub fn signal(&self, signal: Signal) {
        assert!(
            self.shared.lock().ended.is_none(),
            "`{}` ended before {signal} could be sent; it said:\n{}",
            self.command,
            said(&self.shared.lock().lines)
        );
        crate::or_panic(
            kill(self.pid, signal),
            format!("cannot send {signal} to `{}`", self.command),
        );
    }

    /// Panics if it has ended, or should have by now.
    pub fn assert_alive(&self) {
        let ended = self.shared.lock().ended.is_some();
        assert!(
            !ended && Instant::now() < self.deadline,
            "`{}` ended, or takes too long; it said:\n{}",
            self.command,
            self.said()
        );
    }

    /// Waits for the end; panics if anything that it started outlives it.
    pub fn finish(self) -> Finished {
        let status = self.wait("the end", self.deadline, |state| state.ended.map(Ok));
        self.assert_nobody_is_left();
        self.wait("the last line", Instant::now() + VANISH, |state| {
            (state.closed == 2).then_some(Ok(()))
        });
        let state = self.shared.lock();
        let of = |error: bool| {
            let lines: Vec<&str> = state
                .lines
                .iter()
                .filter(|line| line.error == error)
                .map(|line| line.text.as_str())
                .collect();
            lines.join("\n")
        };
        Finished {
            command: self.command.clone(),
            status,
            took: self.started.elapsed(),
            stdout: of(false),
            stderr: of(true),
        }
    }

    fn assert_nobody_is_left(&self) {
        let deadline = Instant::now() + VANISH;
        loop {
            let left = marked(&self.mark);
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "`{}` ended and left behind {left:#?}; it said:\n{}",
                self.command,
                self.said()
            );
            // Those that the kernel kills with their parent vanish on their own time, and tell nobody.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything said so far.
    pub fn said(&self) -> String {
        said(&self.shared.lock().lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.shared.lock().ended.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        for (pid, _) in marked(&self.mark) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Processes with this mark in their environment, with their command lines. A zombie has none any more.
fn marked(mark: &str) -> Vec<(i32, String)> {
    let entry = format!("{MARK}={mark}");
    let folders = crate::or_panic(fs::read_dir("/proc"), "cannot list /proc");
    folders
        .flatten()
        .filter_map(|folder| {
            let pid = folder.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(folder.path().join("environ")).ok()?;
            let carries = environment
                .split(|&byte| byte == 0)
                .any(|variable| variable == entry.as_bytes());
            carries.then(|| {
                let line = fs::read(folder.path().join("cmdline")).unwrap_or_default();
                (pid, String::from_utf8_lossy(&line).replace('\0', " "))
            })
        })
        .collect()
}

fn said(lines: &[Line]) -> String {
    lines.iter().fold(String::new(), |text, line| {
        text + if line.error { "  2| " } else { "  1| " } + &line.text + "\n"
    })
}

/// A process that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    command: String,
    status: ExitStatus,
    /// From start to end.
    pub took: Duration,
    /// Its standard output, lines joined.
    pub stdout: String,
    /// Its standard error, lines joined.
    pub stderr: String,
}

impl Finished {
    /// Panics unless it ended with this exit code.
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Its exit code; none if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Panics unless standard error contains each of these.
    #[must_use]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in the output of {self}");
        }
        self
    }

    /// Standard output as one JSON object; panics if there is anything else.
    pub fn json(&self) -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not one JSON value ({error}): {self}"));
        assert!(value.is_object(), "stdout is no JSON object: {self}");
        value
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ({}, {:.1} s)\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.took.as_secs_f64(),
            self.stdout,
            self.stderr
        )
    }
}
