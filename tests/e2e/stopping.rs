//! Ctrl-C, SIGTERM, time limits: a checkpoint is written and nobody is left behind (which [`Process::finish`] checks).

use std::time::{Duration, Instant};

use coati_tests::{Cluster, Finished, Job, Process, SmallDisk};
use nix::sys::signal::Signal;

/// More steps than any test waits for.
const ENDLESS: u64 = 1_000_000;

/// Starts an endless job on a cluster and waits for its first checkpoints.
fn started(job: &Job) -> Process {
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let running = job
        .train("model", ENDLESS)
        .with("--save_checkpoints_steps 5")
        .cluster(cluster)
        .start();
    running.wait_for("checkpoint model/model.ckpt-10");
    running
}

/// The step of the last checkpoint that a job told of.
fn last_saved(done: &Finished) -> u64 {
    let saved = done
        .stderr
        .lines()
        .rev()
        .find_map(|line| line.split("checkpoint model/model.ckpt-").nth(1));
    saved
        .and_then(|step| step.parse().ok())
        .unwrap_or_else(|| panic!("no checkpoint: {done}"))
}

/// The job goes on from the step that it said it had saved.
fn goes_on(job: &Job, step: u64) {
    let resumed = format!("resuming from step {step} (model/model.ckpt-{step})");
    let _ = job
        .train("model", step + 2)
        .cluster("cluster.yaml")
        .run()
        .exits(0)
        .says(&[&resumed]);
}

fn stopped_in_order_by(signal: Signal, name: &str) {
    let job = Job::new();
    let running = started(&job);
    running.signal(signal);
    let done = running.finish().exits(130).says(&[
        &format!("{name}: the master writes a checkpoint and ends the job"),
        "stopped on request; a checkpoint of step ",
        "the same command goes on from there",
    ]);
    let step = last_saved(&done);
    assert!(
        step >= 10 && done.stderr.contains(&format!("a checkpoint of step {step} is written")),
        "{done}"
    );
    goes_on(&job, step);
}

#[test]
fn ctrl_c_writes_a_checkpoint() {
    stopped_in_order_by(Signal::SIGINT, "Ctrl-C");
}

#[test]
fn sigterm_writes_a_checkpoint() {
    stopped_in_order_by(Signal::SIGTERM, "SIGTERM");
}

#[test]
fn a_second_ctrl_c_kills() {
    let job = Job::new();
    let running = started(&job);
    // A master that cannot answer: the job could not end by itself before its deadline of a minute.
    let master = super::faults::pid_of(&job, "master");
    nix::sys::signal::kill(master, Signal::SIGSTOP).unwrap();
    running.signal(Signal::SIGINT);
    running.wait_for("Ctrl-C: the master writes a checkpoint");
    let again = Instant::now();
    running.signal(Signal::SIGINT);
    running.wait_for("asked to stop again: killing every task");
    let done = running.finish().exits(130);
    assert!(again.elapsed() < Duration::from_secs(45), "{done}");
    // What a checkpoint held is there.
    goes_on(&job, 10.max(last_saved(&done)));
}

#[test]
fn nobody_survives_a_killed_launcher() {
    let job = Job::new();
    let running = started(&job);
    running.signal(Signal::SIGKILL);
    let done = running.finish();
    goes_on(&job, last_saved(&done));
}

#[test]
fn one_process_stops_in_order() {
    let job = Job::new();
    let running = job.train("model", ENDLESS).with("--save_checkpoints_steps 5").start();
    running.wait_for("checkpoint model/model.ckpt-5");
    running.signal(Signal::SIGTERM);
    let done = running
        .finish()
        .exits(130)
        .says(&["stopped on request; a checkpoint of step "]);
    let step = last_saved(&done);
    let resumed = format!("resuming from step {step} ");
    let _ = job.train("model", step + 1).run().exits(0).says(&[&resumed]);
}

#[test]
fn the_time_limit_ends_the_job_with_a_checkpoint() {
    let job = Job::new();
    let limited = Cluster::new()
        .workers(1)
        .servers(1)
        .training_input("scheduling: { maxRunningTime: 4s }");
    let cluster = job.cluster("cluster.yaml", &limited);
    let done = job
        .train("model", ENDLESS)
        .cluster(cluster)
        .run()
        .exits(124)
        .says(&["maxRunningTime of 4s is over"]);
    goes_on_without_limit(&job, last_saved(&done));
}

fn goes_on_without_limit(job: &Job, step: u64) {
    let resumed = format!("resuming from step {step} ");
    let _ = job.train("model", step + 1).run().exits(0).says(&[&resumed]);
}

#[test]
fn a_full_disk_costs_nothing_that_a_checkpoint_held() {
    let job = Job::new();
    // Room for one checkpoint of 4.5 MB, not for two.
    let Some(disk) = SmallDisk::mount(&job.path("model"), 7 << 20) else {
        return;
    };
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let done = job
        .train("model", 12)
        .with("--save_checkpoints_steps 4")
        .cluster(cluster)
        .run()
        .exits(1)
        .says(&[
            "checkpoint of step 8 failed; the previous one stays",
            "the last checkpoint, of step 12, could not be written",
            "No space left on device",
            "model/model.ckpt-12",
        ]);
    assert_eq!(last_saved(&done), 4);
    disk.resize(64 << 20);
    goes_on(&job, 4);
}
