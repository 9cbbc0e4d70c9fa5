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
    /// What a box is suppressed by.
    pub scope: Scope,
    /// Above 0: scores of boxes that overlap better ones sink, and `iou_threshold` means nothing ([`nms::soft`]).
    pub soft_nms_sigma: f32,
}

/// What a box is suppressed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// By better boxes of its class; a box may be there for several classes.
    #[default]
    Class,
    /// By any better box; each box has its best class only, and there is no limit of each class: `use_class_agnostic_nms`.
    All,
    /// As [`Scope::Class`], but boxes that lie outside the window stay, without area: `use_combined_nms`, TensorFlow's
    /// `combined_non_max_suppression`. Without a window it is the unit square.
    Combined,
}

impl Default for MulticlassNms {
    fn default() -> Self {
        Self {
            score_threshold: 0.0,
            iou_threshold: 0.6,
            max_detections_per_class: 100,
            max_total_detections: 100,
            change_coordinate_frame: true,
            scope: Scope::Class,
            soft_nms_sigma: 0.0,
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

impl Candidates<'_> {
    fn anchors(&self) -> usize {
        self.scores.len() / self.classes.max(1)
    }

    fn score(&self, anchor: usize, class: usize) -> f32 {
        self.scores[anchor * self.classes + class]
    }

    /// The box that an anchor has for a class; NaN where there is none.
    fn corners(&self, anchor: usize, class: usize) -> Corners {
        let at = if self.boxes_per_anchor > 1 {
            anchor * self.boxes_per_anchor + class
        } else {
            anchor
        };
        self.boxes.get(at).copied().unwrap_or([f32::NAN; 4])
    }
}

/// What survived, before clipping.
struct Survivor {
    score: f32,
    class: usize,
    anchor: usize,
    corners: Corners,
}

impl MulticlassNms {
    /// Suppresses on unclipped boxes, puts the classes together by score, then clips to `window` and drops what lies outside (after
    /// the limit of each class, as in the reference). Without a window boxes stay as they are.
    pub fn run(&self, candidates: Candidates, window: Option<Corners>) -> Detections {
        let window = match self.scope {
            Scope::Combined => Some(window.unwrap_or([0.0, 0.0, 1.0, 1.0])),
            Scope::Class | Scope::All => window,
        };
        let mut detections = Detections::default();
        if candidates.classes == 0 {
            return detections;
        }
        if self.scope == Scope::All {
            let found = self.best_classes(candidates);
            found
                .into_iter()
                .all(|survivor| self.add(&mut detections, &survivor, window));
        } else if self.soft_nms_sigma > 0.0 {
            let found = self.sunk(candidates);
            found
                .into_iter()
                .all(|survivor| self.add(&mut detections, &survivor, window));
        } else {
            self.hard(candidates, |survivor| self.add(&mut detections, &survivor, window));
        }
        detections
    }

    /// Each class by itself. All classes go down the scores together, so that nothing is looked at that comes after the last detection.
    /// Of equal scores the lower class comes first, then the lower anchor.
    fn hard(&self, candidates: Candidates, mut add: impl FnMut(Survivor) -> bool) {
        let anchors = candidates.anchors();
        let mut kept = vec![nms::Kept::new(self.iou_threshold); candidates.classes];
        let mut counts = vec![0; candidates.classes];
        let numbered = candidates
            .scores
            .chunks_exact(candidates.classes)
            .enumerate()
            .flat_map(|(anchor, scores)| {
                let numbered = scores.iter().enumerate();
                numbered.map(move |(class, &score)| (class * anchors + anchor, score))
            });
        nms::each_ranked(numbered, self.score_threshold, |number| {
            let (class, anchor) = (number / anchors, number % anchors);
            let corners = candidates.corners(anchor, class);
            if counts[class] >= self.max_detections_per_class || !kept[class].insert(corners) {
                return true;
            }
            counts[class] += 1;
            add(Survivor {
                score: candidates.score(anchor, class),
                class,
                anchor,
                corners,
            })
        });
    }

    /// Each class by itself, with scores that sink.
    fn sunk(&self, candidates: Candidates) -> Vec<Survivor> {
        let mut found = Vec::new();
        for class in 0..candidates.classes {
            let anchors = 0..candidates.anchors();
            let scores: Vec<f32> = anchors.clone().map(|anchor| candidates.score(anchor, class)).collect();
            let boxes: Vec<Corners> = anchors.map(|anchor| candidates.corners(anchor, class)).collect();
            let options = self.options(self.max_detections_per_class);
            let kept = nms::soft(&boxes, &scores, options, self.soft_nms_sigma);
            found.extend(kept.into_iter().map(|(anchor, score)| Survivor {
                score,
                class,
                anchor,
                corners: boxes[anchor],
            }));
        }
        // Stable: equal scores stay in the order of their classes.
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found
    }

    /// Each anchor has the class of its highest score (the first of equal ones), and all suppress each other.
    fn best_classes(&self, candidates: Candidates) -> Vec<Survivor> {
        let best = |anchor| {
            (0..candidates.classes).fold(0, |best, class| {
                if candidates.score(anchor, class) > candidates.score(anchor, best) {
                    class
                } else {
                    best
                }
            })
        };
        let classes: Vec<usize> = (0..candidates.anchors()).map(best).collect();
        let of = |at: usize| (at, classes[at]);
        let scores: Vec<f32> = (0..classes.len())
            .map(of)
            .map(|(at, class)| candidates.score(at, class))
            .collect();
        let boxes: Vec<Corners> = (0..classes.len())
            .map(of)
            .map(|(at, class)| candidates.corners(at, class))
            .collect();
        let options = self.options(self.max_total_detections);
        let kept = if self.soft_nms_sigma > 0.0 {
            nms::soft(&boxes, &scores, options, self.soft_nms_sigma)
        } else {
            let kept = nms::greedy(&boxes, &scores, options).into_iter();
            kept.map(|anchor| (anchor, scores[anchor])).collect()
        };
        let survivor = |(anchor, score): (usize, f32)| Survivor {
            score,
            class: classes[anchor],
            anchor,
            corners: boxes[anchor],
        };
        kept.into_iter().map(survivor).collect()
    }

    fn options(&self, max: usize) -> nms::Options {
        nms::Options {
            max,
            iou_threshold: self.iou_threshold,
            score_threshold: self.score_threshold,
        }
    }

    /// Clips and adds a survivor, unless it lies outside the window; says whether there is room for more.
    fn add(&self, detections: &mut Detections, survivor: &Survivor, window: Option<Corners>) -> bool {
        if detections.len() >= self.max_total_detections {
            return false;
        }
        let clipped = window.map_or(survivor.corners, |window| clip(survivor.corners, window));
        // Written so that NaN falls out too.
        let visible = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) > 0.0;
        let stays = self.scope == Scope::Combined && clipped.iter().all(|value| value.is_finite());
        if (visible || stays) && survivor.score >= 0.0 {
            detections.boxes.push(match window {
                Some(window) if self.change_coordinate_frame => relative(clipped, window),
                _ => clipped,
            });
            detections.classes.push(survivor.class);
            detections.scores.push(survivor.score);
            detections.anchors.push(survivor.anchor);
        }
        true
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
