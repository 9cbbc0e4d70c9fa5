//! Stale gradients: what their age changes, computed again here element by element.

use coati_common::variables::{VariableKind, flat_elements};
use coati_param_server::{Consistency, DelayCompensation, PsGroup, Strategy, plan};

use crate::cluster::{COUNTING, Cluster, LIMIT, bits, by, gradient, job, optimizer, specs, tag};

/// Configured for asynchronous training with these settings and loaded, with the elements that have gradients.
async fn start(servers: u32, consistency: Consistency) -> (Cluster, Vec<f32>, Vec<bool>) {
    let mut cluster = Cluster::start(&specs(), servers, COUNTING, 9).await;
    let placement = plan(&specs(), servers, Strategy::Balanced).unwrap();
    let group = PsGroup::connect(placement, &cluster.addresses, &job(2), LIMIT)
        .await
        .unwrap();
    group.configure(optimizer(COUNTING), consistency, LIMIT).await.unwrap();
    let values = gradient(flat_elements(&specs()), 50, 0);
    group.load(&values, 0, LIMIT).await.unwrap();
    cluster.group = group;
    let trained = specs()
        .iter()
        .flat_map(|spec| vec![spec.kind == VariableKind::Trainable; spec.elements()])
        .collect();
    (cluster, values, trained)
}

async fn pulled(cluster: &Cluster, replica: u32) -> Vec<f32> {
    let mut flat = vec![0.0; flat_elements(&specs())];
    let group = cluster.group.clone().for_replica(replica);
    group.pull(0, LIMIT, &mut flat).await.unwrap();
    flat
}

/// Pushes and commits a gradient of `version` to variables of `at`; returns the learning rate.
async fn apply(cluster: &Cluster, replica: u32, version: u64, at: u64, gradient: &[f32]) -> f32 {
    cluster
        .group
        .push(tag(replica, version), gradient, LIMIT)
        .await
        .unwrap();
    let committed = cluster.group.commit(at, &[by(replica, version, 8)], false, LIMIT).await;
    committed.unwrap().learning_rate
}

fn with(delay_compensation: Option<DelayCompensation>) -> Consistency {
    Consistency {
        max_staleness: 3,
        scale_learning_rate: false,
        delay_compensation,
    }
}

/// One update of the tests' optimiser (rate 1, no momentum) by hand.
fn step(values: &mut [f32], trained: &[bool], gradient: impl Fn(usize) -> f32) {
    for (i, value) in values.iter_mut().enumerate().filter(|(i, _)| trained[*i]) {
        *value -= gradient(i);
    }
}

fn assert_trained_equal(found: &[f32], expected: &[f32], trained: &[bool], what: &str) {
    let of = |values: &[f32]| -> Vec<f32> {
        let both = values.iter().zip(trained);
        both.filter_map(|(value, &trained)| trained.then_some(*value)).collect()
    };
    assert!(bits(&of(found)) == bits(&of(expected)), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn constant_compensation_makes_up_for_what_was_pulled() {
    for servers in [1, 3] {
        let compensation = DelayCompensation {
            lambda: 0.04,
            mean_square_decay: None,
        };
        let (cluster, start, trained) = start(servers, with(Some(compensation))).await;
        let gradients: Vec<Vec<f32>> = (0..3).map(|r| gradient(start.len(), r, 1)).collect();
        // Replicas 0 and 1 compute from version 0, replica 2 from version 1.
        for replica in 0..2 {
            assert_eq!(bits(&pulled(&cluster, replica).await), bits(&start));
        }
        let mut values = start.clone();
        apply(&cluster, 0, 0, 0, &gradients[0]).await;
        step(&mut values, &trained, |i| gradients[0][i]);
        let second = pulled(&cluster, 2).await;
        assert_trained_equal(&second, &values, &trained, "a fresh gradient is itself");

        apply(&cluster, 1, 0, 1, &gradients[1]).await;
        let now = values.clone();
        let compensated = |g: f32, now: f32, then: f32| g + 0.04 * (g * g) * (now - then);
        step(&mut values, &trained, |i| {
            compensated(gradients[1][i], now[i], start[i])
        });
        apply(&cluster, 2, 1, 2, &gradients[2]).await;
        let now = values.clone();
        step(&mut values, &trained, |i| {
            compensated(gradients[2][i], now[i], second[i])
        });
        let found = cluster.values(3).await;
        assert_trained_equal(&found, &values, &trained, "stale gradients");

        // It matters, or the test shows nothing.
        let plain: Vec<f32> = (0..start.len())
            .map(|i| start[i] - gradients[0][i] - gradients[1][i] - gradients[2][i])
            .collect();
        assert!(
            found.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1.0),
            "no compensation seen"
        );
        cluster.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adaptive_compensation_goes_on_from_a_checkpoint() {
    let compensation = DelayCompensation {
        lambda: 2.0,
        mean_square_decay: Some(0.95),
    };
    let (mut cluster, start, trained) = start(3, with(Some(compensation))).await;
    let gradients: Vec<Vec<f32>> = (0..4).map(|r| gradient(start.len(), r, 3)).collect();
    let (mut values, mut squares) = (start.clone(), vec![0.0f32; start.len()]);
    let by_hand = |values: &mut [f32], squares: &mut [f32], gradient: &[f32], then: &[f32]| {
        let now = values.to_vec();
        for i in 0..squares.len() {
            squares[i] += (gradient[i] * gradient[i] - squares[i]) * (1.0 - 0.95f32);
        }
        step(values, &trained, |i| {
            let g = gradient[i];
            g + 2.0 / (squares[i] + 1e-7).sqrt() * (g * g) * (now[i] - then[i])
        });
    };
    for replica in 0..2 {
        pulled(&cluster, replica).await;
    }
    for replica in 0..2u32 {
        apply(&cluster, replica, 0, u64::from(replica), &gradients[replica as usize]).await;
        by_hand(&mut values, &mut squares, &gradients[replica as usize], &start);
    }
    assert_trained_equal(&cluster.values(2).await, &values, &trained, "two steps");

    // The mean square is part of the checkpoint.
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("model.ckpt-2").display().to_string();
    let saved = cluster.group.save(&prefix, 2, LIMIT).await.unwrap();
    coati_checkpoint::bundle::write_plain_index(prefix.as_ref(), 3, &saved.tensors).unwrap();
    let placement = plan(&specs(), 3, Strategy::Balanced).unwrap();
    cluster.group = PsGroup::connect(placement, &cluster.addresses, &job(3), LIMIT)
        .await
        .unwrap();
    let settings = with(Some(compensation));
    cluster
        .group
        .configure(optimizer(COUNTING), settings, LIMIT)
        .await
        .unwrap();
    cluster.group.restore(&prefix, 2, false, LIMIT).await.unwrap();
    let then = values.clone();
    for replica in 2..4 {
        pulled(&cluster, replica).await;
    }
    for replica in 2..4u32 {
        apply(&cluster, replica, 2, u64::from(replica), &gradients[replica as usize]).await;
        by_hand(&mut values, &mut squares, &gradients[replica as usize], &then);
    }
    assert_trained_equal(&cluster.values(4).await, &values, &trained, "after the restore");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_learning_rate_goes_down_with_age_when_asked_to() {
    for scale_learning_rate in [false, true] {
        let consistency = Consistency {
            scale_learning_rate,
            ..with(None)
        };
        let (cluster, start, trained) = start(3, consistency).await;
        let ones = vec![1.0; start.len()];
        let mut rates = Vec::new();
        for replica in 0..4u32 {
            rates.push(apply(&cluster, replica, 0, u64::from(replica), &ones).await);
        }
        let expected = if scale_learning_rate {
            [1.0, 1.0 / 2.0, 1.0 / 3.0, 1.0 / 4.0]
        } else {
            [1.0; 4]
        };
        assert_eq!(rates, expected);
        let mut values = start.clone();
        for rate in expected {
            step(&mut values, &trained, |_| rate);
        }
        assert_trained_equal(&cluster.values(4).await, &values, &trained, "scaled updates");
        cluster.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_of_pulls_is_counted_and_bounded() {
    let compensation = DelayCompensation {
        lambda: 0.04,
        mean_square_decay: None,
    };
    let (cluster, start, _) = start(1, with(Some(compensation))).await;
    let held = async || cluster.group.clients()[0].status(LIMIT).await.unwrap().held_bytes;
    let arena = 4 * start.len() as u64;
    let base = held().await;
    let zeros = vec![0.0; start.len()];
    let mut seen = Vec::new();
    for version in 0..8u32 {
        // Another replica each time: none of them comes back for its values.
        pulled(&cluster, version).await;
        apply(&cluster, version, u64::from(version), u64::from(version), &zeros).await;
        seen.push((held().await - base) / arena);
    }
    // The newest version's are the model's own; three older ones are within the bound.
    assert_eq!(seen, [1, 2, 3, 3, 3, 3, 3, 3]);
    cluster.end().await;
}
