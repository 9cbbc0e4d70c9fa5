//! From raw predictions to detections: the reference's `SSDMetaArch.postprocess`.

mod calibration;
mod multiclass;
mod score;

pub use calibration::{Calibration, Curve};
pub use multiclass::{Candidates, MulticlassNms, Scope};
pub use score::ScoreConverter;

use crate::Corners;
use crate::box_coder::BoxCoder;
use crate::ssd_loss::Predictions;

/// Detections of one image, best first. All lists are equally long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detections {
    /// Normalised to the image (without padding) and clipped to it.
    pub boxes: Vec<Corners>,
    /// From 0.
    pub classes: Vec<usize>,
    /// From the score converter.
    pub scores: Vec<f32>,
    /// The anchor that each came from.
    pub anchors: Vec<usize>,
}

impl Detections {
    /// How many.
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }
}

/// The message `PostProcessing`.
#[derive(Clone, Debug, PartialEq)]
pub struct PostProcessor {
    /// How boxes are written.
    pub coder: BoxCoder,
    /// From logits to scores.
    pub score_converter: ScoreConverter,
    /// Logits are divided by this first.
    pub logit_scale: f32,
    /// What scores are corrected by.
    pub calibration: Calibration,
    /// Column 0 of the class predictions is the background, which is never detected (`add_background_class` or
    /// `explicit_background_class`).
    pub background: bool,
    /// Suppression.
    pub nms: MulticlassNms,
}

/// Raw predictions that do not fit the anchors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what} has {found} elements, which is not a multiple of {anchors} anchors x {columns}")]
pub struct Error {
    what: &'static str,
    found: usize,
    anchors: usize,
    columns: usize,
}

impl PostProcessor {
    /// Detections of each image of a batch. Predictions that are not finite numbers give no detections.
    pub fn run(&self, anchors: &[Corners], predictions: Predictions) -> Result<Vec<Detections>, Error> {
        self.run_within(anchors, predictions, &[])
    }

    /// As [`Self::run`]. Of each image a part, `[height, width]` as shares of the whole, is picture, and what is beyond it padding: boxes are
    /// clipped to that part and relative to it (`_compute_clip_window`). An image without an entry in `parts` is all picture.
    pub fn run_within(
        &self,
        anchors: &[Corners],
        predictions: Predictions,
        parts: &[[f32; 2]],
    ) -> Result<Vec<Detections>, Error> {
        let (columns, code_size) = (predictions.columns, self.coder.code_size());
        let (codes, logits) = (predictions.box_encodings, predictions.class_logits);
        if anchors.is_empty() && codes.is_empty() && logits.is_empty() {
            return Ok(Vec::new());
        }
        let images = codes.len() / (anchors.len() * code_size).max(1);
        for (what, found, columns) in [
            ("box_encodings", codes.len(), code_size),
            ("class_logits", logits.len(), columns),
        ] {
            if found != images * anchors.len() * columns {
                return Err(Error {
                    what,
                    found,
                    anchors: anchors.len(),
                    columns,
                });
            }
        }
        let image = |index: usize| {
            let codes = &codes[index * anchors.len() * code_size..(index + 1) * anchors.len() * code_size];
            let logits = &logits[index * anchors.len() * columns..(index + 1) * anchors.len() * columns];
            let boxes = self.coder.decode_all(codes, anchors);
            let first = usize::from(self.background);
            let scores = self.scores(logits, columns, first);
            let candidates = Candidates {
                boxes: &boxes,
                boxes_per_anchor: 1,
                scores: &scores,
                classes: columns.saturating_sub(first),
            };
            let [height, width] = parts.get(index).copied().unwrap_or([1.0; 2]);
            let mut found = self.nms.run(candidates, Some([0.0, 0.0, height, width]));
            if !self.nms.change_coordinate_frame {
                for [ymin, xmin, ymax, xmax] in &mut found.boxes {
                    [*ymin, *ymax] = [*ymin / height, *ymax / height];
                    [*xmin, *xmax] = [*xmin / width, *xmax / width];
                }
            }
            found
        };
        Ok((0..images).map(image).collect())
    }

    /// Scores of the columns from `first`: `[anchors, columns - first]`.
    fn scores(&self, logits: &[f32], columns: usize, first: usize) -> Vec<f32> {
        let scale = self.logit_scale * self.calibration.temperature();
        let mut scores = self.score_converter.scores(logits, columns, first, scale);
        self.calibration
            .correct(&mut scores, columns.saturating_sub(first), first);
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::box_coder::FasterRcnn;

    fn stock() -> PostProcessor {
        PostProcessor {
            coder: FasterRcnn::default().into(),
            score_converter: ScoreConverter::Sigmoid,
            logit_scale: 1.0,
            calibration: Calibration::None,
            background: true,
            nms: MulticlassNms::default(),
        }
    }

    #[test]
    fn no_anchors_no_images_and_wrong_sizes() {
        let none = Predictions {
            box_encodings: &[],
            class_logits: &[],
            columns: 3,
            num_classes: 2,
        };
        let anchors = [[0.0, 0.0, 1.0, 1.0]];
        assert_eq!(stock().run(&[], none), Ok(Vec::new()));
        assert_eq!(stock().run(&anchors, none), Ok(Vec::new()));
        let short = Predictions {
            box_encodings: &[0.0; 4],
            class_logits: &[0.0; 2],
            columns: 3,
            num_classes: 2,
        };
        assert_eq!(stock().run(&anchors, short).unwrap_err().what, "class_logits");
        assert!(stock().run(&[], short).is_err());
    }

    #[test]
    fn without_a_background_every_column_is_a_class() {
        let post = PostProcessor {
            background: false,
            ..stock()
        };
        let one = Predictions {
            box_encodings: &[0.0; 4],
            class_logits: &[2.0, -9.0],
            columns: 2,
            num_classes: 2,
        };
        let anchors = [[0.0, 0.0, 0.5, 0.5]];
        assert_eq!(post.run(&anchors, one).unwrap()[0].classes, [0, 1]);
        assert_eq!(stock().run(&anchors, one).unwrap()[0].classes, [0]);
    }

    #[test]
    fn boxes_are_relative_to_what_is_picture() {
        let one = Predictions {
            box_encodings: &[0.0; 4],
            class_logits: &[0.0, 4.0],
            columns: 2,
            num_classes: 1,
        };
        let anchors = [[0.25, 0.25, 0.5, 0.9]];
        for scope in [Scope::Class, Scope::Combined] {
            let mut post = stock();
            post.nms.scope = scope;
            post.nms.change_coordinate_frame = scope == Scope::Class;
            let found = post.run_within(&anchors, one, &[[1.0, 0.5]]).unwrap();
            assert_eq!(found[0].boxes, [[0.25, 0.5, 0.5, 1.0]], "{scope:?}");
            let padding = post.run_within(&anchors, one, &[[0.125, 1.0]]).unwrap();
            assert_eq!(padding[0].is_empty(), scope == Scope::Class, "{padding:?}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_not_detected() {
        let anchors = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]];
        let nan = f32::NAN;
        let logits = [0.0, nan, 0.0, 3.0];
        let codes = [0.0, 0.0, 0.0, 0.0, nan, 0.0, 0.0, 0.0];
        let broken = Predictions {
            box_encodings: &codes,
            class_logits: &logits,
            columns: 2,
            num_classes: 1,
        };
        assert_eq!(stock().run(&anchors, broken).unwrap(), [Detections::default()]);
    }
}
