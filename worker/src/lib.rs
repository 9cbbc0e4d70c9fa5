//! coati-worker.
