//! Parameter servers against recorded numbers of the reference, and against each other over real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod checkpoints;
mod cluster;
mod consistency;
mod copies;
mod faults;
mod fuzz;
mod golden;
mod hostile;
mod lanes;
mod optimizers;
mod placements;
mod processes;
mod schedules;
mod steps;
mod wire;
