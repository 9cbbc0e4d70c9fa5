//! One process, no servers: the same store and the same rules, called directly.

use coati_common::cluster::OnNan;
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_coordinator::timing;
use tokio::time::Instant;

use crate::book::{Book, Event, MOST_SKIPPED, Made, Options, Start};
use crate::exchange::{Contribution, Error, Exchange, Fate, Lease};
use crate::stop::StopFlag;

/// The exchange of a job in one process.
#[derive(Debug)]
pub(crate) struct Local {
    book: Book,
    /// Ctrl-C.
    stop: StopFlag,
    /// Gradients in a row that were not finite.
    skipped: usize,
}

impl Local {
    /// The book, whose variables may live on an accelerator.
    pub(crate) fn book(&mut self) -> &mut Book {
        &mut self.book
    }

    /// Loads the variables.
    pub(crate) fn new(options: Options, start: Start<'_>, stop: StopFlag) -> Result<Self, Error> {
        Ok(Self {
            book: Book::new(options, start)?,
            stop,
            skipped: 0,
        })
    }

    /// The newest step.
    pub(crate) fn version(&self) -> u64 {
        self.book.version()
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        self.book.take_events()
    }

    /// Writes a checkpoint of the newest step, unless it has one.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        self.book.save()
    }

    /// The records of a gradient that is not finite go back, unless nothing else comes any more.
    fn skip(&mut self, contribution: &Contribution<'_>, error: &ServiceError) -> Result<Fate, Error> {
        self.skipped += 1;
        let version = self.book.version();
        if self.skipped >= MOST_SKIPPED {
            return Err(Error::Failed(format!(
                "step {}: no finite gradient is left to apply ({} skipped in a row): {error}",
                version + 1,
                self.skipped
            )));
        }
        self.book.give_back(&[contribution.lease.id]);
        self.book.tell(Event::Skipped(format!("skipped: {error}")));
        Ok(Fate::Dropped { version })
    }
}

impl Exchange for Local {
    fn lease(&mut self, batches: u32) -> Result<(Vec<Lease>, bool), Error> {
        let steps = (0..batches).map_while(|_| self.book.lease_step());
        let leases = steps.flatten().collect();
        Ok((leases, self.book.steps_left() == 0))
    }

    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        self.book.pull(min_version, variables)
    }

    fn contribute(&mut self, contribution: &Contribution<'_>, _variables: &mut [f32]) -> Result<Fate, Error> {
        let begun = Instant::now();
        let gradients = contribution.gradients;
        let pushed = if self.book.residence().is_some() {
            self.book.check().and(contribution.finite())
        } else {
            self.book.push(contribution.version, |flat, values| {
                values.copy_from_slice(&gradients[flat]);
            })
        };
        match pushed {
            Err(error) if error.code == ErrorCode::NonFiniteGradient && self.book.options().on_nan == OnNan::Skip => {
                return self.skip(contribution, &error);
            }
            pushed => pushed.map_err(Error::new)?,
        }
        self.skipped = 0;
        let pushed = Instant::now();
        let (samples, lease) = (contribution.samples, contribution.lease.id);
        let committed = self.book.commit(contribution.version, samples, 1.0, &[lease], &[])?;
        self.book.record(Made {
            losses: contribution
                .losses
                .iter()
                .map(|&(name, value)| (name.to_owned(), value))
                .collect(),
            samples: u64::from(samples),
            learning_rate: committed.learning_rate,
            spans: vec![timing::Spans {
                arrived: pushed,
                input: contribution.phases.input,
                compute: contribution.phases.compute,
                push: pushed - begun,
            }],
        });
        let version = committed.version;
        let last = version >= self.book.options().num_steps || self.stop.raised();
        if !last {
            self.book.save_if_due();
        }
        Ok(Fate::Committed { version, last })
    }

    fn asked_to_leave(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn activity(&self, _what: &'static str) {}
}
