//! Checkpoints that cannot be written.

use std::fs;
use std::path::Path;

use coati_checkpoint::state;
use coati_coordinator::{Outcome, cadence};

use crate::cluster::{Ended, Job, LIMIT, latest, options};
use crate::replica::Habits;

/// Twenty steps, a checkpoint every five.
async fn run(folder: &Path, incarnation: u64) -> Ended {
    let mut options = options(folder, incarnation);
    options.cadence = cadence::Options {
        every: LIMIT,
        every_steps: Some(5),
    };
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    job.end().await
}

/// A folder of the name of a data file is in its way: the other servers' files are written, this one cannot be.
fn block(folder: &Path, step: u64) -> String {
    let path = folder.join(format!("model.ckpt-{step}.data-00001-of-00003"));
    fs::create_dir_all(path.join("full")).unwrap();
    path.display().to_string()
}

#[track_caller]
fn assert_whole(folder: &Path, steps: &[u64]) {
    let listed = state::list(folder).unwrap();
    assert_eq!(listed.iter().map(|c| c.step).collect::<Vec<_>>(), steps);
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let of = |step: &u64| name.starts_with(&format!("model.ckpt-{step}."));
        let blocker = name.contains(".data-00001-of-00003") && folder.join(&name).is_dir();
        assert!(
            name == "checkpoint" || name.starts_with("coati-incarnation-") || blocker || steps.iter().any(of),
            "{name} is left"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_on_the_way_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = block(folder.path(), 10);
    let ended = run(folder.path(), 1).await;
    assert_eq!(ended.outcome, Outcome::Completed);
    let warnings = ended.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("checkpoint of step 10 failed; the previous one stays: ps-1 (")
            && warnings[0].contains(&path),
        "{warnings:?}"
    );
    assert_eq!(ended.saved(), [5, 15, 20]);
    assert_whole(folder.path(), &[5, 15, 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_go_on_while_a_checkpoint_is_written() {
    let folder = tempfile::tempdir().unwrap();
    // A pipe that nobody reads from yet in the place of a data file: writing it takes as long as this test wants.
    let pipe = folder.path().join("model.ckpt-5.data-00001-of-00003");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut options = options(folder.path(), 1);
    options.cadence = cadence::Options {
        every: LIMIT,
        every_steps: Some(5),
    };
    let mut job = Job::start(3, options).await;
    job.all_replicas(&Habits::default());
    job.step(9).await;
    assert!(state::list(folder.path()).unwrap().is_empty(), "it is not written yet");
    let reading = tokio::task::spawn_blocking(move || fs::read(pipe));
    let ended = job.end().await;
    assert!(!reading.await.unwrap().unwrap().is_empty());
    assert_eq!(ended.outcome, Outcome::Completed);
    assert!(ended.saved().ends_with(&[10, 15, 20]), "{:?}", ended.saved());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_checkpoint_must_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let path = block(folder.path(), 20);
    let ended = run(folder.path(), 1).await;
    let reason = ended.failure();
    assert!(
        reason.contains("the last checkpoint, of step 20, could not be written") && reason.contains(&path),
        "{reason}"
    );
    assert_whole(folder.path(), &[5, 10, 15]);
    assert_eq!(latest(folder.path()).1.global_step, 15);

    // Once there is room, the same command goes on from there.
    fs::remove_dir_all(&path).unwrap();
    let ended = run(folder.path(), 2).await;
    assert_eq!(ended.outcome, Outcome::Completed);
    assert_eq!(latest(folder.path()).1.global_step, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_went_away_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model_dir = folder.path().join("model");
    fs::create_dir(&model_dir).unwrap();
    let mut options = options(&model_dir, 1);
    options.cadence = cadence::Options {
        every: LIMIT,
        every_steps: Some(5),
    };
    let mut job = Job::start(3, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    job.replica(
        2,
        Habits {
            jitter: 20,
            ..Habits::default()
        },
    );
    // The checkpoint of step 10 begins when that of step 5 is complete.
    job.step(11).await;
    let aside = folder.path().join("aside");
    fs::rename(&model_dir, &aside).unwrap();
    fs::write(&model_dir, "not a folder").unwrap();
    let ended = job.end().await;
    assert!(
        ended.failure().contains(&model_dir.display().to_string()),
        "{}",
        ended.failure()
    );
    assert!(!ended.warnings().is_empty());
    let kept = latest(&aside).1.global_step;
    assert!((5..20).contains(&kept), "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_written_leaves_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    // All data files are written; the index is not.
    let path = folder.path().join("model.ckpt-10.index");
    fs::create_dir_all(path.join("full")).unwrap();
    let ended = run(folder.path(), 1).await;
    let warnings = ended.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains(&path.display().to_string()),
        "{warnings:?}"
    );
    fs::remove_dir_all(&path).unwrap();
    assert_whole(folder.path(), &[5, 15, 20]);
}
