//! Output of the tasks: prefixed for the terminal, kept whole in a file, and the last lines in memory.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coati_common::cluster::TaskId;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::Error;

/// Lines kept for the report of a crash.
const LAST_LINES: usize = 20;
/// A line longer than this is cut into several.
const LONGEST_LINE: usize = 64 << 10;
/// What the launcher itself is called before its lines.
const LAUNCHER: &str = "launcher";

/// A line of output and who wrote it. Displayed with the prefix (`ps-0     | …`), without a line end.
#[derive(Debug, Clone, Copy)]
pub struct LogLine<'a> {
    /// The task; none for the launcher itself.
    pub task: Option<TaskId>,
    /// The line without its end.
    pub text: &'a str,
    /// Width to which prefixes are filled.
    pub width: usize,
}

impl fmt::Display for LogLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.task {
            Some(task) => write!(f, "{task:<width$} | {}", self.text, width = self.width),
            None => write!(f, "{LAUNCHER:<width$} | {}", self.text, width = self.width),
        }
    }
}

/// Takes lines as they come, from several threads.
pub type LogSink = Arc<dyn Fn(LogLine<'_>) + Send + Sync>;

/// Writes each line to stderr, whole. A stderr that is closed is no reason to end a job.
pub fn stderr_sink() -> LogSink {
    Arc::new(|line| {
        let text = format!("{line}\n");
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    })
}

/// Hides what tasks log at the level `INFO`; it stays in their files.
pub fn without_info(sink: LogSink) -> LogSink {
    Arc::new(move |line| {
        if line.task.is_none() || !is_info(line.text) {
            sink(line);
        }
    })
}

/// `2026-01-01T00:00:00.000000Z  INFO joined`, as tracing writes it.
fn is_info(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let dated = words
        .next()
        .is_some_and(|word| word.contains('T') && word.ends_with('Z'));
    dated && words.next() == Some("INFO")
}

/// The width to which the names of these tasks are filled.
pub(super) fn width(tasks: &[TaskId]) -> usize {
    tasks
        .iter()
        .map(|task| task.to_string().len())
        .chain([LAUNCHER.len()])
        .max()
        .unwrap_or_default()
}

/// Makes `<job_dir>/logs`.
pub(super) fn directory(job_dir: &Path) -> Result<PathBuf, Error> {
    let path = job_dir.join("logs");
    std::fs::create_dir_all(&path).map_err(|source| Error::Log {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// The output of one task.
pub(super) struct TaskLog {
    task: TaskId,
    width: usize,
    sink: LogSink,
    path: Option<PathBuf>,
    kept: Mutex<Kept>,
}

struct Kept {
    last: VecDeque<String>,
    file: Option<File>,
}

impl TaskLog {
    /// Opens `<directory>/<task>.log`, to which a resumed job appends.
    pub(super) fn open(task: TaskId, width: usize, sink: LogSink, directory: Option<&Path>) -> Result<Self, Error> {
        let path = directory.map(|directory| directory.join(format!("{task}.log")));
        let file = match &path {
            None => None,
            Some(path) => {
                let opened = OpenOptions::new().create(true).append(true).open(path);
                Some(opened.map_err(|source| Error::Log {
                    path: path.clone(),
                    source,
                })?)
            }
        };
        Ok(Self {
            task,
            width,
            sink,
            path,
            kept: Mutex::new(Kept {
                last: VecDeque::new(),
                file,
            }),
        })
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(super) fn last_lines(&self) -> Vec<String> {
        self.lock().last.iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process starts: a line marks it in the file, and the last lines are its own from now on.
    pub(super) fn begin(&self, text: &str) {
        let mut kept = self.lock();
        kept.last.clear();
        if let Some(file) = &mut kept.file {
            // The first line of output will report a disk that is full.
            let _ = writeln!(file, "{text}");
        }
    }

    /// Takes one line without its end.
    fn take(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        // A progress bar rewrites its line; what is visible in the end is behind the last return.
        let text = text.trim_end_matches('\r');
        let text = text.rsplit('\r').next().unwrap_or(text);
        let mut complaint = None;
        {
            let mut kept = self.lock();
            if kept.last.len() == LAST_LINES {
                kept.last.pop_front();
            }
            kept.last.push_back(text.to_owned());
            if let Some(file) = &mut kept.file {
                let mut line = bytes.to_vec();
                line.push(b'\n');
                if let Err(error) = file.write_all(&line) {
                    complaint = Some(error);
                    kept.file = None;
                }
            }
        }
        (self.sink)(LogLine {
            task: Some(self.task),
            text,
            width: self.width,
        });
        if let Some(error) = complaint {
            let path = self.path.as_deref().unwrap_or_else(|| Path::new("")).display();
            let text = format!("warning: {path} is no longer written: {error}");
            (self.sink)(LogLine {
                task: None,
                text: &text,
                width: self.width,
            });
        }
    }

    /// Takes all lines of a stream until it ends or fails.
    pub(super) async fn follow(&self, stream: impl AsyncRead + Unpin) {
        let mut reader = BufReader::with_capacity(LONGEST_LINE, stream);
        let mut line: Vec<u8> = Vec::new();
        while let Ok(chunk) = reader.fill_buf().await {
            if chunk.is_empty() {
                break;
            }
            let (used, whole) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (chunk.len(), false),
            };
            line.extend_from_slice(chunk.get(..used - usize::from(whole)).unwrap_or_default());
            reader.consume(used);
            if whole || line.len() >= LONGEST_LINE {
                self.take(&line);
                line.clear();
            }
        }
        if !line.is_empty() {
            self.take(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use coati_common::cluster::{TaskId, TaskType};

    use super::{LAST_LINES, LogLine, LogSink, TaskLog, width};

    #[tokio::test]
    async fn lines_are_prefixed_kept_and_written() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let seen = seen.clone();
            Arc::new(move |line: LogLine<'_>| seen.lock().unwrap().push(line.to_string()))
        };
        let directory = tempfile::tempdir().unwrap();
        let task = TaskId::new(TaskType::Ps, 0);
        let log = TaskLog::open(task, width(&[task]), sink, Some(directory.path())).unwrap();
        log.follow(&b"one\r\n10%\r20%\r30%\n\xff\n\nlast"[..]).await;
        let shown = seen.lock().unwrap().clone();
        assert_eq!(
            shown,
            [
                "ps-0     | one",
                "ps-0     | 30%",
                "ps-0     | \u{fffd}",
                "ps-0     | ",
                "ps-0     | last"
            ]
        );
        let file = std::fs::read(directory.path().join("ps-0.log")).unwrap();
        assert_eq!(file, b"one\r\n10%\r20%\r30%\n\xff\n\nlast\n");
    }

    #[tokio::test]
    async fn only_the_last_lines_stay_in_memory_and_endless_lines_are_cut() {
        let log = TaskLog::open(TaskId::MASTER, 8, Arc::new(|_| {}), None).unwrap();
        let text: Vec<String> = (0..50).map(|line| format!("line {line}")).collect();
        log.follow(text.join("\n").as_bytes()).await;
        let last = log.last_lines();
        assert_eq!(
            (last.len(), last[0].as_str(), last[LAST_LINES - 1].as_str()),
            (LAST_LINES, "line 30", "line 49")
        );
        log.follow(vec![b'x'; 200_000].as_slice()).await;
        assert!(log.last_lines().iter().all(|line| line.len() <= 128 << 10));
    }

    #[test]
    fn informative_lines_of_tasks_can_be_hidden() {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let sink: LogSink = {
            let shown = shown.clone();
            Arc::new(move |line: LogLine<'_>| shown.lock().unwrap().push(line.text.to_owned()))
        };
        let sink = super::without_info(sink);
        let (info, warning) = (
            "2026-01-01T00:00:00.5Z  INFO joined",
            "2026-01-01T00:00:00.5Z  WARN alone",
        );
        for (task, text) in [
            (Some(TaskId::MASTER), info),
            (None, info),
            (Some(TaskId::MASTER), warning),
            (Some(TaskId::MASTER), "more INFO in out/logs"),
        ] {
            sink(LogLine { task, text, width: 8 });
        }
        assert_eq!(*shown.lock().unwrap(), [info, warning, "more INFO in out/logs"]);
    }

    #[test]
    fn prefixes_are_aligned_to_the_longest_name() {
        let tasks = [
            TaskId::MASTER,
            TaskId::new(TaskType::Worker, 10),
            TaskId::new(TaskType::Ps, 0),
        ];
        let width = width(&tasks);
        let lines: Vec<String> = tasks
            .iter()
            .map(|task| {
                LogLine {
                    task: Some(*task),
                    text: "x",
                    width,
                }
                .to_string()
            })
            .collect();
        assert_eq!(lines, ["master    | x", "worker-10 | x", "ps-0      | x"]);
        assert_eq!(
            LogLine {
                task: None,
                text: "x",
                width
            }
            .to_string(),
            "launcher  | x"
        );
    }
}
