//! A running job is looked at and changed from outside.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coati_common::cluster::tf_config::TfConfig;
use coati_common::exit::ExitCode;
use tokio::task::spawn_blocking;

use super::harness::{Launch, WAIT};
use crate::launcher::control::{self, Reply, Request};
use crate::launcher::report::{FILE, Report, TaskState};
use crate::launcher::{Error, Outcome, run_with};

/// Every task says who it is and waits.
const IDLE: &str = r#"echo "start $COATI_RESTARTS $TF_CONFIG"; exec sleep 1000"#;

/// Runs `script` and, when every task has started, `visit` with the job's directory; then the job is stopped.
async fn visited<T: Send + 'static>(
    launch: &Launch,
    visit: impl FnOnce(PathBuf) -> T + Send + 'static,
) -> (Outcome, T) {
    let directory = launch.directory.path().to_owned();
    let started = launch.began("ps-2     | start 0");
    let stop = launch.stopper();
    let visit = async {
        tokio::time::timeout(WAIT, started).await.unwrap().unwrap();
        let result = spawn_blocking(move || visit(directory)).await;
        stop.send("the test".to_owned()).unwrap();
        result
    };
    let (outcome, result) = tokio::join!(launch.run(), visit);
    (outcome.unwrap(), result.unwrap())
}

fn launch(script: &str) -> Launch {
    let mut launch = Launch::new(script);
    launch.options.limits.drain = Duration::from_millis(10);
    launch.options.limits.restart.max = 3;
    launch
}

fn scale(job_dir: &Path, workers: u32) -> Reply {
    control::request(job_dir, &Request::Scale { workers }).unwrap()
}

/// The report, once it says what is asked of it.
fn report_that(job_dir: &Path, says: impl Fn(&Report) -> bool) -> Report {
    let deadline = std::time::Instant::now() + WAIT;
    loop {
        let report = Report::read(job_dir).unwrap();
        if says(&report) {
            return report;
        }
        assert!(std::time::Instant::now() < deadline, "it stays at {report:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the task has written this.
fn wrote(job_dir: &Path, task: &str, text: &str) {
    let path = job_dir.join(format!("logs/{task}.log"));
    let deadline = std::time::Instant::now() + WAIT;
    while !std::fs::read_to_string(&path).is_ok_and(|log| log.contains(text)) {
        assert!(
            std::time::Instant::now() < deadline,
            "no `{text}` in {}",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn state(report: &Report, task: &str) -> Option<TaskState> {
    let found = report.tasks.iter().find(|found| found.task == task);
    found.map(|task| task.state)
}

#[tokio::test]
async fn the_directory_says_where_everything_is_while_the_job_runs_and_that_it_ended() {
    let launch = launch(IDLE);
    let (outcome, running) = visited(&launch, |job_dir| {
        let report = report_that(&job_dir, |report| report.tasks.len() == 6);
        assert!(control::is_alive(&report));
        let socket = report.control.clone().unwrap();
        assert_eq!(socket, job_dir.join("control.sock"));
        let mode = std::fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "only the user may talk to it");
        report
    })
    .await;
    assert_eq!(outcome.exit, ExitCode::Interrupted);
    assert_eq!(
        (running.ended.as_ref(), running.launcher_pid),
        (None, std::process::id())
    );
    let names: Vec<&str> = running.tasks.iter().map(|task| task.task.as_str()).collect();
    assert_eq!(names, ["master", "worker-0", "worker-1", "ps-0", "ps-1", "ps-2"]);
    for task in &running.tasks {
        assert!(task.pid.is_some() && task.state == TaskState::Running, "{task:?}");
        let log = task.log.as_ref().unwrap();
        assert_eq!(*log, PathBuf::from(format!("logs/{}.log", task.task)));
        let log = std::fs::read_to_string(launch.directory.path().join(log)).unwrap();
        let place = format!(" {} pid {} on {}", task.task, task.pid.unwrap(), task.address);
        assert!(log.contains(&place), "{log}");
    }
    let ended = Report::read(launch.directory.path()).unwrap();
    assert_eq!(ended.ended.as_ref().map(|ended| ended.exit_code), Some(130));
    assert!(ended.tasks.iter().all(|task| task.pid.is_none()), "{ended:?}");
    assert!(!control::is_alive(&ended));
    assert!(!launch.directory.path().join("control.sock").exists());
    assert!(!launch.directory.path().join(format!("{FILE}.new")).exists());
    let error = control::request(launch.directory.path(), &Request::Scale { workers: 3 }).unwrap_err();
    assert!(error.to_string().contains(" has ended: "), "{error}");
}

#[tokio::test]
async fn a_job_gets_more_workers_and_fewer_ones() {
    let script = r#"case "$TF_CONFIG" in *'"type":"worker"'*) trap 'echo leaving; exit 0' TERM;; esac
        echo "start $COATI_RESTARTS $TF_CONFIG"; sleep 1000 & wait"#;
    let launch = launch(script);
    let (outcome, ()) = visited(&launch, |job_dir| {
        let reply = scale(&job_dir, 4);
        assert_eq!(
            (reply.ok, reply.message.as_str()),
            (true, "the job has 4 workers now; started: worker-2, worker-3")
        );
        assert_eq!(scale(&job_dir, 4).message, "the job has 4 workers already");
        report_that(&job_dir, |report| state(report, "worker-3") == Some(TaskState::Running));
        // Only then do they know what to do when told to leave.
        for task in ["worker-1", "worker-2", "worker-3"] {
            wrote(&job_dir, task, "\nstart 0 ");
        }
        let reply = scale(&job_dir, 1);
        assert_eq!(
            reply.message,
            "the job has 1 worker now; leaving: worker-1, worker-2, worker-3"
        );
        let left = |report: &Report| {
            let gone = |task: &str| state(report, task) == Some(TaskState::Ended);
            gone("worker-1") && gone("worker-2") && gone("worker-3")
        };
        report_that(&job_dir, left);
        // The one that left comes back under its old name.
        let reply = scale(&job_dir, 2);
        assert_eq!(reply.started, ["worker-1"]);
        let back = report_that(&job_dir, |report| state(report, "worker-1") == Some(TaskState::Running));
        assert_eq!(state(&back, "worker-0"), Some(TaskState::Running));
        assert_eq!(back.tasks.len(), 8);
    })
    .await;
    assert_eq!(
        (outcome.exit, outcome.failures.len()),
        (ExitCode::Interrupted, 0),
        "{outcome:?}"
    );
    let lines = launch.lines();
    // The new worker knows everybody; its address is nobody else's.
    let config = lines
        .iter()
        .find_map(|line| line.strip_prefix("worker-3 | start 0 "))
        .unwrap();
    let config = TfConfig::parse(config).unwrap().unwrap();
    assert_eq!((config.cluster.workers.len(), config.cluster.ps.len()), (4, 3));
    assert!(
        lines.contains(&"launcher | worker-2 is told to leave".to_owned()),
        "{lines:?}"
    );
    let back = "launcher | worker-1 exited with code 0 (success); started again (it is wanted again), pid ";
    assert!(lines.iter().any(|line| line.starts_with(back)), "{lines:?}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_and_change_nothing() {
    let launch = launch(IDLE);
    let (outcome, ()) = visited(&launch, |job_dir| {
        let reply = scale(&job_dir, 1000);
        assert!(!reply.ok);
        assert_eq!(
            reply.message,
            "1000 workers are too many for this machine: at most 24 with 6 CPUs; the job has 2"
        );
        let socket = job_dir.join("control.sock");
        let say = |bytes: &[u8]| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            // The launcher hangs up in the middle of what is too long.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut reply = String::new();
            let _ = BufReader::new(stream).read_line(&mut reply);
            reply
        };
        for garbage in [
            &b"\n"[..],
            b"hello\n",
            b"{\"command\": \"scale\"}\n",
            b"{\"command\": \"scale\", \"workers\": -1}\n",
            b"{\"command\": \"scale\", \"workers\": 3, \"force\": true}\n",
            b"{\"command\": \"drop\"}\n",
            b"\xff\xfe\x00\n",
            b"no line end",
        ] {
            let reply = say(garbage);
            assert!(
                reply.starts_with(r#"{"ok":false,"message":"not understood: "#),
                "{reply}"
            );
        }
        let _ = say(&vec![b'['; 1 << 20]);
        let _ = say(b"");
        let reply: Reply =
            serde_json::from_str(&say(b"{\"command\":\"restart\",\"task\":\"ps-9\",\"reason\":\"\"}\n")).unwrap();
        assert_eq!(reply.message, "the job has no task `ps-9`");
        // Callers who say nothing keep nobody from being heard.
        let silent: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        assert!(scale(&job_dir, 2).ok);
        drop(silent);
        assert_eq!(Report::read(&job_dir).unwrap().tasks.len(), 6);
    })
    .await;
    assert_eq!(outcome.exit, ExitCode::Interrupted);
    launch.nobody_is_left();
}

#[tokio::test]
async fn two_who_scale_at_once_are_served_one_after_the_other() {
    let launch = launch(IDLE);
    let (outcome, ()) = visited(&launch, |job_dir| {
        let both = [3, 5].map(|workers| {
            let job_dir = job_dir.clone();
            std::thread::spawn(move || scale(&job_dir, workers))
        });
        let [three, five] = both.map(|thread| thread.join().unwrap());
        assert!(three.ok && five.ok, "{three:?} {five:?}");
        // Whoever came last is obeyed.
        let wanted = if three.leaving.is_empty() { 5 } else { 3 };
        let workers = |report: &Report| {
            let running = report.tasks.iter().filter(|task| task.state == TaskState::Running);
            running.filter(|task| task.task.starts_with("worker")).count()
        };
        let report = report_that(&job_dir, |report| workers(report) == wanted);
        assert!([2, 3].contains(&five.started.len()), "{five:?}");
        let mut addresses: Vec<&str> = report.tasks.iter().map(|task| task.address.as_str()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), report.tasks.len(), "{report:?}");
    })
    .await;
    assert!(outcome.failures.is_empty(), "{outcome:?}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_task_that_hangs_is_replaced_when_asked() {
    let mut launch = launch(IDLE);
    launch.options.limits.restart.max = 1;
    let (outcome, ()) = visited(&launch, |job_dir| {
        let pid = |report: &Report| report.tasks[1].pid;
        let before = pid(&report_that(&job_dir, |report| report.tasks.len() == 6));
        let ask_for = |pid: Option<i32>, older_than_ms: Option<u64>| {
            let request = Request::Restart {
                task: "worker-0".to_owned(),
                pid,
                older_than_ms,
                reason: "no heartbeat\nfor 30 s".to_owned(),
            };
            control::request(&job_dir, &request).unwrap()
        };
        let ask = |pid| ask_for(pid, None);
        assert!(ask(before).ok);
        let after = report_that(&job_dir, |report| pid(report).is_some() && pid(report) != before);
        assert_eq!(after.tasks[1].restarts, 1);
        // Said late, it does not hit the new process; which would be one start too many here.
        assert_eq!(ask(before).message, "worker-0 has been replaced or is leaving");
        let young = ask_for(before, Some(3_600_000));
        assert_eq!(young.message, "worker-0 has been replaced or is leaving");
    })
    .await;
    assert_eq!(outcome.exit, ExitCode::Interrupted, "{outcome:?}");
    let lines = launch.lines();
    let told = "launcher | worker-0 is killed, for a new process to take its place: no heartbeat for 30 s";
    assert!(lines.contains(&told.to_owned()), "{lines:?}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_directory_has_one_job_at_a_time() {
    let launch = launch(IDLE);
    let second = launch.options.clone();
    let directory = launch.directory.path().to_owned();
    let (outcome, error) = visited(&launch, move |_| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (_sender, stops) = tokio::sync::mpsc::unbounded_channel();
        runtime.block_on(run_with(second, stops)).unwrap_err()
    })
    .await;
    assert_eq!(outcome.exit, ExitCode::Interrupted);
    assert!(matches!(error, Error::Running { .. }), "{error}");
    assert_eq!(error.exit_code(), ExitCode::UserError);
    let text = error.to_string();
    let pid = std::process::id();
    assert!(
        text.starts_with(&format!("a job is already running in {}: job-", directory.display())),
        "{text}"
    );
    assert!(text.contains(&format!(", launcher pid {pid}\nhint: ")), "{text}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_gets_a_short_one() {
    let mut launch = launch(IDLE);
    let long = launch.directory.path().join("d".repeat(120));
    std::fs::create_dir(&long).unwrap();
    launch.options.job_dir = Some(long.clone());
    let (_, socket) = visited(&launch, move |_| {
        let report = report_that(&long, |report| report.tasks.len() == 6);
        assert!(scale(&long, 3).ok);
        report.control.unwrap()
    })
    .await;
    assert!(socket.starts_with(std::env::temp_dir()), "{}", socket.display());
    assert!(!socket.parent().unwrap().exists(), "{} is left", socket.display());
    launch.nobody_is_left();
}

#[tokio::test]
async fn what_a_killed_launcher_left_behind_is_in_nobodys_way() {
    let launch = launch(IDLE);
    let socket = launch.directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    std::fs::write(launch.directory.path().join(FILE), "{\"version\": 1").unwrap();
    let (outcome, ()) = visited(&launch, |job_dir| assert!(scale(&job_dir, 3).ok)).await;
    assert_eq!(outcome.exit, ExitCode::Interrupted);
}

#[test]
fn a_directory_without_a_job_is_told_from_one_whose_launcher_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let error = |job_dir: &Path| {
        let request = Request::Scale { workers: 1 };
        control::request(job_dir, &request).unwrap_err().to_string()
    };
    assert!(error(directory.path()).starts_with("there is no job in "));
    let report = format!(
        r#"{{"version":1,"job_id":"job-7","launcher_pid":1,"control":"{}/control.sock","ended":null,"written_unix_ms":1,"tasks":[]}}"#,
        directory.path().display()
    );
    std::fs::write(directory.path().join(FILE), report).unwrap();
    let text = error(directory.path());
    assert!(
        text.starts_with("the launcher of job job-7 (pid 1) does not answer on "),
        "{text}"
    );
    assert!(
        text.contains("\nhint: it was killed, and its tasks with it; "),
        "{text}"
    );
}

/// What a caller gets who is not answered by a launcher.
#[test]
fn a_launcher_that_answers_nonsense_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let report = format!(
        r#"{{"version":1,"job_id":"job-7","launcher_pid":1,"control":"{}","ended":null,"written_unix_ms":1,"tasks":[]}}"#,
        socket.display()
    );
    std::fs::write(directory.path().join(FILE), report).unwrap();
    let other = std::thread::spawn(move || {
        for answer in [&b"what?\n"[..], b""] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 32];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer).unwrap();
        }
    });
    for _ in 0..2 {
        let error = control::request(directory.path(), &Request::Scale { workers: 1 }).unwrap_err();
        assert!(matches!(error, control::Error::Silent { .. }), "{error}");
    }
    other.join().unwrap();
}
