//! The box side and the whole detector against numbers recorded from the reference implementation.

mod anchors;
mod config;
mod golden;
mod gradients;
mod model;
mod postprocess;
mod training;
