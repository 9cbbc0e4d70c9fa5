//! Checkpoints against what TensorFlow wrote, and TensorFlow against what is written here.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod garbage;
mod golden;
mod manifest;
mod model_dir;
mod python;
mod round_trip;
mod support;
