//! The library as `coati` uses it, opened from its file, against our own kernels and the reference's recorded step. On the CPU: what runs on a
//! GPU is the same program.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed; what it skips it says"
)]

mod losses;
mod memory;
mod precision;
mod resident;
mod sizes;
mod together;

use std::path::{Path, PathBuf};

use coati_checkpoint::bundle::Reader;
use coati_common::config::PipelineConfig;
use coati_detection::Groundtruth;
use coati_detection::accelerator::{Accelerator, Device, Settings};
use coati_detection::gradients::global_norm;
use coati_detection::model::{Options, Ssd};
use coati_detection::network::{Activation, BatchNorm, Hyperparams, Mode, Network, NetworkConfig, Regularizer};
use npyz::npz::NpzArchive;

/// `ssd_mobilenet_v1`, small, every group of layers with these settings.
fn small(hyper: &Hyperparams, anchors_per_location: &[usize], (height, width): (usize, usize)) -> NetworkConfig {
    let mut config = NetworkConfig {
        depth_multiplier: 0.25,
        min_depth: 8,
        image_height: height,
        image_width: width,
        base: hyper.clone(),
        extra: hyper.clone(),
        anchors_per_location: anchors_per_location.to_vec(),
        threads: Some(2),
        ..NetworkConfig::ssd_mobilenet_v1(3)
    };
    config.predictor.hyperparams = hyper.clone();
    config
}

/// Values in `[-1, 1)` that depend on the index alone.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let x = (i ^ (seed << 40)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
        })
        .collect()
}

/// Length of the difference, relative to the length of what is expected.
fn apart(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    length(&difference) / length(expected).max(1e-12)
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn open(config: &NetworkConfig, network: &Network) -> Accelerator {
    Accelerator::open(on(Device::TorchCpu), config, network)
        .unwrap()
        .unwrap()
}

fn on(device: Device) -> Settings {
    Settings {
        device,
        ..Settings::default()
    }
}

/// One step here and there: outputs, and gradients variable by variable.
fn agrees(config: &NetworkConfig, batch: usize, tolerance: f64) {
    let mut network = Network::new(config).unwrap();
    let mut torch = open(config, &network);
    network.set_key(5);
    torch.set_key(5);
    let mut params = network.init_values(3);
    for (p, x) in params.iter_mut().zip(noise(network.elements(), 9)) {
        *p += 0.1 * p.abs().max(0.2) * x;
    }
    let pixels = batch * config.image_height * config.image_width * 3;
    let images: Vec<f32> = noise(pixels, 5).into_iter().map(|x| x * 127.5 + 127.5).collect();
    for mode in [Mode::Eval, Mode::Train] {
        let expected = network.forward(&params, &images, mode).unwrap();
        let found = torch.forward(&params, &images, mode).unwrap();
        let errors = [
            apart(&found.box_encodings, &expected.box_encodings),
            apart(&found.class_logits, &expected.class_logits),
        ];
        assert!(errors.iter().all(|&error| error < 1e-4), "{mode:?} outputs {errors:?}");
    }
    let anchors = batch * network.anchors();
    let (d_box, d_class) = (noise(anchors * 4, 11), noise(anchors * 4, 12));
    let (mut expected, mut found) = (vec![f32::NAN; params.len()], vec![f32::NAN; params.len()]);
    network.backward(&params, &d_box, &d_class, &mut expected).unwrap();
    torch.backward(&d_box, &d_class, &mut found).unwrap();
    let (whole, mut at) = (length(&expected), 0);
    for spec in network.variables() {
        let range = at..at + spec.elements();
        at = range.end;
        let (found, expected) = (&found[range.clone()], &expected[range]);
        let (error, part) = (apart(found, expected), length(expected) / whole);
        // What batch norm takes out again has no gradient but rounding.
        assert!(
            error < tolerance || error * part < 1e-5,
            "{}: {error} of {part}",
            spec.name
        );
    }
    let again = torch.backward(&d_box, &d_class, &mut found).unwrap_err().to_string();
    assert!(again.contains("forward pass"), "{again}");
}

#[test]
fn torch_computes_what_the_kernels_compute() {
    // Without corners in the activation, on the wrong side of which rounding could put a value.
    let linear = Hyperparams {
        activation: Activation::None,
        ..Hyperparams::mobilenet_v1()
    };
    agrees(&small(&linear, &[3, 6], (97, 160)), 3, 2e-3);
}

#[test]
fn moving_statistics_and_other_penalties() {
    let frozen = BatchNorm {
        train: false,
        epsilon: 0.001,
        center: true,
        scale: false,
        decay: 0.9,
        sync: false,
    };
    let hyper = Hyperparams {
        activation: Activation::None,
        batch_norm: Some(frozen),
        regularizer: Regularizer::L1 { weight: 0.01 },
        ..Hyperparams::mobilenet_v1()
    };
    agrees(&small(&hyper, &[3, 6, 6, 6, 6, 6], (65, 49)), 2, 2e-3);
    let bare = Hyperparams {
        batch_norm: None,
        ..hyper
    };
    agrees(&small(&bare, &[2, 5, 1], (65, 49)), 2, 2e-3);
}

#[test]
fn activations_with_corners() {
    agrees(&small(&Hyperparams::mobilenet_v1(), &[3, 6], (129, 129)), 2, 0.1);
}

#[test]
fn gates_groups_dropout_and_other_activations() {
    let frozen = Hyperparams {
        batch_norm: Hyperparams::mobilenet_v1()
            .batch_norm
            .map(|norm| BatchNorm { train: false, ..norm }),
        ..Hyperparams::mobilenet_v1()
    };
    let mut config = small(&frozen, &[3, 6, 6], (97, 130));
    config.extractor = "ssd_mobilenet_v3_small".to_owned();
    config.predictor.use_depthwise = true;
    config.predictor.kernel_size = 5;
    config.predictor.dropout_keep = Some(0.7);
    agrees(&config, 2, 2e-2);
    let grouped = Hyperparams {
        activation: Activation::Swish,
        batch_norm: None,
        group_norm: true,
        ..Hyperparams::mobilenet_v1()
    };
    let mut config = small(&grouped, &[3, 6], (65, 49));
    config.min_depth = 32;
    agrees(&config, 2, 2e-3);
}

#[test]
fn one_sample_has_no_variance() {
    // The last map has one pixel; of one image that is one sample.
    let config = small(&Hyperparams::mobilenet_v1(), &[3, 6, 6, 6, 6, 6], (33, 33));
    let network = Network::new(&config).unwrap();
    let mut torch = open(&config, &network);
    let params = network.init_values(1);
    torch.forward(&params, &vec![100.0; 33 * 33 * 3], Mode::Train).unwrap();
    let mut gradients = vec![f32::NAN; params.len()];
    let anchors = network.anchors();
    torch
        .backward(&noise(anchors * 4, 1), &noise(anchors * 4, 2), &mut gradients)
        .unwrap();
    assert!(gradients.iter().all(|value| value.is_finite()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = small(&Hyperparams::mobilenet_v1(), &[3, 6], (33, 33));
    let network = Network::new(&config).unwrap();
    let mut torch = open(&config, &network);
    let params = network.init_values(1);
    let error = torch
        .forward(&params[1..], &[0.0; 33 * 33 * 3], Mode::Eval)
        .unwrap_err();
    assert!(error.to_string().contains("params"), "{error}");
    let error = torch.forward(&params, &[0.0; 100], Mode::Eval).unwrap_err();
    assert!(error.to_string().contains("images"), "{error}");
    assert!(Accelerator::open(on(Device::Cpu), &config, &network).unwrap().is_none());
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: this machine has a GPU");
        return;
    }
    assert!(
        Accelerator::open(on(Device::Auto), &config, &network)
            .unwrap()
            .is_none()
    );
    let error = Accelerator::open(on(Device::Cuda(0)), &config, &network)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("device cuda:0: this machine has no NVIDIA driver (libcuda.so.1")
            && error.contains("hint: COATI_DEVICE=cpu"),
        "{error}"
    );
}

/// A golden file; `None`, with a message, where it does not lie beside the checkout.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden")).join(path);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

fn array<T: npyz::Deserialize>(npz: &mut NpzArchive<std::io::BufReader<std::fs::File>>, name: &str) -> Vec<T> {
    npz.by_name(name).unwrap().unwrap().into_vec().unwrap()
}

#[test]
fn a_training_step_equals_the_reference_s() {
    let Some(path) = shared("train_step/step.npz") else {
        return;
    };
    let text = std::fs::read_to_string(path.with_file_name("pipeline.config")).unwrap();
    let model = PipelineConfig::parse(&text, "pipeline.config").unwrap();
    let options = Options {
        threads: Some(2),
        device: Device::TorchCpu,
        ..Options::default()
    };
    let mut ssd = Ssd::new(model.model().unwrap(), &options).unwrap();
    assert_eq!(ssd.device(), Device::TorchCpu);
    let reader = Reader::open(&path.with_file_name("start.ckpt")).unwrap();
    let values = ssd
        .variables()
        .iter()
        .flat_map(|spec| reader.read_f32(&spec.name).unwrap());
    let params: Vec<f32> = values.collect();
    let mut npz = NpzArchive::open(&path).unwrap();
    let images: Vec<f32> = array::<u8>(&mut npz, "images_u8").into_iter().map(f32::from).collect();
    let groundtruth: Vec<Groundtruth> = (0..4)
        .map(|i| Groundtruth {
            source_id: i.to_string(),
            boxes: array::<f32>(&mut npz, &format!("gt_boxes_{i}")).as_chunks().0.to_vec(),
            classes: array::<i32>(&mut npz, &format!("gt_classes_{i}"))
                .into_iter()
                .map(i64::from)
                .collect(),
            weights: Vec::new(),
        })
        .collect();
    let mut gradients = vec![f32::NAN; params.len()];
    let losses = ssd.train_step(&params, &images, &groundtruth, &mut gradients).unwrap();
    let recorded = std::fs::read_to_string(path.with_file_name("losses.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&recorded).unwrap();
    let expected = &recorded["losses_at_step"][0];
    let together = global_norm(&gradients, ssd.variables());
    for (name, found, tolerance) in [
        ("Loss/classification_loss", losses.classification, 1e-4),
        ("Loss/localization_loss", losses.localization, 1e-4),
        ("total", losses.total, 1e-4),
        ("global_grad_norm_before_clip", together, 2e-3),
    ] {
        let expected = expected[name].as_f64().unwrap();
        let error = (f64::from(found) - expected).abs() / expected;
        assert!(error < tolerance, "{name}: {found}, recorded {expected}");
    }
    assert!(gradients.iter().all(|value| value.is_finite()));
}
