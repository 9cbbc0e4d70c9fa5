//! Each record is used once an epoch, whatever the mode, also after a stop; and the manifest says which.

use std::path::Path;

use coati_checkpoint::manifest::DataPosition;
use coati_coordinator::run::Options;
use coati_coordinator::{Event, Outcome};

use crate::cluster::{BATCH, Job, RECORDS, latest, options};
use crate::replica::{Habits, Range, uses};

/// Runs in two parts, each replica at its own pace; returns what committed steps used in all, by the replicas' account.
async fn stop_and_go_on(folder: &Path, change: impl Fn(&mut Options), stop_at: u64) -> Vec<Range> {
    let mut used: Vec<Range> = Vec::new();
    for (incarnation, stop) in [(1, Some(stop_at)), (2, None)] {
        let mut options = options(folder, incarnation);
        change(&mut options);
        let mut job = Job::start(3, options).await;
        for (rank, jitter) in [(0, 0), (1, 3), (2, 12)] {
            job.replica(
                rank,
                Habits {
                    jitter,
                    seed: incarnation,
                    ..Habits::default()
                },
            );
        }
        if let Some(step) = stop {
            job.step(step).await;
            job.handle.stopper().stop("half way");
        }
        let ended = job.end().await;
        assert_eq!(
            ended.outcome == Outcome::Completed,
            stop.is_none(),
            "{:?}",
            ended.outcome
        );
        for seen in &ended.seen {
            used.extend(&seen.committed);
        }
        let (_, manifest) = latest(folder);
        assert_matches_manifest(&used, &manifest.data);
        let told: u64 = ended
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Step { samples, .. } => Some(*samples),
                _ => None,
            })
            .sum();
        println!("{told} samples told of after the stop, position {:?}", manifest.data);
    }
    used
}

/// Promise 2: what replicas used for committed steps is what the manifest says, position by position, each once.
#[track_caller]
fn assert_matches_manifest(used: &[Range], data: &DataPosition) {
    let uses = uses(used);
    let more: Vec<_> = uses.iter().filter(|(_, times)| **times != 1).collect();
    assert!(more.is_empty(), "used more than once: {more:?}");
    let is_open = |position: u64| {
        let mut open = data.open.iter();
        open.any(|range| (range.start..range.start + range.count).contains(&position))
    };
    let expected: Vec<u64> = (0..data.position).filter(|position| !is_open(*position)).collect();
    let found: Vec<u64> = uses.into_keys().collect();
    assert_eq!(found, expected);
    assert_eq!(data.records_seen(), found.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn synchronous_training_uses_each_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let used = stop_and_go_on(folder.path(), |_| (), 6).await;
    // 20 steps of three replicas: the positions are dense, so every whole epoch is complete.
    let positions: Vec<u64> = uses(&used).into_keys().collect();
    assert_eq!(positions, (0..20 * 3 * u64::from(BATCH)).collect::<Vec<_>>());
    let (_, manifest) = latest(folder.path());
    assert_eq!(manifest.data.open, []);
    assert_eq!(manifest.epoch(), 240 / RECORDS);
}

#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_training_uses_each_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let change = |options: &mut Options| {
        options.synchronous = false;
        options.consistency.max_staleness = 3;
        options.num_steps = 60;
    };
    let used = stop_and_go_on(folder.path(), change, 25).await;
    assert_eq!(uses(&used).len() as u64, 60 * u64::from(BATCH));
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_workers_records_are_used_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let change = |options: &mut Options| {
        options.replicas_to_aggregate = 2;
        options.num_steps = 30;
    };
    let used = stop_and_go_on(folder.path(), change, 10).await;
    assert_eq!(uses(&used).len() as u64, 30 * 2 * u64::from(BATCH));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_with_another_number_of_replicas() {
    let folder = tempfile::tempdir().unwrap();
    let mut used: Vec<Range> = Vec::new();
    for (incarnation, workers, steps) in [(1, 2, 7), (2, 0, 16), (3, 1, 25)] {
        let mut options = options(folder.path(), incarnation);
        options.workers = workers;
        options.num_steps = steps;
        let mut job = Job::start(3, options).await;
        for rank in 0..=workers {
            job.replica(rank, Habits::default());
        }
        let ended = job.end().await;
        assert_eq!(ended.outcome, Outcome::Completed);
        for seen in &ended.seen {
            used.extend(&seen.committed);
        }
        let (_, manifest) = latest(folder.path());
        assert_matches_manifest(&used, &manifest.data);
        assert_eq!(manifest.data.open, []);
    }
    assert_eq!(uses(&used).len() as u64, (7 * 3 + 9 + 9 * 2) * u64::from(BATCH));
}
