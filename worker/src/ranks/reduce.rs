//! The exchange of a job whose ranks sum their gradients among themselves: each makes the same step out of the same sum.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use coati_collective::nccl::Gpus;
use coati_collective::{Communicator, Error as Trouble, Member};
use coati_common::cluster::OnNan;
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_coordinator::launcher::progress::Progress;
use coati_coordinator::timing;
use coati_detection::accelerator::resident::Resident;
use tokio::time::Instant;

use super::notes::{self, Note};
use super::sums::{Counts, Form, Sums, divisor, weight};
use crate::book::{Book, Event, MOST_SKIPPED, Made, State};
use crate::exchange::{Contribution, Error, Exchange, Fate, Lease};
use crate::residence::Residence;
use crate::stop::StopFlag;

/// See the module.
pub(crate) struct AllReduce {
    book: Book,
    sums: Sums,
    /// Everybody's batches of the steps to come, in their order.
    planned: VecDeque<Vec<Lease>>,
    stop: StopFlag,
    writes: bool,
    skipped: usize,
}

impl AllReduce {
    /// Begins with what `book` holds. `timeout` bounds each wait for a sum: longer than the communicator's own.
    pub(crate) fn new(
        book: Book,
        communicator: Box<dyn Communicator>,
        form: Form,
        timeout: Duration,
        stop: StopFlag,
    ) -> Result<Self, Trouble> {
        let sums = Sums::new(communicator, &book.options().variables, form, timeout)?;
        Ok(Self::of(book, sums, stop))
    }

    /// The same with variables that were brought to GPUs.
    pub(super) fn on_device(book: Book, gpus: Gpus, resident: Resident, stop: StopFlag) -> Result<Self, Trouble> {
        Ok(Self::of(book, Sums::on_device(gpus, resident)?, stop))
    }

    fn of(book: Book, sums: Sums, stop: StopFlag) -> Self {
        Self {
            writes: sums.rank == 0,
            book,
            sums,
            planned: VecDeque::new(),
            stop,
            skipped: 0,
        }
    }

    /// Whether this is the rank that writes checkpoints.
    #[cfg(test)]
    pub(crate) fn writes(&self) -> bool {
        self.writes
    }

    /// The newest step.
    pub(crate) fn version(&self) -> u64 {
        self.book.version()
    }

    /// How far the job is.
    pub(super) fn progress(&self) -> Progress {
        self.book.progress()
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        self.book.take_events()
    }

    /// Writes a checkpoint of the newest step, unless it has one.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        self.book.save()
    }

    /// Tells everybody why this rank cannot go on, for good.
    pub(super) fn abort_for_good(&self, why: &str) {
        self.sums.abort(&Trouble::final_reason(why));
    }

    /// What it holds, for the next meeting, and who was waited for in vain.
    pub(super) fn into_state(self) -> Result<(State, Vec<Member>), Error> {
        self.sums.abort("this rank meets the others again");
        let Self { book, mut sums, .. } = self;
        let hanging = std::mem::take(&mut sums.hanging);
        // On GPUs nothing waits for other ranks after this.
        drop(sums);
        Ok((book.state()?, hanging))
    }

    /// Leaves together with all others.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        self.sums.close()
    }

    pub(super) fn trouble(&mut self, error: &Trouble) -> Error {
        self.sums.trouble(error)
    }

    /// What each rank counts for in this step, but for those that `contribute` nothing.
    fn counts(&self, contribute: impl Fn(usize) -> bool) -> Counts {
        let step = self.planned.front().map(Vec::as_slice).unwrap_or_default();
        (0..)
            .zip(step)
            .map(|(rank, lease)| contribute(rank).then_some(lease.count))
            .collect()
    }

    /// Hands the mean over the samples of these ranks to the store. What lies on a GPU is looked at there.
    fn push(&mut self, version: u64, counts: &[Option<u32>]) -> Result<(), ServiceError> {
        if self.book.residence().is_some() {
            return self.book.check();
        }
        let (by, sums) = (divisor(counts), &self.sums);
        self.book.push(version, |flat, values| sums.mean(&flat, by, values))
    }

    /// The sum is not finite, as everybody sees: who made it so? Returns the ranks that did not.
    fn blame(&mut self, contribution: &Contribution<'_>) -> Result<(Vec<bool>, String), Error> {
        let on_device = self.book.residence().map(Residence::gradient).transpose()?;
        let gradients = on_device.as_deref().unwrap_or(contribution.gradients);
        let broken = gradients.iter().position(|value| !value.is_finite());
        let lost = contribution.finite().err().map(|error| error.message);
        let said = broken.map_or(lost.unwrap_or_default(), |at| {
            let mut end = 0;
            let variables = &self.book.options().variables;
            let own = variables.iter().find(|spec| {
                end += spec.elements();
                at < end
            });
            let name = own.map_or("?", |spec| spec.name.as_str());
            format!("{} in `{name}`", gradients[at])
        });
        let all: Vec<String> = self
            .sums
            .gather(said.into_bytes())?
            .into_iter()
            .map(|said| String::from_utf8_lossy(&said).into_owned())
            .collect();
        let whole: Vec<bool> = all.iter().map(String::is_empty).collect();
        let named = self.sums.members.iter().zip(&all).filter(|(_, said)| !said.is_empty());
        let named: Vec<String> = named
            .map(|(member, said)| format!("the gradient of {member} holds {said}"))
            .collect();
        let words = if named.is_empty() {
            "the sum of all ranks' gradients is not finite, although each is".to_owned()
        } else {
            named.join(", ")
        };
        Ok((whole, words))
    }

    /// With `on_nan: skip`: the step is made of the others. Returns what became of it, and who contributed.
    fn without(&mut self, contribution: &Contribution<'_>, whole: &[bool], words: &str) -> Result<Option<Fate>, Error> {
        let step = contribution.version + 1;
        self.skipped += 1;
        if self.skipped >= MOST_SKIPPED {
            return Err(Error::Failed(format!(
                "step {step}: no finite gradient is left to apply ({} skipped in a row): {words}",
                self.skipped
            )));
        }
        if self.writes {
            self.book.tell(Event::Skipped(format!("skipped: {words}")));
        }
        let some = whole.iter().any(|&whole| whole) && whole.iter().any(|&whole| !whole);
        if some {
            let counts = self.counts(|rank| whole.get(rank).copied().unwrap_or(false));
            let own = weight(&counts, self.sums.rank);
            self.sums.sum(contribution.gradients, own, Vec::new())?;
            if self.push(contribution.version, &counts).is_ok() {
                return Ok(None);
            }
        }
        let leases = self.planned.pop_front().ok_or_else(unplanned)?;
        let ids: Vec<u64> = leases.iter().map(|lease| lease.id).collect();
        self.book.give_back(&ids);
        Ok(Some(Fate::Dropped {
            version: self.book.version(),
        }))
    }
}

fn unplanned() -> Error {
    Error::Failed("a contribution without a batch that was leased for it".to_owned())
}

/// Means over the samples of those that contributed.
pub(super) fn mean_losses(notes: &[Note], samples: &[u32], contributed: &[bool]) -> Vec<(String, f64)> {
    let total: f64 = samples
        .iter()
        .zip(contributed)
        .filter(|&(_, &yes)| yes)
        .map(|(&samples, _)| f64::from(samples))
        .sum();
    let first = notes
        .iter()
        .zip(contributed)
        .find(|&(_, &yes)| yes)
        .map(|(note, _)| note);
    let names = first
        .map(|note| note.losses.iter().map(|(name, _)| name))
        .into_iter()
        .flatten();
    let mean = |name: &String| {
        let of = |note: &Note| {
            note.losses
                .iter()
                .find(|(other, _)| other == name)
                .map_or(0.0, |&(_, value)| value)
        };
        let weighted = notes.iter().zip(samples).zip(contributed).filter(|&(_, &yes)| yes);
        let sum: f64 = weighted
            .map(|((note, &samples), _)| of(note) * f64::from(samples))
            .sum();
        (name.clone(), sum / total.max(1.0))
    };
    names.map(mean).collect()
}

impl Exchange for AllReduce {
    fn lease(&mut self, batches: u32) -> Result<(Vec<Lease>, bool), Error> {
        let mut own = Vec::new();
        for _ in 0..batches {
            let Some(step) = self.book.lease_step() else { break };
            own.push(step[self.sums.rank]);
            self.planned.push_back(step);
        }
        Ok((own, self.book.steps_left() == 0))
    }

    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        self.book.pull(min_version, variables)
    }

    fn ready(&mut self, _version: u64, elements: Range<usize>, values: &[f32]) {
        let own = weight(&self.counts(|_| true), self.sums.rank);
        self.sums.put(&elements, values, own);
    }

    fn contribute(&mut self, contribution: &Contribution<'_>, _variables: &mut [f32]) -> Result<Fate, Error> {
        let begun = Instant::now();
        let step = self.planned.front().ok_or_else(unplanned)?;
        if step.get(self.sums.rank).map(|lease| lease.id) != Some(contribution.lease.id)
            || contribution.samples != contribution.lease.count
        {
            return Err(unplanned());
        }
        let note = Note::of(contribution, self.stop.raised());
        let counts = self.counts(|_| true);
        let own = weight(&counts, self.sums.rank);
        let all = self.sums.sum(contribution.gradients, own, notes::encode(&note))?;
        let notes: Vec<Note> = notes::decode(&all).map_err(|error| self.trouble(&error))?;
        let mut contributed = vec![true; notes.len()];
        let pushed = if notes.iter().any(|note| note.broken) {
            contribution.finite().and_then(|()| {
                let message = "the losses of another rank are not finite";
                Err(ServiceError::new(ErrorCode::NonFiniteGradient, message))
            })
        } else {
            self.push(contribution.version, &counts)
        };
        match pushed {
            Ok(()) => self.skipped = 0,
            Err(error) if error.code != ErrorCode::NonFiniteGradient => return Err(Error::new(error)),
            Err(_) => {
                let (whole, words) = self.blame(contribution)?;
                if self.book.options().on_nan != OnNan::Skip {
                    return Err(Error::Failed(format!(
                        "step {}: {words}\nhint: lower the learning rate or set gradient_clipping_by_norm, and check the data; `coati.on_nan` says what becomes of such a gradient",
                        contribution.version + 1
                    )));
                }
                if let Some(fate) = self.without(contribution, &whole, &words)? {
                    return Ok(fate);
                }
                contributed = whole;
            }
        }
        let pushed = Instant::now();
        let divisor = divisor(&self.counts(|rank| contributed.get(rank).copied().unwrap_or(false)));
        let leases = self.planned.pop_front().ok_or_else(unplanned)?;
        let of = |wanted: bool| -> Vec<u64> {
            let these = leases.iter().zip(&contributed).filter(|&(_, &yes)| yes == wanted);
            these.map(|(lease, _)| lease.id).collect()
        };
        let samples: Vec<u32> = leases.iter().map(|lease| lease.count).collect();
        let total: u32 = samples
            .iter()
            .zip(&contributed)
            .filter(|&(_, &yes)| yes)
            .map(|(&n, _)| n)
            .sum();
        let (used, returned) = (of(true), of(false));
        let committed = self
            .book
            .commit(contribution.version, total, divisor, &used, &returned)?;
        if self.writes {
            let span = |note: &Note| timing::Spans {
                arrived: pushed,
                input: Duration::from_secs_f64(note.input.clamp(0.0, 1e6)),
                compute: Duration::from_secs_f64(note.compute.clamp(0.0, 1e6)),
                push: pushed - begun,
            };
            self.book.record(Made {
                losses: mean_losses(&notes, &samples, &contributed),
                samples: u64::from(total),
                learning_rate: committed.learning_rate,
                spans: notes.iter().map(span).collect(),
            });
        }
        let version = committed.version;
        let last = version >= self.book.options().num_steps || notes.iter().any(|note| note.stop);
        if self.writes && !last {
            self.book.save_if_due();
        }
        Ok(Fate::Committed { version, last })
    }

    fn asked_to_leave(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn activity(&self, _what: &'static str) {}
}
