//! End to end: real processes of the real binary, as a user runs them.

mod bad_input;
mod check;
mod data;
mod evaluation;
mod faults;
mod judges;
mod reproducible;
mod stopping;
mod training;
