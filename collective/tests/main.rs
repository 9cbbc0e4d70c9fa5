//! Ranks as real processes: this program starts itself once for each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faults;
mod gpu;
mod ranks;
mod scenes;
mod stand_in;
mod sums;

/// What a started process does; nothing in the run that starts them.
#[test]
fn rank() {
    scenes::play();
}
