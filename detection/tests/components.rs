//! Every coder, similarity, loss and kind of suppression against the reference's numbers, and all of them through a configuration.

use coati_common::config::PipelineConfig;
use coati_detection::Groundtruth;
use coati_detection::box_coder::{BoxCoder, FasterRcnn, Keypoint, MeanStddev, Square};
use coati_detection::config;
use coati_detection::losses::bootstrapped::Bootstrapped;
use coati_detection::losses::focal::SigmoidFocal;
use coati_detection::losses::{Classification, Localization, Row};
use coati_detection::matcher::Matcher;
use coati_detection::model::{Options, Ssd};
use coati_detection::network::Mode;
use coati_detection::postprocess::{Calibration, Candidates, MulticlassNms, Scope};
use coati_detection::similarity::Similarity;
use coati_detection::squash::Squash;
use coati_detection::ssd_loss::{Predictions, loss};
use coati_proto::object_detection::protos as pb;

use crate::golden::{Npz, close, fixture};

#[test]
fn box_codes_of_every_coder() {
    let mut npz = Npz::component("box_coders");
    let (anchors, boxes) = (npz.rows("anchors"), npz.rows("boxes"));
    let codes = npz.rows("rel_codes");
    let three: Vec<f32> = codes.iter().flat_map(|code| [code[0], code[1], code[2]]).collect();
    let coders = [
        (
            "faster_rcnn",
            BoxCoder::from(FasterRcnn::default()),
            codes.as_flattened(),
        ),
        (
            "mean_stddev",
            BoxCoder::MeanStddev(MeanStddev { stddev: 0.01 }),
            codes.as_flattened(),
        ),
        ("square", BoxCoder::Square(Square::default()), &three),
    ];
    for (name, coder, codes) in coders {
        let mut encoded = vec![0.0; coder.code_size() * boxes.len()];
        for ((code, &corners), &anchor) in encoded.chunks_exact_mut(coder.code_size()).zip(&boxes).zip(&anchors) {
            coder.encode(corners, anchor, code);
        }
        close(name, &encoded, &npz.floats(&format!("{name}_encoded")), 1e-4, 1e-4);
        let decoded = coder.decode_all(codes, &anchors);
        close(
            name,
            decoded.as_flattened(),
            &npz.floats(&format!("{name}_decoded")),
            1e-5,
            1e-6,
        );
    }
}

#[test]
fn box_codes_with_keypoints() {
    let mut npz = Npz::component("box_coders");
    let (anchors, boxes) = (npz.rows("anchors"), npz.rows("boxes"));
    let keypoints = npz.floats("keypoints");
    let (points, _) = keypoints.as_chunks::<2>();
    let coder = Keypoint::new(3, FasterRcnn::default());
    let encoded: Vec<f32> = (0..boxes.len())
        .flat_map(|i| coder.encode(boxes[i], &points[3 * i..3 * i + 3], anchors[i]))
        .collect();
    close("encoded", &encoded, &npz.floats("keypoint_encoded"), 1e-4, 1e-4);
    let codes = npz.floats("keypoint_rel_codes");
    let any = BoxCoder::Keypoint(coder);
    assert_eq!(any.code_size(), 10);
    let corners = any.decode_all(&codes, &anchors);
    close(
        "boxes",
        corners.as_flattened(),
        &npz.floats("keypoint_decoded_boxes"),
        1e-5,
        1e-6,
    );
    let found: Vec<[f32; 2]> = codes
        .chunks_exact(10)
        .zip(&anchors)
        .flat_map(|(code, &anchor)| coder.decode_keypoints(code, anchor))
        .collect();
    close(
        "keypoints",
        found.as_flattened(),
        &npz.floats("keypoint_decoded_keypoints"),
        1e-5,
        1e-6,
    );
}

#[test]
fn similarities() {
    let mut npz = Npz::component("similarity");
    let (rows, anchors) = (npz.rows("groundtruth"), npz.rows("anchors"));
    for (name, similarity) in [
        ("iou", Similarity::Iou),
        ("ioa", Similarity::Ioa),
        ("neg_sq_dist", Similarity::NegSqDist),
    ] {
        let found = similarity.matrix(&rows, &anchors, |_| 1.0);
        close(name, &found, &npz.floats(name), 1e-6, 1e-6);
    }
    let iou = npz.floats("iou");
    let score = |row: usize| if row == 2 { 0.0 } else { 1.0 };
    let found = Similarity::ThresholdedIou { threshold: 0.2 }.matrix(&rows, &anchors, score);
    let expected: Vec<f32> = (0..iou.len())
        .map(|i| if iou[i] > 0.2 { score(i / anchors.len()) } else { 0.0 })
        .collect();
    assert_eq!(found, expected);
    assert!(found.contains(&1.0));
}

#[test]
fn class_losses_and_their_gradients() {
    let mut npz = Npz::component("losses");
    let (logits, targets, weights) = (
        npz.floats("logits"),
        npz.floats("cls_targets"),
        npz.floats("cls_weights"),
    );
    let focal = |alpha| Classification::SigmoidFocal(SigmoidFocal { gamma: 2.0, alpha });
    let bootstrapped = |hard| Classification::Bootstrapped(Bootstrapped { alpha: 0.85, hard });
    let cases = [
        ("weighted_sigmoid", Classification::Sigmoid, 4),
        ("sigmoid_focal", focal(Some(0.25)), 4),
        ("sigmoid_focal_noalpha", focal(None), 4),
        ("bootstrapped_sigmoid_soft", bootstrapped(false), 4),
        ("bootstrapped_sigmoid_hard", bootstrapped(true), 4),
        ("weighted_softmax", Classification::Softmax { scale: 1.0 }, 1),
        (
            "weighted_softmax_against_logits",
            Classification::SoftmaxAgainstLogits { scale: 1.0 },
            1,
        ),
    ];
    for (name, loss, width) in cases {
        let (expected, slopes) = (npz.floats(name), npz.floats(&format!("{name}__grad")));
        for i in 0..60 {
            let of = i * 4..i * 4 + 4;
            let (targets, weights) = (&targets[of.clone()], &weights[of.clone()]);
            let row = Row {
                logits: &logits[of.clone()],
                target: |k: usize| targets[k],
                weight: |k: usize| weights[k],
            };
            let sum: f32 = expected[i * width..(i + 1) * width].iter().sum();
            close(name, &[loss.loss(&row)], &[sum], 1e-5, 2e-6);
            let mut gradient = [0.0; 4];
            loss.gradient(&row, 1.0, &mut gradient);
            close(&format!("{name} gradient"), &gradient, &slopes[of], 2e-5, 1e-6);
        }
    }
}

#[test]
fn box_losses_and_their_gradients() {
    let mut npz = Npz::component("losses");
    let weights = npz.floats("box_weights");
    let cases = [
        ("weighted_smooth_l1", Localization::SmoothL1 { delta: 1.0 }, "box"),
        ("weighted_l2", Localization::L2, "box"),
        ("weighted_iou", Localization::Iou, "boxes"),
        ("weighted_giou", Localization::Giou, "boxes"),
    ];
    for (name, loss, of) in cases {
        let (codes, targets) = (npz.rows(&format!("{of}_pred")), npz.rows(&format!("{of}_target")));
        let (expected, slopes) = (npz.floats(name), npz.floats(&format!("{name}__grad")));
        for i in 0..60 {
            close(
                name,
                &[loss.loss(&codes[i], &targets[i], weights[i])],
                &[expected[i]],
                1e-5,
                1e-6,
            );
            let mut gradient = [0.0; 4];
            loss.gradient(&codes[i], &targets[i], weights[i], 1.0, &mut gradient);
            close(
                &format!("{name} gradient"),
                &gradient,
                &slopes[i * 4..i * 4 + 4],
                1e-4,
                1e-5,
            );
        }
    }
}

#[test]
fn soft_class_agnostic_and_combined_suppression() {
    let mut npz = Npz::component("nms");
    let stock = MulticlassNms {
        score_threshold: 1e-8,
        iou_threshold: 0.6,
        max_detections_per_class: 20,
        max_total_detections: 30,
        change_coordinate_frame: false,
        ..MulticlassNms::default()
    };
    let soft = MulticlassNms {
        soft_nms_sigma: 0.5,
        ..stock
    };
    let agnostic = MulticlassNms {
        scope: Scope::All,
        max_detections_per_class: 100,
        max_total_detections: 25,
        ..stock
    };
    let combined = MulticlassNms {
        scope: Scope::Combined,
        ..stock
    };
    let unit = Some([0.0, 0.0, 1.0, 1.0]);
    let (boxes, scores) = (npz.rows("boxes"), npz.floats("scores"));
    for (name, nms, window) in [
        ("soft_nms", soft, unit),
        ("class_agnostic", agnostic, unit),
        ("combined", combined, None),
    ] {
        let counts = npz.ints(&format!("{name}__num"));
        let most = nms.max_total_detections;
        for image in 0..2 {
            let of = image * 150..(image + 1) * 150;
            let candidates = Candidates {
                boxes: &boxes[of.clone()],
                boxes_per_anchor: 1,
                scores: &scores[of.start * 3..of.end * 3],
                classes: 3,
            };
            let found = nms.run(candidates, window);
            let count = counts[image] as usize;
            assert_eq!(found.len(), count, "{name} {image}");
            let mut expected = |part: &str, width: usize| {
                let all = npz.floats(&format!("{name}__{part}"));
                all[image * most * width..(image * most + count) * width].to_vec()
            };
            let mut classes: Vec<f32> = found.classes.iter().map(|&class| class as f32).collect();
            let mut theirs = expected("classes", 1);
            close(name, &found.scores, &expected("scores", 1), 0.0, 1e-6);
            // TensorFlow's combined suppression leaves the order of equal scores to its sort.
            for equal in (1..count).filter(|&at| found.scores[at] == found.scores[at - 1]) {
                let of = equal - 1
                    ..=equal + usize::from(equal + 1 < count && found.scores[equal + 1] == found.scores[equal]);
                classes[of.clone()].sort_by(f32::total_cmp);
                theirs[of].sort_by(f32::total_cmp);
            }
            close(name, &classes, &theirs, 0.0, 0.0);
            close(name, found.boxes.as_flattened(), &expected("boxes", 4), 0.0, 1e-6);
        }
    }
}

/// The stock model with pieces of its text replaced.
fn with(changes: &[(&str, &str)]) -> pb::DetectionModel {
    let mut text = std::fs::read_to_string(fixture("ssd_bccd/pipeline.config")).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    PipelineConfig::parse(&text, "test").unwrap().proto.model.unwrap()
}

fn ssd(changes: &[(&str, &str)]) -> pb::Ssd {
    config::ssd(&with(changes)).unwrap().clone()
}

#[test]
fn a_configuration_chooses_among_all_of_them() {
    let loss_of = |from: &str, to: &str| {
        let mut ssd = ssd(&[(from, to)]);
        ssd.loss.as_mut().unwrap().hard_example_miner = None;
        config::loss(&ssd).unwrap()
    };
    let class = "weighted_sigmoid { }";
    for (text, expected) in [
        (
            "weighted_softmax { logit_scale: 2 }",
            Classification::Softmax { scale: 2.0 },
        ),
        (
            "weighted_logits_softmax { }",
            Classification::SoftmaxAgainstLogits { scale: 1.0 },
        ),
        (
            "weighted_sigmoid_focal { }",
            Classification::SigmoidFocal(SigmoidFocal {
                gamma: 2.0,
                alpha: None,
            }),
        ),
        (
            "bootstrapped_sigmoid { alpha: 0.9 hard_bootstrap: true }",
            Classification::Bootstrapped(Bootstrapped { alpha: 0.9, hard: true }),
        ),
    ] {
        assert_eq!(loss_of(class, text).classification, expected);
    }
    let dice = loss_of(
        class,
        "weighted_dice_classification_loss { squared_normalization: true }",
    );
    assert!(matches!(dice.classification, Classification::Dice(dice) if dice.squared_normalization));
    for (text, expected) in [
        ("weighted_l2 { }", Localization::L2),
        ("l1_localization_loss { }", Localization::L1),
        ("weighted_iou { }", Localization::Iou),
        ("weighted_giou { }", Localization::Giou),
    ] {
        assert_eq!(loss_of("weighted_smooth_l1 { }", text).localization, expected);
    }
    let iou = "iou_similarity { }";
    assert_eq!(loss_of(iou, "ioa_similarity { }").assigner.similarity, Similarity::Ioa);
    assert_eq!(
        loss_of(iou, "neg_sq_dist_similarity { }").assigner.similarity,
        Similarity::NegSqDist
    );
    let thresholded = loss_of(iou, "thresholded_iou_similarity { iou_threshold: 0.25 }");
    assert_eq!(
        thresholded.assigner.similarity,
        Similarity::ThresholdedIou { threshold: 0.25 }
    );
    let sampler = loss_of(
        "localization_loss {",
        "random_example_sampler { positive_sample_fraction: 0.25 } localization_loss {",
    );
    assert_eq!(sampler.sampler.unwrap().positive_fraction, 0.25);
    let mut bipartite = ssd(&[]);
    bipartite.matcher = Some(pb::Matcher {
        matcher_oneof: Some(pb::matcher::MatcherOneof::BipartiteMatcher(
            pb::BipartiteMatcher::default(),
        )),
    });
    assert_eq!(config::loss(&bipartite).unwrap().assigner.matcher, Matcher::Bipartite);
}

#[test]
fn predictors_may_have_a_sigmoid_of_their_own() {
    assert_eq!(config::squash(&ssd(&[])), Squash::Never);
    let set = ("apply_sigmoid_to_scores: false", "apply_sigmoid_to_scores: true");
    assert_eq!(config::squash(&ssd(&[set])), Squash::Always);
    let mut shared = ssd(&[]);
    shared.box_predictor = Some(pb::BoxPredictor {
        box_predictor_oneof: Some(
            pb::box_predictor::BoxPredictorOneof::WeightSharedConvolutionalBoxPredictor(
                pb::WeightSharedConvolutionalBoxPredictor {
                    score_converter: Some(
                        pb::weight_shared_convolutional_box_predictor::ScoreConverter::Sigmoid.into(),
                    ),
                    ..Default::default()
                },
            ),
        ),
    });
    assert_eq!(config::squash(&shared), Squash::Inference);

    // What a detector predicts, and its score after the sigmoid of post-processing.
    let options = || Options {
        threads: Some(1),
        ..Options::default()
    };
    let mut plain = Ssd::new(&with(&[]), &options()).unwrap();
    let mut squashed = Ssd::new(&with(&[set]), &options()).unwrap();
    let params = plain.init_values(3);
    let (height, width) = plain.input_size();
    let images: Vec<f32> = (0..height * width * 3).map(|i| (i * 37 % 256) as f32).collect();
    for mode in [Mode::Train, Mode::Eval] {
        let logits = plain.predict(&params, &images, mode).unwrap().class_logits;
        let found = squashed.predict(&params, &images, mode).unwrap().class_logits;
        for (found, logit) in found.iter().zip(&logits) {
            assert!((found - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6);
        }
    }
}

#[test]
fn suppression_and_calibration_come_from_the_configuration() {
    let total = "max_total_detections: 100";
    let post = |text: &str| config::post_processor(&ssd(&[(total, &format!("{total} {text}"))]));
    assert_eq!(post("soft_nms_sigma: 0.5").unwrap().nms.soft_nms_sigma, 0.5);
    assert_eq!(post("use_class_agnostic_nms: true").unwrap().nms.scope, Scope::All);
    let combined = post("use_combined_nms: true change_coordinate_frame: false").unwrap();
    assert_eq!(combined.nms.scope, Scope::Combined);
    for (text, named) in [
        ("use_combined_nms: true", "change_coordinate_frame: false"),
        (
            "use_combined_nms: true use_class_agnostic_nms: true",
            "use_class_agnostic_nms",
        ),
        (
            "use_class_agnostic_nms: true max_classes_per_detection: 2",
            "max_classes_per_detection",
        ),
        ("soft_nms_sigma: -1", "soft_nms_sigma"),
        ("soft_nms_sigma: 1 use_hard_nms: true", "use_hard_nms"),
    ] {
        let error = post(text).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
    let converter = "score_converter: SIGMOID";
    let post = |text: &str| {
        config::post_processor(&ssd(&[(
            converter,
            &format!("{converter} calibration_config {{ {text} }}"),
        )]))
    };
    let temperature = post("temperature_scaling_calibration { scaler: 2 }").unwrap();
    assert_eq!(temperature.calibration, Calibration::Temperature(2.0));
    let points = "x_y_pair { x: 0 y: 0 } x_y_pair { x: 1 y: 0.5 }";
    let curve = post(&format!("function_approximation {{ x_y_pairs {{ {points} }} }}")).unwrap();
    assert!(matches!(curve.calibration, Calibration::Curve(_)));
    let text =
        format!("class_id_function_approximations {{ class_id_xy_pairs_map {{ key: 2 value {{ {points} }} }} }}");
    assert!(matches!(post(&text).unwrap().calibration, Calibration::Curves(curves) if curves.contains_key(&2)));
    assert!(
        post("sigmoid_calibration { }")
            .unwrap_err()
            .to_string()
            .contains("does not build it either")
    );
    assert!(post("").is_err());
}

/// Every loss trains: the gradient of the whole detector's loss is the slope of its value.
#[test]
fn the_gradient_of_a_batch_is_its_slope_with_every_loss() {
    let anchors = [[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.8, 0.7], [0.5, 0.5, 1.0, 1.0]];
    let groundtruth = [Groundtruth {
        boxes: vec![[0.1, 0.1, 0.6, 0.55], [0.6, 0.5, 0.95, 1.0]],
        classes: vec![2, 0],
        weights: vec![1.0, 0.5],
        ..Groundtruth::default()
    }];
    // Some losses take codes for corners: the lower ones come first.
    let code = |i: usize| {
        if i % 4 < 2 {
            0.13 + 0.051 * i as f32
        } else {
            0.9 + 0.07 * i as f32
        }
    };
    let codes: Vec<f32> = (0..12).map(code).collect();
    let class = "weighted_sigmoid { }";
    let corners = "weighted_smooth_l1 { }";
    for (from, to, background) in [
        (class, "weighted_softmax { }", true),
        (class, "weighted_logits_softmax { logit_scale: 2 }", true),
        (class, "weighted_sigmoid_focal { gamma: 2 alpha: 0.25 }", true),
        (class, "bootstrapped_sigmoid { alpha: 0.8 }", true),
        (class, "penalty_reduced_logistic_focal_loss { alpha: 2 beta: 4 }", true),
        (class, "weighted_dice_classification_loss { }", true),
        (class, "weighted_sigmoid { }", false),
        (corners, "weighted_l2 { }", true),
        (corners, "l1_localization_loss { }", true),
        (corners, "weighted_iou { }", true),
        (corners, "weighted_giou { }", true),
    ] {
        let mut ssd = ssd(&[(from, to)]);
        ssd.loss.as_mut().unwrap().hard_example_miner = None;
        ssd.add_background_class = Some(background);
        let columns = 3 + usize::from(background);
        let logits: Vec<f32> = (0..3 * columns).map(|i| ((i * 5) % 7) as f32 / 2.0 - 1.3).collect();
        let config = config::loss(&ssd).unwrap();
        let of = |codes: &[f32], logits: &[f32]| {
            let predictions = Predictions {
                box_encodings: codes,
                class_logits: logits,
                columns,
                num_classes: 3,
            };
            loss(&anchors, predictions, &groundtruth, &config).unwrap()
        };
        let value = |codes: &[f32], logits: &[f32]| {
            let found = of(codes, logits);
            f64::from(found.classification) + f64::from(found.localization)
        };
        let found = of(&codes, &logits);
        // The overlap of codes taken for corners may be negative, as in the reference.
        assert!(
            found.classification > 0.0 && found.localization != 0.0,
            "{to}: {found:?}"
        );
        for i in 0..logits.len() {
            let (mut up, mut down) = (logits.clone(), logits.clone());
            up[i] += 1e-2;
            down[i] -= 1e-2;
            let slope = (value(&codes, &up) - value(&codes, &down)) / 2e-2;
            assert!(
                (slope - f64::from(found.d_class_logits[i])).abs() < 3e-3,
                "{to}, logit {i}: {slope}"
            );
        }
        for i in 0..codes.len() {
            let (mut up, mut down) = (codes.clone(), codes.clone());
            up[i] += 1e-3;
            down[i] -= 1e-3;
            let slope = (value(&up, &logits) - value(&down, &logits)) / 2e-3;
            let analytic = f64::from(found.d_box_encodings[i]);
            assert!(
                (slope - analytic).abs() < 2e-2 * (1.0 + analytic.abs()),
                "{to}, code {i}: {slope}, {analytic}"
            );
        }
    }
}

/// All positives train, and of the negatives those that are drawn.
#[test]
fn drawn_examples_alone_train() {
    let sampler = "random_example_sampler { positive_sample_fraction: 0.5 } localization_loss {";
    let mut ssd = ssd(&[("localization_loss {", sampler)]);
    ssd.loss.as_mut().unwrap().hard_example_miner = None;
    let config = config::loss(&ssd).unwrap();
    let anchors: Vec<[f32; 4]> = (0..50)
        .map(|i| [0.0, i as f32 / 50.0, 0.5, i as f32 / 50.0 + 0.02])
        .collect();
    let groundtruth = [Groundtruth {
        boxes: vec![anchors[7], anchors[21]],
        classes: vec![0, 1],
        ..Groundtruth::default()
    }];
    let logits: Vec<f32> = (0..200).map(|i| i as f32 / 100.0).collect();
    let predictions = Predictions {
        box_encodings: &[0.1; 200],
        class_logits: &logits,
        columns: 4,
        num_classes: 3,
    };
    let found = loss(&anchors, predictions, &groundtruth, &config).unwrap();
    let trained: Vec<usize> = (0..50)
        .filter(|anchor| {
            found.d_class_logits[anchor * 4..anchor * 4 + 4]
                .iter()
                .any(|&slope| slope != 0.0)
        })
        .collect();
    assert_eq!(trained.len(), 4, "{trained:?}");
    assert!(trained.contains(&7) && trained.contains(&21), "{trained:?}");
}

#[test]
fn a_detector_without_a_background_has_one_column_a_class() {
    let model = with(&[("num_classes: 3", "num_classes: 3 add_background_class: false")]);
    let options = Options {
        threads: Some(1),
        ..Options::default()
    };
    let ssd = Ssd::new(&model, &options).unwrap();
    let biases = ssd
        .variables()
        .iter()
        .find(|spec| spec.name == "BoxPredictor_0/ClassPredictor/biases");
    assert_eq!(biases.unwrap().shape, [9]);
}
