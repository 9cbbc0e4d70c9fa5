//! Metrics beside the reference's figures.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod files;
mod golden;
