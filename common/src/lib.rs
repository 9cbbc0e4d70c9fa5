//! What every part of Coati shares: configuration, the cluster, formats and errors.

pub mod cluster;
pub mod config;
pub mod events;
pub mod exit;
pub mod invariants;
pub mod label_map;
pub mod optimizer;
pub mod rpc;
pub mod tfrecord;
pub mod variables;
pub mod wall_clock;
pub mod work;

mod hex;

pub use hex::hex;
