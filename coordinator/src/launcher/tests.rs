//! The launcher with real processes: shell scripts that play the tasks. Each script is run by every task and looks into
//! `TF_CONFIG` to know its part.

mod changes;
mod harness;
mod restart;

use std::time::Duration;

use coati_common::cluster::tf_config::TfConfig;
use coati_common::cluster::{TaskId, TaskType};
use coati_common::exit::ExitCode;

use self::harness::{Launch, WAIT};
use super::{Error, run_with};

/// `wait` is interrupted by traps, unlike `sleep` in the foreground.
const FOREVER: &str = "sleep 1000 & wait";

#[tokio::test]
async fn a_crashed_task_is_named_with_its_last_lines() {
    let script = r#"case "$TF_CONFIG" in
        *'"type":"ps","index":1'*) exec >&2; i=0; while [ $i -lt 30 ]; do echo "line $i"; i=$((i+1)); done; echo broken; exit 3;;
        *) FOREVER;; esac"#;
    let launch = Launch::new(&script.replace("FOREVER", FOREVER));
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::JobFailure);
    assert_eq!(outcome.reason, "ps-1 exited with code 3: stopping the other tasks");
    let [failure] = outcome.failures.as_slice() else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        (failure.task, failure.what.as_str()),
        (TaskId::new(TaskType::Ps, 1), "exited with code 3")
    );
    assert_eq!(failure.last_lines.len(), 20);
    assert_eq!(failure.last_lines[18..], ["line 29", "broken"]);
    let text = failure.to_string();
    assert!(
        text.starts_with("ps-1 exited with code 3; its last lines:\n    line "),
        "{text}"
    );
    assert!(text.ends_with("logs/ps-1.log"), "{text}");
    let log = std::fs::read_to_string(failure.log.as_ref().unwrap()).unwrap();
    assert!(log.contains("\nline 0\n") && log.contains("\nline 29\n"), "{log}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_job_ends_with_its_master_and_servers_are_told_to_leave() {
    let script = r#"case "$TF_CONFIG" in
        *'"type":"master"'*) echo trained; exit 0;;
        *'"type":"worker"'*) exit 0;;
        *) trap 'echo told to leave; exit 0' TERM; FOREVER;; esac"#;
    let mut launch = Launch::new(&script.replace("FOREVER", FOREVER));
    launch.options.limits.drain = Duration::from_millis(300);
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Success);
    assert!(
        outcome.failures.is_empty() && outcome.warnings.is_empty(),
        "{outcome:?}"
    );
    let lines = launch.lines();
    assert!(lines.contains(&"master   | trained".to_owned()), "{lines:?}");
    assert!(lines.contains(&"ps-2     | told to leave".to_owned()), "{lines:?}");
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_request_to_stop_reaches_the_master_which_ends_the_job() {
    let script = r#"case "$TF_CONFIG" in
        *'"type":"master"'*) trap 'echo checkpoint written; exit 130' TERM; echo training; FOREVER;;
        *) trap 'echo told; exit 0' TERM; FOREVER;; esac"#;
    let mut launch = Launch::new(&script.replace("FOREVER", FOREVER));
    launch.options.limits.drain = Duration::from_millis(100);
    launch.stop_on("master   | training");
    let outcome = launch.run().await.unwrap();
    assert_eq!((outcome.exit, outcome.failures.len()), (ExitCode::Interrupted, 0));
    let lines = launch.lines();
    let place = |line: &str| {
        lines
            .iter()
            .position(|seen| seen == line)
            .unwrap_or_else(|| panic!("{line}: {lines:?}"))
    };
    assert!(place("master   | checkpoint written") < place("worker-1 | told"));
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("launcher | Ctrl-C: the master writes a checkpoint")),
        "{lines:?}"
    );
    launch.nobody_is_left();
}

#[tokio::test]
async fn tasks_that_ignore_sigterm_are_killed_after_the_grace() {
    let mut launch = Launch::new(&format!("trap '' TERM; echo ready; {FOREVER}"));
    launch.options.limits.stop = Duration::from_millis(300);
    launch.stop_on("master   | ready");
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Interrupted);
    assert_eq!(
        outcome.warnings,
        ["the master was killed before it ended: its newest checkpoint may be an older one"]
    );
    assert!(
        launch
            .lines()
            .contains(&"launcher | worker-0 did not stop in time and is killed".to_owned())
    );
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_second_request_does_not_wait_for_the_grace() {
    let mut launch = Launch::new(&format!("trap 'echo got it' TERM; echo ready; {FOREVER}; {FOREVER}"));
    launch.options.limits.stop = Duration::from_secs(3600);
    launch.stop_on("master   | ready");
    launch.stop_on("master   | got it");
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Interrupted);
    launch.nobody_is_left();
}

#[tokio::test]
async fn the_time_limit_stops_the_job_in_order() {
    let script = r#"case "$TF_CONFIG" in *'"type":"master"'*) trap 'echo saved; exit 130' TERM;; esac; FOREVER"#;
    let mut launch = Launch::new(&script.replace("FOREVER", FOREVER));
    launch.options.limits.max_running = Some(Duration::from_millis(500));
    launch.options.limits.drain = Duration::from_millis(100);
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::TimeLimit, "{outcome:?}");
    assert!(
        launch.lines().contains(&"master   | saved".to_owned()),
        "{:?}",
        launch.lines()
    );
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named_with_its_address() {
    let mut launch = Launch::new(FOREVER);
    launch.options.probe = true;
    launch.options.limits.ready = Duration::from_millis(300);
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::JobFailure);
    let failure = &outcome.failures[0];
    assert_eq!(
        failure.what,
        format!("did not answer on {} within 300ms", failure.address)
    );
    assert_eq!(failure.task, TaskId::MASTER);
    launch.nobody_is_left();
}

#[tokio::test]
async fn a_cluster_that_answers_is_ready() {
    let mut launch = Launch::new(&format!(r#"echo "$TF_CONFIG"; {FOREVER}"#));
    launch.options.probe = true;
    launch.options.limits.ready = WAIT;
    launch.options.limits.drain = Duration::from_millis(10);
    // The test itself listens where the tasks should.
    let listeners = launch.on_line("| {", |line| {
        let config = TfConfig::parse(line.split_once("| ").unwrap().1).unwrap().unwrap();
        std::net::TcpListener::bind(config.cluster.address(config.task).unwrap().to_string()).unwrap()
    });
    launch.stop_on("launcher | the cluster answers after");
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Interrupted, "{outcome:?}");
    assert_eq!(listeners.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn tasks_know_their_part_and_keep_to_their_share() {
    let script =
        r#"echo "$TF_CONFIG"; echo "$COATI_JOB_ID $OMP_NUM_THREADS $COATI_THREADS [$CUDA_VISIBLE_DEVICES] $1""#;
    let mut launch = Launch::new(script);
    launch.options.job_id = "job-7".to_owned();
    launch.options.args.extend(["sh".into(), "--flag".into()]);
    launch.options.inventory.as_mut().unwrap().gpus = vec!["0".to_owned()];
    let outcome = launch.run().await.unwrap();
    assert_eq!(outcome.exit, ExitCode::Success);
    let lines = launch.lines();
    assert!(
        lines.contains(&"worker-1 | job-7 2 2 [0] --flag".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"ps-0     | job-7 1 1 [] --flag".to_owned()),
        "{lines:?}"
    );
    let config = lines.iter().find_map(|line| line.strip_prefix("worker-1 | {")).unwrap();
    let config = TfConfig::parse(&format!("{{{config}")).unwrap().unwrap();
    assert_eq!(config.task, TaskId::new(TaskType::Worker, 1));
    assert_eq!((config.cluster.workers.len(), config.cluster.ps.len()), (2, 3));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error() {
    let mut launch = Launch::new("");
    launch.options.binary = "/nonexistent/coati".into();
    let error = launch.run().await.unwrap_err();
    assert!(matches!(error, Error::Spawn { .. }));
    assert!(
        error
            .to_string()
            .starts_with("cannot start master (/nonexistent/coati): "),
        "{error}"
    );
}

#[tokio::test]
async fn a_log_directory_that_cannot_be_made_is_an_error() {
    let mut launch = Launch::new("");
    let file = launch.directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    launch.options.job_dir = Some(file.clone());
    let error = launch.run().await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot write log {}/logs: ", file.display())),
        "{error}"
    );
    assert!(error.contains("\nhint: "));
}

#[tokio::test]
async fn a_launch_that_is_dropped_leaves_nobody() {
    let launch = Launch::new(&format!("trap '' TERM; echo ready; {FOREVER}"));
    let ready = launch.seen("worker-1 | ready");
    let (_sender, stops) = tokio::sync::mpsc::unbounded_channel();
    tokio::select! {
        outcome = run_with(launch.options.clone(), stops) => panic!("{outcome:?}"),
        seen = tokio::time::timeout(WAIT, ready) => seen.unwrap().unwrap(),
    }
    launch.nobody_is_left();
}

#[test]
fn when_the_launcher_is_killed_its_tasks_die() {
    // `exec`, because the kernel's promise is about the launcher's own children.
    let (launch, mut process) = harness::launcher_process("echo ready; exec sleep 1000");
    harness::wait_for_line(&mut process, "worker-1 | ready");
    process.kill().unwrap();
    process.wait().unwrap();
    launch.nobody_is_left();
}

#[test]
fn sigterm_to_the_launcher_ends_the_job_in_order() {
    let script = format!("trap 'echo saved; exit 130' TERM; echo ready; {FOREVER}");
    let (launch, mut process) = harness::launcher_process(&script);
    harness::wait_for_line(&mut process, "master   | ready");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    harness::wait_for_line(&mut process, "master   | saved");
    assert_eq!(process.wait().unwrap().code(), Some(130));
    launch.nobody_is_left();
}
