//! Numbers recorded from the reference implementation.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use coati_checkpoint::bundle::Reader;
use coati_common::variables::{VariableKind, VariableSpec};
use npyz::npz::NpzArchive;

use super::super::{Fpn, Hyperparams, Mode, Network, NetworkConfig, PredictorConfig, PredictorKind};
use super::{golden_config, relative_error, small};

fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(path)
}

/// A large golden file that lies beside the checkout; `None`, with a message, where it does not.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden")).join(path);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

struct Npz(NpzArchive<BufReader<File>>);

impl Npz {
    fn open(path: &Path) -> Self {
        Self(NpzArchive::open(path).unwrap())
    }

    fn floats(&mut self, name: &str) -> Vec<f32> {
        self.0
            .by_name(name)
            .unwrap()
            .unwrap_or_else(|| panic!("no array {name}"))
            .into_vec()
            .unwrap()
    }

    fn bytes(&mut self, name: &str) -> Vec<f32> {
        let bytes: Vec<u8> = self.0.by_name(name).unwrap().unwrap().into_vec().unwrap();
        bytes.into_iter().map(f32::from).collect()
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

/// The hash rule of the golden data: values made from a variable's name.
fn hashed(spec: &VariableSpec) -> Vec<f32> {
    let salt = 0x632B_E59B_D9B4_E019_u64;
    let start = (u64::from(crc32(spec.name.as_bytes())) << 32).wrapping_add(salt);
    let area = |dims: &[i64]| dims.iter().product::<i64>() as f64;
    let last = spec.name.rsplit('/').next().unwrap();
    (0..spec.elements() as u64)
        .map(|i| {
            let mut x = start.wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            x ^= x >> 31;
            let z = 2.0 * ((x >> 40) as f64 / f64::from(1 << 24)) - 1.0;
            let value = match last {
                "weights" if spec.name.ends_with("resnet_v1_50/conv1/weights") => {
                    z * (6.0 / area(&spec.shape[..3])).sqrt() / 64.0
                }
                "weights" | "pointwise_weights" => z * (6.0 / area(&spec.shape[..3])).sqrt(),
                "depthwise_weights" => z * (6.0 / area(&spec.shape[..2])).sqrt(),
                "gamma" if spec.name.contains("/conv3/") => 0.05 * (1.0 + 0.2 * z),
                "gamma" => 1.0 + 0.2 * z,
                "biases" | "beta" => 0.1 * z,
                "moving_mean" => 0.2 * z,
                "moving_variance" => 1.0 + 0.5 * z,
                other => panic!("{other}"),
            };
            value as f32
        })
        .collect()
}

fn load(network: &Network, prefix: &Path) -> Vec<f32> {
    let reader = Reader::open(prefix).unwrap();
    network
        .variables()
        .iter()
        .flat_map(|spec| reader.read_f32(&spec.name).unwrap())
        .collect()
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .fold(0.0, |m, (&a, &b)| m.max(f64::from((a - b).abs())))
}

#[test]
fn variables_are_those_of_the_reference() {
    let Some(path) = shared("variable_names/ssd_mobilenet_v1.txt") else {
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    let mut expected: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    expected.sort();
    let config = NetworkConfig {
        num_classes: 90,
        threads: Some(1),
        ..NetworkConfig::ssd_mobilenet_v1(90)
    };
    let network = Network::new(&config).unwrap();
    let mut found: Vec<String> = network
        .variables()
        .iter()
        .map(|spec| {
            let trainable = if spec.kind == VariableKind::Trainable { "T" } else { "-" };
            format!("{}\t{:?}\tfloat32\t{trainable}", spec.name, spec.shape)
        })
        .collect();
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(
        network.feature_map_shapes(),
        [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    );
    assert_eq!(network.anchors(), 1917);
    assert_eq!(
        network.variables()[0].name,
        "FeatureExtractor/MobilenetV1/Conv2d_0/weights"
    );
}

#[test]
fn inference_with_hashed_weights_equals_the_reference() {
    let mut npz = Npz::open(&fixture("forward_hashed/ssd_mobilenet_v1.npz"));
    let images = npz.bytes("image_u8");
    for isa in crate::kernels::Isa::available() {
        let mut config = NetworkConfig {
            threads: Some(2),
            ..NetworkConfig::ssd_mobilenet_v1(3)
        };
        config.predictor = PredictorConfig::default();
        let mut network = Network::with_isa(&config, isa).unwrap();
        let params: Vec<f32> = network.variables().iter().flat_map(hashed).collect();
        let outputs = network.forward(&params, &images, Mode::Eval).unwrap();
        for (found, name) in [
            (&outputs.box_encodings, "box_encodings"),
            (&outputs.class_logits, "class_predictions_with_background"),
        ] {
            let expected = npz.floats(name);
            let error = largest_difference(found, &expected) / deviation(&expected);
            assert!(error < 1e-3, "{isa:?} {name}: {error}");
        }
    }
}

/// The stock configurations of the other recorded models, as far as they shape the network.
fn stock(name: &str, num_classes: usize) -> NetworkConfig {
    let hyper = Hyperparams::mobilenet_v1();
    let base = NetworkConfig {
        extractor: name.to_owned(),
        base: hyper.clone(),
        threads: Some(2),
        ..NetworkConfig::ssd_mobilenet_v1(num_classes)
    };
    let predictor = PredictorConfig {
        hyperparams: hyper,
        ..PredictorConfig::default()
    };
    match name {
        "ssdlite_mobilenet_v2" => NetworkConfig {
            extractor: "ssd_mobilenet_v2".to_owned(),
            use_depthwise: true,
            predictor: PredictorConfig {
                use_depthwise: true,
                kernel_size: 3,
                ..predictor
            },
            ..base
        },
        "ssd_inception_v2" => NetworkConfig {
            predictor: PredictorConfig {
                kernel_size: 3,
                ..predictor
            },
            ..base
        },
        "ssd_mobilenet_v1_fpn" | "ssd_resnet50_v1_fpn" => NetworkConfig {
            image_height: 320,
            image_width: 320,
            fpn: Fpn::default(),
            anchors_per_location: vec![6; 5],
            predictor: PredictorConfig {
                kind: PredictorKind::Shared,
                kernel_size: 3,
                depth: 256,
                num_layers_before_predictor: 4,
                class_prediction_bias_init: -4.6,
                ..predictor
            },
            ..base
        },
        _ => NetworkConfig { predictor, ..base },
    }
}

const OTHERS: [&str; 5] = [
    "ssd_mobilenet_v2",
    "ssdlite_mobilenet_v2",
    "ssd_inception_v2",
    "ssd_mobilenet_v1_fpn",
    "ssd_resnet50_v1_fpn",
];

#[test]
fn variables_of_the_other_models_are_those_of_the_reference() {
    for name in OTHERS {
        let Some(path) = shared(&format!("variable_names/{name}.txt")) else {
            return;
        };
        let text = std::fs::read_to_string(path).unwrap();
        let mut expected: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        expected.sort_unstable();
        let network = Network::new(&stock(name, 90)).unwrap();
        let mut found: Vec<String> = network
            .variables()
            .iter()
            .map(|spec| {
                let trainable = if spec.kind == VariableKind::Trainable { "T" } else { "-" };
                format!("{}\t{:?}\tfloat32\t{trainable}", spec.name, spec.shape)
            })
            .collect();
        found.sort();
        let missing: Vec<_> = expected
            .iter()
            .filter(|line| !found.iter().any(|f| f == *line))
            .collect();
        let more: Vec<_> = found.iter().filter(|line| !expected.contains(&line.as_str())).collect();
        assert!(
            missing.is_empty() && more.is_empty(),
            "{name}: missing {missing:?}, more {more:?}"
        );
    }
}

#[test]
fn inference_of_the_other_models_equals_the_reference() {
    for name in OTHERS {
        let Some(path) = shared(&format!("forward_hashed/{name}.npz")) else {
            return;
        };
        let mut npz = Npz::open(&path);
        let images = npz.bytes("image_u8");
        let mut network = Network::new(&stock(name, 3)).unwrap();
        let params: Vec<f32> = network.variables().iter().flat_map(hashed).collect();
        let outputs = network.forward(&params, &images, Mode::Eval).unwrap();
        for (found, array) in [
            (&outputs.box_encodings, "box_encodings"),
            (&outputs.class_logits, "class_predictions_with_background"),
        ] {
            let expected = npz.floats(array);
            let error = largest_difference(found, &expected) / deviation(&expected);
            println!("{name} {array}: {error:.1e}");
            assert!(error < 1e-3, "{name} {array}: {error}");
        }
    }
}

#[test]
fn a_trained_detector_gives_the_reference_s_logits() {
    let Some(path) = shared("ssd_bccd/raw4.npz") else {
        return;
    };
    let mut npz = Npz::open(&path);
    let config = NetworkConfig {
        input: super::InputRange::Normalised,
        ..golden_config(0.5)
    };
    let mut network = Network::new(&config).unwrap();
    let params = load(&network, &shared("ssd_bccd").unwrap().join("model.ckpt-3200"));
    let outputs = network
        .forward(&params, &npz.floats("preprocessed"), Mode::Eval)
        .unwrap();
    let boxes = largest_difference(&outputs.box_encodings, &npz.floats("box_encodings"));
    let classes = largest_difference(&outputs.class_logits, &npz.floats("class_predictions_with_background"));
    assert!(boxes < 2e-4 && classes < 2e-4, "{boxes} {classes}");
}

#[test]
fn training_mode_equals_the_reference() {
    let Some(path) = shared("train_step/step.npz") else {
        return;
    };
    let mut npz = Npz::open(&path);
    let mut network = Network::new(&golden_config(0.25)).unwrap();
    let params = load(&network, &shared("train_step").unwrap().join("start.ckpt"));
    let images = npz.bytes("images_u8");
    let outputs = network.forward(&params, &images, Mode::Train).unwrap();
    let errors = [
        relative_error(&outputs.box_encodings, &npz.floats("box_encodings")),
        relative_error(&outputs.class_logits, &npz.floats("class_predictions_with_background")),
    ];
    // The reference's own rounding is 4e-4 from exact arithmetic here, as far as a hundredth of a grey level of noise in the images
    // would take it; the strict judge is the same network in float64.
    assert!(errors.iter().all(|&e| e < 6e-4), "{errors:?}");
    let exact = super::reference::predictions(&golden_config(0.25), &params, &images);
    let errors = [
        relative_error(&outputs.box_encodings, &exact.box_encodings),
        relative_error(&outputs.class_logits, &exact.class_logits),
    ];
    assert!(errors.iter().all(|&e| e < 1e-5), "{errors:?}");
    let penalty = network.regularization(&params).unwrap();
    assert!((penalty - 0.068_913_82).abs() < 1e-6, "{penalty}");

    // Whatever the loss, the moving statistics follow the batch.
    let mut grads = vec![f32::NAN; params.len()];
    let (d_box, d_class) = (
        vec![0.0; outputs.box_encodings.len()],
        vec![0.0; outputs.class_logits.len()],
    );
    network.backward(&params, &d_box, &d_class, &mut grads).unwrap();
    assert!(grads.iter().all(|g| g.is_finite()));
    let mut offset = 0;
    let mut checked = 0;
    for spec in network.variables() {
        let range = offset..offset + spec.elements();
        offset = range.end;
        let after = format!("after1__{}", spec.name.replace('/', "."));
        let VariableKind::MovingStatistic { decay } = spec.kind else {
            continue;
        };
        if !npz.0.array_names().any(|name| name == after) {
            continue;
        }
        let found: Vec<f32> = params[range.clone()]
            .iter()
            .zip(&grads[range])
            .map(|(p, g)| decay * p + (1.0 - decay) * g)
            .collect();
        let error = relative_error(&found, &npz.floats(&after));
        assert!(error < 1e-4, "{}: {error}", spec.name);
        checked += 1;
    }
    assert_eq!(checked, 4);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let refused = |config: &NetworkConfig| Network::new(config).map(|_| ()).unwrap_err().to_string();
    assert!(refused(&small(0.25, (32, 300))).contains("32 x 300"));
    assert!(refused(&small(0.0, (96, 96))).contains("depth_multiplier is 0"));
    let maps = NetworkConfig {
        anchors_per_location: vec![3; 7],
        ..small(0.25, (96, 96))
    };
    assert!(refused(&maps).contains("7 feature maps"));
    let mut network = Network::new(&small(0.25, (96, 96))).unwrap();
    let params = network.init_values(1);
    let short = network
        .forward(&params[1..], &vec![0.0; 96 * 96 * 3], Mode::Eval)
        .unwrap_err();
    assert!(short.to_string().contains("params"), "{short}");
    let odd = network.forward(&params, &[0.0; 100], Mode::Eval).unwrap_err();
    assert!(odd.to_string().contains("images"), "{odd}");
    let mut grads = vec![0.0; params.len()];
    assert!(network.backward(&params, &[], &[], &mut grads).is_err());
}
