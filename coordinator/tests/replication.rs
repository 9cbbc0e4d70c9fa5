//! `coati.replication: 1`: losing a parameter server loses no step, and its variables come home when it is back.

use std::path::Path;

use coati_coordinator::run::Options;
use coati_coordinator::{Event, Outcome};
use coati_param_server::DelayCompensation;

use crate::cluster::{ADAM, Ended, Job, LIMIT, RMS_PROP, latest, optimizer, options, tensors};
use crate::replica::Habits;

const STEPS: u64 = 300;

fn replicated(model_dir: &Path) -> Options {
    Options {
        replication: true,
        num_steps: STEPS,
        optimizer: optimizer(ADAM),
        ..options(model_dir, 1)
    }
}

/// Steps that take a few milliseconds, so that there is time to lose something in.
fn habits() -> Habits {
    Habits {
        jitter: 20,
        ..Habits::default()
    }
}

impl Job {
    /// Waits until every server has a copy, at home: all of what that takes from when it is asked.
    async fn whole(&mut self) {
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.recv()).await.unwrap().unwrap();
            match event {
                Event::Copies { without } if without.is_empty() => return,
                Event::Warning(text) => println!("{text}"),
                _ => {}
            }
        }
    }
}

/// A job whose servers have copies, some steps after its beginning.
async fn under_way(model_dir: &Path) -> Job {
    let mut job = Job::start(3, replicated(model_dir)).await;
    job.all_replicas(&habits());
    job.whole().await;
    job.step(20).await;
    job
}

#[track_caller]
fn nothing_lost(ended: &Ended) {
    assert_eq!(ended.outcome, Outcome::Completed, "{:?}", ended.warnings());
    let went_back = ended.events.iter().any(|event| matches!(event, Event::WentBack { .. }));
    assert!(!went_back, "{:?}", ended.warnings());
}

async fn undisturbed(options: Options) -> Vec<(String, Vec<u8>)> {
    let folder = options.model_dir.clone();
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    nothing_lost(&job.end().await);
    tensors(&latest(&folder).0)
}

/// One server after the other is lost and comes back. Without copies the calm run has the same bits as with them.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_can_be_lost_and_comes_back_without_a_step_or_a_bit_being_lost() {
    let calm = tempfile::tempdir().unwrap();
    let mut without_copies = replicated(calm.path());
    without_copies.replication = false;
    let expected = undisturbed(without_copies).await;

    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::start(3, replicated(folder.path())).await;
    job.all_replicas(&habits());
    job.whole().await;
    for lost in 0..3 {
        job.step(20 * (lost as u64 + 1)).await;
        job.servers[lost].shutdown();
        job.warned(&format!("ps-{lost}")).await;
        job.server_again(lost).await;
        job.warned(&format!("the variables of ps-{lost} move home")).await;
        job.whole().await;
    }
    let ended = job.end().await;
    nothing_lost(&ended);
    assert_eq!(tensors(&latest(folder.path()).0), expected);
    assert_eq!(
        latest(folder.path()).1.records_seen(),
        STEPS * 12,
        "each record counts once"
    );
}

/// When variables move home, or have just come home, either of the two processes can be lost: what the other one holds goes on.
#[tokio::test(flavor = "multi_thread")]
async fn while_variables_move_home_either_side_can_be_lost() {
    let calm = tempfile::tempdir().unwrap();
    let expected = undisturbed(replicated(calm.path())).await;
    for losing_home in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut job = under_way(folder.path()).await;
        job.servers[0].shutdown();
        job.warned("training goes on from the copies").await;
        job.whole().await;
        job.server_again(0).await;
        job.warned("the variables of ps-0 move home").await;
        let lost = usize::from(!losing_home);
        job.servers[lost].shutdown();
        job.server_again(lost).await;
        let ended = job.end().await;
        nothing_lost(&ended);
        assert_eq!(tensors(&latest(folder.path()).0), expected);
    }
}

/// Servers that hold more than the newest checkpoint are taken over before a job that is stopped ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_servers_are_taken_over_loses_no_step() {
    for when in ["training goes on from the copies", "move home"] {
        let folder = tempfile::tempdir().unwrap();
        let mut job = under_way(folder.path()).await;
        job.servers[0].shutdown();
        if when == "move home" {
            job.warned("training goes on from the copies").await;
            job.server_again(0).await;
        }
        let reached = job.warned(when).await;
        job.handle.stopper().stop("enough");
        let ended = job.end().await;
        assert_eq!(ended.outcome, Outcome::Interrupted("enough".to_owned()));
        let saved = latest(folder.path()).1.global_step;
        assert!(
            reached.contains(&format!("at step {saved};")),
            "{reached}: {saved} is saved"
        );
    }
}

/// A server that stays away is lived without: its neighbour serves both parts to the end, and writes both data files.
#[tokio::test(flavor = "multi_thread")]
async fn the_job_ends_without_a_server_that_stays_away() {
    let calm = tempfile::tempdir().unwrap();
    let expected = undisturbed(replicated(calm.path())).await;
    let folder = tempfile::tempdir().unwrap();
    let mut job = under_way(folder.path()).await;
    job.servers[2].shutdown();
    job.warned("training goes on from the copies").await;
    let ended = job.end().await;
    nothing_lost(&ended);
    assert_eq!(tensors(&latest(folder.path()).0), expected);
}

/// A server and the one that keeps its copy, at once, are more than one process: back to the last checkpoint, as without.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_server_and_its_copy_lost_the_job_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = under_way(folder.path()).await;
    job.servers[0].shutdown();
    job.servers[1].shutdown();
    job.server_again(0).await;
    job.server_again(1).await;
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    let back = ended.events.iter().any(|event| matches!(event, Event::WentBack { .. }));
    assert!(back, "{:?}", ended.warnings());
    assert_eq!(
        latest(folder.path()).1.records_seen(),
        STEPS * 12,
        "each record counts once"
    );
}

/// The coordinator is lost after a server was: the next one finds the variables where they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_started_again_finds_variables_that_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (mut job, dying) = Job::start_to_die(3, replicated(folder.path())).await;
    job.all_replicas(&habits());
    job.whole().await;
    job.step(20).await;
    job.servers[1].shutdown();
    job.warned("training goes on from the copies").await;
    job.step(5).await;
    dying.shutdown_background();
    let reached = job.newest_step();
    let mut again = replicated(folder.path());
    again.job.incarnation = 9;
    job.coordinator_again(again).await;
    job.warned("the parameter servers still hold step").await;
    let ended = job.end().await;
    nothing_lost(&ended);
    let first = ended.events.iter().find_map(|event| match event {
        Event::Step { version, .. } => Some(*version),
        _ => None,
    });
    assert!(
        first.is_none_or(|first| first > reached),
        "step {reached} was made again: {first:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_asynchronous_training_a_lost_server_loses_no_step_either() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = replicated(folder.path());
    options.optimizer = optimizer(RMS_PROP);
    options.synchronous = false;
    options.consistency.max_staleness = 4;
    options.consistency.delay_compensation = Some(DelayCompensation {
        lambda: 0.5,
        mean_square_decay: Some(0.9),
    });
    let mut job = Job::start(3, options).await;
    job.all_replicas(&habits());
    job.whole().await;
    job.step(20).await;
    job.servers[1].shutdown();
    job.server_again(1).await;
    job.warned("move home").await;
    let ended = job.end().await;
    nothing_lost(&ended);
    let (_, manifest) = latest(folder.path());
    assert_eq!(manifest.records_seen(), STEPS * 4, "each record counts once");
}
