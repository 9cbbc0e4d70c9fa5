//! A process of a cluster dies and is started again: the job goes on by itself and ends as it would have.

use std::time::Duration;

use coati_tests::{Cluster, Job, tensors};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::faults::pid_of;

const STEPS: u64 = 120;

/// Records that the checkpoint of a step counts as seen.
pub(crate) fn records_seen(job: &Job, model: &str, step: u64) -> u64 {
    let arguments = [
        "checkpoint",
        "show",
        &format!("{model}/model.ckpt-{step}"),
        "--format",
        "json",
    ];
    let shown = job.coati(arguments).run().exits(0).json();
    let seen = find(&shown, "records_seen").and_then(Value::as_u64);
    seen.unwrap_or_else(|| panic!("no records_seen in {shown}"))
}

/// The first value of that key, wherever it is.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|inner| find(inner, key))),
        Value::Array(list) => list.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}

/// Kills a task after the checkpoint of step 20; returns the job and what was said until its end.
fn killed(task: &str) -> (Job, String) {
    killed_after(task, &Cluster::new(), "checkpoint model/model.ckpt-20")
}

fn killed_after(task: &str, cluster: &Cluster, line: &str) -> (Job, String) {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", cluster);
    let train = |model: &str| {
        job.train(model, STEPS)
            .with("--save_checkpoints_steps 20 --keep_checkpoint_max 100")
            .cluster(cluster)
    };
    let running = train("model").start();
    running.wait_for(line);
    kill(pid_of(&job, task), Signal::SIGKILL).unwrap();
    let done = running.finish().exits(0).says(&[
        &format!("{task} was killed by SIGKILL; started again (1 of 10)"),
        &format!("checkpoint model/model.ckpt-{STEPS}"),
        "the job is done",
    ]);
    let said = done.stderr.clone();
    let _ = train("calm").run().exits(0);
    (job, said)
}

/// The disturbed run ended with the calm one's bits and records.
#[track_caller]
fn as_a_calm_run(job: &Job, what: &str) {
    let [calm, model] = ["calm", "model"].map(|model| tensors::read(&job.path(model), STEPS));
    tensors::assert_same_bits(&calm, &model, what);
    assert_eq!(records_seen(job, "model", STEPS), records_seen(job, "calm", STEPS));
}

#[test]
fn after_the_loss_of_a_server_the_job_goes_back_to_its_checkpoint_and_ends_with_the_same_bits() {
    let (job, said) = killed("ps-1");
    assert!(said.contains("going back from step "), "{said}");
    as_a_calm_run(&job, "a calm run and one that lost a server");
}

#[test]
fn with_copies_the_loss_of_a_server_costs_no_step() {
    let cluster = Cluster::new().coati("replication: 1");
    let (job, said) = killed_after("ps-1", &cluster, "every parameter server has a copy");
    assert!(said.contains("training goes on from the copies at step "), "{said}");
    assert!(!said.contains("going back from step "), "{said}");
    as_a_calm_run(&job, "a calm run and one that lost a server with a copy");
}

/// A server that hangs is not refused a connection: it is noticed by its silence, its copy takes over, and another process
/// takes its place.
#[test]
fn with_copies_a_server_that_hangs_costs_no_step() {
    let job = Job::new();
    let cluster = Cluster::new()
        .coati("replication: 1")
        .coati("heartbeat_interval: 200ms")
        .coati("heartbeat_timeout: 3s");
    let cluster = job.cluster("cluster.yaml", &cluster);
    let running = job.train("model", STEPS).cluster(cluster).start();
    running.wait_for("every parameter server has a copy");
    kill(pid_of(&job, "ps-2"), Signal::SIGSTOP).unwrap();
    let said = running.finish().exits(0).stderr;
    assert!(said.contains("training goes on from the copies at step "), "{said}");
    assert!(!said.contains("going back from step "), "{said}");
}

#[test]
fn a_master_that_is_killed_loses_no_step() {
    let (job, said) = killed("master");
    assert!(said.contains("training goes on from there"), "{said}");
    assert!(!said.contains("going back from step "), "{said}");
    as_a_calm_run(&job, "a calm run and one whose master was killed");
}

#[test]
fn a_master_that_hangs_is_replaced_and_loses_no_step() {
    let job = Job::new();
    let limits = Cluster::new()
        .coati("heartbeat_timeout: 2s")
        .coati("heartbeat_interval: 500ms");
    let cluster = job.cluster("cluster.yaml", &limits);
    let running = job
        .train("model", STEPS)
        .with("--save_checkpoints_steps 20")
        .cluster(cluster)
        .start();
    running.wait_for("checkpoint model/model.ckpt-20");
    let master = pid_of(&job, "master");
    kill(master, Signal::SIGSTOP).unwrap();
    let done = running.finish().exits(0).says(&[
        "master is killed, for a new process to take its place: it is silent",
        "master was killed by SIGKILL; started again (1 of 10)",
        "training goes on from there",
    ]);
    assert!(!done.stderr.contains("going back from step "), "{done}");
}

#[test]
fn a_master_that_was_stopped_for_a_while_takes_nobody_else_for_dead() {
    let job = Job::new();
    let limits = Cluster::new()
        .workers(0)
        .servers(1)
        .coati("heartbeat_timeout: 1s")
        .coati("heartbeat_interval: 200ms");
    let cluster = job.cluster("cluster.yaml", &limits);
    let running = job.under_way(cluster);
    let master = pid_of(&job, "master");
    kill(master, Signal::SIGSTOP).unwrap();
    // For longer than anybody may be silent: that is what happens here, and nobody waits for anything.
    std::thread::sleep(Duration::from_millis(2500));
    kill(master, Signal::SIGCONT).unwrap();
    let pulse = || std::fs::read_dir(job.path("model")).unwrap().count();
    let before = pulse();
    while pulse() < before + 8 {
        running.assert_alive();
        std::thread::sleep(Duration::from_millis(20));
    }
    running.signal(Signal::SIGTERM);
    let done = running.finish().exits(130);
    for word in ["silent", "started again", "going back", "without"] {
        assert!(!done.stderr.contains(word), "`{word}` in {done}");
    }
}

#[test]
fn a_worker_that_is_killed_is_replaced_and_no_step_is_lost() {
    let (job, said) = killed("worker-0");
    assert!(said.contains("worker-0 joins again"), "{said}");
    assert!(!said.contains("going back from step "), "{said}");
    // Some steps were made by two replicas.
    let (seen, calm) = (records_seen(&job, "model", STEPS), records_seen(&job, "calm", STEPS));
    assert!(seen <= calm && seen > calm * 2 / 3, "{seen} of {calm}");
}
