//! What every part of Coati shares: configuration, the cluster, formats and errors.

pub mod cluster;
pub mod exit;
pub mod config;
pub mod label_map;
pub mod rpc;
pub mod tfrecord;
pub mod variables;
