//! The training loop of one replica: lease, pull, compute, push, until the job ends.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_dataset::batch::{self, Batch, Loader};

use crate::exchange::{self, Contribution, Exchange, Fate, Lease, Phases};
use crate::stop::{STOPPED, StopFlag};

/// A batch that is not decoded after this long is an error: reading a handful of images takes milliseconds.
const INPUT_DEADLINE: Duration = Duration::from_secs(120);

/// Batches leased ahead of their use: one is being used, the others are being decoded.
const AHEAD: usize = crate::input::PREFETCH;

/// A replica's log gets a line this often, so that it tells how far a killed one came.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Variables or gradients did not get through.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// No batch.
    #[error(transparent)]
    Input(#[from] batch::Error),
    /// The model refused the batch, or its losses are not finite.
    #[error("step {step}: {message}")]
    Model {
        /// Global step of the variables that were used.
        step: u64,
        /// What is wrong.
        message: String,
    },
}

/// Takes elements of the flat vector, with their values; none where those lie on an accelerator.
pub type Ready<'a> = &'a mut (dyn FnMut(Range<usize>, &[f32]) + Send);

/// What the loop trains: turns variables and a batch into gradients.
pub trait Model {
    /// Elements of the flat vector; 0 where variables and gradients stay on an accelerator.
    fn flat_elements(&self) -> usize;

    /// Whether a step has a use for the batch after its own.
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Is told of the next step's version and of its first record's position, on which alone chance inside of the model may depend: a step can
    /// then be made again.
    fn place(&mut self, _version: u64, _first_position: u64) {}

    /// Forward, loss, backward. Fills `gradients` (flat vector; batch statistics in the places of moving ones, clipping and
    /// regularisation included) and returns the losses by the reference's names. `ready` is told of elements that are complete
    /// while others are not, in whatever order that happens; it need not be told of any. `next` is the batch of the step after this one and
    /// its first position, if that is known.
    fn step(
        &mut self,
        variables: &[f32],
        batch: &Batch,
        next: Option<(u64, &Batch)>,
        gradients: &mut [f32],
        ready: Ready<'_>,
    ) -> Result<Vec<(&'static str, f64)>, String>;
}

/// How the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The last step is committed.
    Finished,
    /// Asked to stop, with the reason.
    Left(String),
}

/// Called after each committed step; may take its time (evaluation), the others wait.
pub type Between<'a, M, E> = dyn FnMut(&mut M, &mut E) -> Result<(), Error> + 'a;

/// Trains until the job ends or `stop` is raised.
pub fn train<M: Model, E: Exchange + Send>(
    model: &mut M,
    loader: &Loader,
    exchange: &mut E,
    start_version: u64,
    stop: &StopFlag,
    between: &mut Between<'_, M, E>,
) -> Result<End, Error> {
    let mut variables = vec![0.0; model.flat_elements()];
    let mut gradients = Arc::new(vec![0.0; model.flat_elements()]);
    let mut version = start_version;
    let mut exhausted = false;
    let mut ahead: Option<Result<(batch::Lease, Batch), batch::Error>> = None;
    let mut reported_bad = 0;
    let mut said = Instant::now();
    loop {
        if let Some(reason) = exchange.asked_to_leave()? {
            return Ok(End::Left(reason));
        }
        exhausted = top_up(loader, exchange, ahead.is_some(), exhausted)?;
        if loader.pending() == 0 && ahead.is_none() {
            return Ok(End::Finished);
        }

        exchange.activity("pulling");
        version = exchange.pull(version, &mut variables)?;

        exchange.activity("waiting_for_input");
        let begun = Instant::now();
        let (lease, batch) = match ahead.take() {
            Some(ahead) => ahead?,
            None => loader.next(begun + INPUT_DEADLINE)?,
        };
        let input = begun.elapsed();
        if model.looks_ahead() {
            ahead = loader.next_if_ready();
        }
        let next = ahead.as_ref().and_then(|ahead| ahead.as_ref().ok());
        let next = next.map(|(lease, batch)| (lease.first_position, batch));

        exchange.activity("computing");
        let begun = Instant::now();
        model.place(version, lease.first_position);
        let losses = model
            .step(
                &variables,
                &batch,
                next,
                Arc::<Vec<f32>>::make_mut(&mut gradients),
                &mut |elements, values| exchange.ready(version, elements, values),
            )
            .map_err(|message| Error::Model { step: version, message })?;
        let compute = begun.elapsed();

        let all_bad = loader.bad_records();
        let contribution = Contribution {
            version,
            lease: Lease {
                id: lease.id,
                first_position: lease.first_position,
                count: lease.count as u32,
            },
            samples: batch.len() as u32,
            gradients: &gradients,
            losses,
            phases: Phases { input, compute },
            bad_records: all_bad.get(reported_bad..).unwrap_or_default().to_vec(),
        };
        reported_bad = all_bad.len();
        let fate = exchange.contribute(&contribution, &mut variables)?;
        loader.recycle(batch.images);
        match fate {
            Fate::Committed { version: next, last } => {
                version = next;
                if said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    tracing::info!(step = version, "committed");
                }
                between(model, exchange)?;
                if last {
                    return Ok(if stop.raised() {
                        End::Left(STOPPED.to_owned())
                    } else {
                        End::Finished
                    });
                }
            }
            Fate::Dropped { version: next } => {
                version = next;
                exhausted = false;
            }
            Fate::Ended => return Ok(End::Left("the job ended".to_owned())),
        }
    }
}

/// How many batches are leased depends on the step alone, not on what is decoded by now (`ahead`: one of them is and was taken): all ranks of a
/// job keep the same book of them.
fn top_up<E: Exchange>(
    loader: &Loader,
    exchange: &mut E,
    ahead: bool,
    exhausted: bool,
) -> Result<bool, exchange::Error> {
    let wanted = AHEAD.saturating_sub(loader.pending() + usize::from(ahead));
    if exhausted || wanted == 0 {
        return Ok(exhausted);
    }
    let (leases, exhausted) = exchange.lease(wanted as u32)?;
    for lease in leases {
        loader.request(batch::Lease {
            id: lease.id,
            first_position: lease.first_position,
            count: lease.count as usize,
        });
    }
    Ok(exhausted)
}
