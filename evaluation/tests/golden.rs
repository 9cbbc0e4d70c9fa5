//! Figures of the reference's evaluators for one set of made-up images with difficult, group-of and crowd boxes and verified labels.

use coati_evaluation::detection::{Detection, Protocol};
use coati_evaluation::{Category, Detections, Evaluation, Evaluator as _, Groundtruth, Metric, Options, Sample};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = format!(
        "{}/../tests/fixtures/golden/components/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(image: &Value, key: &str) -> Vec<T> {
    serde_json::from_value(image[key].clone()).unwrap_or_else(|error| panic!("{key}: {error}"))
}

pub(crate) fn categories() -> Vec<Category> {
    let input = golden("metrics_input.json");
    let category = |category: &Value| Category {
        id: category["id"].as_u64().unwrap() as u32,
        name: category["name"].as_str().unwrap().to_owned(),
    };
    input["categories"].as_array().unwrap().iter().map(category).collect()
}

pub(crate) fn samples() -> Vec<Sample> {
    let input = golden("metrics_input.json");
    let sample = |image: &Value| Sample {
        image: image["image_id"].as_str().unwrap().to_owned(),
        size: Some([image["height"].as_f64().unwrap(), image["width"].as_f64().unwrap()]),
        groundtruth: Groundtruth {
            boxes: list(image, "groundtruth_boxes"),
            classes: list(image, "groundtruth_classes"),
            difficult: list(image, "groundtruth_difficult"),
            group_of: list(image, "groundtruth_group_of"),
            is_crowd: list(image, "groundtruth_is_crowd"),
            image_classes: Some(list(image, "groundtruth_image_classes")),
            ..Groundtruth::default()
        },
        detections: Detections {
            boxes: list(image, "detection_boxes"),
            scores: list(image, "detection_scores"),
            classes: list(image, "detection_classes"),
            ..Detections::default()
        },
    };
    input["images"].as_array().unwrap().iter().map(sample).collect()
}

/// Every figure of a case, and no other.
fn same(case: &str, metrics: &[Metric]) {
    let expected = golden("metrics_expected.json");
    let expected = expected[case]["metrics"].as_object().unwrap();
    for (name, value) in metrics {
        let wanted = expected
            .get(name)
            .unwrap_or_else(|| panic!("{case}: the reference has no {name}"));
        match wanted.as_f64() {
            Some(wanted) => assert!(
                (value - wanted).abs() < 1e-6,
                "{case}: {name}: {value}, reference {wanted}"
            ),
            None => assert!(value.is_nan(), "{case}: {name}: {value}, reference NaN"),
        }
    }
    assert_eq!(metrics.len(), expected.len(), "{case}");
}

fn evaluated(names: &[&str], options: &Options) -> Vec<Metric> {
    let mut evaluation = Evaluation::new(names, &categories(), options).unwrap();
    for sample in samples() {
        evaluation.add(&sample).unwrap();
    }
    evaluation.evaluate().unwrap()
}

#[test]
fn each_metric_equals_the_reference() {
    let plain = Options::default();
    let loose = Options {
        matching_iou: 0.3,
        ..plain
    };
    let bounded = Options {
        recall_bounds: [0.0, f64::from(0.8_f32)],
        ..plain
    };
    for (case, name, options) in [
        ("coco", "coco_detection_metrics", plain),
        ("pascal", "pascal_voc_detection_metrics", plain),
        ("pascal_iou_03", "pascal_voc_detection_metrics", loose),
        ("weighted_pascal", "weighted_pascal_voc_detection_metrics", plain),
        ("oid_V2", "oid_V2_detection_metrics", plain),
        ("oid_V2", "open_images_V2_detection_metrics", plain),
        ("oid_challenge", "oid_challenge_detection_metrics", plain),
        ("oid_challenge", "oid_challenge_object_detection_metrics", plain),
        ("precision_at_recall", "precision_at_recall_detection_metrics", bounded),
    ] {
        same(case, &evaluated(&[name], &options));
    }
}

#[test]
fn crowds_and_areas_change_cocos_figures_as_in_the_reference() {
    let input = golden("metrics_input.json");
    let evaluated = |change: &dyn Fn(&mut Sample, &Value)| {
        let mut evaluation = Evaluation::new(&["coco_detection_metrics"], &categories(), &Options::default()).unwrap();
        for (mut sample, image) in samples().into_iter().zip(input["images"].as_array().unwrap()) {
            change(&mut sample, image);
            evaluation.add(&sample).unwrap();
        }
        evaluation.evaluate().unwrap()
    };
    same(
        "coco_no_crowd_flag",
        &evaluated(&|sample, _| sample.groundtruth.is_crowd.clear()),
    );
    let with_areas = |sample: &mut Sample, image: &Value| sample.groundtruth.area = list(image, "groundtruth_area");
    same("coco_area_field", &evaluated(&with_areas));
}

#[test]
fn corloc_equals_the_reference() {
    let protocol = Protocol {
        corloc: true,
        ..Protocol::pascal("pascal_voc_detection_metrics", "X_")
    };
    let mut evaluator = Detection::new(protocol, categories());
    for sample in samples() {
        evaluator.add(&sample).unwrap();
    }
    same("pascal_with_corloc", &evaluator.evaluate().unwrap());
}

#[test]
fn several_at_once_are_the_same_as_one_by_one() {
    let names = [
        "pascal_voc_detection_metrics",
        "coco_detection_metrics",
        "oid_V2_detection_metrics",
    ];
    let together = evaluated(&names, &Options::default());
    let alone: Vec<Metric> = names
        .iter()
        .flat_map(|name| evaluated(&[name], &Options::default()))
        .collect();
    let text = |metrics: &[Metric]| {
        metrics
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(text(&together), text(&alone));
    let twice = evaluated(
        &["coco_detection_metrics", "coco_detection_metrics"],
        &Options::default(),
    );
    assert_eq!(twice.len(), 12, "a name that is there twice counts once");
    assert_eq!(evaluated(&[], &Options::default()).len(), 12, "COCO's are the default");
}

#[test]
fn coco_by_class() {
    let options = Options {
        include_metrics_per_category: true,
        ..Options::default()
    };
    let some = evaluated(&["coco_detection_metrics"], &options);
    assert_eq!(some.len(), 12 + 5);
    let all = evaluated(
        &["coco_detection_metrics"],
        &Options {
            all_metrics_per_category: true,
            ..options
        },
    );
    // The reference dies here ("Category stats do not exist"), so its own figures cannot be compared with.
    assert!(golden("metrics_expected.json")["coco_all"]["error"].is_string());
    assert_eq!(all.len(), 12 + 5 + 5 * 12);
    let figure = |name: &str| {
        all.iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{name}"))
            .1
    };
    assert_eq!(figure("DetectionBoxes_PerformanceByCategory/mAP/never_seen"), -1.0);
    // The overall figures are the means over the classes that have any.
    for name in [
        "Precision/mAP",
        "Precision/mAP@.50IOU",
        "Precision/mAP@.75IOU",
        "Precision/mAP (small)",
        "Recall/AR@1",
        "Recall/AR@10",
        "Recall/AR@100 (large)",
    ] {
        let parts: Vec<f64> = (1..=4)
            .map(|class| figure(&format!("DetectionBoxes_{name} ByCategory/class_{class}")))
            .filter(|&value| value > -1.0)
            .collect();
        let mean = parts.iter().sum::<f64>() / parts.len() as f64;
        assert!(
            (mean - figure(&format!("DetectionBoxes_{name}"))).abs() < 1e-9,
            "{name}"
        );
    }
}
