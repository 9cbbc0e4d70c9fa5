//! From raw predictions and groundtruth to losses and their gradients.

use coati_detection::Groundtruth;
use coati_detection::box_coder::FasterRcnn;
use coati_detection::config;
use coati_detection::hard_example_miner::{HardExampleMiner, LossType};
use coati_detection::losses::sigmoid;
use coati_detection::matcher::{ArgMax, Match, Thresholds};
use coati_detection::similarity::{Similarity, iou_matrix};
use coati_detection::ssd_loss::{Error, LossConfig, Predictions, loss};
use coati_detection::target_assigner::TargetAssigner;

use crate::golden::{Npz, close, fixture, model, rows};

fn numbers(matches: &[Match]) -> Vec<i64> {
    let number = |found: &Match| match found {
        Match::Row(row) => *row as i64,
        Match::Unmatched => -1,
        Match::Ignored => -2,
    };
    matches.iter().map(number).collect()
}

fn from_numbers(numbers: &[i64]) -> Vec<Match> {
    let found = |&number: &i64| match number {
        -1 => Match::Unmatched,
        -2 => Match::Ignored,
        row => Match::Row(row as usize),
    };
    numbers.iter().map(found).collect()
}

fn thresholds(matched: f32, unmatched: f32, negatives_lower_than_unmatched: bool, force: bool) -> ArgMax {
    let thresholds = Some(Thresholds {
        matched,
        unmatched,
        negatives_lower_than_unmatched,
    });
    ArgMax {
        thresholds,
        force_match_for_each_row: force,
    }
}

#[test]
fn overlaps() {
    let mut npz = Npz::component("similarity");
    let matrix = iou_matrix(&npz.rows("groundtruth"), &npz.rows("anchors"));
    close("iou", &matrix, &npz.floats("iou"), 1e-6, 1e-6);
}

#[test]
fn matches() {
    let cases = [
        ("stock", thresholds(0.5, 0.5, true, true)),
        ("no_force", thresholds(0.5, 0.5, true, false)),
        ("ignore_band", thresholds(0.5, 0.3, true, false)),
        ("ignore_band_force", thresholds(0.6, 0.2, true, true)),
        ("neg_between", thresholds(0.5, 0.1, false, true)),
        (
            "ignore_thresholds",
            ArgMax {
                thresholds: None,
                force_match_for_each_row: false,
            },
        ),
        ("frcnn_rpn", thresholds(0.7, 0.3, true, true)),
    ];
    let mut npz = Npz::component("matcher_argmax");
    let (plain, ties) = (npz.floats("similarity"), npz.floats("similarity_with_ties"));
    let valid: Vec<bool> = npz.array("valid_rows");
    assert_eq!(npz.names().len(), 3 + 4 * cases.len());
    for (name, matcher) in cases {
        let mut check = |case: String, similarity: &[f32], valid: &dyn Fn(usize) -> bool| {
            let found = matcher.match_columns(similarity, 60, valid);
            assert_eq!(numbers(&found), npz.ints(&case), "{case}");
        };
        check(name.to_owned(), &plain, &|_| true);
        check(format!("{name}__valid_rows"), &plain, &|row| valid[row]);
        check(format!("{name}__ties"), &ties, &|_| true);
        check(format!("{name}__no_gt"), &[], &|_| true);
    }
}

#[test]
fn targets() {
    let mut npz = Npz::component("target_assigner");
    let anchors = npz.rows("anchors");
    let assigner = TargetAssigner {
        matcher: thresholds(0.5, 0.5, true, true).into(),
        similarity: Similarity::Iou,
        coder: FasterRcnn::default().into(),
        negative_class_weight: 1.0,
        encode_background_as_zeros: false,
        add_background_class: true,
    };
    let (mut columns, mut class_weights, mut codes, mut box_weights, mut found) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..4 {
        let groundtruth = Groundtruth {
            source_id: String::new(),
            boxes: npz.rows(&format!("gt_boxes_{i}")),
            classes: npz.ints(&format!("gt_classes_{i}")),
            weights: npz.floats(&format!("gt_weights_{i}")),
        };
        groundtruth.check(3).unwrap();
        let targets = assigner.assign(&anchors, &groundtruth);
        for column in &targets.class_columns {
            columns.extend((0..4).map(|k| if Some(k) == *column { 1.0 } else { 0.0 }));
        }
        class_weights.extend(targets.class_weights.iter().flat_map(|&weight| [weight; 4]));
        codes.extend_from_slice(&targets.box_codes);
        box_weights.extend(targets.box_weights);
        found.extend(numbers(&targets.matches));
    }
    assert_eq!(found, npz.ints("match"));
    close("classes", &columns, &npz.floats("cls_targets"), 0.0, 0.0);
    close("class weights", &class_weights, &npz.floats("cls_weights"), 0.0, 0.0);
    close("codes", &codes, &npz.floats("reg_targets"), 1e-5, 1e-5);
    close("box weights", &box_weights, &npz.floats("reg_weights"), 0.0, 0.0);
}

#[test]
fn background_may_have_no_class() {
    let assigner = TargetAssigner {
        matcher: thresholds(0.5, 0.2, true, false).into(),
        similarity: Similarity::Iou,
        coder: FasterRcnn::default().into(),
        negative_class_weight: 0.25,
        encode_background_as_zeros: true,
        add_background_class: true,
    };
    let anchors = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.3, 1.0], [0.9, 0.0, 1.9, 1.0]];
    let groundtruth = Groundtruth {
        boxes: vec![[0.0, 0.0, 1.0, 1.0]],
        classes: vec![1],
        ..Groundtruth::default()
    };
    let targets = assigner.assign(&anchors, &groundtruth);
    assert_eq!(targets.class_columns, [Some(2), None, None]);
    assert_eq!(targets.class_weights, [1.0, 0.0, 0.25]);
    assert!(assigner.assign(&[], &groundtruth).matches.is_empty());
}

#[test]
fn losses_and_gradients_of_single_predictions() {
    let mut npz = Npz::component("losses");
    let (logits, targets, weights) = (npz.rows("logits"), npz.rows("cls_targets"), npz.rows("cls_weights"));
    let (expected, expected_gradient) = (npz.rows("weighted_sigmoid"), npz.rows("weighted_sigmoid__grad"));
    let mut checked = 0;
    for i in 0..logits.len() {
        // One class at a time, since the recorded targets are not one-hot and the weights differ.
        for k in 0..4 {
            let column = match targets[i][k] {
                0.0 => None,
                1.0 => Some(0),
                _ => continue,
            };
            let logit = [logits[i][k]];
            close(
                "value",
                &[sigmoid::loss(&logit, column, weights[i][k])],
                &[expected[i][k]],
                1e-5,
                1e-6,
            );
            let mut gradient = [0.0];
            sigmoid::gradient(&logit, column, weights[i][k], 1.0, &mut gradient);
            close("gradient", &gradient, &[expected_gradient[i][k]], 1e-5, 1e-7);
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

fn miner(loss_type: LossType, num: usize, iou_threshold: f32, ratio: Option<f32>, least: usize) -> HardExampleMiner {
    HardExampleMiner {
        num_hard_examples: Some(num),
        iou_threshold,
        loss_type,
        class_weight: 1.0,
        box_weight: 1.0,
        max_negatives_per_positive: ratio,
        min_negatives_per_image: least,
    }
}

#[test]
fn hard_examples() {
    use LossType::{Both, Classification, Localization};
    let cases = [
        ("ssd_stock_cls", miner(Classification, 3000, 0.99, Some(3.0), 0)),
        (
            "both",
            HardExampleMiner {
                class_weight: 0.05,
                box_weight: 0.06,
                ..miner(Both, 64, 0.7, Some(3.0), 0)
            },
        ),
        ("cls_min_neg3", miner(Classification, 3000, 0.99, Some(3.0), 3)),
        ("loc", miner(Localization, 30, 0.5, Some(1.5), 2)),
        (
            "no_ratio",
            HardExampleMiner {
                box_weight: 2.0,
                ..miner(Both, 20, 0.6, None, 0)
            },
        ),
    ];
    let mut npz = Npz::component("hard_example_miner");
    let (boxes, matches) = (npz.rows("decoded_boxes"), from_numbers(&npz.ints("match")));
    let (box_losses, class_losses) = (npz.floats("location_losses"), npz.floats("cls_losses"));
    for (name, miner) in cases {
        let (mut class_loss, mut box_loss) = (0.0, 0.0);
        for i in 0..3 {
            let of = i * 80..(i + 1) * 80;
            let (class_losses, box_losses) = (&class_losses[of.clone()], &box_losses[of.clone()]);
            let selected = miner.select(class_losses, box_losses, &boxes[of.clone()], &matches[of]);
            let as_numbers: Vec<i64> = selected.iter().map(|&index| index as i64).collect();
            assert_eq!(as_numbers, npz.ints(&format!("{name}__selected_{i}")), "{name} {i}");
            class_loss += selected.iter().map(|&index| class_losses[index]).sum::<f32>();
            box_loss += selected.iter().map(|&index| box_losses[index]).sum::<f32>();
        }
        close(
            name,
            &[class_loss],
            &npz.floats(&format!("{name}__cls_loss")),
            1e-5,
            0.0,
        );
        close(name, &[box_loss], &npz.floats(&format!("{name}__loc_loss")), 1e-5, 0.0);
    }
}

struct Step {
    codes: Vec<f32>,
    logits: Vec<f32>,
    groundtruth: Vec<Groundtruth>,
    anchors: Vec<[f32; 4]>,
    config: LossConfig,
}

fn step() -> Step {
    let mut npz = Npz::open(&fixture("train_step/step_outputs.npz"));
    let model = model("train_step/pipeline.config");
    Step {
        codes: npz.floats("box_encodings"),
        logits: npz.floats("class_predictions_with_background"),
        groundtruth: (0..4)
            .map(|i| Groundtruth {
                source_id: format!("{i}.jpg"),
                boxes: npz.rows(&format!("gt_boxes_{i}")),
                classes: npz.ints(&format!("gt_classes_{i}")),
                weights: Vec::new(),
            })
            .collect(),
        anchors: Npz::component("anchors").rows("ssd_stock"),
        config: config::loss(config::ssd(&model).unwrap()).unwrap(),
    }
}

impl Step {
    fn predictions(&self) -> Predictions<'_> {
        Predictions {
            box_encodings: &self.codes,
            class_logits: &self.logits,
            columns: 4,
            num_classes: 3,
        }
    }
}

#[test]
fn the_losses_of_a_training_step() {
    let step = step();
    let text = std::fs::read_to_string(fixture("train_step/losses.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
    let first = &recorded["losses_at_step"][0];
    let expected = |key: &str| first[key].as_f64().unwrap() as f32;
    let found = loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).unwrap();
    close(
        "classification",
        &[found.classification],
        &[expected("Loss/classification_loss")],
        1e-5,
        0.0,
    );
    close(
        "localization",
        &[found.localization],
        &[expected("Loss/localization_loss")],
        1e-5,
        0.0,
    );
    assert_eq!(found.normalizer, found.positives as f32);
    assert!(found.selected > found.positives && found.selected <= 4 * found.positives);
}

/// What mining selects is constant while a prediction moves a little, so differences of the loss are its gradient.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let mut step = step();
    step.config.normalize_loc_loss_by_codesize = true;
    step.config.localization_weight = 1.5;
    step.config.classification_weight = 0.5;
    let whole = |step: &Step| {
        let found = loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).unwrap();
        (f64::from(found.classification), f64::from(found.localization), found)
    };
    let (_, _, at) = whole(&step);
    let largest = |values: &[f32]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
        order.into_iter().step_by(40).take(6).collect::<Vec<_>>()
    };
    for i in largest(&at.d_box_encodings) {
        let start = step.codes[i];
        let slope = |step: &mut Step, by: f32| {
            step.codes[i] = start + by;
            whole(step).1
        };
        let slope = (slope(&mut step, 0.02) - slope(&mut step, -0.02)) / 0.04;
        step.codes[i] = start;
        close("boxes", &[slope as f32], &[at.d_box_encodings[i]], 0.02, 2e-5);
    }
    for i in largest(&at.d_class_logits) {
        let start = step.logits[i];
        let slope = |step: &mut Step, by: f32| {
            step.logits[i] = start + by;
            whole(step).0
        };
        let slope = (slope(&mut step, 0.02) - slope(&mut step, -0.02)) / 0.04;
        step.logits[i] = start;
        close("classes", &[slope as f32], &[at.d_class_logits[i]], 0.02, 2e-5);
    }
}

#[test]
fn normalisation_and_weights_scale_losses_and_gradients() {
    let step = step();
    let base = loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).unwrap();
    let config = LossConfig {
        normalize_loss_by_num_matches: false,
        normalize_loc_loss_by_codesize: true,
        localization_weight: 2.0,
        classification_weight: 0.5,
        ..step.config.clone()
    };
    let other = loss(&step.anchors, step.predictions(), &step.groundtruth, &config).unwrap();
    assert_eq!(other.normalizer, 1.0);
    close(
        "localization",
        &[other.localization],
        &[base.localization * base.normalizer * 0.5],
        1e-5,
        0.0,
    );
    close(
        "classification",
        &[other.classification],
        &[base.classification * base.normalizer * 0.5],
        1e-5,
        0.0,
    );
    let scaled: Vec<f32> = base.d_box_encodings.iter().map(|d| d * base.normalizer * 0.5).collect();
    close("gradient", &other.d_box_encodings, &scaled, 1e-5, 1e-7);
}

#[test]
fn without_groundtruth_mining_leaves_nothing() {
    let step = step();
    let empty = vec![Groundtruth::default(); 4];
    let found = loss(&step.anchors, step.predictions(), &empty, &step.config).unwrap();
    assert_eq!(
        (found.classification, found.localization, found.normalizer),
        (0.0, 0.0, 1.0)
    );
    assert!(
        found
            .d_class_logits
            .iter()
            .chain(&found.d_box_encodings)
            .all(|&d| d == 0.0)
    );

    let all = LossConfig {
        miner: None,
        ..step.config.clone()
    };
    let found = loss(&step.anchors, step.predictions(), &empty, &all).unwrap();
    assert!(found.classification > 100.0 && found.localization == 0.0);
    assert!(found.d_class_logits.iter().all(|&d| d != 0.0));
}

#[test]
fn what_is_not_finite_is_named_with_its_image() {
    let mut step = step();
    step.logits[2 * 1917 * 4 + 17] = f32::NAN;
    let error = loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotFinite {
                what: "classification loss",
                index: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("2.jpg"), "{error}");
    step.logits[2 * 1917 * 4 + 17] = 0.0;
    // Of an anchor that matches nothing, too.
    step.codes[3 * 1917 * 4] = f32::INFINITY;
    let error = loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotFinite {
                what: "localization loss",
                index: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn broken_boxes_and_sizes_do_not_panic() {
    let mut step = step();
    let nan = f32::NAN;
    step.groundtruth[0].boxes = vec![[0.5; 4], [nan; 4], [0.9, 0.9, 0.1, 0.1], [-5.0, 0.0, 7.0, 1.0]];
    step.groundtruth[0].classes = vec![0; 4];
    assert!(loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).is_ok());
    step.groundtruth[1].classes[0] = 3;
    let error = loss(&step.anchors, step.predictions(), &step.groundtruth, &step.config).unwrap_err();
    assert!(matches!(error, Error::Groundtruth(_)), "{error}");
    let short = Predictions {
        box_encodings: &step.codes[4..],
        ..step.predictions()
    };
    let error = loss(&step.anchors, short, &step.groundtruth, &step.config).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Length {
                what: "box_encodings",
                ..
            }
        ),
        "{error}"
    );
    let none = Predictions {
        box_encodings: &[],
        class_logits: &[],
        columns: 4,
        num_classes: 3,
    };
    let found = loss(&rows(&[]), none, &[Groundtruth::default()], &step.config).unwrap();
    assert_eq!(found.classification, 0.0);
}
