//! `loss`, and what else of `ssd` bears on it.

use super::{Error, box_coder, count, matcher, missing, require, similarity};
use crate::hard_example_miner::{HardExampleMiner, LossType};
use crate::losses::bootstrapped::Bootstrapped;
use crate::losses::dice::Dice;
use crate::losses::focal::SigmoidFocal;
use crate::losses::penalty_reduced::PenaltyReduced;
use crate::losses::{Classification, Localization};
use crate::random_example_sampler::RandomExampleSampler;
use crate::ssd_loss::LossConfig;
use crate::target_assigner::TargetAssigner;
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::classification_loss::ClassificationLoss;
use coati_proto::object_detection::protos::localization_loss::LocalizationLoss;

/// The losses of `ssd`.
pub fn loss(ssd: &pb::Ssd) -> Result<LossConfig, Error> {
    const FIELD: &str = "model.ssd.loss";
    let loss = ssd.loss.as_ref().ok_or_else(|| missing(FIELD, "loss { … }"))?;
    let classification = classification(loss)?;
    refuse(ssd, loss, classification)?;
    let (classification_weight, localization_weight) = (loss.classification_weight(), loss.localization_weight());
    Ok(LossConfig {
        assigner: TargetAssigner {
            matcher: matcher(ssd)?,
            similarity: similarity(ssd)?,
            coder: box_coder(ssd)?,
            negative_class_weight: ssd.negative_class_weight(),
            encode_background_as_zeros: ssd.encode_background_as_zeros(),
            add_background_class: ssd.add_background_class(),
        },
        classification,
        localization: localization(loss)?,
        classification_weight,
        localization_weight,
        normalize_loss_by_num_matches: ssd.normalize_loss_by_num_matches(),
        normalize_loc_loss_by_codesize: ssd.normalize_loc_loss_by_codesize(),
        sampler: sampler(loss)?,
        miner: loss
            .hard_example_miner
            .as_ref()
            .map(|miner| hard_example_miner(miner, classification_weight, localization_weight))
            .transpose()?,
    })
}

fn classification(loss: &pb::Loss) -> Result<Classification, Error> {
    const FIELD: &str = "model.ssd.loss.classification_loss";
    let chosen = loss.classification_loss.as_ref();
    let chosen = chosen.and_then(|loss| loss.classification_loss.as_ref());
    let scale = |scale: f32, field| require(scale > 0.0, field, scale, "it must be above 0").map(|()| scale);
    Ok(match chosen.ok_or_else(|| missing(FIELD, "weighted_sigmoid { }"))? {
        ClassificationLoss::WeightedSigmoid(_) => Classification::Sigmoid,
        ClassificationLoss::WeightedSigmoidFocal(focal) => {
            let gamma = focal.gamma();
            require(gamma >= 0.0, "weighted_sigmoid_focal.gamma", gamma, "0 or more")?;
            Classification::SigmoidFocal(SigmoidFocal {
                gamma,
                alpha: focal.alpha,
            })
        }
        ClassificationLoss::WeightedSoftmax(softmax) => Classification::Softmax {
            scale: scale(softmax.logit_scale(), "weighted_softmax.logit_scale")?,
        },
        ClassificationLoss::WeightedLogitsSoftmax(softmax) => Classification::SoftmaxAgainstLogits {
            scale: scale(softmax.logit_scale(), "weighted_logits_softmax.logit_scale")?,
        },
        ClassificationLoss::BootstrappedSigmoid(bootstrapped) => {
            let alpha = bootstrapped.alpha();
            require(
                (0.0..=1.0).contains(&alpha),
                "bootstrapped_sigmoid.alpha",
                alpha,
                "0 to 1",
            )?;
            Classification::Bootstrapped(Bootstrapped {
                alpha,
                hard: bootstrapped.hard_bootstrap(),
            })
        }
        ClassificationLoss::PenaltyReducedLogisticFocalLoss(focal) => Classification::PenaltyReduced(PenaltyReduced {
            alpha: focal.alpha(),
            beta: focal.beta(),
        }),
        ClassificationLoss::WeightedDiceClassificationLoss(dice) => Classification::Dice(Dice {
            squared_normalization: dice.squared_normalization(),
            is_prediction_probability: dice.is_prediction_probability(),
        }),
    })
}

fn localization(loss: &pb::Loss) -> Result<Localization, Error> {
    const FIELD: &str = "model.ssd.loss.localization_loss";
    let chosen = loss.localization_loss.as_ref();
    let chosen = chosen.and_then(|loss| loss.localization_loss.as_ref());
    Ok(match chosen.ok_or_else(|| missing(FIELD, "weighted_smooth_l1 { }"))? {
        LocalizationLoss::WeightedSmoothL1(smooth) => {
            let delta = smooth.delta();
            require(delta > 0.0, "weighted_smooth_l1.delta", delta, "it must be above 0")?;
            Localization::SmoothL1 { delta }
        }
        LocalizationLoss::WeightedL2(_) => Localization::L2,
        LocalizationLoss::L1LocalizationLoss(_) => Localization::L1,
        LocalizationLoss::WeightedIou(_) => Localization::Iou,
        LocalizationLoss::WeightedGiou(_) => Localization::Giou,
    })
}

fn sampler(loss: &pb::Loss) -> Result<Option<RandomExampleSampler>, Error> {
    let Some(sampler) = &loss.random_example_sampler else {
        return Ok(None);
    };
    let positive_fraction = sampler.positive_sample_fraction();
    require(
        positive_fraction > 0.0 && positive_fraction <= 1.0,
        "random_example_sampler.positive_sample_fraction",
        positive_fraction,
        "above 0, at most 1",
    )?;
    Ok(Some(RandomExampleSampler { positive_fraction }))
}

fn refuse(ssd: &pb::Ssd, loss: &pb::Loss, classification: Classification) -> Result<(), Error> {
    let mined = loss.hard_example_miner.is_some();
    require(
        !(mined && matches!(classification, Classification::SigmoidFocal(_))),
        "model.ssd.loss.hard_example_miner",
        "set",
        "weighted_sigmoid_focal weighs examples itself; leave the miner out, as the reference demands",
    )?;
    require(
        !(mined && matches!(classification, Classification::Dice(_))),
        "model.ssd.loss.hard_example_miner",
        "set",
        "weighted_dice_classification_loss has no losses of single anchors; leave the miner out",
    )?;
    require(
        !(ssd.add_background_class() && ssd.explicit_background_class()),
        "model.ssd.explicit_background_class",
        true,
        "labels with a background of their own need add_background_class: false",
    )?;
    require(
        ssd.add_background_class() || ssd.num_classes() > 1,
        "model.ssd.add_background_class",
        false,
        "a single class needs the background's column beside it; leave it out",
    )?;
    let switches = [
        ("model.ssd.use_confidences_as_targets", ssd.use_confidences_as_targets()),
        ("model.ssd.mask_head_config", ssd.mask_head_config.is_some()),
        (
            "model.ssd.loss.expected_loss_weights",
            loss.expected_loss_weights.unwrap_or(0) != 0,
        ),
    ];
    switches
        .into_iter()
        .try_for_each(|(field, set)| require(!set, field, "set", "this is not supported; leave it out"))
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
