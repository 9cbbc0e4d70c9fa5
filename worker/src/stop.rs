//! A request to stop that signal handlers raise and loops look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the others, and the user, are told of it.
pub(crate) const STOPPED: &str = "stopped on request";

/// Cloneable: all clones see the request.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks to stop after the current step.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// For those who look by themselves.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Whether somebody asked.
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
