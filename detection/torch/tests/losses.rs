//! Losses on the device against those of the host, from the same predictions.

use coati_common::config::PipelineConfig;
use coati_detection::accelerator::loss::{BatchTargets, DeviceLoss, combine};
use coati_detection::accelerator::{Accelerator, Device, Settings};
use coati_detection::config;
use coati_detection::losses::focal::SigmoidFocal;
use coati_detection::losses::{Classification, Localization};
use coati_detection::model::{Options, Ssd};
use coati_detection::network::{Hyperparams, Network};
use coati_detection::ssd_loss::{LossConfig, Predictions, loss};
use coati_detection::{Corners, Groundtruth};

use super::{apart, noise, small};

/// As in the recorded step, but with other sizes and losses.
const MODEL: &str = r"model { ssd {
  num_classes: 3
  box_coder { faster_rcnn_box_coder { y_scale: 10.0 x_scale: 10.0 height_scale: 5.0 width_scale: 5.0 } }
  matcher { argmax_matcher { matched_threshold: 0.5 unmatched_threshold: 0.4 negatives_lower_than_unmatched: true
    force_match_for_each_row: true } }
  similarity_calculator { iou_similarity { } }
  anchor_generator { ssd_anchor_generator { num_layers: 2 min_scale: 0.2 max_scale: 0.95 aspect_ratios: 1.0 aspect_ratios: 2.0
    aspect_ratios: 0.5 } }
  image_resizer { fixed_shape_resizer { height: 129 width: 129 } }
  box_predictor { convolutional_box_predictor { use_dropout: false kernel_size: 1 conv_hyperparams {
    initializer { truncated_normal_initializer { } } regularizer { l2_regularizer { weight: 0.00004 } } } } }
  feature_extractor { type: 'ssd_mobilenet_v1' num_layers: 2 depth_multiplier: 0.25 min_depth: 8
    override_base_feature_extractor_hyperparams: true conv_hyperparams { activation: RELU_6
    initializer { truncated_normal_initializer { } } regularizer { l2_regularizer { weight: 0.00004 } }
    batch_norm { train: true scale: true center: true decay: 0.97 epsilon: 0.001 } } }
  loss { classification_loss { CLASSES } localization_loss { weighted_smooth_l1 { } } MINER
    classification_weight: 1.0 localization_weight: 1.0 }
  normalize_loss_by_num_matches: true
  post_processing { batch_non_max_suppression { score_threshold: 1e-8 iou_threshold: 0.6 max_detections_per_class: 100
    max_total_detections: 100 } score_converter: SIGMOID }
} }
train_config { batch_size: 2 num_steps: 1 optimizer { momentum_optimizer { } } }
";

fn pipeline(classes: &str, miner: &str) -> PipelineConfig {
    let text = MODEL.replace("CLASSES", classes).replace("MINER", miner);
    PipelineConfig::parse(&text, "pipeline.config").unwrap()
}

pub(super) fn ssd(classes: &str, miner: &str, device: Device) -> Ssd {
    let options = Options {
        threads: Some(2),
        device,
        ..Options::default()
    };
    Ssd::new(pipeline(classes, miner).model().unwrap(), &options).unwrap()
}

fn loss_config() -> LossConfig {
    let pipeline = pipeline("weighted_sigmoid { }", "");
    config::loss(config::ssd(pipeline.model().unwrap()).unwrap()).unwrap()
}

pub(super) fn groundtruth() -> Vec<Groundtruth> {
    let image = |boxes: &[Corners], classes: &[i64], weights: &[f32]| Groundtruth {
        source_id: "one".to_owned(),
        boxes: boxes.to_vec(),
        classes: classes.to_vec(),
        weights: weights.to_vec(),
    };
    vec![
        image(
            &[[0.1, 0.1, 0.5, 0.4], [0.3, 0.5, 0.9, 0.95], [0.0, 0.0, 1.0, 1.0]],
            &[0, 2, 1],
            &[1.0, 0.5, 2.0],
        ),
        image(&[], &[], &[]),
    ]
}

#[test]
fn the_device_s_losses_and_gradients_are_the_host_s() {
    let anchors = ssd("weighted_sigmoid { }", "", Device::Cpu).anchors().to_vec();
    let network_config = small(&Hyperparams::mobilenet_v1(), &[3, 4], (129, 129));
    let network = Network::new(&network_config).unwrap();
    assert_eq!(anchors.len(), network.anchors());
    let mut params = network.init_values(4);
    for (p, x) in params.iter_mut().zip(noise(network.elements(), 9)) {
        *p += 0.2 * p.abs().max(0.2) * x;
    }
    let images: Vec<f32> = noise(2 * 129 * 129 * 3, 5)
        .into_iter()
        .map(|x| x * 127.5 + 127.5)
        .collect();
    let focal = |gamma, alpha| Classification::SigmoidFocal(SigmoidFocal { gamma, alpha });
    let smooth = Localization::SmoothL1 { delta: 1.0 };
    for (classification, localization) in [
        (Classification::Sigmoid, smooth),
        (focal(2.0, Some(0.25)), Localization::SmoothL1 { delta: 0.2 }),
        (focal(1.5, None), Localization::L2),
        (focal(0.0, Some(0.25)), Localization::L1),
        (Classification::Softmax { scale: 2.0 }, smooth),
    ] {
        for variant in 0..3 {
            let mut config = LossConfig {
                classification,
                localization,
                ..loss_config()
            };
            if variant == 1 {
                config.normalize_loc_loss_by_codesize = true;
                (config.classification_weight, config.localization_weight) = (0.5, 3.0);
                config.assigner.negative_class_weight = 0.7;
            }
            if variant == 2 {
                config.normalize_loss_by_num_matches = false;
                config.assigner.encode_background_as_zeros = !config.assigner.encode_background_as_zeros;
            }
            let what = format!("{classification:?} {localization:?} {variant}");
            let settings = Settings {
                device: Device::TorchCpu,
                loss: DeviceLoss::of(&config),
                ..Settings::default()
            };
            let mut torch = Accelerator::open(settings, &network_config, &network).unwrap().unwrap();
            assert!(torch.computes_losses(), "{what}");

            torch.start(&params, &images).unwrap();
            let outputs = torch.predictions().unwrap();
            let predictions = Predictions {
                box_encodings: &outputs.box_encodings,
                class_logits: &outputs.class_logits,
                columns: 4,
                num_classes: 3,
            };
            let expected = loss(&anchors, predictions, &groundtruth(), &config).unwrap();
            assert!(expected.positives > 3, "{what}");
            let mut by_host = vec![f32::NAN; params.len()];
            torch
                .backward(&expected.d_box_encodings, &expected.d_class_logits, &mut by_host)
                .unwrap();

            torch.start(&params, &images).unwrap();
            let targets = BatchTargets::assign(&anchors, &groundtruth(), 3, &config).unwrap();
            torch.train(&targets, &mut |_| {}).unwrap();
            let mut by_device = vec![f32::NAN; params.len()];
            let sums = torch.collect(&mut by_device).unwrap();
            let (classes, boxes) = combine(&sums, &targets).unwrap();
            for (found, expected) in [(classes, expected.classification), (boxes, expected.localization)] {
                assert!(
                    (found - expected).abs() <= 2e-5 * expected.abs(),
                    "{what}: {found}, {expected}"
                );
            }
            let error = apart(&by_device, &by_host);
            assert!(error < 1e-4, "{what}: gradients differ by {error}");
        }
    }
}

#[test]
fn losses_that_choose_by_predictions_stay_on_the_host() {
    let known = |change: &dyn Fn(&mut LossConfig)| {
        let mut config = loss_config();
        change(&mut config);
        DeviceLoss::of(&config).is_some()
    };
    assert!(known(&|_| {}));
    assert!(!known(&|config| config.localization = Localization::Giou));
    // Its slope has no bound where nothing is wrong.
    let steep = Classification::SigmoidFocal(SigmoidFocal {
        gamma: 0.5,
        alpha: None,
    });
    assert!(!known(&|config| config.classification = steep));
    let mined = pipeline("weighted_sigmoid { }", "hard_example_miner { num_hard_examples: 10 }");
    let mined = config::loss(config::ssd(mined.model().unwrap()).unwrap()).unwrap();
    assert_eq!(DeviceLoss::of(&mined), None);
}

#[test]
fn a_whole_step_is_that_of_the_cpu_s_kernels_with_and_without_mining() {
    for (classes, miner) in [
        ("weighted_sigmoid_focal { gamma: 2.0 alpha: 0.25 }", ""),
        (
            "weighted_sigmoid { }",
            "hard_example_miner { num_hard_examples: 50 max_negatives_per_positive: 3 }",
        ),
    ] {
        let [mut torch, mut cpu] = [Device::TorchCpu, Device::Cpu].map(|device| ssd(classes, miner, device));
        let params = cpu.init_values(3);
        let images: Vec<f32> = noise(2 * 129 * 129 * 3, 5)
            .into_iter()
            .map(|x| x * 127.5 + 127.5)
            .collect();
        let mut gradients = [vec![f32::NAN; params.len()], vec![f32::NAN; params.len()]];
        let [of_torch, of_cpu] = &mut gradients;
        let mut told = Vec::new();
        let found = torch
            .train_step_with(&params, &images, &groundtruth(), of_torch, &mut |elements, _| {
                told.push((elements.start, elements.end));
            })
            .unwrap();
        assert_eq!(
            told,
            [(0, params.len())],
            "an accelerator completes all gradients at once"
        );
        let expected = cpu.train_step(&params, &images, &groundtruth(), of_cpu).unwrap();
        for (found, expected) in [
            (found.classification, expected.classification),
            (found.localization, expected.localization),
            (found.regularization, expected.regularization),
            (found.total, expected.total),
        ] {
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs(),
                "{miner:?}: {found}, {expected}"
            );
        }
        let error = apart(of_torch, of_cpu);
        assert!(error < 0.02, "{miner:?}: gradients differ by {error}");
    }
}

#[test]
fn a_loss_that_is_not_finite_names_its_image() {
    let mut torch = ssd("weighted_sigmoid_focal { gamma: 2.0 }", "", Device::TorchCpu);
    let params = torch.init_values(3);
    let mut images = vec![100.0; 2 * 129 * 129 * 3];
    let mut gradients = vec![0.0; params.len()];
    let mut broken = params.clone();
    let at = params.len() - 1;
    broken[at] = f32::NAN;
    let error = torch
        .train_step(&broken, &images, &groundtruth(), &mut gradients)
        .unwrap_err();
    assert!(error.is_not_finite(), "{error}");
    assert!(
        error.to_string().contains("the first variable that is not finite is"),
        "{error}"
    );
    // The session goes on.
    assert!(
        torch
            .train_step(&params, &images, &groundtruth(), &mut gradients)
            .is_ok()
    );
    images[0] = f32::NAN;
    let error = torch
        .train_step(&params, &images, &groundtruth(), &mut gradients)
        .unwrap_err();
    assert!(error.to_string().contains("\"one\""), "{error}");
    let wrong = vec![Groundtruth {
        classes: vec![7; 3],
        ..groundtruth().remove(0)
    }];
    let error = torch
        .train_step(&params, &images[..129 * 129 * 3], &wrong, &mut gradients)
        .unwrap_err();
    assert!(error.to_string().contains('7'), "{error}");
}
