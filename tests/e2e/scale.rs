//! `coati scale` on a running job: workers come and go, and every record is used once an epoch all the same.

use std::time::{Duration, Instant};

use coati_checkpoint::manifest::Manifest;
use coati_dataset::order::Order;
use coati_tests::chaos::log::{Entry, Follower};
use coati_tests::chaos::{self, Mode, audit};
use coati_tests::{Cluster, Job, Process, tensors};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(90);

/// Waits for a step that exactly these ranks made.
fn step_by(follower: &Follower, running: &Process, ranks: &[u32]) {
    let made = |entry: &Entry| match entry {
        Entry::Step { shares, .. } => shares.iter().map(|share| share.replica).eq(ranks.iter().copied()),
        Entry::Begin { .. } => false,
    };
    let found = follower.find(follower.len(), Instant::now() + LIMIT, |entries| {
        entries.iter().any(made).then_some(())
    });
    assert!(found.is_some(), "no step by {ranks:?}; it said:\n{}", running.said());
}

#[test]
fn workers_are_added_and_removed_while_every_record_is_used_once() {
    let job = Job::new();
    chaos::configure(&job, Mode::Synchronous, 3);
    let cluster = job.cluster("cluster.yaml", &Cluster::new().workers(1));
    let follower = Follower::start(&job.path("model"));
    let running = job
        .train("model", 1_000_000)
        .with("--save_checkpoints_steps 20")
        .cluster(cluster)
        .start();
    let scale = |workers: &str| {
        let arguments = ["scale", "--model_dir", "model", "--workers", workers];
        job.coati(arguments).run().exits(0).stdout
    };
    step_by(&follower, &running, &[0, 1]);

    let said = scale("3");
    assert!(
        said.contains("the job has 3 workers now; started: worker-1, worker-2"),
        "{said}"
    );
    step_by(&follower, &running, &[0, 1, 2, 3]);

    let said = scale("1");
    assert!(
        said.contains("the job has 1 worker now; leaving: worker-1, worker-2"),
        "{said}"
    );
    step_by(&follower, &running, &[0, 1]);
    for task in ["worker-1", "worker-2"] {
        let _ = running.wait_for(&format!("{task} leaves (asked to leave): training goes on with "));
    }

    // Those who left may come back.
    let _ = scale("2");
    step_by(&follower, &running, &[0, 1, 2]);
    let status = job.coati(["status", "--model_dir", "model"]).run().exits(0).stdout;
    assert!(status.contains("worker-2") && status.contains("  ended"), "{status}");

    running.signal(Signal::SIGTERM);
    let done = running.finish().exits(130);
    for word in ["silent", "going back", "killed", "crash"] {
        assert!(!done.stderr.contains(word), "`{word}` in {done}");
    }
    let history = audit::history(&follower.finish(), &[]);
    assert!(history.contradictions.is_empty() && history.undone == 0, "{history:?}");
    let prefix = tensors::prefix(&job.path("model"), history.steps.len() as u64);
    let manifest = Manifest::read(&prefix).unwrap().unwrap();
    let mut order = Order::new(0, manifest.record_count, true);
    let records = audit::records(&history.steps, &mut order, &manifest.data, 600);
    assert_eq!((records.lost.len(), records.doubled.len()), (0, 0), "{records:?}");
    assert!(records.contradictions.is_empty(), "{records:?}");
    // Each new replica's gradients are in the weights, and nothing else is.
    let (_, differ) = chaos::prove(&job, 0, &history, &prefix);
    assert_eq!(differ, [0, 0]);
}
