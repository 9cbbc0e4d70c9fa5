//! Tasks that are lost while a job runs: it goes on, and nothing is lost or counted twice.

use std::collections::BTreeMap;
use std::time::Duration;

use coati_coordinator::step_log::{self, StepLog};
use coati_coordinator::{Client, Event, Outcome, cadence};
use coati_param_server::PsClient;
use coati_proto::coati::v1::JobRef;

use crate::cluster::{Ended, Job, LIMIT, SILENCE, identity, latest, options, tensors};
use crate::replica::{Habits, join, uses};

/// Every record of the positions that were used so far is used once, by all that committed steps saw.
#[track_caller]
fn each_record_once(ended: &Ended, model_dir: &std::path::Path) {
    let (_, manifest) = latest(model_dir);
    let used: BTreeMap<u64, u32> = uses(ended.seen.iter().flat_map(|seen| &seen.committed));
    let twice: Vec<_> = used.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "used more than once: {twice:?}");
    assert_eq!(used.len() as u64, manifest.records_seen());
    let open: u64 = manifest.data.open.iter().map(|range| range.count).sum();
    assert_eq!(manifest.records_seen(), manifest.data.position - open);
}

fn vanishing(at: u64) -> Habits {
    Habits {
        vanish_at: Some(at),
        ..Habits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_that_falls_silent_training_goes_on_and_its_records_go_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.heartbeat_timeout = SILENCE;
    let mut job = Job::start(3, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(2, vanishing(4));
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    let warnings = ended.warnings().join("\n");
    assert!(
        warnings.contains("worker-1 (starting) has been silent for") && warnings.contains("goes on with 2 replica"),
        "{warnings}"
    );
    let (_, manifest) = latest(folder.path());
    // Four steps of three replicas, sixteen of two.
    assert_eq!(
        (manifest.global_step, manifest.records_seen()),
        (20, (4 * 3 + 16 * 2) * 4)
    );
    each_record_once(&ended, folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_asynchronous_training_a_silent_worker_is_noticed_although_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.heartbeat_timeout = SILENCE;
    options.synchronous = false;
    options.consistency.max_staleness = 5;
    options.num_steps = u64::MAX;
    let mut job = Job::start(1, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(2, vanishing(1));
    job.warned("worker-1 (starting) has been silent for").await;
    job.handle.stopper().stop("enough");
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Interrupted("enough".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_started_again_takes_its_place_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.num_steps = 60;
    let mut job = Job::start(3, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(2, vanishing(4));
    job.step(4).await;
    // Nobody waits for the heartbeat to run out, which would take a minute.
    job.replica(2, Habits::default());
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    let back = &ended.seen[3];
    assert!(!back.committed.is_empty(), "it trains again: {back:?}");
    assert!(
        ended
            .warnings()
            .iter()
            .any(|text| text.starts_with("worker-1 joins again"))
    );
    each_record_once(&ended, folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_can_be_added_to_a_running_job_and_leave_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.num_steps = 60;
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    job.step(5).await;
    let mut guest = join(&job.address, 7, &identity()).await.unwrap();
    guest.plan(LIMIT, |_| ()).await.unwrap();
    let (leases, _) = guest.lease(7, 2).await.unwrap();
    assert_eq!(leases.len(), 2);
    job.replica(3, Habits::default());
    guest.leave(false, "asked to leave").await.unwrap();
    let gone = guest.lease(7, 1).await.unwrap_err();
    assert!(gone.calls_for_rejoining(), "{gone}");
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    assert!(
        !ended.seen[3].committed.is_empty(),
        "the added worker trains: {:?}",
        ended.seen[3]
    );
    assert!(
        ended
            .warnings()
            .iter()
            .any(|text| text.starts_with("worker-6 leaves (asked to leave)"))
    );
    each_record_once(&ended, folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_place_was_taken_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::start(1, options(folder.path(), 1)).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    let mut old = join(&job.address, 2, &identity()).await.unwrap();
    old.plan(LIMIT, |_| ()).await.unwrap();
    let (leases, _) = old.lease(2, 3).await.unwrap();
    assert_eq!(leases.len(), 3);
    // Another address stands for another process: all of this test's have the same id.
    let task = crate::replica::task(2);
    let new = Client::join(&job.address, task, "elsewhere:1", &identity(), LIMIT, LIMIT)
        .await
        .unwrap();
    let refused = old.lease(2, 1).await.unwrap_err();
    assert!(
        refused.to_string().contains("worker-1 is another process now"),
        "{refused}"
    );
    assert!(
        !refused.calls_for_rejoining(),
        "two processes must not take the place from each other in turns"
    );
    drop(new);
    job.replica(2, Habits::default());
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    each_record_once(&ended, folder.path());
}

/// The same job without and with the loss of a server ends with the same bits.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_loss_of_a_server_the_job_makes_the_lost_steps_again_with_the_same_bits() {
    let saving = cadence::Options {
        every: LIMIT,
        every_steps: Some(5),
    };
    let calm = tempfile::tempdir().unwrap();
    let mut undisturbed = options(calm.path(), 1);
    undisturbed.cadence = saving;
    let mut job = Job::start(3, undisturbed).await;
    job.all_replicas(&Habits::default());
    assert_eq!(job.end().await.outcome, Outcome::Completed);

    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.cadence = saving;
    let mut job = Job::start(3, options).await;
    for rank in 0..3 {
        let jitter = 20;
        job.replica(
            rank,
            Habits {
                jitter,
                ..Habits::default()
            },
        );
    }
    job.checkpoint(5).await;
    job.step(7).await;
    job.servers[1].shutdown();
    job.server_again(1).await;
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    let back = ended.events.iter().find_map(|event| match event {
        Event::WentBack { from, to } => Some((*from, *to)),
        _ => None,
    });
    let (from, to) = back.expect("the job went back");
    assert!(from >= 7 && to >= 5 && to % 5 == 0, "from {from} to {to}");
    let lost = format!(
        "going back from step {from} to step {to}; {} step(s) are lost",
        from - to
    );
    assert!(
        ended.warnings().iter().any(|text| text.contains(&lost)),
        "{:?}",
        ended.warnings()
    );
    assert!(
        ended.seen.iter().all(|seen| seen.cut_off > 0),
        "all joined the next incarnation"
    );
    assert_eq!(tensors(&latest(folder.path()).0), tensors(&latest(calm.path()).0));
    let (_, manifest) = latest(folder.path());
    assert_eq!(manifest.records_seen(), 20 * 12, "each record counts once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_away_ends_the_job_with_its_name_and_the_last_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.num_steps = u64::MAX;
    options.limits.rejoin = Duration::from_secs(1);
    options.cadence = cadence::Options {
        every: LIMIT,
        every_steps: Some(5),
    };
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    job.checkpoint(5).await;
    job.step(7).await;
    job.servers[1].shutdown();
    let address = job.ps_addresses[1].clone();
    let ended = job.end().await;
    assert!(
        ended.failure().contains(&format!("ps-1 ({address})")),
        "{}",
        ended.failure()
    );
    let (_, manifest) = latest(folder.path());
    assert!(
        manifest.global_step >= 5 && manifest.global_step.is_multiple_of(5),
        "{}",
        manifest.global_step
    );
    let cleaned = coati_checkpoint::keep::clean(folder.path()).unwrap();
    assert!(cleaned.is_empty(), "half-written files were left: {cleaned:?}");
}

/// The coordinator's process dies at a random moment, another one takes over: no step is lost, and the bits are those of a
/// calm run.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_started_again_goes_on_from_what_the_servers_hold() {
    goes_on_from_what_the_servers_hold(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_died_while_it_took_over_changes_nothing_of_that() {
    goes_on_from_what_the_servers_hold(true).await;
}

/// Another coordinator writes down that it goes on, takes over one of the servers, and dies.
async fn taken_over_by_halves(job: &Job, folder: &std::path::Path) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while std::net::TcpListener::bind(&job.address).is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the first one is still there");
        tokio::task::yield_now().await;
    }
    let log = step_log::read(folder).unwrap();
    let next = JobRef {
        incarnation: log.job.incarnation + 1,
        ..log.job.clone()
    };
    StepLog::new(folder).take_over(&next, &log).unwrap();
    let server = PsClient::connect(1, &job.ps_addresses[1], next, LIMIT).await.unwrap();
    assert!(server.adopt(log.end() - 1, LIMIT).await.unwrap() >= log.end() - 1);
}

async fn goes_on_from_what_the_servers_hold(by_halves: bool) {
    let calm = tempfile::tempdir().unwrap();
    let mut undisturbed = options(calm.path(), 1);
    undisturbed.num_steps = 40;
    let mut job = Job::start(3, undisturbed.clone()).await;
    job.all_replicas(&Habits::default());
    assert_eq!(job.end().await.outcome, Outcome::Completed);

    let folder = tempfile::tempdir().unwrap();
    undisturbed.model_dir = folder.path().to_owned();
    let (mut job, dying) = Job::start_to_die(3, undisturbed).await;
    job.all_replicas(&Habits {
        jitter: 5,
        ..Habits::default()
    });
    job.step(7).await;
    dying.shutdown_background();
    let reached = job.newest_step();
    if by_halves {
        taken_over_by_halves(&job, folder.path()).await;
    }
    job.coordinator_again(options(folder.path(), 2)).await;
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    assert!(
        ended
            .warnings()
            .iter()
            .any(|text| text.contains("training goes on from there")),
        "{:?}",
        ended.warnings()
    );
    let first = ended.events.iter().find_map(|event| match event {
        Event::Step { version, .. } => Some(*version),
        _ => None,
    });
    assert!(
        first.is_some_and(|first| first > reached),
        "step {reached} was made again: {first:?}"
    );
    assert!(!ended.events.iter().any(|event| matches!(event, Event::WentBack { .. })));
    assert_eq!(tensors(&latest(folder.path()).0), tensors(&latest(calm.path()).0));
    assert_eq!(latest(folder.path()).1.records_seen(), 40 * 12);
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
