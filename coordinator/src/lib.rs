//! coati-coordinator.

#[cfg(unix)]
pub mod launcher;
