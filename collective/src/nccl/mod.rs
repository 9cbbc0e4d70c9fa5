//! Ranks with a GPU each, over NCCL.
//!
//! **This has not run on a GPU yet.** What is tested without one: that the libraries are found, their versions read and their absence
//! explained, the layout of what is passed to them, and all calls in their order, with every way out, on a stand-in that keeps NCCL's and
//! CUDA's rules on host memory.
//!
//! NCCL itself knows no names and may wait for ever. So a host [`Communicator`] stays beside it: over it the ranks exchange NCCL's id
//! and everybody's troubles, and while a rank waits for its GPU it looks there whether somebody is gone or gave up. NCCL's communicator
//! does not block, and `ncclCommAbort` is called on every path but [`Communicator::close`].
//!
//! Sums are the same on all ranks, but in NCCL's order; with [`Wire::Bf16`] the sum is NCCL's, which rounds to bfloat16 between ranks.

mod library;

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use library::{
    BFLOAT16, COPY_DEFAULT, Code, Comm, Config, Event, FLOAT32, IN_PROGRESS, NO_TIMING, NON_BLOCKING, NOT_READY,
    SUCCESS, SUM, UniqueId,
};
pub use library::{ID_BYTES, Libraries, Stream};

use crate::{Aborter, Communicator, Error, Member, Wire, sums};

/// How often one looks after the other ranks while the GPU works.
const LOOK: Duration = Duration::from_millis(100);

/// Between two looks at the GPU once it takes long.
const NAP: Duration = Duration::from_micros(50);

/// A bucket in the GPU's memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceBucket {
    /// Address of the first element, on this rank's GPU.
    pub address: *mut c_void,
    /// Elements.
    pub count: usize,
    /// What they are: float32, or bfloat16 already.
    pub wire: Wire,
}

/// The ranks of a job with a GPU each.
pub struct Gpus {
    libraries: Arc<Libraries>,
    host: Box<dyn Communicator>,
    device: c_int,
    comm: Comm,
    /// For sums: work given to another stream meanwhile goes on beside them.
    stream: Stream,
    /// Where `stream` waits for another.
    reached: Event,
    staging: *mut c_void,
    staging_bytes: usize,
    timeout: Duration,
    ended: Option<String>,
    closed: bool,
}

// SAFETY: NCCL's and CUDA's handles may be used by any thread, one at a time; each call chooses the device first.
unsafe impl Send for Gpus {}

impl Gpus {
    /// Joins the GPUs `device` of all ranks of `host`. `timeout` bounds each wait for a GPU.
    ///
    /// # Errors
    /// A GPU or a driver that will not do, on any rank: all ranks hear which.
    pub fn start(
        libraries: Arc<Libraries>,
        mut host: Box<dyn Communicator>,
        device: i32,
        timeout: Duration,
    ) -> Result<Self, Error> {
        // Everybody's troubles travel with the id, so that nobody waits in NCCL for one that never gets there.
        let ready = libraries.check_device(device).and_then(|()| {
            if host.rank() == 0 {
                libraries.unique_id().map(Vec::from)
            } else {
                Ok(Vec::new())
            }
        });
        let mut told = vec![u8::from(ready.is_err())];
        match &ready {
            Ok(id) => told.extend_from_slice(id),
            Err(error) => told.extend_from_slice(error.to_string().as_bytes()),
        }
        let all = host.all_gather(&told)?;
        if all.iter().any(|told| told.first() == Some(&1)) {
            // Nobody leaves before everybody has read why, or some would only hear that another is gone. That this fails is no news.
            let _ = host.barrier();
        }
        ready?;
        for (member, told) in host.members().iter().zip(&all) {
            if let Some((1, why)) = told.split_first() {
                return Err(Error::Aborted {
                    by: member.to_string(),
                    reason: String::from_utf8_lossy(why).into_owned(),
                });
            }
        }
        let id = all
            .first()
            .and_then(|told| told.get(1..))
            .and_then(|id| <[u8; ID_BYTES]>::try_from(id).ok());
        let id = id.ok_or_else(|| Error::Garbage {
            from: host.members()[0].clone(),
        })?;
        let (rank, world) = (host.rank() as c_int, host.world_size() as c_int);
        let mut gpus = Self {
            libraries,
            host,
            device,
            comm: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            reached: std::ptr::null_mut(),
            staging: std::ptr::null_mut(),
            staging_bytes: 0,
            timeout,
            ended: None,
            closed: false,
        };
        gpus.guarded("communicator", |this| {
            this.choose()?;
            let mut config = Config::non_blocking();
            // SAFETY: places to write a handle to; the configuration is of the size that it says.
            unsafe {
                let code = (this.libraries.cuda.stream_create)(&raw mut this.stream, NON_BLOCKING);
                this.cuda(code, "make a stream")?;
                let code = (this.libraries.cuda.event_create)(&raw mut this.reached, NO_TIMING);
                this.cuda(code, "make an event")?;
                let code =
                    (this.libraries.nccl.comm_init)(&raw mut this.comm, world, UniqueId(id), rank, &raw mut config);
                this.nccl(code, "make a communicator")?;
            }
            this.settle("make a communicator")
        })?;
        Ok(gpus)
    }

    /// Begins to sum buckets that are on the GPU in place, behind what `computing` was given so far and beside what it is given later:
    /// [`Self::finish`] waits. All ranks begin the same buckets in the same order.
    ///
    /// # Errors
    /// CUDA's and NCCL's.
    ///
    /// # Safety
    /// The addresses must hold as many elements on this rank's GPU, which nobody else uses until [`Self::finish`] has returned or this is
    /// dropped; `computing` must be a stream of that GPU.
    pub unsafe fn begin(&mut self, buckets: &[DeviceBucket], computing: Stream) -> Result<(), Error> {
        self.guarded("all-reduce", |this| {
            this.choose()?;
            let cuda = &this.libraries.cuda;
            // SAFETY: an event and a stream of ours; the caller's promise on the rest.
            unsafe {
                this.cuda((cuda.event_record)(this.reached, computing), "mark a place in a stream")?;
                this.cuda((cuda.stream_wait)(this.stream, this.reached, 0), "wait for a stream")?;
                this.enqueue(buckets, this.stream)
            }
        })
    }

    /// Until all that was begun is summed; looks meanwhile after NCCL's errors, the other ranks, and the clock.
    ///
    /// # Errors
    /// A rank that is gone, gave up or is late; CUDA's and NCCL's errors. NCCL's communicator is aborted, which frees the stream.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.guarded("all-reduce", |this| {
            this.choose()?;
            this.drained(this.stream)
        })
    }

    /// One call: if it fails, NCCL is aborted and everybody hears.
    fn guarded<T>(&mut self, what: &str, work: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if let Some(reason) = &self.ended {
            return Err(Error::Aborted {
                by: self.host.members()[self.host.rank()].to_string(),
                reason: reason.clone(),
            });
        }
        if self.closed {
            return Err(Error::Refused("the communicator is closed".to_owned()));
        }
        let done = work(self);
        if let Err(error) = &done {
            self.end(&format!("{what}: {error}"));
        }
        done
    }

    fn end(&mut self, reason: &str) {
        if self.ended.is_none() {
            self.ended = Some(reason.to_owned());
            self.abort_nccl();
            self.host.abort(reason);
        }
    }

    fn abort_nccl(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: a communicator that was made and is used no more.
            unsafe { (self.libraries.nccl.comm_abort)(self.comm) };
            self.comm = std::ptr::null_mut();
        }
    }

    fn choose(&self) -> Result<(), Error> {
        // SAFETY: a call with a number. Threads choose their device one by one.
        self.cuda(
            unsafe { (self.libraries.cuda.set_device)(self.device) },
            "choose the GPU",
        )
    }

    fn cuda(&self, code: Code, what: &str) -> Result<(), Error> {
        if code == SUCCESS {
            return Ok(());
        }
        let words = self.libraries.cuda_words(code);
        Err(Error::Gpu(format!(
            "cannot {what} on GPU {}: {words}\nhint: `nvidia-smi` shows its state; CUDA_LAUNCH_BLOCKING=1 finds the call",
            self.device
        )))
    }

    fn nccl(&self, code: Code, what: &str) -> Result<(), Error> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        let words = self.libraries.nccl_words(code, self.comm);
        Err(Error::Gpu(format!(
            "NCCL cannot {what} on GPU {}: {words}\nhint: NCCL_DEBUG=WARN tells more",
            self.device
        )))
    }

    /// Until NCCL's communicator is no longer busy with the host's part of a call.
    fn settle(&mut self, what: &str) -> Result<(), Error> {
        self.poll(what, |this| {
            let mut state = SUCCESS;
            // SAFETY: writes one number.
            this.nccl(
                unsafe { (this.libraries.nccl.async_error)(this.comm, &raw mut state) },
                what,
            )?;
            this.nccl(state, what)?;
            Ok(state == SUCCESS)
        })
    }

    fn drained(&mut self, stream: Stream) -> Result<(), Error> {
        self.poll("sum", |this| {
            let mut state = SUCCESS;
            // SAFETY: writes one number; then asks for a stream's state.
            let code = unsafe {
                this.nccl((this.libraries.nccl.async_error)(this.comm, &raw mut state), "sum")?;
                this.nccl(state, "sum")?;
                (this.libraries.cuda.stream_query)(stream)
            };
            if code == NOT_READY {
                return Ok(false);
            }
            this.cuda(code, "sum").map(|()| true)
        })
    }

    /// The watchdog: until `done` says so.
    fn poll(&mut self, what: &str, done: impl Fn(&Self) -> Result<bool, Error>) -> Result<(), Error> {
        let begun = Instant::now();
        let mut looked = begun;
        while !done(self)? {
            if looked.elapsed() >= LOOK {
                self.host.check()?;
                looked = Instant::now();
            }
            if begun.elapsed() >= self.timeout {
                // First NCCL is stopped, as the GPU would wait on. Those who wait as well come to the barrier; it names who does not.
                self.abort_nccl();
                self.host.barrier()?;
                return Err(Error::Gpu(format!(
                    "GPU {} did not {what} within {:.1} s, although all ranks are there\nhint: NCCL_DEBUG=INFO shows which link is used; NCCL_P2P_DISABLE=1 avoids peer access",
                    self.device,
                    self.timeout.as_secs_f64()
                )));
            }
            if begun.elapsed() < LOOK / 50 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
        Ok(())
    }

    unsafe fn enqueue(&mut self, buckets: &[DeviceBucket], stream: Stream) -> Result<(), Error> {
        let nccl = &self.libraries.nccl;
        // SAFETY: the caller's promise on addresses and the stream. A group that was begun is ended, whatever is in it.
        unsafe {
            self.nccl((nccl.group_start)(), "begin a group")?;
            let mut begun = Ok(());
            for bucket in buckets {
                let kind = if bucket.wire == Wire::F32 { FLOAT32 } else { BFLOAT16 };
                let code = (nccl.all_reduce)(
                    bucket.address,
                    bucket.address,
                    bucket.count,
                    kind,
                    SUM,
                    self.comm,
                    stream,
                );
                begun = begun.and_then(|()| self.nccl(code, "sum"));
            }
            let ended = self.nccl((nccl.group_end)(), "begin a sum");
            begun.and(ended)?;
        }
        self.settle("begin a sum")
    }

    /// Memory on the GPU for what comes from the host; grows, and stays.
    fn staging(&mut self, bytes: usize) -> Result<*mut c_void, Error> {
        if bytes > self.staging_bytes {
            self.free_staging();
            // SAFETY: writes an address.
            let code = unsafe { (self.libraries.cuda.malloc)(&raw mut self.staging, bytes) };
            if code != SUCCESS {
                let (mut free, mut total) = (0, 0);
                // SAFETY: writes two numbers.
                unsafe { (self.libraries.cuda.mem_info)(&raw mut free, &raw mut total) };
                self.staging = std::ptr::null_mut();
                return Err(Error::Gpu(format!(
                    "GPU {} has no {bytes} bytes for a bucket: {free} of {total} are free ({})\nhint: smaller buckets or a smaller batch",
                    self.device,
                    self.libraries.cuda_words(code)
                )));
            }
            self.staging_bytes = bytes;
        }
        Ok(self.staging)
    }

    fn free_staging(&mut self) {
        if !self.staging.is_null() {
            // SAFETY: memory of ours, which nothing uses.
            unsafe { (self.libraries.cuda.free)(self.staging) };
            self.staging = std::ptr::null_mut();
            self.staging_bytes = 0;
        }
    }

    /// Brings `values` to the GPU, has `call` work there, and brings them back.
    fn through<T: bytemuck::Pod>(
        &mut self,
        values: &mut [T],
        call: impl FnOnce(&mut Self, *mut c_void) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if values.is_empty() {
            return self.host.barrier();
        }
        self.choose()?;
        let bytes = size_of_val(values);
        let (there, stream) = (self.staging(bytes)?, self.stream);
        let copy = self.libraries.cuda.copy;
        // SAFETY: both places hold so many bytes, and stay until the stream is drained or NCCL aborted, which drains it.
        self.cuda(
            unsafe { copy(there, values.as_ptr().cast(), bytes, COPY_DEFAULT, stream) },
            "copy a bucket",
        )?;
        let called = call(self, there).and_then(|()| {
            // SAFETY: as above.
            self.cuda(
                unsafe { copy(values.as_mut_ptr().cast(), there, bytes, COPY_DEFAULT, stream) },
                "copy a bucket",
            )?;
            self.drained(stream)
        });
        if called.is_err() {
            self.abort_nccl();
            // SAFETY: a stream of ours; without NCCL nothing in it waits for another rank.
            unsafe { (self.libraries.cuda.stream_synchronize)(stream) };
        }
        called
    }
}

impl Communicator for Gpus {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn world_size(&self) -> usize {
        self.host.world_size()
    }

    fn members(&self) -> &[Member] {
        self.host.members()
    }

    fn all_reduce_sum(&mut self, values: &mut [f32], wire: Wire) -> Result<(), Error> {
        self.guarded("all-reduce", |this| {
            let count = values.len();
            let sum = |this: &mut Self, address| {
                let bucket = DeviceBucket { address, count, wire };
                let stream = this.stream;
                // SAFETY: `through` gives memory of that size, and waits for the stream.
                unsafe { this.enqueue(&[bucket], stream) }
            };
            if wire == Wire::F32 {
                return this.through(values, sum);
            }
            let mut halves = vec![0_u16; count];
            sums::encode(values, &mut halves);
            this.through(&mut halves, sum)?;
            sums::decode(&halves, values);
            Ok(())
        })
    }

    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<(), Error> {
        crate::communicator::check_root(root, self.world_size())?;
        self.guarded("broadcast", |this| {
            let count = values.len();
            this.through(values, |this, at| {
                let nccl = &this.libraries.nccl;
                // SAFETY: as above.
                let code = unsafe { (nccl.broadcast)(at, at, count, FLOAT32, root as c_int, this.comm, this.stream) };
                this.nccl(code, "broadcast")?;
                this.settle("broadcast")
            })
        })
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        crate::communicator::check_gathered(bytes)?;
        self.guarded("all-gather", |this| this.host.all_gather(bytes))
    }

    fn barrier(&mut self) -> Result<(), Error> {
        self.guarded("barrier", |this| this.host.barrier())
    }

    fn check(&mut self) -> Result<(), Error> {
        self.guarded("check", |this| this.host.check())
    }

    fn abort(&mut self, reason: &str) {
        self.end(reason);
    }

    fn aborter(&self) -> Aborter {
        // Whoever waits for a GPU looks at the host's ranks meanwhile.
        self.host.aborter()
    }

    fn close(&mut self) -> Result<(), Error> {
        self.guarded("close", |this| {
            this.choose()?;
            this.host.barrier()?;
            // SAFETY: all ranks are here and none will use it again.
            this.nccl(unsafe { (this.libraries.nccl.comm_finalize)(this.comm) }, "end")?;
            this.settle("end")?;
            // SAFETY: as above.
            this.nccl(unsafe { (this.libraries.nccl.comm_destroy)(this.comm) }, "end")?;
            this.comm = std::ptr::null_mut();
            this.host.close()
        })?;
        self.closed = true;
        Ok(())
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        if !self.closed {
            self.end("it ended without closing");
        }
        self.free_staging();
        if !self.reached.is_null() {
            // SAFETY: an event of ours, used no more.
            unsafe { (self.libraries.cuda.event_destroy)(self.reached) };
        }
        if !self.stream.is_null() {
            // SAFETY: a stream of ours, used no more.
            unsafe { (self.libraries.cuda.stream_destroy)(self.stream) };
        }
    }
}
