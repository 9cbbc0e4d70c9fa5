//! Pascal VOC's metrics: AP at `IoU` 0.5 of boxes or masks, as the mean over classes or of all detections together.

use crate::detection::Protocol;

/// `pascal_voc_detection_metrics` (`PascalDetectionEvaluator`).
pub const BOXES: Protocol = Protocol::pascal("pascal_voc_detection_metrics", "PascalBoxes_");

/// `weighted_pascal_voc_detection_metrics` (`WeightedPascalDetectionEvaluator`).
pub const WEIGHTED_BOXES: Protocol = Protocol {
    weighted: true,
    ..Protocol::pascal("weighted_pascal_voc_detection_metrics", "WeightedPascalBoxes_")
};

/// `pascal_voc_instance_segmentation_metrics` (`PascalInstanceSegmentationEvaluator`).
pub const MASKS: Protocol = Protocol {
    masks: true,
    ..Protocol::pascal("pascal_voc_instance_segmentation_metrics", "PascalMasks_")
};

/// `weighted_pascal_voc_instance_segmentation_metrics` (`WeightedPascalInstanceSegmentationEvaluator`).
pub const WEIGHTED_MASKS: Protocol = Protocol {
    masks: true,
    weighted: true,
    ..Protocol::pascal(
        "weighted_pascal_voc_instance_segmentation_metrics",
        "WeightedPascalMasks_",
    )
};
