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

use library::{BFLOAT16, Code, Comm, Config, FLOAT32, IN_PROGRESS, SUCCESS, SUM, UniqueId};
pub use library::{ID_BYTES, Libraries};

use crate::cuda::{Lane, Stream};
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
    comm: Comm,
    /// For sums.
    lane: Lane,
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
        let ready = libraries.cuda().check_device(device).and_then(|()| {
            let lane = Lane::new(Arc::clone(libraries.cuda()), device)?;
            let id = if host.rank() == 0 {
                libraries.unique_id().map(Vec::from)?
            } else {
                Vec::new()
            };
            Ok((lane, id))
        });
        let mut told = vec![u8::from(ready.is_err())];
        match &ready {
            Ok((_, id)) => told.extend_from_slice(id),
            Err(error) => told.extend_from_slice(error.to_string().as_bytes()),
        }
        let all = host.all_gather(&told)?;
        if all.iter().any(|told| told.first() == Some(&1)) {
            // Nobody leaves before everybody has read why, or some would only hear that another is gone. That this fails is no news.
            let _ = host.barrier();
        }
        let (lane, _) = ready?;
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
            comm: std::ptr::null_mut(),
            lane,
            staging: std::ptr::null_mut(),
            staging_bytes: 0,
            timeout,
            ended: None,
            closed: false,
        };
        gpus.guarded("communicator", |this| {
            this.lane.choose()?;
            let mut config = Config::non_blocking();
            // SAFETY: a place to write a handle to; the configuration is of the size that it says.
            let code = unsafe {
                (this.libraries.nccl.comm_init)(&raw mut this.comm, world, UniqueId(id), rank, &raw mut config)
            };
            this.nccl(code, "make a communicator")?;
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
            // SAFETY: the caller's promise.
            unsafe {
                this.lane.follow(computing)?;
                this.enqueue(buckets)
            }
        })
    }

    /// Until all that was begun is summed; looks meanwhile after NCCL's errors, the other ranks, and the clock.
    ///
    /// # Errors
    /// A rank that is gone, gave up or is late; CUDA's and NCCL's errors. NCCL's communicator is aborted, which frees the stream.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.guarded("all-reduce", |this| {
            this.lane.choose()?;
            this.drained()
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

    fn nccl(&self, code: Code, what: &str) -> Result<(), Error> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        let words = self.libraries.nccl_words(code, self.comm);
        Err(Error::Gpu(format!(
            "NCCL cannot {what} on GPU {}: {words}\nhint: NCCL_DEBUG=WARN tells more",
            self.lane.device()
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

    fn drained(&mut self) -> Result<(), Error> {
        self.poll("sum", |this| {
            let mut state = SUCCESS;
            // SAFETY: writes one number.
            let code = unsafe { (this.libraries.nccl.async_error)(this.comm, &raw mut state) };
            this.nccl(code, "sum")?;
            this.nccl(state, "sum")?;
            this.lane.is_done("sum")
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
                    self.lane.device(),
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

    unsafe fn enqueue(&mut self, buckets: &[DeviceBucket]) -> Result<(), Error> {
        let nccl = &self.libraries.nccl;
        // SAFETY: the caller's promise on addresses. A group that was begun is ended, whatever is in it.
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
                    self.lane.stream(),
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
            self.staging = self.lane.allocate(bytes)?;
            self.staging_bytes = bytes;
        }
        Ok(self.staging)
    }

    fn free_staging(&mut self) {
        if !self.staging.is_null() {
            // SAFETY: memory of ours, which nothing uses.
            unsafe { self.lane.free(self.staging) };
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
        let bytes = size_of_val(values);
        let there = self.staging(bytes)?;
        // SAFETY: both places hold so many bytes, and stay until the stream is drained or NCCL aborted, which drains it.
        unsafe { self.lane.copy(there, values.as_ptr().cast(), bytes)? };
        let called = call(self, there).and_then(|()| {
            // SAFETY: as above.
            unsafe { self.lane.copy(values.as_mut_ptr().cast(), there, bytes)? };
            self.drained()
        });
        if called.is_err() {
            self.abort_nccl();
            // Without NCCL nothing in it waits for another rank.
            self.lane.drain();
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
                // SAFETY: `through` gives memory of that size, and waits for the stream.
                unsafe { this.enqueue(&[bucket]) }
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
                let (nccl, stream) = (&this.libraries.nccl, this.lane.stream());
                // SAFETY: as above.
                let code = unsafe { (nccl.broadcast)(at, at, count, FLOAT32, root as c_int, this.comm, stream) };
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
            this.lane.choose()?;
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
    }
}
