//! Starts real jobs: the `coati` binary, its processes, its files.
//!
//! A [`Job`] is a temporary folder with a small made-up data set and a `pipeline.config`; [`Job::train`] and
//! [`Job::coati`] run the binary there. Tests wait for lines of output and for processes to end, each with a deadline that
//! shows everything said so far; whatever still runs when a [`Process`] is dropped is killed.
//!
//! [`chaos`] kills and stops the processes of a job again and again, and counts what that costs.
//!
//! Everything here panics when it cannot go on: it is only for tests.

#![allow(clippy::missing_panics_doc, reason = "all of it panics, see above")]
#![allow(clippy::print_stdout, reason = "tests tell why they are skipped")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on has failed"))]

mod binary;
mod cluster;
mod config;
mod gate;
mod job;
mod mount;
mod network;
mod process;
mod python;
mod spread;

pub mod bucket;
pub mod chaos;
pub mod records;
pub mod steps;
pub mod tensors;

pub use binary::coati_binary;
pub use cluster::Cluster;
pub use job::{Coati, Job, cluster_config, repository, shared};
pub use mount::SmallDisk;
pub use network::{Host, Network};
pub use process::{Finished, Process};
pub use python::judge;
pub use spread::Spread;

/// What `result` holds, or a panic that says what was tried.
pub(crate) fn or_panic<T, E: std::fmt::Display>(result: Result<T, E>, what: impl std::fmt::Display) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}
