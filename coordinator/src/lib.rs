//! The coordinator: membership, data leases, step commits, checkpoints, the end; and the launcher of local clusters.
//!
//! [`membership`], [`clock`], [`ledger`] and [`cadence`] decide, [`timing`] says where a step's time went; `state` puts them
//! together behind one lock; [`run`] drives the servers; `service` answers the replicas, which use [`client`].

pub mod cadence;
pub mod client;
pub mod clock;
#[cfg(unix)]
pub mod launcher;
pub mod ledger;
pub mod membership;
pub mod run;
mod service;
mod state;
pub mod step_log;
mod task;
pub mod timing;
mod troubles;
mod vigil;

pub use client::Client;
pub use run::{Event, Handle, Init, Options, Outcome, Stopper, start, start_as, start_in_process};
