//! Synchronous and asynchronous steps over real connections.

use coati_common::rpc::ErrorCode;
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_param_server::Admit;

use crate::cluster::{ADAM, COUNTING, Cluster, LIMIT, bits, by, gradient, job, specs, tag};

/// Four steps of three replicas, one of them with fewer samples; pushes arrive in the order given.
async fn train(servers: u32, order: [u32; 3]) -> (Vec<u32>, Vec<u32>) {
    let cluster = Cluster::start(&specs(), servers, ADAM, 0).await;
    let elements = flat_elements(&specs());
    cluster.group.load(&gradient(elements, 99, 0), 0, LIMIT).await.unwrap();
    for version in 0..4 {
        for replica in order {
            let admit = cluster
                .group
                .push(tag(replica, version), &gradient(elements, replica, version), LIMIT)
                .await;
            assert_eq!(admit.unwrap(), Admit::Fresh);
        }
        cluster
            .commit(version, &[by(0, version, 8), by(1, version, 8), by(2, version, 3)])
            .await;
    }
    let values = bits(&cluster.values(4).await);
    let mut averages = vec![0.0; elements];
    cluster.group.pull_averages(4, LIMIT, &mut averages).await.unwrap();
    cluster.end().await;
    (values, bits(&averages))
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_do_not_depend_on_servers_or_arrival() {
    let one = train(1, [0, 1, 2]).await;
    assert_ne!(one.0, one.1);
    for (servers, order) in [
        (1, [2, 0, 1]),
        (3, [0, 1, 2]),
        (3, [1, 2, 0]),
        (5, [2, 1, 0]),
        (9, [0, 2, 1]),
    ] {
        assert_eq!(train(servers, order).await, one, "{servers} servers, arrival {order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_at_the_same_time_are_all_counted_once() {
    let cluster = Cluster::start(&specs(), 3, COUNTING, 0).await;
    let elements = flat_elements(&specs());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let mut running = tokio::task::JoinSet::new();
    // Every replica sends its contribution twice at once, as a retry after a lost answer would.
    for replica in 0..6u32 {
        for _ in 0..2 {
            let group = cluster.group.clone();
            running.spawn(async move { group.push(tag(replica, 0), &vec![1.0; elements], LIMIT).await.unwrap() });
        }
    }
    running.join_all().await;
    let contributors: Vec<_> = (0..6).map(|replica| by(replica, 0, 4)).collect();
    cluster.commit(0, &contributors).await;
    assert_eq!(
        cluster
            .group
            .push(tag(3, 0), &vec![1.0; elements], LIMIT)
            .await
            .unwrap(),
        Admit::Duplicate
    );
    // Repeated, as after a lost answer.
    cluster.commit(0, &contributors).await;
    let values = cluster.values(1).await;
    let (trained, rest): (Vec<_>, Vec<_>) = values.into_iter().partition(|&value| value == -1.0);
    assert_eq!((trained.len(), rest.len()), (elements - 32 - 77, 32 + 77));
    assert!(rest.iter().all(|&value| value == 0.0 || (value - 0.1).abs() < 1e-6));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_waits_for_its_version() {
    let cluster = Cluster::start(&specs(), 3, COUNTING, 0).await;
    let elements = flat_elements(&specs());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let group = cluster.group.clone();
    let waiting = tokio::spawn(async move {
        let mut flat = vec![0.0; elements];
        group.pull(1, LIMIT, &mut flat).await.unwrap()
    });
    cluster
        .group
        .push(tag(0, 0), &vec![1.0; elements], LIMIT)
        .await
        .unwrap();
    assert!(!waiting.is_finished());
    cluster.commit(0, &[by(0, 0, 1)]).await;
    assert_eq!(waiting.await.unwrap(), 1);

    let mut flat = vec![0.0; elements];
    let short = std::time::Duration::from_secs(2);
    let error = cluster.group.pull(9, short, &mut flat).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownVersion));
    let text = error.to_string();
    assert!(
        text.starts_with("ps-") && text.contains("version 9 is asked for, the variables are at version 1"),
        "{text}"
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn staleness_is_bounded_in_asynchronous_training() {
    let cluster = Cluster::start(&specs(), 3, COUNTING, 2).await;
    let elements = flat_elements(&specs());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let ones = vec![1.0; elements];
    // A slow replica's gradient of version 0 stays usable for two commits, not for a third.
    assert_eq!(cluster.group.push(tag(7, 0), &ones, LIMIT).await.unwrap(), Admit::Fresh);
    for version in 0..3 {
        cluster.group.push(tag(0, version), &ones, LIMIT).await.unwrap();
        cluster
            .group
            .commit(version, &[by(0, version, 1)], false, LIMIT)
            .await
            .unwrap();
    }
    let error = cluster.group.commit(3, &[by(7, 0, 1)], false, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::IncompleteContribution), "{error}");
    assert_eq!(
        cluster.group.push(tag(8, 0), &ones, LIMIT).await.unwrap(),
        Admit::TooOld
    );
    assert_eq!(cluster.group.push(tag(8, 1), &ones, LIMIT).await.unwrap(), Admit::Fresh);
    cluster.group.commit(3, &[by(8, 1, 1)], false, LIMIT).await.unwrap();
    assert_eq!(cluster.values(4).await[0], -4.0);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_during_commits_is_never_torn() {
    let spec = VariableSpec {
        name: "w".into(),
        shape: vec![3_000_000],
        kind: VariableKind::Trainable,
    };
    let cluster = Cluster::start(std::slice::from_ref(&spec), 1, COUNTING, 0).await;
    cluster.group.load(&vec![0.0; spec.elements()], 0, LIMIT).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (group, stopped) = (cluster.group.clone(), stopped.clone());
        readers.spawn(async move {
            let (mut flat, mut pulls) = (vec![0.0; 3_000_000], 0);
            while !*stopped.borrow() {
                let version = group.pull(0, LIMIT, &mut flat).await.unwrap();
                let torn = flat.iter().filter(|&&value| value != -(version as f32)).count();
                assert_eq!(torn, 0, "version {version}");
                pulls += 1;
            }
            pulls
        });
    }
    let ones = vec![1.0; spec.elements()];
    for version in 0..12 {
        cluster.group.push(tag(0, version), &ones, LIMIT).await.unwrap();
        cluster.commit(version, &[by(0, version, 1)]).await;
    }
    stop.send_replace(true);
    assert!(readers.join_all().await.into_iter().sum::<usize>() >= 2);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_held_does_not_grow_from_step_to_step() {
    let cluster = Cluster::start(&specs(), 1, ADAM, 0).await;
    let elements = flat_elements(&specs());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let layout = cluster.group.layout().server(0).unwrap().clone();
    for version in 0..30 {
        cluster
            .group
            .push(tag(0, version), &gradient(elements, 0, version), LIMIT)
            .await
            .unwrap();
        cluster
            .group
            .push(tag(1, version), &gradient(elements, 1, version), LIMIT)
            .await
            .unwrap();
        cluster.commit(version, &[by(0, version, 1)]).await;
        let status = cluster.group.clients()[0].status(LIMIT).await.unwrap();
        // Values, two slots and an average; the dropped contribution is gone.
        assert_eq!(
            status.held_bytes as usize,
            4 * (layout.arena_len + 3 * layout.slotted_len)
        );
        assert_eq!((status.version, status.job), (version + 1, Some(job(1))));
    }
    cluster.end().await;
}
