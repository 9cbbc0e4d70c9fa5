//! Detection metrics, the constant-box floor that they are compared with, and pictures of detections.

pub mod coco;
pub mod draw;
pub mod floor;
pub mod sample;

pub use sample::{Category, ImageDetections, ImageGroundtruth};
