//! Which anchors of an image are worth training on (arXiv:1604.03540; with a limit on negatives, arXiv:1512.02325).

use crate::Corners;
use crate::matcher::Match;
use crate::nms;

/// What makes an anchor hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossType {
    /// Both losses, weighted.
    Both,
    /// The class loss.
    Classification,
    /// The localisation loss.
    Localization,
}

/// The message `HardExampleMiner`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HardExampleMiner {
    /// Anchors of an image at most, before negatives are limited; `None`: all.
    pub num_hard_examples: Option<usize>,
    /// Anchors whose predicted box overlaps that of a harder one by more are left out.
    pub iou_threshold: f32,
    /// What makes an anchor hard.
    pub loss_type: LossType,
    /// Factor on the class loss ([`LossType::Both`] only).
    pub class_weight: f32,
    /// Factor on the localisation loss ([`LossType::Both`] only).
    pub box_weight: f32,
    /// Negatives for each positive that is left, rounded down; `None`: no limit.
    pub max_negatives_per_positive: Option<f32>,
    /// The limit on negatives is never lower than this.
    pub min_negatives_per_image: usize,
}

impl HardExampleMiner {
    /// Indices of the anchors to train on, hardest first. All slices have one entry an anchor; `boxes` are the decoded predictions.
    ///
    /// Ignored anchors count as neither positive nor negative, but stay as long as the limit on negatives is not exceeded, as in the
    /// reference.
    pub fn select(&self, class_losses: &[f32], box_losses: &[f32], boxes: &[Corners], matches: &[Match]) -> Vec<usize> {
        let both: Vec<f32>;
        let scores = match self.loss_type {
            LossType::Classification => class_losses,
            LossType::Localization => box_losses,
            LossType::Both => {
                let weigh = |(class, corners): (&f32, &f32)| class * self.class_weight + corners * self.box_weight;
                both = class_losses.iter().zip(box_losses).map(weigh).collect();
                &both
            }
        };
        let mut selected = nms::greedy(
            boxes,
            scores,
            nms::Options {
                max: self.num_hard_examples.unwrap_or(usize::MAX),
                iou_threshold: self.iou_threshold,
                score_threshold: f32::NEG_INFINITY,
            },
        );
        selected.retain(|&index| index < matches.len());
        if let Some(ratio) = self.max_negatives_per_positive {
            let positives = selected.iter().filter(|&&index| matches[index].row().is_some()).count();
            let limit = ((ratio * positives as f32) as usize).max(self.min_negatives_per_image);
            let mut negatives = 0;
            selected.retain(|&index| {
                negatives += usize::from(matches[index] == Match::Unmatched);
                matches[index].row().is_some() || negatives <= limit
            });
        }
        selected
    }
}
