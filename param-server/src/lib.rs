//! Parameter servers: where variables live, how they are updated, and the service around that.
//!
//! [`placement`], [`schedule`] and [`optimizer`] are pure; [`store`] holds one server's part of the model and applies
//! committed steps; [`service`] puts it behind gRPC and [`client`] talks to it. Needs no libtorch.

pub mod client;
pub mod optimizer;
pub mod placement;
mod pool;
pub mod schedule;
pub mod service;
pub mod store;
pub mod wire;

/// Metadata of a request to a parameter server: the index of those whose variables are meant.
pub const SHARD_KEY: &str = "coati-ps";

pub use client::{PsClient, PsGroup};
pub use optimizer::OptimizerConfig;
pub use placement::{Layout, Strategy, plan};
pub use service::{Handle, Options, serve};
pub use store::{Admit, Consistency, Contributor, DelayCompensation, Store, Tag};
pub use wire::Compression;
