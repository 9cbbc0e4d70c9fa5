//! Tasks that are lost while a job runs.

use std::time::{Duration, Instant};

use coati_coordinator::{Client, cadence};

use crate::cluster::{Job, LIMIT, identity, latest, options};
use crate::replica::{Habits, join};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_falls_silent_ends_the_job_and_nothing_committed_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.heartbeat_timeout = Duration::from_secs(2);
    let mut job = Job::start(3, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(
        2,
        Habits {
            vanish_at: Some(4),
            ..Habits::default()
        },
    );
    job.step(4).await;
    let begun = Instant::now();
    let ended = job.end().await;
    let reason = ended.failure();
    assert!(
        reason.contains("worker-1 (starting) has been silent for") && reason.contains("hint: "),
        "{reason}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // The four steps before are kept, with exactly their records.
    let (_, manifest) = latest(folder.path());
    assert_eq!((manifest.global_step, manifest.records_seen()), (4, 4 * 12));
    for seen in &ended.seen[..2] {
        assert!(seen.end.contains("worker-1"), "the others hear why: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_asynchronous_training_a_silent_worker_is_noticed_although_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.heartbeat_timeout = Duration::from_secs(1);
    options.synchronous = false;
    options.consistency.max_staleness = 5;
    options.num_steps = u64::MAX;
    let mut job = Job::start(1, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(
        2,
        Habits {
            vanish_at: Some(1),
            ..Habits::default()
        },
    );
    let ended = job.end().await;
    assert!(
        ended.failure().contains("worker-1 (starting) has been silent for"),
        "{}",
        ended.failure()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_ends_the_job_with_its_name_and_the_last_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.num_steps = u64::MAX;
    options.limits.heartbeat_timeout = Duration::from_secs(12);
    options.limits.commit = Duration::from_secs(2);
    options.cadence = cadence::Options {
        every: LIMIT,
        every_steps: Some(5),
    };
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    job.step(7).await;
    job.servers[1].shutdown();
    let address = job.ps_addresses[1].clone();
    let begun = Instant::now();
    let ended = job.end().await;
    assert!(
        ended.failure().contains(&format!("ps-1 ({address})")),
        "{}",
        ended.failure()
    );
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let (_, manifest) = latest(folder.path());
    assert!(
        manifest.global_step >= 5 && manifest.global_step.is_multiple_of(5),
        "{}",
        manifest.global_step
    );
    let cleaned = coati_checkpoint::keep::clean(folder.path()).unwrap();
    assert!(cleaned.is_empty(), "half-written files were left: {cleaned:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_master_fails_at_ends_the_job_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.num_steps = u64::MAX;
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    job.step(3).await;
    job.handle.fail("step 3: the loss is not finite");
    let ended = job.end().await;
    assert_eq!(ended.failure(), "step 3: the loss is not finite");
    for seen in &ended.seen {
        assert!(seen.end.contains("the loss is not finite"), "{seen:?}");
    }
    let (_, manifest) = latest(folder.path());
    assert!(manifest.global_step >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_started_again_is_told_that_it_cannot_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.heartbeat_timeout = Duration::from_secs(3);
    let mut job = Job::start(1, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(
        2,
        Habits {
            vanish_at: Some(2),
            ..Habits::default()
        },
    );
    job.step(2).await;
    // Another address stands for another process: all of this test's have the same id.
    let (task, identity) = (crate::replica::task(2), identity());
    let joined = Client::join(&job.address, task, "elsewhere:1", &identity, LIMIT, LIMIT).await;
    let told = joined.err().unwrap().to_string();
    assert!(
        told.contains("worker-1 joined before") && told.contains("hint: "),
        "{told}"
    );
    // The same process may say it again.
    drop(join(&job.address, 0, &identity).await.unwrap());
    let ended = job.end().await;
    assert!(ended.failure().contains("worker-1"), "{}", ended.failure());
}
