//! A network laid out for another size is the network made for that size, bit for bit.

use super::super::{Mode, Network, NetworkConfig};
use super::{noise, other_graph, pictures, small};

fn of_size(config: &NetworkConfig, (height, width): (usize, usize)) -> NetworkConfig {
    NetworkConfig {
        image_height: height,
        image_width: width,
        ..config.clone()
    }
}

/// Bits of the predictions in inference mode and in training, of the gradients, and the layers' names with their sizes.
fn computed(network: &mut Network, config: &NetworkConfig, batch: usize) -> (Vec<u32>, Vec<(String, u64)>) {
    let params = network.init_values(1);
    let images = pictures(batch, config, 2);
    let mut grads = vec![f32::NAN; params.len()];
    let evaluated = network.forward(&params, &images, Mode::Eval).unwrap();
    let found = network.forward(&params, &images, Mode::Train).unwrap();
    let (d_box, d_class) = (noise(found.box_encodings.len(), 3), noise(found.class_logits.len(), 4));
    network.backward(&params, &d_box, &d_class, &mut grads).unwrap();
    let all = [
        evaluated.box_encodings,
        evaluated.class_logits,
        found.box_encodings,
        found.class_logits,
        grads,
    ];
    let layers = network.layer_times().iter();
    (
        all.concat().iter().map(|value| value.to_bits()).collect(),
        layers.map(|layer| (layer.name.clone(), layer.outputs)).collect(),
    )
}

fn back_and_forth(config: &NetworkConfig, sizes: &[(usize, usize)]) {
    let name = &config.extractor;
    let mut one = Network::new(&of_size(config, (150, 140))).unwrap();
    one.set_key(5);
    for (i, &size) in sizes.iter().enumerate() {
        let config = of_size(config, size);
        // Batches change, too, as they do in evaluation.
        let batch = 1 + i % 2;
        one.lay_out(size).unwrap();
        assert_eq!(one.image_size(), size);
        let mut other = Network::new(&config).unwrap();
        other.set_key(5);
        let expected = computed(&mut other, &config, batch);
        let found = computed(&mut one, &config, batch);
        assert_eq!(found.1, expected.1, "layers of {name} at {size:?}");
        assert!(found.0 == expected.0, "bits of {name} at {size:?}");
        assert_eq!(one.feature_map_shapes(), other.feature_map_shapes());
        assert_eq!((one.anchors(), one.elements()), (other.anchors(), other.elements()));
    }
}

#[test]
fn sizes_that_change_give_the_bits_of_networks_made_for_them() {
    let sizes = [
        (96, 160),
        (200, 64),
        (33, 47),
        (96, 160),
        (257, 301),
        (64, 200),
        (33, 33),
    ];
    let mut config = small(0.25, (96, 96));
    back_and_forth(&config, &sizes);
    config.predictor.dropout_keep = Some(0.8);
    config.predictor.box_encodings_clip_range = Some((-0.5, 0.5));
    config.predictor.kernel_size = 3;
    config.predictor.use_depthwise = true;
    config.pad_to_multiple = 32;
    config.use_depthwise = true;
    back_and_forth(&config, &sizes);
}

#[test]
fn sizes_of_other_graphs_change_too() {
    for extractor in [
        "ssd_mobilenet_v2_fpn",
        "ssd_mobilenet_v3_small",
        "ssd_inception_v2",
        "ssd_inception_v3",
        "ssd_resnet50_v1_fpn",
    ] {
        back_and_forth(&other_graph(extractor), &[(160, 130), (129, 192), (160, 130)]);
    }
    let mut grouped = small(0.25, (96, 96));
    grouped.min_depth = 32;
    for hyper in [&mut grouped.base, &mut grouped.extra] {
        hyper.batch_norm = None;
        hyper.group_norm = true;
    }
    back_and_forth(&grouped, &[(96, 64), (64, 129), (96, 64)]);
}

#[test]
fn a_size_that_does_not_fit_leaves_the_network_as_it_was() {
    let config = small(0.25, (64, 80));
    let mut network = Network::new(&config).unwrap();
    assert_eq!(network.sides(), 33..=16_384);
    let before = computed(&mut network, &config, 2);
    for (size, said) in [
        ((32, 300), "32 x 300: each side must be at least 33"),
        ((1, 1), "1 x 1"),
        ((0, 64), "0 x 64"),
        ((33, 16_385), "16385: at most 16384 pixels"),
        ((usize::MAX, usize::MAX), "at most 16384 pixels"),
    ] {
        let error = network.lay_out(size).unwrap_err();
        assert!(error.is_of_size() && error.to_string().contains(said), "{error}");
        assert_eq!(network.image_size(), (64, 80));
    }
    assert!(computed(&mut network, &config, 2) == before);
    // A step cannot go on at another size.
    let params = network.init_values(1);
    let _ = network.forward(&params, &pictures(1, &config, 2), Mode::Train).unwrap();
    network.lay_out((80, 64)).unwrap();
    let anchors = network.anchors();
    let mut grads = vec![0.0; params.len()];
    let columns = network.class_columns();
    let error = network
        .backward(
            &params,
            &vec![0.0; anchors * 4],
            &vec![0.0; anchors * columns],
            &mut grads,
        )
        .unwrap_err();
    assert!(error.to_string().contains("forward pass"), "{error}");
    assert_eq!(network.first_not_finite(), None);
}

#[test]
fn no_size_makes_any_graph_panic() {
    for extractor in super::super::extractors::ALL {
        for maps in 1..=6 {
            for size in [(1, 1), (33, 33), (33, 16_384), (75, 80), (129, 129), (131, 257)] {
                let config = NetworkConfig {
                    extractor: extractor.name.to_owned(),
                    anchors_per_location: vec![1; maps],
                    ..small(0.125, size)
                };
                // A plan or a refusal.
                let _ = super::super::plan::plan(&config);
            }
        }
    }
}
