//! Whole jobs on loopback: a coordinator, parameter servers and replicas that make up their gradients.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "seeds, for a test that fails")]

mod asynchronous;
mod broken;
mod cluster;
mod failures;
mod formation;
mod fuzz;
mod preflight;
mod records;
mod repeats;

mod replica;
mod replication;
mod saving;
mod simulation;
mod slow_net;
mod synchronous;
