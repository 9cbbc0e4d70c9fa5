//! Detection metrics, the constant-box floor that they are compared with, pictures of detections, and reports.

pub mod average_precision;
pub mod coco;
pub mod detection;
pub mod draw;
pub mod error;
pub mod evaluator;
pub mod files;
pub mod floor;
pub mod mask;
pub mod open_images;
mod overlap;
pub mod palette;
pub mod pascal;
mod per_image;
pub mod plot;
pub mod precision_at_recall;
pub mod report;
pub mod review;
pub mod sample;
pub mod set;
pub mod text;
pub mod vrd;

pub use error::Error;
pub use evaluator::{Evaluator, Metric};
pub use mask::Mask;
pub use sample::{Category, Detections, Groundtruth, ImageDetections, ImageGroundtruth, Sample};
pub use set::{Evaluation, Options};
