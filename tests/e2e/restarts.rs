//! A task that crashes again and again: the job ends after `coati.restart`, says why, and keeps its checkpoints.

use coati_tests::{Cluster, Finished, Job, tensors};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::faults::pid_of;

/// Kills each process of a task as soon as it is there, until the job ends.
fn killed_again_and_again(job: &Job, task: &str) -> Finished {
    let cluster = job.cluster("cluster.yaml", &Cluster::new().coati("restart: {max: 2, window: 10m}"));
    let running = job.under_way(cluster);
    let mut last: Option<Pid> = None;
    for number in 0..3 {
        if number > 0 {
            let _ = running.wait_for(&format!("started again ({number} of 2)"));
        }
        let pid = pid_of(job, task);
        assert_ne!(Some(pid), last);
        kill(pid, Signal::SIGKILL).unwrap();
        last = Some(pid);
    }
    // Also that nobody is left.
    running.finish().exits(1).says(&[
        &format!("{task} was killed by SIGKILL (perhaps because memory ran out), after 2 new starts within 10m"),
        &format!("hint: the whole log is in model/logs/{task}.log"),
    ])
}

fn the_job_ends_and_keeps_its_checkpoints(task: &str) {
    let job = Job::new();
    let _ = killed_again_and_again(&job, task);
    let _ = tensors::read(&job.path("model"), 5);
    let running = job.train("model", 1_000_000).cluster("cluster.yaml").start();
    let line = running.wait_for("resuming from step ");
    assert!(!line.contains("resuming from step 0"), "{line}");
    running.signal(Signal::SIGTERM);
    let _ = running.finish().exits(130);
}

#[test]
fn nobody_outlives_the_launcher_whatever_state_they_are_in() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let running = job.under_way(cluster);
    // One hangs, one has just been started again.
    kill(pid_of(&job, "ps-1"), Signal::SIGSTOP).unwrap();
    kill(pid_of(&job, "worker-0"), Signal::SIGKILL).unwrap();
    running.wait_for("worker-0 was killed by SIGKILL; started again");
    running.signal(Signal::SIGKILL);
    let _ = running.finish();
    let status = job.coati(["status", "--model_dir", "model"]).run().exits(0).stdout;
    assert!(
        status.contains("is gone, and its tasks with it; the same `coati train` goes on from the newest checkpoint"),
        "{status}"
    );
    let _ = job
        .coati(["scale", "--model_dir", "model", "--workers", "3"])
        .run()
        .exits(1)
        .says(&["does not answer on ", "hint: it was killed, and its tasks with it"]);
    let _ = tensors::read(&job.path("model"), 5);
}

#[test]
fn a_worker_that_crashes_too_often_ends_the_job() {
    the_job_ends_and_keeps_its_checkpoints("worker-0");
}

#[test]
fn a_server_that_crashes_too_often_ends_the_job() {
    the_job_ends_and_keeps_its_checkpoints("ps-1");
}

#[test]
fn a_master_that_crashes_too_often_ends_the_job() {
    the_job_ends_and_keeps_its_checkpoints("master");
}
