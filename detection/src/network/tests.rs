//! The network against the reference's recorded numbers, against automatic differentiation, and against itself.

mod golden;
mod reference;
mod reproducible;
mod sizes;
mod together;

use super::{Hyperparams, Initializer, InputRange, NetworkConfig, PredictorConfig, PredictorKind};

/// `ssd_mobilenet_v1` at a fraction of its depth.
fn small(depth_multiplier: f64, (height, width): (usize, usize)) -> NetworkConfig {
    NetworkConfig {
        depth_multiplier,
        min_depth: 8,
        image_height: height,
        image_width: width,
        threads: Some(2),
        ..NetworkConfig::ssd_mobilenet_v1(3)
    }
}

/// Another extractor at an eighth of its depth, with the predictor that goes with it.
fn other_graph(extractor: &str) -> NetworkConfig {
    let mut config = NetworkConfig {
        extractor: extractor.to_owned(),
        pad_to_multiple: 32,
        anchors_per_location: vec![3; 5],
        ..small(0.125, (160, 160))
    };
    if extractor.ends_with("_fpn") {
        config.predictor.kind = PredictorKind::Shared;
        config.predictor.kernel_size = 3;
        config.predictor.num_layers_before_predictor = 1;
        config.predictor.depth = 24;
    }
    config
}

/// The settings of the golden training runs: every group overridden, decay 0.97.
fn golden_config(depth_multiplier: f64) -> NetworkConfig {
    let mut base = Hyperparams::mobilenet_v1();
    base.batch_norm = base.batch_norm.map(|norm| super::BatchNorm { decay: 0.97, ..norm });
    let predictor = Hyperparams {
        initializer: Initializer::TruncatedNormal {
            mean: 0.0,
            stddev: 0.03,
        },
        batch_norm: base.batch_norm,
        ..base.clone()
    };
    NetworkConfig {
        extra: base.clone(),
        base,
        predictor: PredictorConfig {
            hyperparams: predictor,
            ..PredictorConfig::default()
        },
        ..small(depth_multiplier, (300, 300))
    }
}

/// Values in `[-1, 1)` that depend on the index alone.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mut x = (i ^ (seed << 40)).wrapping_add(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((x >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
        })
        .collect()
}

/// Images in 0 to 255.
fn pictures(batch: usize, config: &NetworkConfig, seed: u64) -> Vec<f32> {
    let len = batch * config.image_height * config.image_width * config.image_channels;
    let span = if config.input == InputRange::Bytes {
        (127.5, 127.5)
    } else {
        (1.0, 0.0)
    };
    noise(len, seed).into_iter().map(|x| x * span.0 + span.1).collect()
}

/// Largest difference, relative to the largest magnitude expected.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected
        .iter()
        .fold(0.0_f64, |m, &x| m.max(f64::from(x.abs())))
        .max(1e-30);
    found.iter().zip(expected).fold(0.0_f64, |m, (&a, &b)| {
        let difference = (f64::from(a) - f64::from(b)).abs();
        if difference.is_finite() {
            m.max(difference)
        } else {
            f64::INFINITY
        }
    }) / scale
}
