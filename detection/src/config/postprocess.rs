//! `post_processing`

use super::{Error, box_coder, count, missing, require, unsupported};
use crate::postprocess::{Calibration, Curve, MulticlassNms, PostProcessor, Scope, ScoreConverter};
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::{calibration_config, post_processing};

/// How `ssd` turns predictions into detections.
pub fn post_processor(ssd: &pb::Ssd) -> Result<PostProcessor, Error> {
    let post = ssd
        .post_processing
        .as_ref()
        .ok_or_else(|| missing("model.ssd.post_processing", "post_processing { … }"))?;
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
        calibration: calibration(post.calibration_config.as_ref())?,
        background: ssd.add_background_class() || ssd.explicit_background_class(),
        nms: multiclass_nms(post.batch_non_max_suppression.as_ref().unwrap_or(&stock))?,
    })
}

fn calibration(message: Option<&pb::CalibrationConfig>) -> Result<Calibration, Error> {
    use calibration_config::Calibrator;
    const FIELD: &str = "post_processing.calibration_config";
    let Some(message) = message else {
        return Ok(Calibration::None);
    };
    let curve = |pairs: Option<&pb::XyPairs>| {
        let points: Vec<(f32, f32)> = pairs
            .iter()
            .flat_map(|pairs| &pairs.x_y_pair)
            .map(|pair| (pair.x(), pair.y()))
            .collect();
        Curve::new(&points).ok_or_else(|| {
            unsupported(
                FIELD,
                format!("a curve through {points:?}"),
                "x_y_pair once or more, each x above the one before",
            )
        })
    };
    match message.calibrator.as_ref() {
        None => Err(missing(
            FIELD,
            "function_approximation, class_id_function_approximations or temperature_scaling_calibration",
        )),
        Some(Calibrator::FunctionApproximation(one)) => Ok(Calibration::Curve(curve(one.x_y_pairs.as_ref())?)),
        Some(Calibrator::ClassIdFunctionApproximations(many)) => {
            let curves = many.class_id_xy_pairs_map.iter();
            let curves = curves.map(|(&class, pairs)| Ok((count(class, FIELD)?, curve(Some(pairs))?)));
            Ok(Calibration::Curves(curves.collect::<Result<_, Error>>()?))
        }
        Some(Calibrator::TemperatureScalingCalibration(temperature)) => {
            let scaler = temperature.scaler();
            require(scaler > 0.0, FIELD, scaler, "the scaler must be above 0")?;
            Ok(Calibration::Temperature(scaler))
        }
        Some(Calibrator::SigmoidCalibration(_) | Calibrator::ClassIdSigmoidCalibrations(_)) => Err(unsupported(
            FIELD,
            "a sigmoid calibration",
            "the reference names it and does not build it either; use function_approximation",
        )),
    }
}

fn multiclass_nms(nms: &pb::BatchNonMaxSuppression) -> Result<MulticlassNms, Error> {
    let soft_nms_sigma = nms.soft_nms_sigma();
    require(
        soft_nms_sigma >= 0.0,
        "batch_non_max_suppression.soft_nms_sigma",
        soft_nms_sigma,
        "0 or more",
    )?;
    let scope = match (nms.use_class_agnostic_nms(), nms.use_combined_nms()) {
        (true, true) => {
            return Err(unsupported(
                "batch_non_max_suppression.use_combined_nms",
                true,
                "combined suppression goes class by class; leave use_class_agnostic_nms out",
            ));
        }
        (true, false) => Scope::All,
        (false, true) => Scope::Combined,
        (false, false) => Scope::Class,
    };
    let others = [
        (
            "batch_non_max_suppression.max_classes_per_detection",
            scope == Scope::All && nms.max_classes_per_detection() > 1,
            "with use_class_agnostic_nms a box has one class; leave it out",
        ),
        (
            "batch_non_max_suppression.change_coordinate_frame",
            scope == Scope::Combined && nms.change_coordinate_frame(),
            "use_combined_nms needs change_coordinate_frame: false, as in the reference",
        ),
        (
            "batch_non_max_suppression.soft_nms_sigma",
            scope == Scope::Combined && soft_nms_sigma > 0.0,
            "use_combined_nms knows no soft suppression; leave one of the two out",
        ),
        (
            "batch_non_max_suppression.use_hard_nms",
            nms.use_hard_nms() && soft_nms_sigma > 0.0,
            "soft_nms_sigma asks for the opposite; leave one of the two out",
        ),
    ];
    for (field, set, why) in others {
        require(!set, field, "set", why)?;
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
        scope,
        soft_nms_sigma,
    })
}
