//! End to end: real processes of the real binary, as a user runs them.

mod faults;
mod reproducible;
mod stopping;
mod training;
