//! Asynchronous training and backup workers.

use coati_coordinator::{Event, Outcome};

use crate::cluster::{BATCH, Job, latest, options};
use crate::replica::{Habits, uses};

fn stalenesses(events: &[Event]) -> Vec<u64> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Step { staleness, .. } => staleness.iter().map(|&(_, versions)| versions).max(),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_gradient_older_than_the_bound_is_applied_and_its_records_are_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.synchronous = false;
    options.consistency.max_staleness = 2;
    options.num_steps = 40;
    let mut job = Job::start(3, options).await;
    for rank in 0..2 {
        job.replica(
            rank,
            Habits {
                jitter: 3,
                seed: u64::from(rank),
                ..Habits::default()
            },
        );
    }
    // Computes from version 0 (or 1, if it is late) and pushes when the job is past the bound.
    job.replica(
        2,
        Habits {
            hold_until: Some(8),
            ..Habits::default()
        },
    );
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    let stalenesses = stalenesses(&ended.events);
    assert_eq!(stalenesses.len(), 40);
    assert!(stalenesses.iter().all(|&staleness| staleness <= 2), "{stalenesses:?}");

    let slow = &ended.seen[2];
    assert!(!slow.dropped.is_empty(), "{slow:?}");
    let lost = slow.dropped[0];
    let all: Vec<_> = ended.seen.iter().flat_map(|seen| &seen.committed).collect();
    assert_eq!(uses(all.iter().copied())[&lost.0], 1, "{lost:?} is used once after all");
    let (_, manifest) = latest(folder.path());
    assert_eq!(manifest.global_step, 40);
    assert_eq!(manifest.records_seen(), 40 * u64::from(BATCH));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slowest_replica_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.replicas_to_aggregate = 2;
    options.num_steps = 15;
    let mut job = Job::start(3, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    // Holds the gradient of its first step back until ten steps were made without it.
    job.replica(
        2,
        Habits {
            hold_until: Some(10),
            ..Habits::default()
        },
    );
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    assert_eq!(stalenesses(&ended.events), [0; 15]);
    assert!(ended.events.iter().all(|event| match event {
        Event::Step { samples, .. } => *samples == u64::from(2 * BATCH),
        _ => true,
    }));
    assert!(!ended.seen[2].dropped.is_empty(), "{:?}", ended.seen[2]);
    let (_, manifest) = latest(folder.path());
    assert_eq!(manifest.records_seen(), 15 * 2 * u64::from(BATCH));
}
