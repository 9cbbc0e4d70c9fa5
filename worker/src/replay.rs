//! Makes a job's steps once more, in this process, from what its log says of them: who contributed, and with which records.
//!
//! Which replica computes a gradient changes no bit of it, and sums are taken in rank order. So a synchronous job that applied
//! each contribution exactly once holds, bit for bit, what comes out here, whatever became of its processes meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use coati_dataset::batch::{Batch, Lease, Loader};
use coati_param_server::{Contributor, Layout, Store, Strategy, Tag, plan, store};
use coati_proto::coati::v1::JobRef;

use crate::model;
use crate::replica::Model as _;
use crate::train::{Error, Options, Setup};

/// For one batch to be decoded.
const INPUT_DEADLINE: Duration = Duration::from_secs(120);

/// A replica's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its rank.
    pub replica: u32,
    /// Position of its first record in the endless sequence.
    pub first: u64,
    /// Number of its records.
    pub count: u32,
}

/// A job, made again from step 0.
pub struct Replay {
    setup: Setup,
    loader: Loader,
    store: Store,
    layout: Layout,
    job: JobRef,
    version: u64,
    variables: Vec<f32>,
    gradients: Vec<f32>,
}

impl Replay {
    /// At step 0 of the job that these options describe.
    ///
    /// # Errors
    /// [`Error`] where the job's own start would fail.
    pub fn new(options: &Options) -> Result<Self, Error> {
        let mut setup = Setup::open(options)?;
        let loader = setup.loader()?;
        let values = setup.first_values(options)?.values;
        let placement = plan(setup.trainer.ssd().variables(), 1, Strategy::Balanced).map_err(Error::job)?;
        let layout = Layout::new(&placement).map_err(Error::job)?;
        let job = JobRef {
            job_id: "replay".to_owned(),
            incarnation: 1,
        };
        let store = Store::new(store::Options::default());
        store
            .configure(&job, 0, &placement, setup.optimizer.clone(), 0)
            .map_err(Error::job)?;
        let mut arena = Vec::new();
        layout.gather(0, &values, &mut arena);
        store.load(&job, arena, 0).map_err(Error::job)?;
        Ok(Self {
            gradients: vec![0.0; values.len()],
            variables: values,
            setup,
            loader,
            store,
            layout,
            job,
            version: 0,
        })
    }

    /// Committed steps.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Makes the next step of these contributions, which are in ascending order of rank.
    ///
    /// # Errors
    /// [`Error`] where a record cannot be read, or the store refuses the contributions.
    pub fn step(&mut self, parts: &[Part]) -> Result<(), Error> {
        for part in parts {
            self.loader.request(lease(part));
        }
        let mut contributors = Vec::new();
        for part in parts {
            let batch = self.next_batch()?;
            self.setup.trainer.place(self.version, part.first);
            self.setup
                .trainer
                .step(&self.variables, &batch, None, &mut self.gradients, &mut |_, _| {})
                .map_err(Error::job)?;
            let tag = Tag {
                replica: part.replica,
                sequence: self.version,
                version: self.version,
            };
            let mut pushed = Vec::new();
            if let Some(server) = self.layout.server(0) {
                server.gather(0, server.pushed_len, &self.gradients, &mut pushed);
            }
            self.store.push(&self.job, tag, &pushed).map_err(Error::job)?;
            contributors.push(Contributor {
                replica: part.replica,
                sequence: self.version,
                samples: batch.len() as u32,
            });
            self.loader.recycle(batch.images);
        }
        let committed = self
            .store
            .commit(&self.job, self.version, &contributors, true)
            .map_err(Error::job)?;
        self.version = committed.version;
        self.variables = self.values(false)?;
        Ok(())
    }

    /// The variables now, as one flat vector; with `averages`, moving averages in place of trainable ones.
    ///
    /// # Errors
    /// [`Error`] if the store has none.
    pub fn values(&self, averages: bool) -> Result<Vec<f32>, Error> {
        let pull = if averages { Store::pull_averages } else { Store::pull };
        let snapshot = pull(&self.store, &self.job, self.version).map_err(Error::job)?;
        let mut values = vec![0.0; self.layout.flat_len()];
        if let Some(server) = self.layout.server(0) {
            snapshot.scatter(server, &mut values);
        }
        Ok(values)
    }

    /// As [`Replay::values`], of a checkpoint.
    ///
    /// # Errors
    /// [`Error`] if it cannot be read, or is of another model.
    pub fn checkpoint(&mut self, prefix: &Path, averages: bool) -> Result<Vec<f32>, Error> {
        model::read_variables(self.setup.trainer.ssd(), prefix, averages).map_err(Error::job)
    }

    /// The total loss with these variables, a mean over the records of the first epoch as they are augmented there.
    ///
    /// # Errors
    /// [`Error`] where a record cannot be read.
    pub fn loss(&mut self, variables: &[f32]) -> Result<f64, Error> {
        let (records, batch) = (self.setup.identity.record_count, u64::from(self.setup.batch_size));
        let parts: Vec<Part> = (0..records / batch)
            .map(|block| Part {
                replica: 0,
                first: block * batch,
                count: self.setup.batch_size,
            })
            .collect();
        for part in &parts {
            self.loader.request(lease(part));
        }
        let mut sum = 0.0;
        for _ in &parts {
            let batch = self.next_batch()?;
            let losses = self
                .setup
                .trainer
                .step(variables, &batch, None, &mut self.gradients, &mut |_, _| {});
            let total = losses.map_err(Error::job)?.into_iter();
            sum += total
                .filter(|(name, _)| *name == "Loss/total_loss")
                .map(|(_, value)| value)
                .sum::<f64>();
            self.loader.recycle(batch.images);
        }
        Ok(sum / parts.len().max(1) as f64)
    }

    fn next_batch(&self) -> Result<Batch, Error> {
        let (_, batch) = self.loader.next(Instant::now() + INPUT_DEADLINE).map_err(Error::job)?;
        Ok(batch)
    }
}

fn lease(part: &Part) -> Lease {
    Lease {
        id: part.first,
        first_position: part.first,
        count: part.count as usize,
    }
}
