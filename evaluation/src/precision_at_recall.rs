//! `precision_at_recall_detection_metrics`: Pascal VOC's AP between two recalls (`PrecisionAtRecallDetectionEvaluator`).

use crate::detection::{Protocol, Unlabelled};

/// With the bounds of `eval_config.recall_lower_bound` and `recall_upper_bound`; `skip_unlabelled` is
/// `skip_predictions_for_unlabeled_class`.
pub const fn protocol(recall_bounds: [f64; 2], skip_unlabelled: bool) -> Protocol {
    Protocol {
        recall_bounds,
        unlabelled: if skip_unlabelled {
            Unlabelled::SkipIfKnown
        } else {
            Unlabelled::Keep
        },
        ..Protocol::pascal("precision_at_recall_detection_metrics", "PrecisionAtRecallBoxes_")
    }
}
