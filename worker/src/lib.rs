//! Training and evaluation: the loop of a replica, the exchange of gradients, and what goes on around them.
//!
//! [`train`] runs a job in one process, [`cluster`] one task of a cluster with parameter servers, [`ranks`] one of several that sum their
//! gradients among themselves; all of them drive [`replica`] over an [`exchange`].
//! [`evaluate`] computes metrics, [`observe`] is what a job tells those who watch, [`replay`] makes a job again from its log.

pub mod best;
mod book;
pub mod cluster;
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]
mod conformance;
pub mod detect;
pub mod evaluate;
pub mod evaluator;
pub mod exchange;
pub mod fine_tune;
pub mod gallery;
mod growth;
pub mod infer;
pub mod input;
pub mod job;
mod lease;
mod local;
pub mod model;
pub mod observe;
pub mod ranks;
mod remote;
pub mod replay;
pub mod replica;
mod residence;
mod session;
pub mod stop;
pub mod tensorboard;
pub mod train;
