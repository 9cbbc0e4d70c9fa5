//! Clusters that cannot form say who is missing or who differs, soon.

use std::time::{Duration, Instant};

use coati_common::rpc::ErrorCode;
use coati_coordinator::membership::Identity;
use coati_coordinator::{Outcome, start};
use tokio::sync::mpsc;

use crate::cluster::{Job, LIMIT, SILENCE, identity, options, servers};
use crate::replica::{Habits, code, join};

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    let running = servers(3).await;
    let absent = free_address();
    options.ps_addresses = running.iter().map(|server| server.address().to_string()).collect();
    options.ps_addresses[1].clone_from(&absent);
    options.limits.formation = Duration::from_secs(1);
    let begun = Instant::now();
    let (sender, _events) = mpsc::unbounded_channel();
    let handle = start(options, sender).await.unwrap();
    let address = handle.address().to_owned();
    let waiting = tokio::spawn(async move {
        let mut client = join(&address, 1, &identity()).await.unwrap();
        client.plan(LIMIT, |_| ()).await.unwrap_err().to_string()
    });
    let Outcome::Failed(reason) = handle.finish().await else {
        panic!("formed")
    };
    assert!(
        reason.contains(&format!("ps-1 ({absent})")) && reason.contains("connection refused"),
        "{reason}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // Those who came hear the same.
    let heard = waiting.await.unwrap();
    assert!(heard.contains(&format!("ps-1 ({absent})")), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_joins_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.formation = Duration::from_secs(1);
    let begun = Instant::now();
    let mut job = Job::start(3, options).await;
    job.replica(0, Habits::default());
    job.replica(1, Habits::default());
    let ended = job.end().await;
    let reason = ended.failure();
    assert!(
        reason.contains("worker-1 did not join within 1 s") && reason.contains("hint: "),
        "{reason}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for seen in &ended.seen {
        assert!(seen.end.contains("worker-1 did not join"), "{seen:?}");
    }
    assert_eq!(ended.warnings(), [""; 0], "everybody took leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_falls_silent_while_others_are_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.limits.heartbeat_timeout = SILENCE;
    let job = Job::start(3, options).await;
    drop(join(&job.address, 1, &identity()).await.unwrap());
    let ended = job.end().await;
    assert!(
        ended.failure().contains("worker-0 (starting) has been silent for"),
        "{}",
        ended.failure()
    );
}

/// Worker 1 differs from the master; both sides say in what.
async fn refused(other: Identity, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::start(3, options(folder.path(), 1)).await;
    job.replica(0, Habits::default());
    let error = join(&job.address, 2, &other).await.err().unwrap();
    assert_eq!(code(&error), Some(ErrorCode::ConfigMismatch));
    let told = error.to_string();
    assert!(told.contains(expected) && told.contains("hint: "), "{told}");
    let ended = job.end().await;
    assert!(ended.failure().contains(expected), "{}", ended.failure());
    assert!(ended.seen[0].end.contains(expected), "{:?}", ended.seen[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_differ_are_refused_by_name() {
    let own = identity();
    let software = Identity {
        software_version: "0.0.9".into(),
        ..own.clone()
    };
    let version = &own.software_version;
    refused(software, &format!("worker-1 has Coati 0.0.9, the master has {version}")).await;
    let configuration = Identity {
        config_digest: "beef".into(),
        ..own.clone()
    };
    refused(configuration, "worker-1 has configuration beef, the master has c0ffee").await;
    let records = Identity {
        record_count: 49,
        ..own.clone()
    };
    refused(records, "worker-1 has record count 49, the master has 50").await;
    let data = Identity {
        dataset_digest: "abcd".into(),
        ..own
    };
    refused(data, "worker-1 has data set abcd, the master has da7a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_another_cluster_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job::start(3, options(folder.path(), 1)).await;
    let told = join(&job.address, 9, &identity()).await.err().unwrap().to_string();
    let expected = "worker-8 is not a task of this cluster, which has master, worker-0, worker-1";
    assert!(told.contains(expected), "{told}");
    let ended = job.end().await;
    assert!(ended.failure().contains(expected), "{}", ended.failure());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = options(folder.path(), 1);
    options.listen = taken.local_addr().unwrap().to_string();
    let address = options.listen.clone();
    let (sender, _events) = mpsc::unbounded_channel();
    let error = start(options, sender).await.err().unwrap().to_string();
    assert!(
        error.contains(&format!("cannot listen on {address}")) && error.contains("hint: another process listens there"),
        "{error}"
    );
}
