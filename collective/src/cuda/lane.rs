use std::ffi::c_void;
use std::sync::Arc;

use super::{COPY_DEFAULT, Code, Event, NO_TIMING, NON_BLOCKING, NOT_READY, Runtime, SUCCESS, Stream};
use crate::Error;

/// A stream of a GPU beside the one that computes: what it is given, it does in order, and meanwhile the other goes on.
pub struct Lane {
    runtime: Arc<Runtime>,
    device: i32,
    stream: Stream,
    /// Where one stream waits for the other.
    reached: Event,
}

// SAFETY: CUDA's handles may be used by any thread. What a thread's own device matters to chooses it first; a stream may be asked, drained and ended
// whichever it is.
unsafe impl Send for Lane {}

impl Lane {
    /// On GPU `device`.
    ///
    /// # Errors
    /// CUDA's.
    pub fn new(runtime: Arc<Runtime>, device: i32) -> Result<Self, Error> {
        let mut lane = Self {
            runtime,
            device,
            stream: std::ptr::null_mut(),
            reached: std::ptr::null_mut(),
        };
        lane.choose()?;
        // SAFETY: places to write a handle to.
        unsafe {
            let code = (lane.runtime.calls.stream_create)(&raw mut lane.stream, NON_BLOCKING);
            lane.check(code, "make a stream")?;
            let code = (lane.runtime.calls.event_create)(&raw mut lane.reached, NO_TIMING);
            lane.check(code, "make an event")?;
        }
        Ok(lane)
    }

    /// The GPU.
    pub fn device(&self) -> i32 {
        self.device
    }

    /// For calls that take a stream.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Has this thread's calls concern the GPU: threads choose theirs one by one.
    ///
    /// # Errors
    /// CUDA's.
    pub fn choose(&self) -> Result<(), Error> {
        // SAFETY: a call with a number.
        self.check(
            unsafe { (self.runtime.calls.set_device)(self.device) },
            "choose the GPU",
        )
    }

    /// What this is given from now on comes behind what `computing` was given so far.
    ///
    /// # Errors
    /// CUDA's.
    ///
    /// # Safety
    /// `computing` must be a stream of this GPU.
    pub unsafe fn follow(&self, computing: Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.order(computing, self.stream) }
    }

    /// What `computing` is given from now on comes behind what this was given so far.
    ///
    /// # Errors
    /// CUDA's.
    ///
    /// # Safety
    /// As for [`Self::follow`].
    pub unsafe fn precede(&self, computing: Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.order(self.stream, computing) }
    }

    unsafe fn order(&self, first: Stream, then: Stream) -> Result<(), Error> {
        self.choose()?;
        let calls = &self.runtime.calls;
        // SAFETY: an event and a stream of ours, and one of the caller's.
        unsafe {
            self.check((calls.event_record)(self.reached, first), "mark a place in a stream")?;
            self.check((calls.stream_wait)(then, self.reached, 0), "wait for a stream")
        }
    }

    /// Copies bytes between the host and the GPU, or within either. Does not wait, if the host's memory is page-locked.
    ///
    /// # Errors
    /// CUDA's.
    ///
    /// # Safety
    /// Both places must hold so many bytes until the stream has done it.
    pub unsafe fn copy(&self, to: *mut c_void, from: *const c_void, bytes: usize) -> Result<(), Error> {
        self.choose()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.runtime.calls.copy)(to, from, bytes, COPY_DEFAULT, self.stream) };
        self.check(code, "copy")
    }

    /// Whether all that it was given is done.
    ///
    /// # Errors
    /// What failed in it.
    pub fn is_done(&self, what: &str) -> Result<bool, Error> {
        // SAFETY: asks for the state of a stream of ours.
        match unsafe { (self.runtime.calls.stream_query)(self.stream) } {
            NOT_READY => Ok(false),
            code => self.check(code, what).map(|()| true),
        }
    }

    /// Waits for all that it was given, which must not wait for another rank: this has no deadline.
    pub fn drain(&self) {
        // SAFETY: a stream of ours.
        unsafe { (self.runtime.calls.stream_synchronize)(self.stream) };
    }

    /// Memory of the GPU.
    ///
    /// # Errors
    /// There is not enough: how much is free.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<*mut c_void, Error> {
        self.choose()?;
        let (mut place, calls) = (std::ptr::null_mut(), &self.runtime.calls);
        // SAFETY: writes an address.
        let code = unsafe { (calls.malloc)(&raw mut place, bytes) };
        if code == SUCCESS {
            return Ok(place);
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { (calls.mem_info)(&raw mut free, &raw mut total) };
        Err(Error::Gpu(format!(
            "GPU {} has no {bytes} bytes for a bucket: {free} of {total} are free ({})\nhint: smaller buckets or a smaller batch",
            self.device,
            self.runtime.words(code)
        )))
    }

    /// # Safety
    /// The memory must be of [`Self::allocate`], and used no more.
    pub(crate) unsafe fn free(&self, place: *mut c_void) {
        // SAFETY: the caller's promise.
        unsafe { (self.runtime.calls.free)(place) };
    }

    fn check(&self, code: Code, what: &str) -> Result<(), Error> {
        if code == SUCCESS {
            return Ok(());
        }
        let words = self.runtime.words(code);
        Err(Error::Gpu(format!(
            "cannot {what} on GPU {}: {words}\nhint: `nvidia-smi` shows its state; CUDA_LAUNCH_BLOCKING=1 finds the call",
            self.device
        )))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.reached.is_null() {
            // SAFETY: an event of ours, used no more.
            unsafe { (self.runtime.calls.event_destroy)(self.reached) };
        }
        if !self.stream.is_null() {
            // SAFETY: a stream of ours, used no more.
            unsafe { (self.runtime.calls.stream_destroy)(self.stream) };
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
