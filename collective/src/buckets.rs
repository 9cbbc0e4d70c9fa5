//! Buckets that are summed on a thread of their own while the caller goes on.
//!
//! Gradients become ready one after the other, and not in the same order on all ranks. [`plan`] cuts them into buckets; [`Reducer`]
//! takes buckets as they come and reduces them by their numbers, so that all ranks do the same thing at the same time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Communicator, Error, Part, Wire};

/// Cuts variables of `lengths` elements, which lie one after the other, into ranges of at most `bucket_bytes` (as float32), beginning
/// with the last: backward passes end with the first. A variable that is larger is a bucket of its own. The ranges cover everything once.
pub fn plan(lengths: &[usize], bucket_bytes: usize) -> Vec<Range<usize>> {
    let most = (bucket_bytes / size_of::<f32>()).max(1);
    let mut end: usize = lengths.iter().sum();
    let mut start = end;
    let mut buckets = Vec::new();
    for length in lengths.iter().rev() {
        if start < end && end - start + length > most {
            buckets.push(start..end);
            end = start;
        }
        start -= length;
    }
    if start < end {
        buckets.push(start..end);
    }
    buckets
}

/// What the thread does with its communicator; the answer goes where it is waited for.
type Task = Box<dyn FnOnce(&mut dyn Communicator) + Send>;

/// Reduces buckets in the order of their numbers, 0, 1, 2, …, on every rank.
pub struct Reducer {
    jobs: Option<Sender<(u64, Task)>>,
    thread: Option<JoinHandle<Box<dyn Communicator>>>,
    timeout: Duration,
    next: u64,
}

/// A bucket, or something else, on its way.
pub struct Handle<T = Part> {
    number: u64,
    done: Receiver<Result<T, Error>>,
    timeout: Duration,
}

impl Reducer {
    /// Takes the communicator until [`Self::finish`]. `timeout` bounds each wait for a bucket: longer than the communicator's own, which
    /// knows who is missing.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start(mut communicator: Box<dyn Communicator>, timeout: Duration) -> Result<Self, Error> {
        let (jobs, queue) = channel::<(u64, Task)>();
        let run = move || {
            let mut early: BTreeMap<u64, Task> = BTreeMap::new();
            let mut next = 0;
            for (number, task) in queue {
                early.insert(number, task);
                while let Some(task) = early.remove(&next) {
                    next += 1;
                    task(communicator.as_mut());
                }
            }
            communicator
        };
        let thread = std::thread::Builder::new().name("all-reduce".to_owned()).spawn(run);
        let thread = thread.map_err(Error::io("cannot start a thread", "see the limit on processes"))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            timeout,
            next: 0,
        })
    }

    /// Hands bucket `number` over. Numbers go on from step to step; each comes once, in any order.
    pub fn submit(&mut self, number: u64, part: impl Into<Part>, wire: Wire) -> Handle {
        let mut part = part.into();
        self.hand_over(number, move |communicator| {
            communicator.all_reduce(&mut part, wire)?;
            Ok(part)
        })
    }

    /// As [`Self::submit`] with the number behind the highest so far.
    pub fn submit_next(&mut self, part: impl Into<Part>, wire: Wire) -> Handle {
        self.submit(self.next, part, wire)
    }

    /// Everybody's `bytes`, behind the buckets so far.
    pub fn gather_next(&mut self, bytes: Vec<u8>) -> Handle<Vec<Vec<u8>>> {
        self.hand_over(self.next, move |communicator| communicator.all_gather(&bytes))
    }

    /// Rank `root`'s values in place of `part`, behind the buckets so far.
    pub fn broadcast_next(&mut self, root: usize, part: impl Into<Part>) -> Handle {
        let mut part = part.into();
        self.hand_over(self.next, move |communicator| {
            communicator.broadcast(root, &mut part)?;
            Ok(part)
        })
    }

    fn hand_over<T: Send + 'static>(
        &mut self,
        number: u64,
        work: impl FnOnce(&mut dyn Communicator) -> Result<T, Error> + Send + 'static,
    ) -> Handle<T> {
        let (done, answer) = channel();
        let task: Task = Box::new(move |communicator| {
            // Who no longer waits needs no answer.
            let _ = done.send(work(communicator));
        });
        self.next = self.next.max(number + 1);
        if let Some(jobs) = &self.jobs {
            // Where the thread ended, the handle tells.
            let _ = jobs.send((number, task));
        }
        Handle {
            number,
            done: answer,
            timeout: self.timeout,
        }
    }

    /// Waits for what was handed over and gives the communicator back. Nothing where its thread died.
    pub fn finish(mut self) -> Option<Box<dyn Communicator>> {
        self.jobs = None;
        self.thread.take()?.join().ok()
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Its waits have deadlines; then the communicator is dropped, and aborts.
            let _ = thread.join();
        }
    }
}

impl<T> Handle<T> {
    /// The sums over all ranks, or what was gathered.
    ///
    /// # Errors
    /// What the communicator found, and a bucket with a lower number that this rank never handed over.
    pub fn wait(self) -> Result<T, Error> {
        let why = match self.done.recv_timeout(self.timeout) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => format!(
                "bucket {} was not summed within {:.1} s; was every bucket before it handed over?",
                self.number,
                self.timeout.as_secs_f64()
            ),
            Err(RecvTimeoutError::Disconnected) => format!(
                "bucket {} will not be summed: its number was used before, one before it is missing, or the thread died",
                self.number
            ),
        };
        Err(Error::Bucket(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_with_the_last_variable_and_cover_all_once() {
        assert_eq!(plan(&[2, 3, 4], 20), [5..9, 0..5]);
        assert_eq!(plan(&[2, 30, 4], 20), [32..36, 2..32, 0..2], "a large one is alone");
        assert_eq!(plan(&[2, 3, 4], usize::MAX), vec![0..9]);
        assert_eq!(plan(&[0, 0], 20), []);
        assert_eq!(plan(&[1, 1], 0), [1..2, 0..1]);
        assert_eq!(plan(&[], 20), []);
    }
}
