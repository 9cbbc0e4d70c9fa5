//! Signs of life: each process has a thread that counts, and whoever waits looks whether others' counts go up. A process that was stopped,
//! or cannot run, counts no more, whatever it was at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::region::Region;
use crate::Error;

/// Counts until it is dropped.
pub(super) struct Pulse {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    pub(super) fn start(region: &Arc<Region>, rank: usize, every: Duration) -> Result<Self, Error> {
        let over = Arc::new(AtomicBool::new(false));
        let (region, stop) = (Arc::clone(region), Arc::clone(&over));
        let count = move || {
            while !stop.load(Ordering::Acquire) {
                region.rank(rank).pulse.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(every);
            }
        };
        let thread = std::thread::Builder::new().name("pulse".to_owned()).spawn(count);
        let thread = thread.map_err(Error::io("cannot start a thread", "see the limit on processes"))?;
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It sleeps or counts, nothing else.
            let _ = thread.join();
        }
    }
}

/// What was heard of the others within one wait.
pub(super) struct Ear {
    heard: Vec<(u32, Instant)>,
}

impl Ear {
    pub(super) fn new(region: &Region, now: Instant) -> Self {
        let count = |rank| region.rank(rank).pulse.load(Ordering::Relaxed);
        Self {
            heard: (0..region.layout.world).map(|rank| (count(rank), now)).collect(),
        }
    }

    /// For how long a rank has not counted.
    pub(super) fn silence(&mut self, region: &Region, rank: usize) -> Duration {
        let count = region.rank(rank).pulse.load(Ordering::Relaxed);
        let (before, since) = &mut self.heard[rank];
        if *before != count {
            (*before, *since) = (count, Instant::now());
        }
        since.elapsed()
    }
}
