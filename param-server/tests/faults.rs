//! Lost clients, old incarnations, poisoned gradients.

use std::time::Duration;

use coati_common::rpc::{self, ErrorCode, Peer};
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_param_server::service::{Ended, Options, serve};
use coati_param_server::{Admit, PsClient, PsGroup, Strategy, plan};
use coati_proto::coati::v1;
use coati_proto::coati::v1::transfer_client::TransferClient;
use futures::StreamExt as _;

use crate::cluster::{COUNTING, Cluster, LIMIT, by, job, optimizer, specs, tag};

async fn loaded(specs: &[VariableSpec], servers: u32) -> Cluster {
    let cluster = Cluster::start(specs, servers, COUNTING, 0).await;
    cluster
        .group
        .load(&vec![0.0; flat_elements(specs)], 0, LIMIT)
        .await
        .unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_in_the_middle_of_a_push_leaves_nothing() {
    let spec = VariableSpec {
        name: "w".into(),
        shape: vec![4096, 1024],
        kind: VariableKind::Trainable,
    };
    let cluster = loaded(std::slice::from_ref(&spec), 1).await;
    let channel = rpc::connect(&Peer::ps(0, &cluster.addresses[0]), LIMIT).await.unwrap();
    let (sent, mut received) = tokio::sync::mpsc::channel(1);
    // The first chunk goes out, then the stream hangs for ever.
    let first = v1::PushChunk {
        tag: Some(v1::PushTag {
            job: Some(job(1)),
            version: 0,
            replica: 0,
            sequence: 1,
        }),
        data: vec![0u8; 1 << 20].into(),
        ..Default::default()
    };
    let stream = futures::stream::once(async { first }).chain(futures::stream::once(async move {
        sent.send(()).await.unwrap();
        std::future::pending::<v1::PushChunk>().await
    }));
    let pushing = tokio::spawn(async move { TransferClient::new(channel).push(stream).await });
    received.recv().await.unwrap();
    pushing.abort();
    assert!(pushing.await.unwrap_err().is_cancelled());

    let error = cluster.group.commit(0, &[by(0, 0, 1)], true, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::IncompleteContribution));
    // The same contribution, sent again as a whole, counts.
    let admit = cluster
        .group
        .push(tag(0, 0), &vec![1.0; spec.elements()], LIMIT)
        .await
        .unwrap();
    assert_eq!(admit, Admit::Fresh);
    cluster.commit(0, &[by(0, 0, 1)]).await;
    assert!(cluster.values(1).await.iter().all(|&value| value == -1.0));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_changes_nothing_on_any_server() {
    let cluster = loaded(&specs(), 3).await;
    let elements = flat_elements(&specs());
    cluster
        .group
        .push(tag(0, 0), &vec![1.0; elements], LIMIT)
        .await
        .unwrap();
    let before = cluster.values(0).await;
    let error = cluster
        .group
        .commit(0, &[by(0, 0, 1), by(1, 0, 1)], true, LIMIT)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::IncompleteContribution));
    assert!(
        error
            .to_string()
            .contains("contribution 1 of replica 1 is not completely staged"),
        "{error}"
    );
    let error = cluster.group.commit(4, &[by(0, 0, 1)], true, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownVersion));
    assert_eq!(cluster.values(0).await, before);
    cluster.commit(0, &[by(0, 0, 1)]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gradient_that_is_not_finite_is_refused_by_name() {
    let cluster = loaded(&specs(), 3).await;
    let elements = flat_elements(&specs());
    let place = 3 * 3 * 3 * 32 + 5;
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradient = vec![1.0; elements];
        gradient[place] = poison;
        let error = cluster.group.push(tag(2, 0), &gradient, LIMIT).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NonFiniteGradient));
        let text = error.to_string();
        assert!(
            text.contains("`FeatureExtractor/Conv2d_0/BatchNorm/gamma`")
                && text.contains("replica 2")
                && text.contains("ps-"),
            "{text}"
        );
    }
    assert!(cluster.group.commit(0, &[by(2, 0, 1)], true, LIMIT).await.is_err());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gradient_that_is_not_finite_is_applied_where_the_job_wants_it() {
    let cluster = Cluster::start(&specs(), 3, COUNTING, 0).await;
    let placement = plan(&specs(), 3, Strategy::Balanced).unwrap();
    let group = PsGroup::connect(placement, &cluster.addresses, &job(2), LIMIT)
        .await
        .unwrap()
        .accepting_non_finite(true);
    group.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
    let elements = flat_elements(&specs());
    group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let mut gradient = vec![1.0; elements];
    gradient[5] = f32::NAN;
    assert_eq!(group.push(tag(2, 0), &gradient, LIMIT).await.unwrap(), Admit::Fresh);
    group.commit(0, &[by(2, 0, 1)], true, LIMIT).await.unwrap();
    let mut flat = vec![0.0; elements];
    group.pull(1, LIMIT, &mut flat).await.unwrap();
    assert!(flat[5].is_nan() && flat[4] == -1.0, "{:?}", &flat[..8]);
    Cluster { group, ..cluster }.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_incarnations_are_fenced_and_newer_ones_must_configure() {
    let cluster = loaded(&specs(), 3).await;
    let elements = flat_elements(&specs());
    let placement = plan(&specs(), 3, Strategy::Balanced).unwrap();
    let of = async |incarnation| {
        PsGroup::connect(placement.clone(), &cluster.addresses, &job(incarnation), LIMIT)
            .await
            .unwrap()
    };
    let newer = of(2).await;
    let ones = vec![1.0; elements];
    cluster.group.push(tag(0, 0), &ones, LIMIT).await.unwrap();

    let error = newer.push(tag(0, 0), &ones, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotConfigured), "{error}");
    newer.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
    // The same again changes nothing; something else does not pass.
    newer.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
    let error = newer.configure(optimizer(COUNTING), 5, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Conflict));

    let mut flat = vec![0.0; elements];
    for error in [
        cluster.group.push(tag(0, 0), &ones, LIMIT).await.unwrap_err(),
        cluster.group.commit(0, &[by(0, 0, 1)], true, LIMIT).await.unwrap_err(),
        cluster.group.pull(0, LIMIT, &mut flat).await.unwrap_err(),
        cluster.group.load(&ones, 0, LIMIT).await.unwrap_err(),
        cluster
            .group
            .configure(optimizer(COUNTING), 0, LIMIT)
            .await
            .unwrap_err(),
        cluster.group.save("/nowhere", 0, LIMIT).await.unwrap_err(),
        cluster.group.shutdown("old", LIMIT).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), Some(ErrorCode::StaleIncarnation), "{error}");
    }
    // What the old incarnation staged is gone with it.
    newer.load(&ones, 7, LIMIT).await.unwrap();
    assert!(newer.commit(7, &[by(0, 0, 1)], true, LIMIT).await.is_err());
    assert_eq!(newer.pull(7, LIMIT, &mut flat).await.unwrap(), 7);
    let other = v1::JobRef {
        job_id: "other".into(),
        incarnation: 9,
    };
    let stranger = PsGroup::connect(placement.clone(), &cluster.addresses, &other, LIMIT)
        .await
        .unwrap();
    let error = stranger.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::WrongJob));
    Cluster {
        group: newer,
        ..cluster
    }
    .end()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_of_an_old_incarnation_hear_that_it_is_over() {
    let cluster = loaded(&specs(), 1).await;
    let group = cluster.group.clone();
    let waiting = tokio::spawn(async move {
        let mut flat = vec![0.0; group.layout().flat_len()];
        group.pull(3, LIMIT, &mut flat).await
    });
    let placement = plan(&specs(), 1, Strategy::Balanced).unwrap();
    let newer = PsGroup::connect(placement, &cluster.addresses, &job(2), LIMIT)
        .await
        .unwrap();
    newer.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::StaleIncarnation), "{error}");
    Cluster {
        group: newer,
        ..cluster
    }
    .end()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_not_replaced_once_training_went_on_from_them() {
    let cluster = loaded(&specs(), 3).await;
    let ones = vec![1.0; flat_elements(&specs())];
    // A retry before the first commit is fine.
    cluster.group.load(&ones, 0, LIMIT).await.unwrap();
    cluster.group.push(tag(0, 0), &ones, LIMIT).await.unwrap();
    cluster.commit(0, &[by(0, 0, 1)]).await;
    let error = cluster.group.load(&ones, 0, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Conflict));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_named_before_the_limit() {
    let cluster = loaded(&specs(), 3).await;
    cluster.servers[1].shutdown();
    assert_eq!(cluster.servers[1].ended().await, Ended::Stopped);
    let ones = vec![1.0; flat_elements(&specs())];
    let error = cluster
        .group
        .push(tag(0, 0), &ones, Duration::from_secs(600))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("ps-1 ({})", cluster.addresses[1])), "{error}");
    assert!(error.contains("push of version 0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_leaves_by_itself_and_a_server_in_use_stays() {
    let mut options = Options::new(0, "127.0.0.1:0");
    options.orphan_timeout = Duration::from_millis(300);
    let server = serve(options).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, server.ended()).await.unwrap();
    assert_eq!(ended, Ended::Orphaned(Duration::from_millis(300)));

    let mut options = Options::new(0, "127.0.0.1:0");
    options.orphan_timeout = Duration::from_secs(3600);
    let server = serve(options).await.unwrap();
    let client = PsClient::connect(0, &server.address().to_string(), job(1), LIMIT)
        .await
        .unwrap();
    assert_eq!(client.status(LIMIT).await.unwrap().state, "waiting");
    client.shutdown("done", LIMIT).await.unwrap();
    assert_eq!(server.ended().await, Ended::Told("done".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_server_behind_an_address_is_noticed() {
    let server = serve(Options::new(1, "127.0.0.1:0")).await.unwrap();
    let placement = plan(&specs(), 1, Strategy::Balanced).unwrap();
    let group = PsGroup::connect(placement, &[server.address().to_string()], &job(1), LIMIT)
        .await
        .unwrap();
    let error = group.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap_err();
    assert!(
        error.to_string().contains("this is ps-1, the request is for ps-0"),
        "{error}"
    );
    server.shutdown();
}
