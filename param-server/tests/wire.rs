//! What travels in a shorter form, and what a stranger may send.

use std::sync::Arc;

use coati_common::rpc::{self, ErrorCode, Peer, ServiceError};
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_param_server::wire::Gradients;
use coati_param_server::{Admit, Compression};
use coati_proto::coati::v1;
use coati_proto::coati::v1::transfer_client::TransferClient;

use crate::cluster::{COUNTING, Cluster, LIMIT, by, job, specs, tag};

/// Larger than several chunks on each of three servers, with statistics and constants among them.
fn large() -> Vec<VariableSpec> {
    let mut all = specs();
    all.insert(
        2,
        VariableSpec {
            name: "large".into(),
            shape: vec![1500, 1100],
            kind: VariableKind::Trainable,
        },
    );
    all
}

/// From zeros, the sum of the gradients was taken.
fn assert_taken_away(values: &[f32], gradient: &[f32]) {
    let mut at = 0;
    for spec in large() {
        let range = at..at + spec.elements();
        at = range.end;
        if spec.kind == VariableKind::Trainable {
            assert!(range.clone().all(|i| values[i] == -gradient[i]), "{}", spec.name);
        }
    }
}

/// Values after one step with this gradient, which takes the gradient from each value; and the bytes moved by push and pull.
async fn step(compression: Compression, gradient: &Arc<Vec<f32>>) -> (Vec<f32>, u64, u64) {
    let cluster = Cluster::start(&large(), 3, COUNTING, 0).await;
    let group = cluster.group.clone().with_compression(compression);
    let elements = flat_elements(&large());
    group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    assert_eq!(
        group.push_shared(tag(0, 0), gradient, LIMIT).await.unwrap(),
        Admit::Fresh
    );
    cluster.commit(0, &[by(0, 0, 8)]).await;
    let mut values = vec![9.0; elements];
    assert_eq!(group.pull(1, LIMIT, &mut values).await.unwrap(), 1);
    let moved = group.moved();
    cluster.end().await;
    (values, moved.pushed, moved.pulled)
}

#[tokio::test(flavor = "multi_thread")]
async fn bf16_halves_the_bytes_and_rounds_trainable_variables_alone() {
    let elements = flat_elements(&large());
    let gradient = Arc::new(
        (0..elements)
            .map(|i| 1.0 + (i % 1000) as f32 * 1e-3)
            .collect::<Vec<_>>(),
    );
    let (exact, pushed, pulled) = step(Compression::default(), &gradient).await;
    // 77 constants are not pushed.
    assert_eq!((pushed, pulled), (4 * (elements as u64 - 77), 4 * elements as u64));

    let half = Compression {
        gradients: Gradients::Bfloat16,
        bf16_weights: true,
    };
    let (short, pushed, pulled) = step(half, &gradient).await;
    let trainable = elements as u64 - 32 - 77;
    assert_eq!(
        (pushed, pulled),
        (2 * trainable + 4 * 32, 2 * trainable + 4 * (32 + 77))
    );
    let mut at = 0;
    for spec in large() {
        let range = at..at + spec.elements();
        at = range.end;
        if spec.kind == VariableKind::Trainable {
            for (short, exact) in short[range.clone()].iter().zip(&exact[range]) {
                assert!(
                    (short - exact).abs() <= exact.abs() / 128.0,
                    "{}: {short} {exact}",
                    spec.name
                );
                assert_eq!(short.to_bits() & 0xffff, 0, "{}: {short}", spec.name);
            }
        } else {
            assert_eq!(short[range.clone()], exact[range], "{}", spec.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_add_up_float32_whatever_travels() {
    let cluster = Cluster::start(&large(), 3, COUNTING, 0).await;
    let elements = flat_elements(&large());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let half = Compression {
        gradients: Gradients::Bfloat16,
        ..Compression::default()
    };
    let group = cluster.group.clone().with_compression(half);
    // 1 and 1/256 are bfloat16; their sum, halved, is not.
    for (replica, value) in [(0, 1.0), (1, 1.0 / 256.0)] {
        group
            .push(tag(replica, 0), &vec![value; elements], LIMIT)
            .await
            .unwrap();
    }
    cluster.commit(0, &[by(0, 0, 4), by(1, 0, 4)]).await;
    assert_eq!(cluster.values(1).await[0], -(1.0 + 1.0 / 256.0) / 2.0);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topk_sends_little_and_loses_nothing() {
    let cluster = Cluster::start(&large(), 3, COUNTING, 0).await;
    let elements = flat_elements(&large());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let group = cluster.group.clone().with_compression(Compression {
        gradients: Gradients::TopK { fraction: 0.25 },
        ..Compression::default()
    });
    let gradient: Vec<f32> = (0..elements).map(|i| (1 + i * 7919 % 997) as f32).collect();
    let zero = vec![0.0; elements];
    let mut pushed = 0;
    for version in 0..5 {
        let now = if version == 0 { &gradient } else { &zero };
        group.push(tag(0, version), now, LIMIT).await.unwrap();
        // Sent again, as after a lost answer: the same, and not counted twice.
        assert_eq!(group.push(tag(0, version), now, LIMIT).await.unwrap(), Admit::Duplicate);
        cluster.commit(version, &[by(0, version, 8)]).await;
        if version == 0 {
            pushed = group.moved().pushed / 2;
        }
    }
    assert!(
        pushed < 4 * elements as u64 * 52 / 100,
        "{pushed} bytes of {elements} elements"
    );
    let values = cluster.values(5).await;
    assert_taken_away(&values, &gradient);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_ready_leave_at_once_and_make_the_same_contribution() {
    let cluster = Cluster::start(&large(), 3, COUNTING, 0).await;
    let elements = flat_elements(&large());
    cluster.group.load(&vec![0.0; elements], 0, LIMIT).await.unwrap();
    let gradient = Arc::new((0..elements).map(|i| (i % 991) as f32).collect::<Vec<_>>());
    let runtime = tokio::runtime::Handle::current();
    // As a backward pass tells of its layers: from the last variable to the first; the first stays for the end.
    let mut pushing = cluster.group.begin_push(tag(0, 0), runtime.clone(), LIMIT);
    let mut end = elements;
    for spec in large().iter().skip(1).rev() {
        let start = end - spec.elements();
        pushing.ready(start..end, &gradient[start..end]);
        pushing.ready(start..end, &gradient[start..end]);
        end = start;
    }
    assert!(cluster.group.moved().pushed > 4 << 20, "left before the end");
    assert_eq!(pushing.finish(&gradient, LIMIT).await.unwrap(), Admit::Fresh);
    // One that is given up harms nobody; one that was never told of anything is sent at the end.
    let mut given_up = cluster.group.begin_push(tag(1, 0), runtime.clone(), LIMIT);
    given_up.ready(1000..elements, &gradient[1000..]);
    drop(given_up);
    let silent = cluster.group.begin_push(tag(2, 0), runtime, LIMIT);
    assert_eq!(silent.finish(&gradient, LIMIT).await.unwrap(), Admit::Fresh);
    cluster.commit(0, &[by(0, 0, 1), by(2, 0, 1)]).await;
    let values = cluster.values(1).await;
    assert_taken_away(&values, &gradient);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_grpc_client_may_send_chunks_in_any_order_but_each_element_once() {
    let spec = VariableSpec {
        name: "w".into(),
        shape: vec![1000],
        kind: VariableKind::Trainable,
    };
    let cluster = Cluster::start(std::slice::from_ref(&spec), 1, COUNTING, 0).await;
    cluster.group.load(&vec![0.0; 1000], 0, LIMIT).await.unwrap();
    let channel = rpc::connect(&Peer::ps(0, &cluster.addresses[0]), LIMIT).await.unwrap();
    let client = TransferClient::new(channel);
    let chunk = |offset: u64, values: Vec<f32>| v1::PushChunk {
        tag: Some(v1::PushTag {
            job: Some(job(1)),
            version: 0,
            replica: 0,
            sequence: 1,
        }),
        offset,
        data: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
            .into(),
        ..Default::default()
    };
    let push = async |chunks: Vec<v1::PushChunk>| {
        let answer = client.clone().push(futures::stream::iter(chunks)).await;
        answer
            .map(|reply| reply.into_inner().staged)
            .map_err(ServiceError::from)
    };
    let whole = [
        chunk(600, vec![1.0; 400]),
        chunk(0, vec![1.0; 250]),
        chunk(250, vec![1.0; 350]),
    ];
    for (what, bad) in [
        ("come twice", vec![chunk(0, vec![1.0; 600]), chunk(599, vec![1.0; 401])]),
        ("ended after 999 of 1000", vec![chunk(0, vec![1.0; 999])]),
        ("beyond the arena's 1000", vec![chunk(0, vec![1.0; 1001])]),
        ("beyond the arena's 1000", vec![chunk(u64::MAX, vec![1.0; 2])]),
        (
            "no whole number",
            vec![v1::PushChunk {
                data: vec![0; 7].into(),
                ..chunk(0, vec![])
            }],
        ),
        (
            "no whole number of pairs",
            vec![v1::PushChunk {
                encoding: 2,
                ..chunk(0, vec![1.0])
            }],
        ),
        (
            "encoding 77",
            vec![v1::PushChunk {
                encoding: 77,
                ..chunk(0, vec![1.0])
            }],
        ),
        (
            "no tag",
            vec![v1::PushChunk {
                tag: None,
                ..chunk(0, vec![1.0; 1000])
            }],
        ),
        ("no first chunk", vec![]),
    ] {
        let error = push(bad).await.unwrap_err();
        assert!(error.message.contains(what), "{what}: {error}");
        assert!(
            matches!(error.code, ErrorCode::LayoutMismatch | ErrorCode::InvalidRequest),
            "{error:?}"
        );
    }
    assert!(push(whole.to_vec()).await.unwrap());
    cluster.commit(0, &[by(0, 0, 1)]).await;
    assert_eq!(cluster.values(1).await, vec![-1.0; 1000]);
    cluster.end().await;
}
