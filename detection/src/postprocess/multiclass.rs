//! Suppression class by class.

use super::Detections;
use crate::Corners;
use crate::nms;

/// The message `BatchNonMaxSuppression`; the reference's `multiclass_non_max_suppression`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MulticlassNms {
    /// Only scores above this.
    pub score_threshold: f32,
    /// Boxes that overlap a better one of their class by more are dropped.
    pub iou_threshold: f32,
    /// Of each class, at most.
    pub max_detections_per_class: usize,
    /// Of an image, at most.
    pub max_total_detections: usize,
    /// Boxes relative to the clip window.
    pub change_coordinate_frame: bool,
}

impl Default for MulticlassNms {
    fn default() -> Self {
        Self {
            score_threshold: 0.0,
            iou_threshold: 0.6,
            max_detections_per_class: 100,
            max_total_detections: 100,
            change_coordinate_frame: true,
        }
    }
}

/// Boxes and scores of one image.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// `[anchors, boxes_per_anchor, 4]`
    pub boxes: &'a [Corners],
    /// 1: shared by all classes; otherwise the number of classes.
    pub boxes_per_anchor: usize,
    /// `[anchors, classes]`, without the background.
    pub scores: &'a [f32],
    /// Without the background.
    pub classes: usize,
}

impl MulticlassNms {
    /// Suppresses each class by itself on unclipped boxes, puts the classes together by score, then clips to `window` and drops what
    /// lies outside (after the limit of each class, as in the reference). Without a window boxes stay as they are.
    pub fn run(&self, candidates: Candidates, window: Option<Corners>) -> Detections {
        let mut found = Vec::new();
        for class in 0..candidates.classes {
            let scores: Vec<f32> = candidates
                .scores
                .iter()
                .skip(class)
                .step_by(candidates.classes)
                .copied()
                .collect();
            let own: Vec<Corners>;
            let boxes = if candidates.boxes_per_anchor > 1 {
                own = candidates
                    .boxes
                    .iter()
                    .skip(class)
                    .step_by(candidates.boxes_per_anchor)
                    .copied()
                    .collect();
                &own
            } else {
                candidates.boxes
            };
            let options = nms::Options {
                max: self.max_detections_per_class,
                iou_threshold: self.iou_threshold,
                score_threshold: self.score_threshold,
            };
            for anchor in nms::greedy(boxes, &scores, options) {
                found.push((scores[anchor], class, anchor, boxes[anchor]));
            }
        }
        // Stable: equal scores stay in the order of their classes.
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut detections = Detections::default();
        for (score, class, anchor, corners) in found {
            if detections.len() >= self.max_total_detections {
                break;
            }
            let clipped = window.map_or(corners, |window| clip(corners, window));
            // Written so that NaN falls out too.
            let visible = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) > 0.0;
            if !visible || score < 0.0 {
                continue;
            }
            detections.boxes.push(match window {
                Some(window) if self.change_coordinate_frame => relative(clipped, window),
                _ => clipped,
            });
            detections.classes.push(class);
            detections.scores.push(score);
            detections.anchors.push(anchor);
        }
        detections
    }
}

fn clip(corners: Corners, window: Corners) -> Corners {
    let [ymin, xmin, ymax, xmax] = corners;
    if corners.iter().any(|value| value.is_nan()) {
        return [f32::NAN; 4];
    }
    let y = |value: f32| value.min(window[2]).max(window[0]);
    let x = |value: f32| value.min(window[3]).max(window[1]);
    [y(ymin), x(xmin), y(ymax), x(xmax)]
}

fn relative([ymin, xmin, ymax, xmax]: Corners, window: Corners) -> Corners {
    let (height, width) = (1.0 / (window[2] - window[0]), 1.0 / (window[3] - window[1]));
    [
        (ymin - window[0]) * height,
        (xmin - window[1]) * width,
        (ymax - window[0]) * height,
        (xmax - window[1]) * width,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_outside_the_window_use_up_their_class_but_not_the_total() {
        let boxes = [[1.5, 0.0, 2.0, 0.5], [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]];
        let scores = [0.9, 0.1, 0.8, 0.7, 0.7, 0.6];
        let candidates = Candidates {
            boxes: &boxes,
            boxes_per_anchor: 1,
            scores: &scores,
            classes: 2,
        };
        let nms = MulticlassNms {
            max_detections_per_class: 2,
            max_total_detections: 2,
            ..MulticlassNms::default()
        };
        let found = nms.run(candidates, Some([0.0, 0.0, 1.0, 1.0]));
        assert_eq!((found.anchors, found.classes), (vec![1, 1], vec![0, 1]));
    }

    #[test]
    fn no_classes_and_no_boxes() {
        let none = Candidates {
            boxes: &[],
            boxes_per_anchor: 1,
            scores: &[],
            classes: 3,
        };
        assert!(MulticlassNms::default().run(none, None).is_empty());
        assert!(
            MulticlassNms::default()
                .run(Candidates { classes: 0, ..none }, None)
                .is_empty()
        );
    }
}
