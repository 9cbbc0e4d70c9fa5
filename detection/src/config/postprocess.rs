//! `post_processing`

use super::{Error, box_coder, count, missing, require};
use crate::postprocess::{MulticlassNms, PostProcessor, ScoreConverter};
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::post_processing;

/// How `ssd` turns predictions into detections.
pub fn post_processor(ssd: &pb::Ssd) -> Result<PostProcessor, Error> {
    let post = ssd
        .post_processing
        .as_ref()
        .ok_or_else(|| missing("model.ssd.post_processing", "post_processing { … }"))?;
    let calibration = post.calibration_config.is_some();
    require(
        !calibration,
        "model.ssd.post_processing.calibration_config",
        "set",
        "this is not supported",
    )?;
    let logit_scale = post.logit_scale();
    require(
        logit_scale > 0.0,
        "model.ssd.post_processing.logit_scale",
        logit_scale,
        "it must be above 0",
    )?;
    let stock = pb::BatchNonMaxSuppression::default();
    Ok(PostProcessor {
        coder: box_coder(ssd)?,
        score_converter: match post.score_converter() {
            post_processing::ScoreConverter::Identity => ScoreConverter::Identity,
            post_processing::ScoreConverter::Sigmoid => ScoreConverter::Sigmoid,
            post_processing::ScoreConverter::Softmax => ScoreConverter::Softmax,
        },
        logit_scale,
        nms: multiclass_nms(post.batch_non_max_suppression.as_ref().unwrap_or(&stock))?,
    })
}

fn multiclass_nms(nms: &pb::BatchNonMaxSuppression) -> Result<MulticlassNms, Error> {
    let others = [
        ("batch_non_max_suppression.soft_nms_sigma", nms.soft_nms_sigma() != 0.0),
        (
            "batch_non_max_suppression.use_class_agnostic_nms",
            nms.use_class_agnostic_nms(),
        ),
        ("batch_non_max_suppression.use_combined_nms", nms.use_combined_nms()),
    ];
    for (field, set) in others {
        require(!set, field, "set", "this is not supported; leave it out")?;
    }
    let iou_threshold = nms.iou_threshold();
    require(
        (0.0..=1.0).contains(&iou_threshold),
        "batch_non_max_suppression.iou_threshold",
        iou_threshold,
        "0 to 1",
    )?;
    let max_detections_per_class = count(
        nms.max_detections_per_class(),
        "batch_non_max_suppression.max_detections_per_class",
    )?;
    let max_total_detections = count(
        nms.max_total_detections(),
        "batch_non_max_suppression.max_total_detections",
    )?;
    require(
        max_detections_per_class <= max_total_detections,
        "batch_non_max_suppression.max_detections_per_class",
        max_detections_per_class,
        "it must not be above max_total_detections",
    )?;
    Ok(MulticlassNms {
        score_threshold: nms.score_threshold(),
        iou_threshold,
        max_detections_per_class,
        max_total_detections,
        change_coordinate_frame: nms.change_coordinate_frame(),
    })
}
