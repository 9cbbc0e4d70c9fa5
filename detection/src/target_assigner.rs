//! What each anchor of an image should predict.

use crate::Corners;
use crate::box_coder::BoxCoder;
use crate::groundtruth::Groundtruth;
use crate::matcher::{Match, Matcher};
use crate::similarity::Similarity;

/// Joins similarity, matcher and coder: the reference's `TargetAssigner`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetAssigner {
    /// Which anchor is trained on which box.
    pub matcher: Matcher,
    /// What makes a box and an anchor alike.
    pub similarity: Similarity,
    /// How boxes are written.
    pub coder: BoxCoder,
    /// Weight of the class loss of unmatched anchors.
    pub negative_class_weight: f32,
    /// Unmatched anchors have no class at all; otherwise they have class column 0.
    pub encode_background_as_zeros: bool,
    /// Classes begin at column 1, behind the background; otherwise at column 0, which anchors without a match then have too, as in
    /// the reference.
    pub add_background_class: bool,
}

/// The targets of one image, one entry an anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Match with the groundtruth.
    pub matches: Vec<Match>,
    /// The column of the class predictions that should be 1, all others 0. Class `c` is column `c + 1`, or `c` without
    /// [`TargetAssigner::add_background_class`].
    pub class_columns: Vec<Option<usize>>,
    /// Weight of the class loss.
    pub class_weights: Vec<f32>,
    /// What the box encodings should be (`[anchors, code_size]`); zeros without a match.
    pub box_codes: Vec<f32>,
    /// Weight of the localisation loss; 0 without a match.
    pub box_weights: Vec<f32>,
}

impl TargetAssigner {
    /// Targets for the anchors of one image, whose groundtruth has been checked. A box of weight 0 claims no anchor by force, and the
    /// anchors most similar to it count for nothing.
    pub fn assign(&self, anchors: &[Corners], groundtruth: &Groundtruth) -> Targets {
        let first = usize::from(self.add_background_class);
        let column = |row: usize| groundtruth.classes.get(row).map(|&class| class.max(0) as usize + first);
        // The reference's `1 - groundtruth_labels[:, 0]`.
        let score = |row| if column(row) == Some(0) { 0.0 } else { 1.0 };
        let similarity = self.similarity.matrix(&groundtruth.boxes, anchors, score);
        let valid = |row| groundtruth.weight(row) > 0.0;
        let matches = self.matcher.match_columns(&similarity, anchors.len(), valid);
        let code_size = self.coder.code_size();
        let background = (!self.encode_background_as_zeros).then_some(0);
        let mut targets = Targets {
            class_columns: vec![background; anchors.len()],
            class_weights: vec![self.negative_class_weight; anchors.len()],
            box_codes: vec![0.0; anchors.len() * code_size],
            box_weights: vec![0.0; anchors.len()],
            matches,
        };
        for (i, found) in targets.matches.iter().enumerate() {
            match *found {
                Match::Unmatched => {}
                Match::Ignored => targets.class_weights[i] = 0.0,
                Match::Row(row) => {
                    let weight = groundtruth.weight(row);
                    targets.class_columns[i] = column(row);
                    targets.class_weights[i] = weight;
                    targets.box_weights[i] = weight;
                    let code = &mut targets.box_codes[i * code_size..(i + 1) * code_size];
                    self.coder.encode(groundtruth.boxes[row], anchors[i], code);
                }
            }
        }
        targets
    }
}
