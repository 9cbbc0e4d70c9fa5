//! Suppression and detections.

use coati_detection::config;
use coati_detection::postprocess::{Candidates, MulticlassNms};
use coati_detection::ssd_loss::Predictions;

use crate::golden::{Npz, close, fixture, model, rows};

const UNIT: Option<[f32; 4]> = Some([0.0, 0.0, 1.0, 1.0]);

fn nms(score_threshold: f32, max_detections_per_class: usize, max_total_detections: usize) -> MulticlassNms {
    MulticlassNms {
        score_threshold,
        iou_threshold: 0.6,
        max_detections_per_class,
        max_total_detections,
        change_coordinate_frame: false,
        ..MulticlassNms::default()
    }
}

#[test]
fn suppression_equals_the_reference() {
    let mut npz = Npz::component("nms");
    let per_image: Vec<_> = npz.rows("clip_per_image").into_iter().map(Some).collect();
    let unit = vec![UNIT; 2];
    let moved = MulticlassNms {
        change_coordinate_frame: true,
        ..nms(1e-8, 10, 20)
    };
    let all = [150, 150];
    let cases = [
        ("ssd_stock", nms(1e-8, 100, 100), &unit, 1, all),
        ("no_clip", nms(1e-8, 100, 100), &vec![None; 2], 1, all),
        ("threshold_small_totals", nms(0.3, 5, 12), &unit, 1, all),
        ("clip_per_image_change_frame", moved, &per_image, 1, all),
        ("class_boxes", nms(1e-8, 20, 30), &unit, 3, all),
        ("num_valid_boxes", nms(1e-8, 20, 30), &unit, 1, [90, 40]),
        ("static_shapes", nms(0.1, 20, 30), &unit, 1, all),
    ];
    let (shared, own) = (npz.rows("boxes"), npz.rows("class_boxes"));
    let (scores, additional) = (npz.floats("scores"), npz.floats("additional"));
    for (name, nms, windows, boxes_per_anchor, valid) in cases {
        let boxes = if boxes_per_anchor == 1 { &shared } else { &own };
        let most = nms.max_total_detections;
        let counts = npz.ints(&format!("{name}__num"));
        for image in 0..2 {
            let first = image * 150;
            let candidates = Candidates {
                boxes: &boxes[first * boxes_per_anchor..(first + valid[image]) * boxes_per_anchor],
                boxes_per_anchor,
                scores: &scores[first * 3..(first + valid[image]) * 3],
                classes: 3,
            };
            let found = nms.run(candidates, windows[image]);
            let count = counts[image] as usize;
            assert_eq!(found.len(), count, "{name} {image}");
            let mut expected = |part: &str, width: usize| {
                let all = npz.floats(&format!("{name}__{part}"));
                all[image * most * width..(image * most + count) * width].to_vec()
            };
            let classes: Vec<f32> = found.classes.iter().map(|&class| class as f32).collect();
            let carried: Vec<f32> = found
                .anchors
                .iter()
                .flat_map(|anchor| [additional[(first + anchor) * 2], additional[(first + anchor) * 2 + 1]])
                .collect();
            close(name, &classes, &expected("classes", 1), 0.0, 0.0);
            close(name, &found.scores, &expected("scores", 1), 0.0, 1e-6);
            close(name, found.boxes.as_flattened(), &expected("boxes", 4), 0.0, 1e-6);
            close(name, &carried, &expected("additional", 2), 0.0, 1e-6);
        }
    }
}

#[test]
fn a_trained_detector_s_detections_equal_the_reference() {
    let mut raw = Npz::open(&fixture("ssd_bccd/raw4_outputs.npz"));
    let mut expected = Npz::open(&fixture("ssd_bccd/detections.npz"));
    let model = model("ssd_bccd/pipeline.config");
    let post = config::post_processor(config::ssd(&model).unwrap()).unwrap();
    let (codes, logits) = (
        raw.floats("box_encodings"),
        raw.floats("class_predictions_with_background"),
    );
    let predictions = Predictions {
        box_encodings: &codes,
        class_logits: &logits,
        columns: 4,
        num_classes: 3,
    };
    let found = post.run(&raw.rows("anchors"), predictions).unwrap();
    let (boxes, scores) = (rows(&expected.floats("boxes")), expected.floats("scores"));
    let (classes, anchors) = (expected.ints("classes"), expected.ints("anchor_indices"));
    let counts = expected.ints("num");
    assert_eq!(found.len(), 4);
    for (image, found) in found.iter().enumerate() {
        let count = counts[image] as usize;
        assert_eq!(found.len(), count);
        let of = image * 100..image * 100 + count;
        close("scores", &found.scores, &scores[of.clone()], 0.0, 1e-5);
        close(
            "boxes",
            found.boxes.as_flattened(),
            boxes[of.clone()].as_flattened(),
            0.0,
            1e-4,
        );
        let found_classes: Vec<i64> = found.classes.iter().map(|&class| class as i64 + 1).collect();
        let found_anchors: Vec<i64> = found.anchors.iter().map(|&anchor| anchor as i64).collect();
        assert_eq!(found_classes, classes[of.clone()], "image {image}");
        assert_eq!(found_anchors, anchors[of], "image {image}");
    }
}
