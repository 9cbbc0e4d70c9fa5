//! A process of a cluster dies and is started again: the job goes on by itself and ends as it would have.

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
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let train = |model: &str| {
        job.train(model, STEPS)
            .with("--save_checkpoints_steps 20 --keep_checkpoint_max 100")
            .cluster(cluster)
    };
    let running = train("model").start();
    running.wait_for("checkpoint model/model.ckpt-20");
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

#[test]
fn after_the_loss_of_a_server_the_job_goes_back_to_its_checkpoint_and_ends_with_the_same_bits() {
    let (job, said) = killed("ps-1");
    assert!(said.contains("going back from step "), "{said}");
    let (calm, model) = (
        tensors::read(&job.path("calm"), STEPS),
        tensors::read(&job.path("model"), STEPS),
    );
    tensors::assert_same_bits(&calm, &model, "a calm run and one that lost a server");
    assert_eq!(records_seen(&job, "model", STEPS), records_seen(&job, "calm", STEPS));
}

#[test]
fn a_master_that_is_killed_loses_no_step() {
    let (job, said) = killed("master");
    assert!(said.contains("training goes on from there"), "{said}");
    assert!(!said.contains("going back from step "), "{said}");
    let (calm, model) = (
        tensors::read(&job.path("calm"), STEPS),
        tensors::read(&job.path("model"), STEPS),
    );
    tensors::assert_same_bits(&calm, &model, "a calm run and one whose master was killed");
    assert_eq!(records_seen(&job, "model", STEPS), records_seen(&job, "calm", STEPS));
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
