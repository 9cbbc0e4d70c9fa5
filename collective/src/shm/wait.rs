//! Waiting for a counter of another process: a short spin, then sleep in the kernel.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::region::Counter;

/// How long a sleep lasts before one looks whether everybody is still there.
const NAP: Duration = Duration::from_millis(20);

/// Looks before the first sleep where every rank has a core of its own; some ten microseconds.
const SPINS: u32 = 2_000;

impl Counter {
    /// Whether it has come to `target`. Counters wrap around; ranks are never further apart than half of it.
    pub(super) fn reached(&self, target: u32) -> bool {
        self.value.load(Ordering::Acquire).wrapping_sub(target) as i32 >= 0
    }

    /// Sets it and wakes whoever sleeps.
    pub(super) fn advance(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            wake(self);
        }
    }

    /// Looks for a while: true as soon as it has come to `target`.
    pub(super) fn spin(&self, target: u32, crowded: bool) -> bool {
        // A rank that spins on a core which another one needs would wait for itself.
        for _ in 0..if crowded { 1 } else { SPINS } {
            if self.reached(target) {
                return true;
            }
            std::hint::spin_loop();
        }
        self.reached(target)
    }

    /// Sleeps until it changes, somebody calls [`wake`], or a nap is over.
    pub(super) fn sleep(&self, target: u32) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let now = self.value.load(Ordering::SeqCst);
        if (now.wrapping_sub(target) as i32) < 0 {
            let nap = libc::timespec {
                tv_sec: 0,
                tv_nsec: NAP.subsec_nanos().into(),
            };
            // SAFETY: the word outlives the call; not a private futex, since processes share it.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.value.as_ptr(),
                    libc::FUTEX_WAIT,
                    now,
                    &raw const nap,
                )
            };
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Wakes all who sleep on it.
pub(super) fn wake(counter: &Counter) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, counter.value.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
