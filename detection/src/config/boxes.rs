//! `box_coder`, `matcher` and `similarity_calculator`

use super::{Error, missing, require, unsupported};
use crate::box_coder::{BoxCoder, FasterRcnn, MeanStddev};
use crate::matcher::{ArgMax, Matcher, Thresholds};
use crate::similarity::Similarity;
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::{box_coder, matcher, region_similarity_calculator};

/// `model.ssd.box_coder`
pub fn box_coder(ssd: &pb::Ssd) -> Result<BoxCoder, Error> {
    const FIELD: &str = "model.ssd.box_coder";
    let coder = ssd.box_coder.as_ref().and_then(|coder| coder.box_coder_oneof.as_ref());
    let positive = |scales: &[f32]| {
        scales
            .iter()
            .try_for_each(|&scale| require(scale > 0.0, FIELD, scale, "its numbers must be above 0"))
    };
    match coder.ok_or_else(|| missing(FIELD, "faster_rcnn_box_coder { }"))? {
        box_coder::BoxCoderOneof::FasterRcnnBoxCoder(coder) => {
            let coder = FasterRcnn {
                y_scale: coder.y_scale(),
                x_scale: coder.x_scale(),
                height_scale: coder.height_scale(),
                width_scale: coder.width_scale(),
            };
            positive(&[coder.y_scale, coder.x_scale, coder.height_scale, coder.width_scale])?;
            Ok(coder.into())
        }
        box_coder::BoxCoderOneof::MeanStddevBoxCoder(coder) => {
            let stddev = coder.stddev();
            positive(&[stddev])?;
            Ok(BoxCoder::MeanStddev(MeanStddev { stddev }))
        }
        // The box predictors predict four numbers, and inputs have no keypoints.
        box_coder::BoxCoderOneof::SquareBoxCoder(_) => Err(unsupported(
            FIELD,
            "square_box_coder",
            "its codes have three numbers, the box predictors make four; faster_rcnn_box_coder and mean_stddev_box_coder are supported",
        )),
        box_coder::BoxCoderOneof::KeypointBoxCoder(_) => Err(unsupported(
            FIELD,
            "keypoint_box_coder",
            "keypoints are not read from records; faster_rcnn_box_coder and mean_stddev_box_coder are supported",
        )),
    }
}

/// `model.ssd.similarity_calculator`
pub fn similarity(ssd: &pb::Ssd) -> Result<Similarity, Error> {
    use region_similarity_calculator::RegionSimilarity as Which;
    let chosen = ssd.similarity_calculator.as_ref();
    let chosen = chosen.and_then(|similarity| similarity.region_similarity.as_ref());
    let chosen = chosen.ok_or_else(|| missing("model.ssd.similarity_calculator", "iou_similarity { }"))?;
    Ok(match chosen {
        Which::IouSimilarity(_) => Similarity::Iou,
        Which::IoaSimilarity(_) => Similarity::Ioa,
        Which::NegSqDistSimilarity(_) => Similarity::NegSqDist,
        Which::ThresholdedIouSimilarity(similarity) => Similarity::ThresholdedIou {
            threshold: similarity.iou_threshold(),
        },
    })
}

/// `model.ssd.matcher`
pub fn matcher(ssd: &pb::Ssd) -> Result<Matcher, Error> {
    let matcher = ssd.matcher.as_ref().and_then(|matcher| matcher.matcher_oneof.as_ref());
    match matcher.ok_or_else(|| missing("model.ssd.matcher", "argmax_matcher { }"))? {
        matcher::MatcherOneof::ArgmaxMatcher(argmax) => Ok(argmax_matcher(argmax)?.into()),
        matcher::MatcherOneof::BipartiteMatcher(_) => Ok(Matcher::Bipartite),
    }
}

fn argmax_matcher(argmax: &pb::ArgMaxMatcher) -> Result<ArgMax, Error> {
    let thresholds = if argmax.ignore_thresholds() {
        None
    } else {
        let (matched, unmatched) = (argmax.matched_threshold(), argmax.unmatched_threshold());
        let negatives_lower_than_unmatched = argmax.negatives_lower_than_unmatched();
        require(
            unmatched <= matched,
            "argmax_matcher.unmatched_threshold",
            unmatched,
            "it must not be above matched_threshold",
        )?;
        require(
            negatives_lower_than_unmatched || unmatched < matched,
            "argmax_matcher.negatives_lower_than_unmatched",
            "false",
            "matched_threshold must then be above unmatched_threshold, since negatives lie between them",
        )?;
        Some(Thresholds {
            matched,
            unmatched,
            negatives_lower_than_unmatched,
        })
    };
    Ok(ArgMax {
        thresholds,
        force_match_for_each_row: argmax.force_match_for_each_row(),
    })
}
