//! coati-coordinator.
