//! A process of a cluster dies that is not started again: the job fails, says who, and goes on from its checkpoint.

use coati_tests::{Cluster, Job, tensors};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The process of a task, from the first line of its log's newest start.
pub(crate) fn pid_of(job: &Job, task: &str) -> Pid {
    let log = job.read(&format!("model/logs/{task}.log"));
    let start = format!(" {task} pid ");
    let pid = log
        .lines()
        .rev()
        .find_map(|line| line.split(&start).nth(1)?.split(' ').next()?.parse().ok());
    Pid::from_raw(pid.unwrap_or_else(|| panic!("no `{start}` in {log}")))
}

fn is_killed(task: &str) {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new().coati("restart: {max: 0}"));
    let endless = || {
        job.train("model", 1_000_000)
            .with("--save_checkpoints_steps 10 --keep_checkpoint_max 100")
            .cluster(cluster)
    };
    let running = endless().start();
    running.wait_for("checkpoint model/model.ckpt-10");
    let held = tensors::read(&job.path("model"), 10);
    kill(pid_of(&job, task), Signal::SIGKILL).unwrap();
    let done = running.finish().exits(1).says(&[
        &format!("{task} was killed by SIGKILL"),
        &format!("hint: the whole log is in model/logs/{task}.log"),
    ]);
    // The last lines of its log stand below the error.
    let told = format!("{task} was killed by SIGKILL (perhaps because memory ran out); its last lines:");
    let (_, below) = done
        .stderr
        .split_once(&told)
        .unwrap_or_else(|| panic!("no `{told}` in {done}"));
    let last = job.read(&format!("model/logs/{task}.log"));
    let last = last.lines().last().unwrap().trim();
    assert!(below.contains(last), "`{last}` is not below the error of {done}");

    tensors::assert_same_bits(
        &held,
        &tensors::read(&job.path("model"), 10),
        "the checkpoint before the fault",
    );
    let running = endless().start();
    let line = running.wait_for("resuming from step ");
    let step: u64 = line
        .split("resuming from step ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(step >= 10, "{line}");
    running.wait_for(&format!("checkpoint model/model.ckpt-{}", step / 10 * 10 + 10));
}

#[test]
fn a_worker_is_killed() {
    is_killed("worker-1");
}

#[test]
fn a_parameter_server_is_killed() {
    is_killed("ps-1");
}

#[test]
fn the_master_is_killed() {
    is_killed("master");
}
