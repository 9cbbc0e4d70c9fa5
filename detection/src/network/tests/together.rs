//! `sync_batch_norm`: n replicas with a batch each compute what one does with all of it.

use std::sync::{Arc, Barrier, Mutex};

use super::super::{Activation, BatchNorm, Mode, Network, NetworkConfig, Together};
use super::{noise, pictures, small};

/// Replicas on threads of one process.
struct Threads {
    rank: usize,
    said: Arc<Mutex<Vec<Vec<f64>>>>,
    barrier: Arc<Barrier>,
}

impl Together for Threads {
    fn sum(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.said.lock().unwrap()[self.rank] = values.to_vec();
        self.barrier.wait();
        let all = self.said.lock().unwrap().clone();
        self.barrier.wait();
        values.fill(0.0);
        for theirs in &all {
            values.iter_mut().zip(theirs).for_each(|(value, other)| *value += other);
        }
        Ok(())
    }
}

fn synchronised(config: &NetworkConfig) -> NetworkConfig {
    let mut config = config.clone();
    for hyper in [&mut config.base, &mut config.extra, &mut config.predictor.hyperparams] {
        hyper.batch_norm = hyper.batch_norm.map(|norm| BatchNorm { sync: true, ..norm });
        // At a corner the last bit of a sum decides whether a gradient goes through.
        hyper.activation = Activation::Swish;
        // The penalty would be counted once for each replica.
        hyper.regularizer = super::super::Regularizer::None;
    }
    config.threads = Some(1);
    config
}

/// Class logits, and gradients for these gradients of the outputs.
fn step(network: &mut Network, images: &[f32], d_box: &[f32], d_class: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let params = network.init_values(1);
    let found = network.forward(&params, images, Mode::Train).unwrap();
    let mut grads = vec![0.0; params.len()];
    network.backward(&params, d_box, d_class, &mut grads).unwrap();
    (found.class_logits, grads)
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    apart / norm(&mut expected.iter().map(|&x| f64::from(x))).max(1e-30)
}

/// With this many images on each replica.
fn compare(counts: &[usize], sync: bool) -> (f64, f64, f64) {
    let config = synchronised(&small(0.25, (129, 97)));
    let batch: usize = counts.iter().sum();
    let images = pictures(batch, &config, 2);
    let image = images.len() / batch;
    let mut alone = Network::new(&config).unwrap();
    assert!(alone.is_synchronised());
    let (boxes, classes) = (alone.anchors() * 4, alone.anchors() * alone.class_columns());
    let (d_box, d_class) = (noise(batch * boxes, 3), noise(batch * classes, 4));
    let (expected_logits, expected) = step(&mut alone, &images, &d_box, &d_class);

    let world = counts.len();
    let (said, barrier) = (
        Arc::new(Mutex::new(vec![Vec::new(); world])),
        Arc::new(Barrier::new(world)),
    );
    let parts: Vec<(Vec<f32>, Vec<f32>)> = std::thread::scope(|scope| {
        let mut first = 0;
        let mut threads = Vec::new();
        for (rank, count) in counts.iter().enumerate() {
            let own = first..first + count;
            first = own.end;
            let of = |values: &[f32], each: usize| values[own.start * each..own.end * each].to_vec();
            let (images, d_box, d_class) = (of(&images, image), of(&d_box, boxes), of(&d_class, classes));
            let together = Threads {
                rank,
                said: Arc::clone(&said),
                barrier: Arc::clone(&barrier),
            };
            let config = &config;
            threads.push(scope.spawn(move || {
                let mut network = Network::new(config).unwrap();
                if sync {
                    network.set_together(Some(Box::new(together)));
                }
                step(&mut network, &images, &d_box, &d_class)
            }));
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let logits: Vec<f32> = parts.iter().flat_map(|part| part.0.clone()).collect();
    // Gradients of the loss are added up over replicas; statistics are everybody's on each.
    let (mut grads, mut statistics, mut expected_statistics, mut expected_grads) = (vec![], vec![], vec![], vec![]);
    let mut at = 0;
    for spec in alone.variables() {
        let range = at..at + spec.elements();
        at = range.end;
        let is_statistic = spec.name.contains("moving_");
        for i in range {
            if is_statistic {
                statistics.push(parts[0].1[i]);
                expected_statistics.push(expected[i]);
                if sync {
                    assert!(parts.iter().all(|part| part.1[i].to_bits() == parts[0].1[i].to_bits()));
                }
            } else {
                grads.push(parts.iter().map(|part| part.1[i]).sum::<f32>());
                expected_grads.push(expected[i]);
            }
        }
    }
    (
        relative(&logits, &expected_logits),
        relative(&grads, &expected_grads),
        relative(&statistics, &expected_statistics),
    )
}

#[test]
fn replicas_with_a_batch_each_compute_what_one_does_with_all_of_it() {
    for counts in [&[2, 2][..], &[1, 3], &[2, 1, 1]] {
        let (logits, grads, statistics) = compare(counts, true);
        assert!(
            logits < 1e-4 && grads < 2e-3 && statistics < 1e-4,
            "{counts:?}: {logits:e} {grads:e} {statistics:e}"
        );
    }
    // Otherwise this would say nothing.
    let (logits, grads, statistics) = compare(&[2, 2], false);
    assert!(
        logits > 1e-2 && grads > 1e-2 && statistics > 1e-2,
        "{logits:e} {grads:e} {statistics:e}"
    );
}
