//! Losses that are computed where the network is: then neither predictions nor their gradients leave the device within a step.
//!
//! What an anchor should predict depends on the groundtruth alone and is found here, while the device computes the forward pass. Losses that
//! choose among anchors by what the network predicts (mining, sampling) stay on the host.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Corners;
use crate::groundtruth::Groundtruth;
use crate::losses::{Classification, Localization};
use crate::ssd_loss::{self, LossConfig};
use crate::target_assigner::Targets;

/// A class loss that a device knows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClassLoss {
    /// `weighted_sigmoid`
    Sigmoid,
    /// `weighted_sigmoid_focal`
    Focal {
        /// `gamma`: 0, or 1 and more (below 1 the slope has no bound).
        gamma: f32,
        /// `alpha`
        alpha: Option<f32>,
    },
    /// `weighted_softmax`
    Softmax {
        /// `logit_scale`
        scale: f32,
    },
}

/// A localisation loss that a device knows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum BoxLoss {
    /// `weighted_smooth_l1`
    SmoothL1 {
        /// Where it turns linear.
        delta: f32,
    },
    /// `weighted_l2`
    L2,
    /// `l1_localization_loss`
    L1,
}

/// The losses of a step that a device computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceLoss {
    /// Of classes.
    pub classification: ClassLoss,
    /// Of boxes.
    pub localization: BoxLoss,
}

impl DeviceLoss {
    /// The same losses as `config`'s; `None`: they stay on the host.
    pub fn of(config: &LossConfig) -> Option<Self> {
        if config.miner.is_some() || config.sampler.is_some() || config.assigner.coder.code_size() != 4 {
            return None;
        }
        let classification = match config.classification {
            Classification::Sigmoid => ClassLoss::Sigmoid,
            Classification::SigmoidFocal(focal) if focal.gamma == 0.0 || focal.gamma >= 1.0 => ClassLoss::Focal {
                gamma: focal.gamma,
                alpha: focal.alpha,
            },
            Classification::Softmax { scale } => ClassLoss::Softmax { scale },
            _ => return None,
        };
        let localization = match config.localization {
            Localization::SmoothL1 { delta } => BoxLoss::SmoothL1 { delta },
            Localization::L2 => BoxLoss::L2,
            Localization::L1 => BoxLoss::L1,
            Localization::Iou | Localization::Giou => return None,
        };
        Some(Self {
            classification,
            localization,
        })
    }
}

/// What a batch should predict, one entry an anchor, image by image.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchTargets {
    /// The class column that should be 1; -1: none.
    pub columns: Vec<f32>,
    /// Of the class loss.
    pub class_weights: Vec<f32>,
    /// Box encodings, `[batch, anchors, 4]`; NaN counts as met.
    pub codes: Vec<f32>,
    /// Of the localisation loss.
    pub box_weights: Vec<f32>,
    /// Turns the sum of the class losses into the batch's loss.
    pub class_factor: f32,
    /// The same for boxes.
    pub box_factor: f32,
}

impl BatchTargets {
    /// Finds them; images side by side.
    pub fn assign(
        anchors: &[Corners],
        groundtruth: &[Groundtruth],
        num_classes: usize,
        config: &LossConfig,
    ) -> Result<Self, ssd_loss::Error> {
        for image in groundtruth {
            image.check(num_classes)?;
        }
        let assigned: Vec<Targets> = groundtruth
            .par_iter()
            .map(|image| config.assigner.assign(anchors, image))
            .collect();
        let factors = ssd_loss::factors(&assigned, config);
        let mut targets = Self {
            columns: Vec::with_capacity(groundtruth.len() * anchors.len()),
            class_weights: Vec::with_capacity(groundtruth.len() * anchors.len()),
            codes: Vec::with_capacity(groundtruth.len() * anchors.len() * 4),
            box_weights: Vec::with_capacity(groundtruth.len() * anchors.len()),
            class_factor: factors.class,
            box_factor: factors.corners,
        };
        for image in &assigned {
            let columns = image.class_columns.iter();
            targets
                .columns
                .extend(columns.map(|column| column.map_or(-1.0, |column| column as f32)));
            targets.class_weights.extend_from_slice(&image.class_weights);
            targets.codes.extend_from_slice(&image.box_codes);
            targets.box_weights.extend_from_slice(&image.box_weights);
        }
        Ok(targets)
    }
}

/// An image's sums over anchors, before the batch's factors: (class, boxes).
pub type Sums = (f32, f32);

/// The batch's losses from its images' sums: (classification, localization). `None`: not all sums are finite.
pub fn combine(sums: &[Sums], targets: &BatchTargets) -> Option<(f32, f32)> {
    let total = |part: fn(&Sums) -> f32| -> f64 { sums.iter().map(|sum| f64::from(part(sum))).sum() };
    let (class, boxes) = (total(|sum| sum.0), total(|sum| sum.1));
    (class.is_finite() && boxes.is_finite()).then(|| {
        (
            (class * f64::from(targets.class_factor)) as f32,
            (boxes * f64::from(targets.box_factor)) as f32,
        )
    })
}
