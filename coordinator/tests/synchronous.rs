//! Synchronous training: the bits do not depend on servers, timing, or a stop in the middle.

use std::path::Path;

use coati_coordinator::{Outcome, Stopper};

use crate::cluster::{ADAM, Job, LIMIT, MOMENTUM, RMS_PROP, identity, latest, optimizer, options, tensors};
use crate::replica::{Habits, join};

type Tensors = Vec<(String, Vec<u8>)>;

fn habits(seed: u64) -> Habits {
    Habits {
        jitter: 4,
        seed,
        ..Habits::default()
    }
}

/// Runs a job to its end, or stops it when it is at a step.
async fn run(folder: &Path, incarnation: u64, servers: u32, text: &str, seed: u64, stop_at: Option<u64>) -> u64 {
    println!("{servers} servers, seed {seed}, stop at {stop_at:?}");
    let mut options = options(folder, incarnation);
    options.optimizer = optimizer(text);
    let mut job = Job::start(servers, options).await;
    job.all_replicas(&habits(seed));
    if let Some(step) = stop_at {
        job.step(step).await;
        let stopper: Stopper = job.handle.stopper();
        stopper.stop("the test stops it");
    }
    let ended = job.end().await;
    let (prefix, manifest) = latest(folder);
    if stop_at.is_some() {
        assert_eq!(ended.outcome, Outcome::Interrupted("the test stops it".into()));
        assert!(manifest.global_step < 20, "{}", manifest.global_step);
    } else {
        assert_eq!(ended.outcome, Outcome::Completed);
        assert_eq!(manifest.global_step, 20);
    }
    assert_eq!(ended.warnings(), [""; 0]);
    assert!(prefix.ends_with(format!("model.ckpt-{}", manifest.global_step)));
    manifest.global_step
}

async fn whole(servers: u32, text: &str, seed: u64) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 1, servers, text, seed, None).await;
    tensors(&latest(folder.path()).0)
}

#[track_caller]
fn assert_same(expected: &Tensors, found: &Tensors, what: &str) {
    let names = |tensors: &Tensors| tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{what}");
    for ((name, expected), (_, found)) in expected.iter().zip(found) {
        assert!(expected == found, "{what}: {name} differs");
    }
}

async fn conforms(text: &str, slots: &[&str]) {
    let expected = whole(1, text, 1).await;
    for suffix in slots {
        let slot = format!("scale/{suffix}");
        assert!(expected.iter().any(|(name, _)| *name == slot), "{slot}");
    }
    for (servers, seed) in [(1, 2), (3, 3), (3, 4), (5, 5)] {
        let found = whole(servers, text, seed).await;
        assert_same(&expected, &found, &format!("{servers} servers, seed {seed}"));
    }
    // Stopped twice, and gone on from there with other numbers of servers.
    let folder = tempfile::tempdir().unwrap();
    let first = run(folder.path(), 1, 3, text, 6, Some(5)).await;
    let second = run(folder.path(), 2, 5, text, 7, Some(first + 4)).await;
    assert!(5 <= first && first + 4 <= second, "{first} {second}");
    run(folder.path(), 3, 1, text, 8, None).await;
    let found = tensors(&latest(folder.path()).0);
    assert_same(&expected, &found, &format!("stopped at {first} and {second}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn momentum_gives_the_same_bits() {
    conforms(MOMENTUM, &["Momentum", "ExponentialMovingAverage"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rms_prop_gives_the_same_bits() {
    conforms(RMS_PROP, &["RMSProp", "RMSProp_1", "ExponentialMovingAverage"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adam_gives_the_same_bits() {
    conforms(ADAM, &["Adam", "Adam_1", "ExponentialMovingAverage"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_cluster_forms_is_told_to_those_who_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job::start(3, options(folder.path(), 1)).await;
    // The third one never comes.
    let mut there = Vec::new();
    for rank in 0..2 {
        there.push(join(&job.address, rank, &identity()).await.unwrap());
    }
    job.handle.stopper().stop("too early");
    for client in &mut there {
        let told = client.plan(LIMIT, |_| ()).await.unwrap_err().to_string();
        assert!(told.contains("too early"), "{told}");
    }
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Interrupted("too early".into()));
}
