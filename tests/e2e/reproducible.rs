//! A synchronous run is a function of its files and its seed: the same bits come out, whatever happens on the way.

use coati_tests::tensors::{self, Tensors, assert_same_bits};
use coati_tests::{Cluster, Job};
use nix::sys::signal::Signal;

const STEPS: u64 = 40;

/// Trains with this cluster into a folder of this name.
fn trained(job: &Job, name: &str, cluster: &Cluster, flags: &str) -> Tensors {
    let file = format!("{name}.yaml");
    let _ = job
        .train(name, STEPS)
        .cluster(job.cluster(&file, cluster))
        .with(flags)
        .run()
        .exits(0);
    tensors::read(&job.path(name), STEPS)
}

#[test]
fn equal_seeds_give_equal_bits_for_any_number_of_servers() {
    let job = Job::new();
    let reference = trained(&job, "reference", &Cluster::new(), "");
    assert!(reference.keys().any(|name| name.ends_with("/Momentum")), "no slots");
    assert!(
        reference.keys().any(|name| name.ends_with("/ExponentialMovingAverage")),
        "no averages"
    );
    let again = trained(&job, "again", &Cluster::new(), "");
    assert_same_bits(&reference, &again, "the same command twice");
    let one = trained(&job, "one", &Cluster::new().servers(1), "");
    assert_same_bits(&reference, &one, "three servers and one");
    let turns = trained(&job, "turns", &Cluster::new().servers(5).placement("round_robin"), "");
    assert_same_bits(&reference, &turns, "three servers and five, dealt out in turn");
    // If this were equal, the comparisons above would say nothing.
    let other = trained(&job, "other", &Cluster::new(), "--seed 1");
    let differ = tensors::differences(&reference, &other).len();
    assert!(differ * 2 > reference.len(), "only {differ} tensors depend on the seed");
}

#[test]
fn stopping_and_going_on_changes_no_bit() {
    let job = Job::new();
    // Two slots a variable, and a schedule that depends on the step.
    let rms_prop = "rms_prop_optimizer {\n      learning_rate { exponential_decay_learning_rate { initial_learning_rate: 0.004 decay_steps: 7 decay_factor: 0.9 staircase: true } }\n      momentum_optimizer_value: 0.9 decay: 0.9 epsilon: 1.0\n    }";
    let momentum = "momentum_optimizer {\n      learning_rate { cosine_decay_learning_rate { learning_rate_base: 0.04 total_steps: 100 warmup_learning_rate: 0.01 warmup_steps: 20 } }\n      momentum_optimizer_value: 0.9\n    }";
    job.configure("pipeline.config", &[(momentum, rms_prop)]);
    let reference = trained(&job, "reference", &Cluster::new(), "");
    let slots = reference.keys().filter(|name| name.contains("/RMSProp")).count();
    assert!(slots > 0 && slots.is_multiple_of(2), "{slots} slots");

    // Stopped at a step of its own choice with three servers, killed without warning with one, ended with five.
    let three = job.cluster("three.yaml", &Cluster::new());
    let running = job
        .train("model", STEPS)
        .with("--save_checkpoints_steps 4")
        .cluster(three)
        .start();
    running.wait_for("checkpoint model/model.ckpt-4");
    running.signal(Signal::SIGINT);
    let _ = running.finish().exits(130);
    let one = job.cluster("one.yaml", &Cluster::new().servers(1));
    let running = job
        .train("model", STEPS)
        .with("--save_checkpoints_steps 4")
        .cluster(one)
        .start();
    running.wait_for("resuming from step ");
    running.wait_for("checkpoint model/model.ckpt-");
    running.signal(Signal::SIGKILL);
    let killed = running.finish();
    assert!(
        !killed.stderr.contains("finished at step"),
        "it ended before it was killed: {killed}"
    );
    let five = job.cluster("five.yaml", &Cluster::new().servers(5));
    let _ = job
        .train("model", STEPS)
        .cluster(five)
        .run()
        .exits(0)
        .says(&["resuming from step "]);
    assert_same_bits(
        &reference,
        &tensors::read(&job.path("model"), STEPS),
        "in one go and in three",
    );
}
