//! Metrics beside the reference's figures.

mod bad_input;
mod files;
mod golden;
