//! The parts of a detector as `pipeline.config`'s messages describe them.
//!
//! Everything that is not built is refused by name here too, so that a caller who did not check the configuration first cannot train
//! something else than was asked for.

mod anchors;
mod boxes;
mod loss;
mod network;
mod postprocess;

pub use anchors::anchor_generator;
pub use boxes::{box_coder, matcher, similarity};
pub use loss::loss;
pub use network::{NetworkOptions, network, squash};
pub use postprocess::post_processor;

use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::{conditional_shape_resizer, detection_model, image_resizer};

/// Why no detector can be built from a configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not set.
    #[error("{field} is not set\nhint: set {expected}")]
    Missing {
        /// Path in the configuration.
        field: &'static str,
        /// What is possible.
        expected: &'static str,
    },
    /// Not built, or impossible.
    #[error("{field} is {value}: {expected}")]
    Unsupported {
        /// Path in the configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

fn missing(field: &'static str, expected: &'static str) -> Error {
    Error::Missing { field, expected }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "values are written where the call is, references would only be noise"
)]
fn unsupported(field: &'static str, value: impl ToString, expected: &'static str) -> Error {
    Error::Unsupported {
        field,
        value: value.to_string(),
        expected,
    }
}

/// Passes if `holds`.
fn require(holds: bool, field: &'static str, value: impl ToString, expected: &'static str) -> Result<(), Error> {
    if holds {
        Ok(())
    } else {
        Err(unsupported(field, value, expected))
    }
}

/// A count that must not be below 0.
fn count(value: i32, field: &'static str) -> Result<usize, Error> {
    usize::try_from(value).map_err(|_| unsupported(field, value, "0 or more"))
}

/// `model.ssd`
pub fn ssd(model: &pb::DetectionModel) -> Result<&pb::Ssd, Error> {
    match &model.model {
        Some(detection_model::Model::Ssd(ssd)) => Ok(ssd),
        Some(detection_model::Model::FasterRcnn(_)) => Err(unsupported("model", "faster_rcnn", "ssd is supported")),
        Some(detection_model::Model::CenterNet(_)) => Err(unsupported("model", "center_net", "ssd is supported")),
        Some(detection_model::Model::ExperimentalModel(_)) => {
            Err(unsupported("model", "experimental_model", "ssd is supported"))
        }
        None => Err(missing("model", "ssd { … }")),
    }
}

/// A side of images that nothing says the size of.
const SOME_SIDE: usize = 300;

/// (height, width) in pixels of the network's input. Where the resizer leaves images of many sizes, the one that a network is first laid out for:
/// one that it may well meet.
pub fn image_size(ssd: &pb::Ssd) -> Result<(usize, usize), Error> {
    const FIELD: &str = "model.ssd.image_resizer";
    const EXPECTED: &str = "fixed_shape_resizer { height: 300 width: 300 }";
    let resizer = ssd
        .image_resizer
        .as_ref()
        .and_then(|resizer| resizer.image_resizer_oneof.as_ref());
    match resizer.ok_or_else(|| missing(FIELD, EXPECTED))? {
        image_resizer::ImageResizerOneof::FixedShapeResizer(fixed) => Ok((
            count(fixed.height(), "fixed_shape_resizer.height")?,
            count(fixed.width(), "fixed_shape_resizer.width")?,
        )),
        image_resizer::ImageResizerOneof::KeepAspectRatioResizer(keep) => {
            let side = count(keep.max_dimension(), "keep_aspect_ratio_resizer.max_dimension")?;
            Ok((side, side))
        }
        image_resizer::ImageResizerOneof::IdentityResizer(_) => Ok((SOME_SIDE, SOME_SIDE)),
        image_resizer::ImageResizerOneof::ConditionalShapeResizer(conditional) => {
            let side = count(conditional.size_threshold(), "conditional_shape_resizer.size_threshold")?;
            // Only with GREATER all images are that small.
            let side = match conditional.condition() {
                conditional_shape_resizer::ResizeCondition::Greater => side,
                _ => side.max(SOME_SIDE),
            };
            Ok((side, side))
        }
        image_resizer::ImageResizerOneof::PadToMultipleResizer(pad) => {
            let multiple = count(pad.multiple(), "pad_to_multiple_resizer.multiple")?;
            let side = SOME_SIDE.next_multiple_of(multiple.max(1));
            Ok((side, side))
        }
    }
}

/// `model.ssd.num_classes`
pub fn num_classes(ssd: &pb::Ssd) -> Result<usize, Error> {
    match count(ssd.num_classes(), "model.ssd.num_classes")? {
        0 => Err(unsupported(
            "model.ssd.num_classes",
            0,
            "the number of items of the label map",
        )),
        classes => Ok(classes),
    }
}
