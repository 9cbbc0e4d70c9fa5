//! `loss`, and what else of `ssd` bears on it.

use super::{Error, box_coder, count, matcher, missing, require, unsupported};
use crate::hard_example_miner::{HardExampleMiner, LossType};
use crate::ssd_loss::LossConfig;
use crate::target_assigner::TargetAssigner;
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::classification_loss::ClassificationLoss;
use coati_proto::object_detection::protos::localization_loss::LocalizationLoss;

/// The losses of `ssd`.
pub fn loss(ssd: &pb::Ssd) -> Result<LossConfig, Error> {
    const FIELD: &str = "model.ssd.loss";
    let loss = ssd.loss.as_ref().ok_or_else(|| missing(FIELD, "loss { … }"))?;
    refuse(ssd, loss)?;
    let (classification_weight, localization_weight) = (loss.classification_weight(), loss.localization_weight());
    Ok(LossConfig {
        assigner: TargetAssigner {
            matcher: matcher(ssd)?,
            coder: box_coder(ssd)?,
            negative_class_weight: ssd.negative_class_weight(),
            encode_background_as_zeros: ssd.encode_background_as_zeros(),
        },
        delta: delta(loss)?,
        classification_weight,
        localization_weight,
        normalize_loss_by_num_matches: ssd.normalize_loss_by_num_matches(),
        normalize_loc_loss_by_codesize: ssd.normalize_loc_loss_by_codesize(),
        miner: loss
            .hard_example_miner
            .as_ref()
            .map(|miner| hard_example_miner(miner, classification_weight, localization_weight))
            .transpose()?,
    })
}

/// Where smooth L1 turns linear, if the two losses are those that are built.
fn delta(loss: &pb::Loss) -> Result<f32, Error> {
    const CLASSES: &str = "model.ssd.loss.classification_loss";
    const BOXES: &str = "model.ssd.loss.localization_loss";
    let classes = loss
        .classification_loss
        .as_ref()
        .and_then(|loss| loss.classification_loss.as_ref());
    match classes.ok_or_else(|| missing(CLASSES, "weighted_sigmoid { }"))? {
        ClassificationLoss::WeightedSigmoid(_) => {}
        _ => return Err(unsupported(CLASSES, "another loss", "weighted_sigmoid is supported")),
    }
    let boxes = loss
        .localization_loss
        .as_ref()
        .and_then(|loss| loss.localization_loss.as_ref());
    match boxes.ok_or_else(|| missing(BOXES, "weighted_smooth_l1 { }"))? {
        LocalizationLoss::WeightedSmoothL1(smooth) => {
            require(
                smooth.delta() > 0.0,
                "weighted_smooth_l1.delta",
                smooth.delta(),
                "it must be above 0",
            )?;
            Ok(smooth.delta())
        }
        _ => Err(unsupported(BOXES, "another loss", "weighted_smooth_l1 is supported")),
    }
}

fn refuse(ssd: &pb::Ssd, loss: &pb::Loss) -> Result<(), Error> {
    let switches = [
        ("model.ssd.add_background_class", ssd.add_background_class(), true),
        (
            "model.ssd.explicit_background_class",
            ssd.explicit_background_class(),
            false,
        ),
        (
            "model.ssd.use_confidences_as_targets",
            ssd.use_confidences_as_targets(),
            false,
        ),
        ("model.ssd.mask_head_config", ssd.mask_head_config.is_some(), false),
        (
            "model.ssd.loss.random_example_sampler",
            loss.random_example_sampler.is_some(),
            false,
        ),
        (
            "model.ssd.loss.expected_loss_weights",
            loss.expected_loss_weights.unwrap_or(0) != 0,
            false,
        ),
        (
            "model.ssd.loss.equalization_loss",
            loss.equalization_loss.as_ref().is_some_and(|loss| loss.weight() != 0.0),
            false,
        ),
    ];
    switches.into_iter().try_for_each(|(field, value, only)| {
        require(value == only, field, value, "this is not supported; leave it out")
    })
}

/// The reference weighs the two losses for mining as it does for training.
fn hard_example_miner(
    miner: &pb::HardExampleMiner,
    class_weight: f32,
    box_weight: f32,
) -> Result<HardExampleMiner, Error> {
    use pb::hard_example_miner::LossType as Which;
    let iou_threshold = miner.iou_threshold();
    require(
        (0.0..=1.0).contains(&iou_threshold),
        "hard_example_miner.iou_threshold",
        iou_threshold,
        "0 to 1",
    )?;
    let most = miner.num_hard_examples();
    let ratio = miner.max_negatives_per_positive();
    Ok(HardExampleMiner {
        num_hard_examples: usize::try_from(most).ok().filter(|&most| most > 0),
        iou_threshold,
        loss_type: match miner.loss_type() {
            Which::Both => LossType::Both,
            Which::Classification => LossType::Classification,
            Which::Localization => LossType::Localization,
        },
        class_weight,
        box_weight,
        max_negatives_per_positive: (ratio > 0).then_some(ratio as f32),
        min_negatives_per_image: count(
            miner.min_negatives_per_image(),
            "hard_example_miner.min_negatives_per_image",
        )?,
    })
}
