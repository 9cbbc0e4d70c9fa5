//! Equal bits whatever the number of threads, and no panic on odd sizes.

use super::super::{Mode, Network, NetworkConfig};
use super::{noise, other_graph, pictures, small};

fn step(config: &NetworkConfig, batch: usize, repeats: usize) -> (Vec<f32>, Vec<f32>) {
    let mut network = Network::new(config).unwrap();
    let params = network.init_values(1);
    let mut grads = vec![0.0; params.len()];
    let mut outputs = None;
    for _ in 0..repeats {
        let found = network
            .forward(&params, &pictures(batch, config, 2), Mode::Train)
            .unwrap();
        let (d_box, d_class) = (noise(found.box_encodings.len(), 3), noise(found.class_logits.len(), 4));
        network.backward(&params, &d_box, &d_class, &mut grads).unwrap();
        outputs = Some(found);
    }
    let outputs = outputs.unwrap();
    ([outputs.box_encodings, outputs.class_logits].concat(), grads)
}

#[test]
fn bits_do_not_depend_on_threads_or_history() {
    let config = small(0.5, (180, 150));
    let first = step(
        &NetworkConfig {
            threads: Some(1),
            ..config.clone()
        },
        3,
        1,
    );
    for threads in [2, 3, 7] {
        let again = step(
            &NetworkConfig {
                threads: Some(threads),
                ..config.clone()
            },
            3,
            2,
        );
        assert!(
            first.0.iter().zip(&again.0).all(|(a, b)| a.to_bits() == b.to_bits()),
            "outputs, {threads} threads"
        );
        assert!(
            first.1.iter().zip(&again.1).all(|(a, b)| a.to_bits() == b.to_bits()),
            "gradients, {threads} threads"
        );
    }
}

#[test]
fn bits_of_other_graphs_do_not_depend_on_threads_either() {
    for extractor in ["ssd_mobilenet_v2_fpn", "ssd_resnet50_v1_fpn", "ssd_inception_v2"] {
        let config = other_graph(extractor);
        let of = |threads| {
            let config = NetworkConfig {
                threads: Some(threads),
                ..config.clone()
            };
            let (outputs, grads) = step(&config, 2, threads);
            outputs.iter().chain(&grads).map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let first = of(1);
        assert!([2, 3].into_iter().all(|threads| of(threads) == first), "{extractor}");
    }
}

#[test]
fn odd_sizes_and_batches_that_change() {
    for (size, batch) in [
        ((257, 301), 1),
        ((96, 160), 2),
        ((33, 33), 1),
        ((33, 200), 5),
        ((34, 35), 3),
    ] {
        let (outputs, grads) = step(&small(0.25, size), batch, 1);
        assert!(outputs.iter().chain(&grads).all(|x| x.is_finite()), "{size:?}");
    }
    let config = small(0.25, (64, 80));
    let mut network = Network::new(&config).unwrap();
    let params = network.init_values(1);
    let all = pictures(3, &config, 8);
    let three = network.forward(&params, &all, Mode::Eval).unwrap();
    let one = network
        .forward(&params, &all[64 * 80 * 3..2 * 64 * 80 * 3], Mode::Eval)
        .unwrap();
    let width = network.anchors() * 4;
    assert_eq!(one.box_encodings, three.box_encodings[width..2 * width]);
    // An evaluation leaves nothing to differentiate.
    let mut grads = vec![0.0; params.len()];
    let (d_box, d_class) = (vec![0.0; width], vec![0.0; width]);
    assert!(network.backward(&params, &d_box, &d_class, &mut grads).is_err());
}

#[test]
fn a_diverged_run_shows_as_nan() {
    let config = small(0.25, (64, 64));
    let mut network = Network::new(&config).unwrap();
    let mut params = network.init_values(1);
    params[5] = f32::NAN;
    let outputs = network.forward(&params, &pictures(2, &config, 8), Mode::Train).unwrap();
    assert!(outputs.class_logits.iter().any(|x| x.is_nan()));
}
