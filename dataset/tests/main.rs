//! The whole way of real records, against numbers recorded from the reference.

#![allow(clippy::unwrap_used, clippy::print_stderr)]
mod bccd;
mod fuzz;
