//! End to end: real processes of the real binary, as a user runs them.

#![allow(
    clippy::unwrap_used,
    reason = "tests panic; clippy lets only functions marked as tests do so"
)]

mod bad_input;
mod bucket;
mod chaos;
mod check;
mod data;
mod evaluation;
mod faults;
mod fine_tuning;
mod hostile;
mod importers;
mod inference;
mod judges;
mod partition;
mod preflight;
mod ranks;
mod recovery;
mod reproducible;
mod residence;
mod restarts;
mod scale;
#[path = "../../collective/tests/stand_in.rs"]
mod stand_in;
mod status;
mod stopping;
mod training;
