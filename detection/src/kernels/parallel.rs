//! Fixed tasks over a pool of threads. What a task computes never depends on how many threads there are or on who runs it, so results
//! are equal bit for bit whatever the number of threads.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::Error;

/// A pool of compute threads, or the calling thread alone.
#[derive(Debug)]
pub struct Pool {
    threads: Option<rayon::ThreadPool>,
}

impl Pool {
    /// A pool of `threads` threads; 1 computes on the calling thread.
    pub fn new(threads: usize) -> Result<Self, Error> {
        if threads <= 1 {
            return Ok(Self { threads: None });
        }
        let build = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compute-{i}"))
            .build();
        Ok(Self {
            threads: Some(build.map_err(|source| Error::Threads { threads, source })?),
        })
    }

    /// The number of threads that `COATI_THREADS` asks for, otherwise the number of cores.
    pub fn default_threads() -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let asked = std::env::var("COATI_THREADS")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        asked.filter(|&threads: &usize| threads > 0).unwrap_or(cores)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Runs `work` on one of the pool's threads, so that the [`Pool::each`] calls in it need not wake the caller each time.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Calls `task(0)`, …, `task(count - 1)`, each once, on whichever thread is free next; returns when all are done.
    pub fn each(&self, count: usize, task: impl Fn(usize) + Sync) {
        match &self.threads {
            Some(pool) if count > 1 => {
                let next = AtomicUsize::new(0);
                pool.broadcast(|_| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= count {
                            break;
                        }
                        task(i);
                    }
                });
            }
            _ => (0..count).for_each(task),
        }
    }
}

/// A buffer that several tasks write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: `Shared::at` is unsafe, and its callers promise that tasks touch disjoint parts.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(buffer: &mut [f32]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
        }
    }

    /// A buffer that is only read through this handle.
    pub(crate) fn of(buffer: &[f32]) -> Self {
        Self {
            start: buffer.as_ptr().cast_mut(),
            len: buffer.len(),
        }
    }

    pub(crate) fn empty() -> Self {
        Self {
            start: std::ptr::null_mut(),
            len: 0,
        }
    }

    /// Pointer to `len` elements from `start`.
    ///
    /// # Safety
    /// No other thread writes these elements meanwhile, and none reads them if the caller writes.
    pub(crate) unsafe fn at(self, start: usize, len: usize) -> *mut f32 {
        assert!(
            start <= self.len && len <= self.len - start,
            "{start} + {len} elements of a buffer of {}",
            self.len
        );
        unsafe { self.start.add(start) }
    }
}

/// Rounds a length up so that the next piece of scratch begins on its own cache line.
pub(crate) fn line(elements: usize) -> usize {
    elements.next_multiple_of(16)
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Gives `work` this thread's scratch of at least `len` elements (cache-line aligned; contents arbitrary). It is kept from step to step.
pub(crate) fn scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|buffer| {
        if buffer.len() < len + 16 {
            buffer.resize(len + 16, 0.0);
        }
        let skip = buffer.as_ptr().align_offset(64).min(16);
        work(&mut buffer[skip..skip + len])
    })
}
