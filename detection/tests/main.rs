//! The box side and the whole detector against numbers recorded from the reference implementation.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed; what it skips it says"
)]

mod anchors;
mod components;
mod config;
mod configs;
mod golden;
mod gradients;
mod model;
mod postprocess;
mod sizes;
mod training;
