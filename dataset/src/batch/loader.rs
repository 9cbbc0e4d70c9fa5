//! Threads that prepare leased batches while the model trains on earlier ones.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::prepare::{Item, Preparer};
use super::slots::Slots;
use super::{Batch, Error, Options, Records};
use crate::bad::Ledger;
use crate::order::{Order, Place};

/// The right to use the records at some positions of the endless sequence (see [`crate::order`]) as one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// As the coordinator numbers it.
    pub id: u64,
    /// The first position.
    pub first_position: u64,
    /// How many.
    pub count: usize,
}

/// Prepares batches on its own threads, in the order in which they were requested. Dropping it ends the threads.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    source: Arc<dyn Records>,
    options: Options,
    ledger: Ledger,
    state: Mutex<State>,
    /// There may be something to prepare.
    work: Condvar,
    /// The first batch may be complete.
    ready: Condvar,
}

struct State {
    waiting: VecDeque<Lease>,
    active: VecDeque<Assembly>,
    order: Order,
    next_serial: u64,
    spare: Vec<Vec<f32>>,
    stop: bool,
}

/// A batch in the making.
struct Assembly {
    serial: u64,
    lease: Lease,
    images: Arc<Slots>,
    claimed: usize,
    items: Vec<Option<Item>>,
    missing: usize,
    error: Option<Error>,
}

/// One record to prepare.
struct Claim {
    serial: u64,
    index: usize,
    place: Place,
    images: Arc<Slots>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Starts the threads; they wait for requests.
    pub fn new<R: Records + 'static>(source: Arc<R>, options: Options) -> Result<Self, Error> {
        options.check()?;
        let count = source.record_count();
        let state = State {
            waiting: VecDeque::new(),
            active: VecDeque::new(),
            order: Order::select(options.seed, count, options.shuffle, &options.selection),
            next_serial: 0,
            spare: Vec::new(),
            stop: false,
        };
        let ledger = Ledger::new(count, options.max_bad_records);
        let threads = options.threads.max(1);
        let shared = Arc::new(Shared {
            source,
            options,
            ledger,
            state: Mutex::new(state),
            work: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut loader = Self {
            shared: Arc::clone(&shared),
            threads: Vec::with_capacity(threads),
        };
        for index in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("input-{index}"))
                .spawn(move || shared.work_until_stopped())
                .map_err(|error| Error::Options {
                    name: "threads",
                    value: format!("{threads} ({error})"),
                    right: "a number of threads that the system allows",
                })?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Asks for a batch. Never waits; at most `prefetch` batches are prepared ahead, however many are requested.
    pub fn request(&self, lease: Lease) {
        self.shared.lock().waiting.push_back(lease);
        self.shared.work.notify_all();
    }

    /// The batches that were requested and not yet handed out.
    pub fn pending(&self) -> usize {
        let state = self.shared.lock();
        state.waiting.len() + state.active.len()
    }

    #[cfg(test)]
    pub(super) fn active(&self) -> usize {
        self.shared.lock().active.len()
    }

    /// The next batch, if it is whole by now.
    pub fn next_if_ready(&self) -> Option<Result<(Lease, Batch), Error>> {
        let mut state = self.shared.lock();
        if state.active.front().is_none_or(|front| front.missing > 0) {
            return None;
        }
        let assembly = state.active.pop_front()?;
        drop(state);
        self.shared.work.notify_all();
        let lease = assembly.lease;
        Some(self.shared.finish(assembly).map(|batch| (lease, batch)))
    }

    /// The next batch, in the order of requests; waits for it until `deadline`.
    pub fn next(&self, deadline: Instant) -> Result<(Lease, Batch), Error> {
        let began = Instant::now();
        let mut state = self.shared.lock();
        loop {
            let front = state.active.front().map(|front| (front.lease, front.missing));
            if let Some((_, 0)) = front
                && let Some(assembly) = state.active.pop_front()
            {
                drop(state);
                self.shared.work.notify_all();
                let lease = assembly.lease;
                return Ok((lease, self.shared.finish(assembly)?));
            }
            let (lease, missing) = match (front, state.waiting.front()) {
                (Some(front), _) => front,
                (None, Some(&lease)) => (lease, lease.count),
                (None, None) => return Err(Error::NothingRequested),
            };
            let now = Instant::now();
            if now >= deadline {
                let waited = (now - began).as_secs_f64();
                return Err(Error::Deadline {
                    lease: lease.id,
                    done: lease.count - missing,
                    count: lease.count,
                    waited,
                });
            }
            state = self
                .shared
                .ready
                .wait_timeout(state, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Forgets all requests, for example when the job goes back to a checkpoint.
    pub fn cancel_all(&self) {
        let mut state = self.shared.lock();
        state.waiting.clear();
        state.active.clear();
    }

    /// Takes back the memory of a batch that is done with, so that the next one need not ask the system for pages.
    pub fn recycle(&self, images: Vec<f32>) {
        let mut state = self.shared.lock();
        // Images of a size of their own come with their memory.
        if state.spare.len() < self.shared.options.prefetch && !self.shared.options.many_sizes() {
            state.spare.push(images);
        }
    }

    /// What was wrong with records so far, in their order.
    pub fn bad_records(&self) -> Vec<String> {
        self.shared.ledger.reports()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was already turned into an error of its batch.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_until_stopped(&self) {
        let mut preparer = Preparer::new(&self.options);
        while let Some(claim) = self.wait_for_claim() {
            let Claim {
                serial,
                index,
                place,
                images,
            } = claim;
            let result = images.take(index).map(|output| {
                let prepare = || preparer.prepare(&*self.source, &self.options, &self.ledger, place, output);
                catch_unwind(AssertUnwindSafe(prepare)).unwrap_or_else(|panic| {
                    let message = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                        .unwrap_or_default();
                    Err(Error::Internal {
                        record: self.source.location(place.record),
                        message,
                    })
                })
            });
            // The batch can only be handed out when nobody else holds its memory.
            drop(images);
            if let Some(result) = result {
                self.enter(serial, index, result);
            }
        }
    }

    /// The next record to prepare, once there is one; `None` at the end.
    fn wait_for_claim(&self) -> Option<Claim> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(claim) = self.claim(&mut state) {
                return Some(claim);
            }
            // No deadline: this thread has nothing to do until it is asked or stopped, and nobody waits for it.
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn claim(&self, state: &mut State) -> Option<Claim> {
        let unclaimed = |assembly: &Assembly| assembly.claimed < assembly.lease.count && assembly.error.is_none();
        if !state.active.iter().any(unclaimed) {
            if state.active.len() >= self.options.prefetch.max(1) {
                return None;
            }
            let lease = state.waiting.pop_front()?;
            let slot = self.options.image_len();
            let images = Arc::new(Slots::new(lease.count, slot, state.spare.pop()));
            // From a bucket all of a batch is on its way while its first records are decoded.
            for index in 0..lease.count as u64 {
                if let Some(place) = state.order.place(lease.first_position.wrapping_add(index)) {
                    self.source.prefetch(place.record);
                }
            }
            let serial = state.next_serial;
            state.next_serial += 1;
            let items = vec![None; lease.count];
            state.active.push_back(Assembly {
                serial,
                lease,
                images,
                claimed: 0,
                items,
                missing: lease.count,
                error: None,
            });
            if lease.count == 0 {
                self.ready.notify_all();
            }
        }
        let State { active, order, .. } = state;
        let assembly = active.iter_mut().find(|assembly| unclaimed(assembly))?;
        let index = assembly.claimed;
        // Positions near the end of u64 wrap; no job gets there.
        let place = order.place(assembly.lease.first_position.wrapping_add(index as u64))?;
        assembly.claimed += 1;
        Some(Claim {
            serial: assembly.serial,
            index,
            place,
            images: Arc::clone(&assembly.images),
        })
    }

    fn enter(&self, serial: u64, index: usize, result: Result<Item, Error>) {
        let mut state = self.lock();
        // It is absent when it was cancelled meanwhile.
        let Some(assembly) = state.active.iter_mut().find(|assembly| assembly.serial == serial) else {
            return;
        };
        assembly.missing -= 1;
        match result {
            Ok(item) => assembly.items[index] = Some(item),
            Err(error) => {
                // Nobody need prepare the rest of it.
                assembly.missing -= assembly.lease.count - assembly.claimed;
                assembly.claimed = assembly.lease.count;
                assembly.error.get_or_insert(error);
            }
        }
        if assembly.missing == 0 {
            drop(state);
            self.ready.notify_all();
        }
    }

    fn finish(&self, assembly: Assembly) -> Result<Batch, Error> {
        if let Some(error) = assembly.error {
            return Err(error);
        }
        let internal = |message: &str| Error::Internal {
            record: format!("lease {}", assembly.lease.id),
            message: message.to_owned(),
        };
        let images = Arc::try_unwrap(assembly.images)
            .map_err(|_| internal("its memory is still in use"))?
            .into_vec();
        let (height, width) = (self.options.height, self.options.width);
        let mut batch = Batch {
            images,
            height,
            width,
            ..Batch::default()
        };
        for (index, item) in assembly.items.into_iter().enumerate() {
            let mut item = item.ok_or_else(|| internal("an image is absent"))?;
            if let Some(own) = item.own.take() {
                let size = [own.height, own.width];
                if index == 0 {
                    [batch.height, batch.width] = size;
                    batch.images = own.values;
                } else if size == [batch.height, batch.width] {
                    batch.images.extend(own.values);
                } else {
                    return Err(Error::Sizes {
                        lease: assembly.lease.id,
                        first: batch.filenames.swap_remove(0),
                        other: item.filename,
                        sizes: [[batch.height, batch.width], size],
                    });
                }
            }
            batch.groundtruth.push(item.groundtruth);
            batch.source_ids.push(item.source_id);
            batch.filenames.push(item.filename);
            batch.records.push(item.record);
            batch.original_sizes.push(item.original_size);
            batch.true_image_shapes.push(item.true_image_shape);
            batch.bad_records.extend(item.bad_records);
            batch.objects_cut += item.objects_cut;
        }
        Ok(batch)
    }
}
