//! Open Images' metrics: Pascal VOC's AP with group-of boxes, and in the challenges with verified labels of whole images.

use crate::detection::{Protocol, Unlabelled};

/// `oid_V2_detection_metrics` (`OpenImagesDetectionEvaluator`): detections inside a group-of box are ignored.
pub const V2: Protocol = Protocol {
    difficult: false,
    group_of: true,
    ..Protocol::pascal("oid_V2_detection_metrics", "OpenImagesV2_")
};

/// `oid_challenge_detection_metrics` (`OpenImagesDetectionChallengeEvaluator`): a group-of box counts once, and classes that nobody
/// verified in an image are not looked for there.
pub const CHALLENGE: Protocol = Protocol {
    group_of_weight: 1.0,
    unlabelled: Unlabelled::Skip,
    name: "oid_challenge_detection_metrics",
    prefix: "OpenImagesDetectionChallenge_",
    ..V2
};

/// `oid_challenge_segmentation_metrics` (`OpenImagesInstanceSegmentationChallengeEvaluator`): boxes without a mask are matched as boxes
/// and ignored.
pub const CHALLENGE_MASKS: Protocol = Protocol {
    group_of_weight: 0.0,
    masks: true,
    name: "oid_challenge_segmentation_metrics",
    prefix: "OpenImagesInstanceSegmentationChallenge_",
    ..CHALLENGE
};
