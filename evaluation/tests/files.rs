//! Files in, figures out: beside the reference's evaluators and pycocotools; and what is said about files that are not right.

use std::path::{Path, PathBuf};

use coati_evaluation::files::{coco_json, open_images, vrd};
use coati_evaluation::vrd::{Evaluator, Target};
use coati_evaluation::{Category, Evaluation, Metric, Options, Sample};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn map(names: &[&str]) -> Vec<Category> {
    let category = |(id, name): (u32, &&str)| Category {
        id,
        name: (*name).to_owned(),
    };
    (1..).zip(names).map(category).collect()
}

fn classes() -> Vec<Category> {
    map(&["/m/cup", "/m/spoon", "/m/hand", "/m/never"])
}

/// Every figure of a case, and no other.
fn same(case: &str, metrics: &[Metric]) {
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    let expected = expected[case].as_object().unwrap();
    for (name, value) in metrics {
        let wanted = expected
            .get(name)
            .unwrap_or_else(|| panic!("{case}: nobody expects {name}"));
        match wanted.as_f64() {
            Some(wanted) => assert!(
                (value - wanted).abs() < 1e-6,
                "{case}: {name}: {value}, wanted {wanted}"
            ),
            None => assert!(value.is_nan(), "{case}: {name}: {value}, wanted NaN"),
        }
    }
    assert_eq!(metrics.len(), expected.len(), "{case}");
}

fn evaluated(name: &str, categories: &[Category], samples: &[Sample]) -> Vec<Metric> {
    let options = Options {
        include_metrics_per_category: true,
        // As oid_challenge_evaluation has it, for masks as well.
        group_of_weight: name.starts_with("oid_challenge").then_some(1.0),
        ..Options::default()
    };
    let mut evaluation = Evaluation::new(&[name], categories, &options).unwrap();
    for sample in samples {
        evaluation.add(sample).unwrap();
    }
    evaluation.evaluate().unwrap()
}

fn challenge(masks: bool) -> open_images::Read {
    let (boxes, labels) = (fixture("oid_boxes.csv"), fixture("oid_labels.csv"));
    let predictions = fixture(if masks {
        "oid_mask_predictions.csv"
    } else {
        "oid_predictions.csv"
    });
    let segmented = fixture("oid_masks.csv");
    let files = open_images::Files {
        boxes: &boxes,
        labels: &labels,
        predictions: &predictions,
        masks: masks.then_some(segmented.as_path()),
    };
    open_images::read(&files, &classes()).unwrap()
}

#[test]
fn open_images_challenge() {
    let read = challenge(false);
    same(
        "oid_challenge",
        &evaluated("oid_challenge_detection_metrics", &classes(), &read.samples),
    );
    let notes = read.notes.join("\n");
    assert!(
        notes.contains("1 predictions are left out") && notes.contains("`elsewhere`"),
        "{notes}"
    );
}

#[test]
fn open_images_challenge_with_masks() {
    let read = challenge(true);
    same(
        "oid_challenge_masks",
        &evaluated("oid_challenge_segmentation_metrics", &classes(), &read.samples),
    );
}

#[test]
fn visual_relationships() {
    let paths = [
        fixture("vrd_triples.csv"),
        fixture("vrd_labels.csv"),
        fixture("vrd_predictions.csv"),
    ];
    let files = vrd::Files {
        triples: &paths[0],
        labels: &paths[1],
        predictions: &paths[2],
    };
    let relations = map(&["holds", "under", "on"]);
    let (samples, _) = vrd::read(&files, &classes(), &relations).unwrap();
    let mut all = Vec::new();
    for target in [Target::Relations, Target::Phrases] {
        let mut evaluator = Evaluator::new(target, 0.5);
        for sample in &samples {
            evaluator.add(sample).unwrap();
        }
        let name = |id: u32| relations[id as usize - 1].name.clone();
        all.extend(evaluator.evaluate(&name).unwrap());
    }
    same("vrd", &all);
}

#[test]
fn coco_boxes_and_masks() {
    let read = |masks| {
        coco_json::read(
            &fixture("coco_groundtruth.json"),
            &fixture("coco_detections.json"),
            masks,
        )
        .unwrap()
    };
    let (boxes, masks) = (read(false), read(true));
    same(
        "coco_boxes",
        &evaluated("coco_detection_metrics", &boxes.categories, &boxes.samples),
    );
    same(
        "coco_masks",
        &evaluated("coco_mask_metrics", &masks.categories, &masks.samples),
    );
    for (case, name) in [
        ("pascal_masks", "pascal_voc_instance_segmentation_metrics"),
        (
            "weighted_pascal_masks",
            "weighted_pascal_voc_instance_segmentation_metrics",
        ),
        ("pascal_boxes", "pascal_voc_detection_metrics"),
    ] {
        same(case, &evaluated(name, &masks.categories, &masks.samples));
    }
}

/// What reading COCO files with one change says.
fn coco_error(which: &str, from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for name in ["coco_groundtruth.json", "coco_detections.json"] {
        let mut text = std::fs::read_to_string(fixture(name)).unwrap();
        if name.contains(which) {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        paths.push(path);
    }
    coco_json::read(&paths[0], &paths[1], true).unwrap_err().to_string()
}

#[test]
fn coco_files_that_are_not_right() {
    for (which, from, to, wanted) in [
        (
            "detections",
            "\"image_id\": 2,",
            "\"image_id\": 99,",
            "coco_detections.json: detections[0]: image_id 99 is not among the 10 images",
        ),
        (
            "groundtruth",
            "{\"id\": 2, \"height\"",
            "{\"id\": 1, \"height\"",
            "coco_groundtruth.json: images[1]: id 1 is that of images[0], too",
        ),
        (
            "groundtruth",
            "\"bbox\": [",
            "\"bbox\": [-50.0, 0, -1.0, 1], \"was\": [",
            "annotations[0]: bbox is [-50.0, 0.0, -1.0, 1.0], of negative size",
        ),
        (
            "detections",
            "\"score\": 0.",
            "\"score\": NaN, \"was\": 0.",
            "detections[0]: NaN or null where a number is due",
        ),
        (
            "detections",
            "\"bbox\": [",
            "\"bbox\": [NaN, 1, 1, 1], \"was\": [",
            "detections[0]: NaN or null where a number is due",
        ),
        (
            "detections",
            "\"category_id\": ",
            "\"category_id\": 7",
            "is not among the categories of",
        ),
        (
            "detections",
            "\"counts\": \"",
            "\"counts\": \"1",
            "detections[0]: a mask of 48 x 64 pixels",
        ),
        (
            "groundtruth",
            "\"area\": ",
            "\"area\": NaN, \"was\": ",
            "annotations[0]: NaN or null where a number is due",
        ),
        (
            "groundtruth",
            "\"iscrowd\": ",
            "\"iscrowd\": null, \"was\": ",
            "annotations[0]: iscrowd is neither 0 nor 1",
        ),
        (
            "groundtruth",
            "\"segmentation\": ",
            "\"segmentation\": [1, 2, 3, 4, 5, 6], \"was\": ",
            "annotations[0]: segmentation is neither a list of polygons [[x, y, …], …] nor",
        ),
        ("groundtruth", "\"images\"", "\"pictures\"", "missing field `images`"),
    ] {
        let text = coco_error(which, from, to);
        assert!(
            text.contains(wanted) && text.contains("hint:"),
            "{text}\nwanted: {wanted}"
        );
    }
}

#[test]
fn csv_files_that_are_not_right() {
    let folder = tempfile::tempdir().unwrap();
    let change = |name: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(fixture(name)).unwrap();
        assert!(text.contains(from), "{from}");
        let path = folder.path().join(name);
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        path
    };
    let first = |name: &str| {
        std::fs::read_to_string(fixture(name))
            .unwrap()
            .lines()
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let (labels, row) = (fixture("oid_labels.csv"), first("oid_predictions.csv"));
    let fields: Vec<&str> = row.split(',').collect();
    let with = |column: usize, value: &str| {
        let mut changed: Vec<&str> = fields.clone();
        changed[column] = value;
        changed.join(",")
    };
    let boxes = fixture("oid_boxes.csv");
    for (to, wanted) in [
        (
            with(3, "320"),
            "oid_predictions.csv:2: XMin is 320; fractions of the image's width and height are due",
        ),
        (
            with(3, "NaN"),
            "oid_predictions.csv:2: XMin is `NaN`; a finite number is due",
        ),
        (with(2, ""), "oid_predictions.csv:2: Score is empty"),
        (
            with(1, "/m/fork"),
            "oid_predictions.csv:2: LabelName `/m/fork` is not in the label map",
        ),
        (with(4, "-0.5"), "ends before it begins"),
        (format!("{row},1,2,3"), "oid_predictions.csv:2: not a row of CSV"),
    ] {
        let predictions = change("oid_predictions.csv", &row, &to);
        let files = open_images::Files {
            boxes: &boxes,
            labels: &labels,
            predictions: &predictions,
            masks: None,
        };
        let text = open_images::read(&files, &classes()).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}\nwanted: {wanted}");
    }
    let headless = change("oid_boxes.csv", "IsGroupOf", "Group");
    let files = open_images::Files {
        boxes: &headless,
        labels: &labels,
        predictions: &fixture("oid_predictions.csv"),
        masks: None,
    };
    let text = open_images::read(&files, &classes()).unwrap_err().to_string();
    assert!(
        text.contains("oid_boxes.csv:1: column IsGroupOf is missing") && text.contains("hint:"),
        "{text}"
    );
}
