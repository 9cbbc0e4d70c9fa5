//! What cannot be evaluated is named; what is merely odd is noted.

use coati_evaluation::{Category, Detections, Error, Evaluation, Groundtruth, Mask, Options, Sample};

fn evaluation(names: &[&str]) -> Evaluation {
    let category = |(id, name): (u32, &str)| Category {
        id,
        name: name.to_owned(),
    };
    let categories: Vec<Category> = [(1, "cup"), (2, "spoon")].into_iter().map(category).collect();
    Evaluation::new(names, &categories, &Options::default()).unwrap()
}

fn sample(corners: [f64; 4]) -> Sample {
    Sample {
        image: "x".to_owned(),
        size: Some([480.0, 640.0]),
        groundtruth: Groundtruth {
            boxes: vec![corners],
            classes: vec![1],
            ..Groundtruth::default()
        },
        detections: Detections {
            boxes: vec![corners],
            scores: vec![0.5],
            classes: vec![1],
            ..Detections::default()
        },
    }
}

const FINE: [f64; 4] = [10.0, 10.0, 50.0, 60.0];

#[test]
fn says_which_image_and_what_would_be_right() {
    let mut change: Vec<(&str, Box<dyn Fn(&mut Sample)>)> = vec![
        ("box 0 is [NaN", Box::new(|s| s.detections.boxes[0][0] = f64::NAN)),
        (
            "box 0 is [10.0, inf",
            Box::new(|s| s.groundtruth.boxes[0][1] = f64::INFINITY),
        ),
        (
            "ends before it begins",
            Box::new(|s| s.groundtruth.boxes[0] = [50.0, 10.0, 10.0, 60.0]),
        ),
        (
            "score 0 is not a number",
            Box::new(|s| s.detections.scores[0] = f64::NAN),
        ),
        (
            "class 7 is not in the label map",
            Box::new(|s| s.detections.classes[0] = 7),
        ),
        ("1 boxes but 2 scores", Box::new(|s| s.detections.scores.push(0.1))),
        ("1 boxes but 0 classes", Box::new(|s| s.groundtruth.classes.clear())),
        (
            "1 boxes but 2 difficult flags",
            Box::new(|s| s.groundtruth.difficult = vec![true, false]),
        ),
        (
            "a mask of [3, 2] pixels (height, width) beside one of [2, 2]",
            Box::new(|s| {
                s.groundtruth.masks = vec![Mask::empty(2, 2)];
                s.detections.masks = vec![Mask::empty(3, 2)];
            }),
        ),
    ];
    for (wanted, change) in &mut change {
        let mut sample = sample(FINE);
        change(&mut sample);
        let mut evaluation = evaluation(&["pascal_voc_detection_metrics", "coco_detection_metrics"]);
        let text = evaluation.add(&sample).unwrap_err().to_string();
        assert!(
            text.contains(*wanted) && text.contains("image `x`") && text.contains("hint:"),
            "{text}"
        );
        assert!(
            matches!(evaluation.evaluate(), Err(Error::Empty)),
            "nothing of a refused image counts"
        );
    }
}

#[test]
fn an_image_is_added_once() {
    let mut evaluation = evaluation(&[]);
    evaluation.add(&sample(FINE)).unwrap();
    let text = evaluation.add(&sample(FINE)).unwrap_err().to_string();
    assert!(
        text.contains("image `x` was added twice") && text.contains("hint:"),
        "{text}"
    );
}

#[test]
fn an_empty_set_is_an_error() {
    let text = evaluation(&[]).evaluate().unwrap_err().to_string();
    assert!(text.contains("hint: is the evaluation set empty?"), "{text}");
}

#[test]
fn fractions_where_pixels_are_due() {
    let mut evaluation = evaluation(&["coco_detection_metrics"]);
    let mut mixed = sample(FINE);
    mixed.detections.boxes = vec![[0.1, 0.1, 0.9, 1.01]];
    evaluation.add(&mixed).unwrap();
    let text = evaluation.evaluate().unwrap_err().to_string();
    assert!(
        text.contains("all 1 detection boxes lie within 1.01 of the corner, the first in image `x`"),
        "{text}"
    );
    let mut unknown = sample([0.1, 0.1, 0.9, 1.0]);
    unknown.size = None;
    let mut fresh = self::evaluation(&["coco_detection_metrics"]);
    fresh.add(&unknown).unwrap();
    assert!(fresh.evaluate().is_ok(), "without sizes all may be fractions");
}

#[test]
fn what_may_be_a_mistake_is_noted() {
    let mut evaluation = evaluation(&["pascal_voc_detection_metrics"]);
    evaluation.add(&sample([500.0, 10.0, 520.0, 30.0])).unwrap();
    let notes = evaluation.notes().join("\n");
    assert!(
        notes.contains("1 of 2 classes have no groundtruth and are left out of the means: spoon"),
        "{notes}"
    );
    assert!(
        notes.contains("2 boxes do not touch their image, in 1 images, the first `x`"),
        "{notes}"
    );
    let metrics = evaluation.evaluate().unwrap();
    assert!(
        metrics
            .iter()
            .any(|(name, value)| name.ends_with("/spoon") && value.is_nan())
    );
    assert_eq!(metrics[0].1, 1.0, "the mean is over classes that have groundtruth");
}

#[test]
fn detections_that_end_before_they_begin_are_noted() {
    let mut evaluation = evaluation(&["pascal_voc_detection_metrics", "coco_detection_metrics"]);
    let mut swapped = sample(FINE);
    swapped.detections.boxes = vec![[10.0, 60.0, 50.0, 10.0]];
    evaluation.add(&swapped).unwrap();
    let notes = evaluation.notes().join("\n");
    assert!(
        notes.contains("1 detections end before they begin and match nothing, the first in image `x`"),
        "{notes}"
    );
    let metrics = evaluation.evaluate().unwrap();
    let mean = |name: &str| metrics.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(mean("PascalBoxes_Precision/mAP@0.5IOU"), 0.0);
    assert_eq!(mean("DetectionBoxes_Precision/mAP"), 0.0);
}

#[test]
fn corners_in_place_of_sizes_are_noted() {
    let mut evaluation = evaluation(&["coco_detection_metrics"]);
    let mut one = sample(FINE);
    // [x, y, width, height] of what was [x, y, x, y]: 400 to 600 became 400 to 1000.
    one.detections.boxes = vec![[300.0, 400.0, 300.0 + 450.0, 400.0 + 600.0]];
    evaluation.add(&one).unwrap();
    let notes = evaluation.notes().join("\n");
    assert!(notes.contains("1 of 2 boxes end far beyond their image"), "{notes}");
}

#[test]
fn mask_metrics_need_masks() {
    for name in [
        "coco_mask_metrics",
        "pascal_voc_instance_segmentation_metrics",
        "oid_challenge_segmentation_metrics",
    ] {
        let text = evaluation(&[name]).add(&sample(FINE)).unwrap_err().to_string();
        assert!(
            text.contains("1 groundtruth boxes and no masks") && text.contains(name),
            "{text}"
        );
    }
}

#[test]
fn names_are_known_or_guessed() {
    let text = Evaluation::new(&["coco_detection_metric"], &[], &Options::default())
        .err()
        .unwrap()
        .to_string();
    assert!(
        text.contains("did you mean `coco_detection_metrics`?") && text.contains("hint: known are"),
        "{text}"
    );
    let text = Evaluation::new(&["accuracy"], &[], &Options::default())
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("`accuracy` is not a metric\n"), "{text}");
}
