//! What each anchor of an image should predict.

use crate::Corners;
use crate::box_coder::{CODE_SIZE, FasterRcnn};
use crate::groundtruth::Groundtruth;
use crate::matcher::{ArgMax, Match};
use crate::similarity;

/// Joins similarity (intersection over union), matcher and coder: the reference's `TargetAssigner`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetAssigner {
    /// Which anchor is trained on which box.
    pub matcher: ArgMax,
    /// How boxes are written.
    pub coder: FasterRcnn,
    /// Weight of the class loss of unmatched anchors.
    pub negative_class_weight: f32,
    /// Unmatched anchors have no class at all; otherwise they have class column 0.
    pub encode_background_as_zeros: bool,
}

/// The targets of one image, one entry an anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Match with the groundtruth.
    pub matches: Vec<Match>,
    /// The column of the class predictions that should be 1, all others 0. Column 0 is the background, class `c` column `c + 1`.
    pub class_columns: Vec<Option<usize>>,
    /// Weight of the class loss.
    pub class_weights: Vec<f32>,
    /// What the box encodings should be; zeros without a match.
    pub box_codes: Vec<[f32; CODE_SIZE]>,
    /// Weight of the localisation loss; 0 without a match.
    pub box_weights: Vec<f32>,
}

impl TargetAssigner {
    /// Targets for the anchors of one image, whose groundtruth has been checked. A box of weight 0 claims no anchor by force, and the
    /// anchors most similar to it count for nothing.
    pub fn assign(&self, anchors: &[Corners], groundtruth: &Groundtruth) -> Targets {
        let similarity = similarity::iou_matrix(&groundtruth.boxes, anchors);
        let valid = |row| groundtruth.weight(row) > 0.0;
        let matches = self.matcher.match_columns(&similarity, anchors.len(), valid);
        let background = (!self.encode_background_as_zeros).then_some(0);
        let mut targets = Targets {
            class_columns: vec![background; anchors.len()],
            class_weights: vec![self.negative_class_weight; anchors.len()],
            box_codes: vec![[0.0; CODE_SIZE]; anchors.len()],
            box_weights: vec![0.0; anchors.len()],
            matches,
        };
        for (i, found) in targets.matches.iter().enumerate() {
            match *found {
                Match::Unmatched => {}
                Match::Ignored => targets.class_weights[i] = 0.0,
                Match::Row(row) => {
                    let weight = groundtruth.weight(row);
                    targets.class_columns[i] = groundtruth.classes.get(row).map(|&class| class.max(0) as usize + 1);
                    targets.class_weights[i] = weight;
                    targets.box_weights[i] = weight;
                    targets.box_codes[i] = self.coder.encode(groundtruth.boxes[row], anchors[i]);
                }
            }
        }
        targets
    }
}
