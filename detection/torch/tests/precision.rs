//! What each precision does to the reference's recorded step, and how gradients in float16 keep within its range.

use std::path::Path;

use coati_checkpoint::bundle::Reader;
use coati_common::cluster::{Numerics, Precision};
use coati_common::config::PipelineConfig;
use coati_common::variables::{VariableKind, VariableSpec};
use coati_detection::Groundtruth;
use coati_detection::accelerator::{Accelerator, Arithmetic, Device, Settings};
use coati_detection::model::{Options, Ssd, StepLosses};
use coati_detection::network::{Activation, Hyperparams, Mode, Network, Regularizer};
use npyz::npz::NpzArchive;

use super::{apart, array, noise, shared, small};

/// The recorded step's inputs.
struct Step {
    config: PipelineConfig,
    params: Vec<f32>,
    images: Vec<f32>,
    groundtruth: Vec<Groundtruth>,
}

fn recorded() -> Option<Step> {
    let path = shared("train_step/step.npz")?;
    let text = std::fs::read_to_string(path.with_file_name("pipeline.config")).unwrap();
    let config = PipelineConfig::parse(&text, "pipeline.config").unwrap();
    let mut npz = NpzArchive::open(&path).unwrap();
    let images: Vec<f32> = array::<u8>(&mut npz, "images_u8").into_iter().map(f32::from).collect();
    let image = |i: usize| Groundtruth {
        source_id: i.to_string(),
        boxes: array::<f32>(&mut npz, &format!("gt_boxes_{i}")).as_chunks().0.to_vec(),
        classes: array::<i32>(&mut npz, &format!("gt_classes_{i}"))
            .into_iter()
            .map(i64::from)
            .collect(),
        weights: Vec::new(),
    };
    let groundtruth = (0..4).map(image).collect();
    let params = start(&ssd(&config, Device::Cpu, Precision::Auto), &path);
    Some(Step {
        config,
        params,
        images,
        groundtruth,
    })
}

fn start(ssd: &Ssd, path: &Path) -> Vec<f32> {
    let reader = Reader::open(&path.with_file_name("start.ckpt")).unwrap();
    let values = ssd.variables().iter();
    values.flat_map(|spec| reader.read_f32(&spec.name).unwrap()).collect()
}

fn ssd(config: &PipelineConfig, device: Device, precision: Precision) -> Ssd {
    let options = Options {
        threads: Some(2),
        device,
        numerics: Numerics { precision, tf32: false },
        ..Options::default()
    };
    Ssd::new(config.model().unwrap(), &options).unwrap()
}

/// Losses of a few steps with the recorded optimiser, and the gradient of the first one.
fn train(step: &Step, precision: Precision, steps: usize) -> (Vec<StepLosses>, Vec<f32>, Vec<VariableSpec>) {
    let mut ssd = ssd(&step.config, Device::TorchCpu, precision);
    let specs = ssd.variables().to_vec();
    let (mut params, mut momentum) = (step.params.clone(), vec![0.0; step.params.len()]);
    let mut gradients = vec![f32::NAN; params.len()];
    let (mut losses, mut first) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let found = ssd
            .train_step(&params, &step.images, &step.groundtruth, &mut gradients)
            .unwrap();
        losses.push(found);
        if first.is_empty() {
            first.clone_from(&gradients);
        }
        let mut at = 0;
        for spec in &specs {
            for i in at..at + spec.elements() {
                if spec.kind == VariableKind::Trainable {
                    momentum[i] = 0.9 * momentum[i] + gradients[i];
                    params[i] -= 0.01 * momentum[i];
                }
            }
            at += spec.elements();
        }
    }
    (losses, first, specs)
}

/// Of trainable variables alone, one after the other.
fn trainable(gradients: &[f32], specs: &[VariableSpec]) -> Vec<f32> {
    let (mut at, mut all) = (0, Vec::new());
    for spec in specs {
        if spec.kind == VariableKind::Trainable {
            all.extend_from_slice(&gradients[at..at + spec.elements()]);
        }
        at += spec.elements();
    }
    all
}

/// The figures in docs/compatibility.md, with room for other processors.
#[test]
fn the_effect_of_each_precision_on_the_recorded_step() {
    let Some(step) = recorded() else { return };
    let (exact, gradient, specs) = train(&step, Precision::Float32, 4);
    let gradient = trainable(&gradient, &specs);
    let mut failures = Vec::new();
    for (precision, loss_tolerance, gradient_tolerance, later_tolerance) in
        [(Precision::Bf16, 1e-3, 0.95, 5e-3), (Precision::Fp16, 5e-4, 0.7, 2e-3)]
    {
        let (losses, found, _) = train(&step, precision, 4);
        let apart_by = |i: usize| f64::from((losses[i].total - exact[i].total).abs() / exact[i].total);
        let (first, later) = (apart_by(0), apart_by(3));
        let error = apart(&trainable(&found, &specs), &gradient);
        let figures = format!("{precision}: loss {first:.1e}, after three steps {later:.1e}, gradient {error:.1e}");
        println!("{figures}");
        let within = first < loss_tolerance && error < gradient_tolerance && later < later_tolerance;
        // Not the same arithmetic under another name.
        if !within || error < 1e-5 {
            failures.push(figures);
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
    // On the CPU `auto` is float32, to the last bit.
    let (auto, same, _) = train(&step, Precision::Auto, 1);
    assert_eq!((auto[0], trainable(&same, &specs)), (exact[0], gradient));
}

fn opened(network: &Network, precision: Precision) -> Accelerator {
    let settings = Settings {
        device: Device::TorchCpu,
        numerics: Numerics { precision, tf32: false },
        loss: None,
    };
    let config = small(&smooth(), &[3, 6], (97, 97));
    Accelerator::open(settings, &config, network).unwrap().unwrap()
}

/// One backward pass from slopes of size `slope`.
fn gradients(torch: &mut Accelerator, network: &Network, params: &[f32], slope: f32) -> Vec<f32> {
    let images: Vec<f32> = noise(2 * 97 * 97 * 3, 5)
        .into_iter()
        .map(|x| x * 127.5 + 127.5)
        .collect();
    let anchors = 2 * network.anchors();
    let sized = |len, seed| -> Vec<f32> { noise(len, seed).into_iter().map(|x| x * slope).collect() };
    let mut gradients = vec![f32::NAN; params.len()];
    torch.forward(params, &images, Mode::Train).unwrap();
    torch
        .backward(&sized(anchors * 4, 1), &sized(anchors * 4, 2), &mut gradients)
        .unwrap();
    gradients
}

/// Without corners, on the wrong side of which rounding puts a value, and without penalties, which hide small gradients.
fn smooth() -> Hyperparams {
    Hyperparams {
        activation: Activation::None,
        regularizer: Regularizer::None,
        ..Hyperparams::mobilenet_v1()
    }
}

fn without_penalties() -> Network {
    Network::new(&small(&smooth(), &[3, 6], (97, 97))).unwrap()
}

#[test]
fn gradients_in_float16_are_scaled_and_what_overflows_is_repeated() {
    let network = without_penalties();
    let mut params = network.init_values(3);
    let [mut exact, mut low] = [Precision::Float32, Precision::Fp16].map(|precision| opened(&network, precision));
    assert_eq!(
        (exact.arithmetic(), low.arithmetic()),
        (Arithmetic::Float32, Arithmetic::Fp16)
    );
    let expected = gradients(&mut exact, &network, &params, 1.0);
    let found = gradients(&mut low, &network, &params, 1.0);
    assert_eq!((exact.scaling().scale, exact.scaling().repeats), (1.0, 0));
    let rounding = apart(&found, &expected);
    println!("gradients differ by {rounding:.1e}, {:?}", low.scaling());
    assert!(rounding < 0.5, "{rounding}");
    // Slopes far below what float16 holds, and far above: the same bits but for the power of two.
    for exponent in [-30, 20] {
        let slope = 2.0_f32.powi(exponent);
        let other = gradients(&mut low, &network, &params, slope);
        let scaling = low.scaling();
        assert_eq!(scaling.repeats, 0, "slopes of {slope}");
        assert!(
            (0.25..=1.0).contains(&(scaling.scale * slope)),
            "slopes of {slope}: {scaling:?}"
        );
        let mut at = 0;
        for spec in network.variables() {
            let range = at..at + spec.elements();
            at = range.end;
            if spec.kind == VariableKind::Trainable {
                let rescaled: Vec<f32> = other[range.clone()].iter().map(|value| value / slope).collect();
                assert_eq!(rescaled, found[range], "{} with slopes of {slope}", spec.name);
            }
        }
    }
    // Predictors with large weights make large gradients below them: beyond 65504 with the first scale.
    let mut at = 0;
    for spec in network.variables() {
        if spec.name.starts_with("BoxPredictor") && spec.name.ends_with("weights") {
            params[at..at + spec.elements()]
                .iter_mut()
                .for_each(|weight| *weight *= 3e5);
        }
        at += spec.elements();
    }
    let (expected, found) = (
        gradients(&mut exact, &network, &params, 1.0),
        gradients(&mut low, &network, &params, 1.0),
    );
    let (scaling, error) = (low.scaling(), apart(&found, &expected));
    assert!(scaling.repeats >= 1 && scaling.scale < 0.25, "{scaling:?}");
    println!("large weights: gradients differ by {error:.1e}, {scaling:?}");
    assert!(
        error < 2.0 * rounding + 0.05,
        "{scaling:?}: {error}, without large weights {rounding}"
    );
    // The same step again: the same bits, whatever came between.
    let _ = gradients(&mut low, &network, &params, 1e-3);
    assert_eq!(gradients(&mut low, &network, &params, 1.0), found);
}

#[test]
fn gradients_that_are_infinite_themselves_are_given_as_they_are() {
    let network = without_penalties();
    let mut params = network.init_values(3);
    let at = params.len() - 1;
    params[at] = f32::INFINITY;
    let mut low = opened(&network, Precision::Fp16);
    let mut broken = network.init_values(3);
    broken[0] = f32::NAN;
    let found = gradients(&mut low, &network, &broken, 1.0);
    assert!(found.iter().any(|value| !value.is_finite()));
    assert!(low.scaling().repeats > 0);
    assert!(
        gradients(&mut low, &network, &network.init_values(3), 1.0)
            .iter()
            .all(|value| value.is_finite())
    );
}

/// Pools, sums, concatenations and separable convolutions.
#[test]
fn all_kinds_of_layers_compute_in_all_precisions() {
    for extractor in ["ssd_inception_v2", "ssd_mobilenet_v2"] {
        let mut config = small(&Hyperparams::mobilenet_v1(), &[3, 6, 6], (97, 97));
        config.extractor = extractor.to_owned();
        let network = Network::new(&config).unwrap();
        let params = network.init_values(3);
        let images: Vec<f32> = noise(2 * 97 * 97 * 3, 5)
            .into_iter()
            .map(|x| x * 127.5 + 127.5)
            .collect();
        let outputs = [Precision::Float32, Precision::Bf16, Precision::Fp16].map(|precision| {
            let settings = Settings {
                device: Device::TorchCpu,
                numerics: Numerics { precision, tf32: false },
                loss: None,
            };
            let mut torch = Accelerator::open(settings, &config, &network).unwrap().unwrap();
            let outputs = torch.forward(&params, &images, Mode::Train).unwrap();
            let mut gradients = vec![f32::NAN; params.len()];
            torch
                .backward(
                    &vec![1e-3; outputs.box_encodings.len()],
                    &vec![1e-3; outputs.class_logits.len()],
                    &mut gradients,
                )
                .unwrap();
            assert!(
                gradients.iter().all(|value| value.is_finite()),
                "{extractor} {precision}"
            );
            outputs.class_logits
        });
        for (low, tolerance) in [(&outputs[1], 0.6), (&outputs[2], 0.15)] {
            let error = apart(low, &outputs[0]);
            println!("{extractor}: predictions differ by {error:.1e}");
            assert!(error < tolerance && error > 0.0, "{extractor}: {error}");
        }
    }
}

#[test]
fn inference_is_float32_whatever_training_is() {
    let network = without_penalties();
    let params = network.init_values(3);
    let images = vec![90.0; 97 * 97 * 3];
    let mut all = [Precision::Float32, Precision::Bf16].map(|precision| opened(&network, precision));
    let [exact, low] = &mut all;
    let predicted = |torch: &mut Accelerator, mode| torch.forward(&params, &images, mode).unwrap();
    assert_eq!(predicted(exact, Mode::Eval), predicted(low, Mode::Eval));
    assert_ne!(predicted(exact, Mode::Train), predicted(low, Mode::Train));
}

#[test]
fn what_the_cpu_s_kernels_do_not_compute_in_is_refused() {
    let network = without_penalties();
    let config = small(&smooth(), &[3, 6], (97, 97));
    let refused = |device, precision, tf32| {
        let settings = Settings {
            device,
            numerics: Numerics { precision, tf32 },
            loss: None,
        };
        Accelerator::open(settings, &config, &network).unwrap_err().to_string()
    };
    let error = refused(Device::Cpu, Precision::Bf16, false);
    assert!(
        error.starts_with("precision bf16 is asked for, but this replica computes on the CPU")
            && error.contains("hint: leave it out"),
        "{error}"
    );
    assert!(refused(Device::Cpu, Precision::Auto, true).starts_with("tf32 is asked for"));
    let error = refused(Device::TorchCpu, Precision::Float32, true);
    assert!(
        error.contains("tf32") && error.contains("hint: leave coati.tf32"),
        "{error}"
    );
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let error = refused(Device::Auto, Precision::Fp16, false);
    assert!(
        error.contains("precision fp16") && error.contains("no GPU is in sight"),
        "{error}"
    );
}
