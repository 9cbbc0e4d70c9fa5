//! Tasks that crash are started again.

use std::time::Duration;

use coati_common::cluster::tf_config::TfConfig;
use coati_common::cluster::{TaskId, TaskType};
use coati_common::exit::ExitCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::Launch;

/// The others need not leave by themselves.
const DRAIN: Duration = Duration::from_millis(10);

/// The line that says of which task the newest process is which.
fn pid(line: &str) -> Pid {
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok());
    Pid::from_raw(pid.unwrap_or_else(|| panic!("no pid in {line}")))
}

/// Each process says how many came before it; `CASES` are the shell's.
fn script(cases: &str) -> String {
    format!(
        r#"echo "start $COATI_RESTARTS $TF_CONFIG"; case "$TF_CONFIG+$COATI_RESTARTS" in
        {cases}
        *) exec sleep 1000;; esac"#
    )
}

fn starts(lines: &[String], task: &str) -> Vec<String> {
    let start = format!("{task:<8} | start ");
    let of_task = lines.iter().filter_map(|line| line.strip_prefix(&start));
    of_task.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_killed_task_comes_back_as_the_same_task() {
    let mut launch = Launch::new(&script(r#"*'"type":"worker","index":1'*+0) kill -KILL $$;;"#));
    launch.options.limits.restart.max = 3;
    launch.options.limits.drain = DRAIN;
    launch.stop_on("worker-1 | start 1");
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Interrupted, "{outcome:?}");
    assert!(outcome.failures.is_empty(), "{outcome:?}");
    let lines = launch.lines();
    let told = "launcher | worker-1 was killed by SIGKILL; started again (1 of 3), pid ";
    assert_eq!(
        lines.iter().filter(|line| line.starts_with(told)).count(),
        1,
        "{lines:?}"
    );
    // The same identity, address and peers, and the count of processes before it.
    let seen = starts(&lines, "worker-1");
    let [first, second] = seen.as_slice() else {
        panic!("{lines:?}")
    };
    assert_eq!(first.strip_prefix("0 "), second.strip_prefix("1 "));
    let config = TfConfig::parse(&second[2..]).unwrap().unwrap();
    assert_eq!(config.task, TaskId::new(TaskType::Worker, 1));
    for other in ["master", "worker-0", "ps-0", "ps-1", "ps-2"] {
        assert_eq!(starts(&lines, other).len(), 1, "{other}: {lines:?}");
    }
    let log = std::fs::read_to_string(launch.directory.path().join("logs/worker-1.log")).unwrap();
    assert_eq!(log.matches(" worker-1 pid ").count(), 2, "{log}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn servers_and_a_killed_master_come_back_too() {
    let cases = r#"*'"type":"master"'*+0) kill -SEGV $$;; *'"type":"ps","index":2'*+0) exit 101;; *'"type":"ps","index":0'*+0) exit 1;;"#;
    let mut launch = Launch::new(&script(cases));
    launch.options.limits.restart.max = 1;
    launch.options.limits.drain = DRAIN;
    // The server that gave up by itself is the last to come back.
    launch.stop_on("ps-0     | start 1");
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Interrupted, "{outcome:?}");
    let lines = launch.lines();
    for told in [
        "launcher | master was killed by SIGSEGV; started again (1 of 1), pid ",
        "launcher | ps-2 exited with code 101; started again (1 of 1), pid ",
        "launcher | ps-0 exited with code 1 (job failure); started again (1 of 1), pid ",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(told)), "{told}: {lines:?}");
    }
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_task_that_crashes_too_often_ends_the_job_with_its_last_lines() {
    let mut launch = Launch::new(&script(
        r#"*'"type":"ps","index":1'*) echo "broken $COATI_RESTARTS"; kill -ABRT $$;;"#,
    ));
    launch.options.limits.restart.max = 2;
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::JobFailure);
    assert_eq!(
        outcome.reason,
        "ps-1 was killed by SIGABRT, after 2 new starts within 10m: stopping the other tasks"
    );
    let [failure] = outcome.failures.as_slice() else {
        panic!("{outcome:?}")
    };
    assert_eq!(failure.what, "was killed by SIGABRT, after 2 new starts within 10m");
    // Of the process that failed last, not of those before it.
    assert_eq!(failure.last_lines.last().map(String::as_str), Some("broken 2"));
    assert_eq!(failure.last_lines.len(), 2, "{failure}");
    assert_eq!(starts(&launch.lines(), "ps-1").len(), 3);
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_process_killed_from_outside_again_and_again_leaves_nobody_behind() {
    let mut launch = Launch::new(&script(""));
    launch.options.limits.restart.max = 4;
    launch.on_line("launcher | worker-0 was killed by SIGKILL; started again", |line| {
        let _ = kill(pid(line), Signal::SIGKILL);
    });
    let log = launch.directory.path().join("logs/worker-0.log");
    launch.on_line("worker-0 | start 0", move |_| {
        let log = std::fs::read_to_string(&log).unwrap();
        let pid: i32 = log
            .split(" pid ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    });
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::JobFailure);
    assert_eq!(outcome.failures[0].task, TaskId::new(TaskType::Worker, 0));
    let lines = launch.lines();
    let told: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("launcher | worker-0 was killed by SIGKILL; started again "))
        .map(|rest| rest.split(',').next().unwrap())
        .collect();
    assert_eq!(told, ["(1 of 4)", "(2 of 4)", "(3 of 4)", "(4 of 4)"]);
    launch.nobody_is_left();
}

#[tokio::test]
async fn nothing_is_started_again_once_the_job_ends() {
    // Told to stop, every task but the master crashes.
    let script = r#"case "$TF_CONFIG" in
        *'"type":"master"'*) trap 'sleep 0.3; exit 130' TERM; echo ready; sleep 1000 & wait;;
        *) trap 'echo crashing; kill -SEGV $$' TERM; sleep 1000 & wait;; esac"#;
    let mut launch = Launch::new(script);
    launch.options.limits.restart.max = 5;
    launch.options.limits.drain = DRAIN;
    launch.stop_on("master   | ready");
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Interrupted, "{outcome:?}");
    let lines = launch.lines();
    assert!(lines.contains(&"ps-0     | crashing".to_owned()), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("started again")), "{lines:?}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_master_that_says_that_the_job_failed_is_believed() {
    let cases = r#"*'"type":"master"'*) echo "the disk is full"; exit 1;;"#;
    let mut launch = Launch::new(&script(cases));
    launch.options.limits.restart.max = 5;
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::JobFailure);
    assert_eq!(outcome.failures[0].what, "exited with code 1 (job failure)");
    assert_eq!(starts(&launch.lines(), "master").len(), 1);
    launch.nobody_is_left();
}
