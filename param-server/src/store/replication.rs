//! Copies: what a server hands to the one that keeps its copy, and how the copy follows.
//!
//! A step is prepared (its mean formed) and handed over before it is decided; it is applied on the copy when the next one
//! comes, since that one can only be prepared after it was decided. So a copy is never ahead of its original, and at most one
//! step behind it, with that step in hand. The arithmetic is the same on both sides, and so is every bit.

use std::sync::Arc;

use bytes::Bytes;
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;

use super::engine::{Engine, not_loaded};
use super::ledger::{Contributor, Prepared};
use super::lock;
use super::model::{Model, mean, threads_for};
use super::staging::append;
use crate::optimizer::AdamPowers;
use crate::pool::Buffer;
use crate::schedule::learning_rate;

/// Elements of a chunk on its way to a copy: 1 MiB, as large as a frame.
const CHUNK: usize = 256 << 10;

/// A step that is prepared and not applied yet.
#[derive(Debug)]
pub struct Update {
    /// It makes `version + 1` out of this.
    pub version: u64,
    pub(super) contributors: Vec<Contributor>,
    pub(super) rate: f32,
    /// `[pushed_len]`
    pub(super) mean: Buffer,
    /// `[slotted_len]` after this step, for adaptive delay compensation.
    pub(super) mean_squares: Option<Arc<Vec<f32>>>,
}

impl Update {
    pub(super) fn is(&self, version: u64, contributors: &[Contributor]) -> bool {
        self.version == version && self.contributors == contributors
    }

    /// What announces it to the copy.
    pub fn begin(&self, job: v1::JobRef) -> v1::FollowBegin {
        v1::FollowBegin {
            job: Some(job),
            version: self.version,
            step: Some(v1::PreparedStep {
                contributors: self.contributors.iter().map(|&by| by.into()).collect(),
                learning_rate: self.rate,
            }),
            powers: Vec::new(),
        }
    }

    /// The vectors to send, without copying them.
    pub fn chunks(self: &Arc<Self>) -> Vec<v1::FollowChunk> {
        let mut chunks = chunks_of(0, Bytes::from_owner(Mean(Arc::clone(self))));
        if let Some(squares) = &self.mean_squares {
            chunks.extend(chunks_of(1, Bytes::from_owner(Vector(Arc::clone(squares)))));
        }
        chunks
    }
}

/// All that a server holds at one version.
#[derive(Debug)]
pub struct Seed {
    /// Of the variables.
    pub version: u64,
    model: Model,
}

impl Seed {
    /// What announces it to the copy.
    pub fn begin(&self, job: v1::JobRef) -> v1::FollowBegin {
        let powers = self.model.powers.map(|powers| vec![powers.beta1, powers.beta2]);
        v1::FollowBegin {
            job: Some(job),
            version: self.version,
            step: None,
            powers: powers.unwrap_or_default(),
        }
    }

    /// The vectors to send, without copying them.
    pub fn chunks(&self) -> Vec<v1::FollowChunk> {
        let Model {
            values,
            slots,
            averages,
            mean_squares,
            ..
        } = &self.model;
        let vectors = std::iter::once(values).chain(slots).chain(averages).chain(mean_squares);
        vectors
            .zip(0..)
            .flat_map(|(vector, index)| chunks_of(index, Bytes::from_owner(Vector(Arc::clone(vector)))))
            .collect()
    }
}

struct Mean(Arc<Update>);

impl AsRef<[u8]> for Mean {
    fn as_ref(&self) -> &[u8] {
        self.0.mean.as_ref()
    }
}

struct Vector(Arc<Vec<f32>>);

impl AsRef<[u8]> for Vector {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn chunks_of(vector: u32, bytes: Bytes) -> Vec<v1::FollowChunk> {
    (0..bytes.len())
        .step_by(CHUNK * 4)
        .map(|from| v1::FollowChunk {
            begin: None,
            vector,
            offset: from as u64 / 4,
            data: bytes.slice(from..bytes.len().min(from + CHUNK * 4)),
        })
        .collect()
}

/// What a copy receives, under way. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    engine: Arc<Engine>,
    begin: v1::FollowBegin,
    /// How long each vector will be.
    lengths: Vec<usize>,
    vectors: Vec<Vec<f32>>,
}

impl Incoming {
    pub(super) fn new(engine: Arc<Engine>, begin: v1::FollowBegin) -> Result<Self, ServiceError> {
        let server = engine.server()?;
        let squares = engine.is_adaptive().then_some(server.slotted_len);
        let lengths: Vec<usize> = if begin.step.is_some() {
            std::iter::once(server.pushed_len).chain(squares).collect()
        } else {
            let slotted =
                engine.optimizer.rule.slots().len() + usize::from(engine.optimizer.moving_average_decay.is_some());
            std::iter::once(server.arena_len)
                .chain(std::iter::repeat_n(server.slotted_len, slotted))
                .chain(squares)
                .collect()
        };
        let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); lengths.len()];
        if begin.step.is_some() {
            vectors[0] = std::mem::take(&mut engine.pool.take().data);
        }
        Ok(Self {
            engine,
            begin,
            lengths,
            vectors,
        })
    }

    /// Takes the next chunk: float32, little endian, from element `offset` of a vector.
    pub fn write(&mut self, vector: u32, offset: u64, bytes: &[u8]) -> Result<(), ServiceError> {
        let index = vector as usize;
        let (Some(data), Some(&length)) = (self.vectors.get_mut(index), self.lengths.get(index)) else {
            let message = format!("vector {vector} of a copy: {} are expected", self.lengths.len());
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        };
        data.reserve_exact(length.saturating_sub(data.capacity()));
        append(data, length, offset, bytes)
            .map_err(|what| ServiceError::new(ErrorCode::LayoutMismatch, format!("vector {vector} of a copy: {what}")))
    }

    /// Whose copy it is for.
    pub(super) fn job(&self) -> v1::JobRef {
        self.begin.job.clone().unwrap_or_default()
    }

    /// Takes over what was written, if it is complete.
    pub(super) fn finish(mut self) -> Result<(), ServiceError> {
        for (index, (vector, length)) in self.vectors.iter().zip(&self.lengths).enumerate() {
            if vector.len() != *length {
                let message = format!(
                    "vector {index} of a copy ended after {} of {length} elements",
                    vector.len()
                );
                return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
            }
        }
        let mut vectors = std::mem::take(&mut self.vectors).into_iter();
        let first = vectors.next().unwrap_or_default();
        let engine = &self.engine;
        let Some(step) = self.begin.step.take() else {
            let slots = engine.optimizer.rule.slots().len();
            let mut vectors = vectors.map(Arc::new);
            let slots = vectors.by_ref().take(slots).collect();
            let averages = engine.optimizer.moving_average_decay.and_then(|_| vectors.next());
            let powers = match self.begin.powers[..] {
                [beta1, beta2] => Some(AdamPowers { beta1, beta2 }),
                _ => None,
            };
            let model = Model {
                values: Arc::new(first),
                slots,
                averages,
                powers,
                mean_squares: vectors.next(),
            };
            return engine.seed(model, self.begin.version);
        };
        engine.follow(Update {
            version: self.begin.version,
            contributors: step.contributors.iter().map(Contributor::from).collect(),
            rate: step.learning_rate,
            mean: engine.pool.adopt(first),
            mean_squares: vectors.next().map(Arc::new),
        })
    }
}

impl Engine {
    /// Forms the mean of these contributions, to be applied by the commit that names the same ones; nothing when that was
    /// applied before.
    pub(crate) fn prepare(
        &self,
        version: u64,
        contributors: &[Contributor],
    ) -> Result<Option<Arc<Update>>, ServiceError> {
        let held = lock(&self.model);
        let model = held.as_ref().ok_or_else(not_loaded)?;
        let server = self.server()?;
        if let Some(ready) = lock(&self.ready).as_ref().filter(|r| r.is(version, contributors)) {
            return Ok(Some(Arc::clone(ready)));
        }
        let prepared = lock(&self.ledger)
            .as_mut()
            .ok_or_else(not_loaded)?
            .prepare(version, contributors)?;
        let Prepared::Apply {
            contributions,
            staleness,
        } = prepared
        else {
            return Ok(None);
        };
        let mut mean_squares = model.mean_squares.clone();
        let contributions = self.compensated(&model.values, mean_squares.as_mut(), server, contributions);
        let threads = threads_for(server.pushed_len, self.threads);
        let Some(mean) = mean(server, contributions, threads) else {
            return Err(ServiceError::new(
                ErrorCode::InvalidRequest,
                "a step of no contributions",
            ));
        };
        let update = Arc::new(Update {
            version,
            contributors: contributors.to_vec(),
            rate: self.rate(learning_rate(&self.optimizer.learning_rate, version), staleness),
            mean,
            mean_squares,
        });
        *lock(&self.ready) = Some(Arc::clone(&update));
        Ok(Some(update))
    }

    /// Everything as it is now, and what is prepared on top of it.
    pub(crate) fn all(&self) -> Result<(Seed, Option<Arc<Update>>), ServiceError> {
        let held = lock(&self.model);
        let model = held.clone().ok_or_else(not_loaded)?;
        let version = self.version()?;
        let ready = lock(&self.ready).clone();
        Ok((Seed { version, model }, ready))
    }

    /// A copy begins, or begins again, with all that its original holds.
    fn seed(&self, model: Model, version: u64) -> Result<(), ServiceError> {
        let mut held = lock(&self.model);
        self.check_copy()?;
        self.replace(&mut held, model, version);
        Ok(())
    }

    /// A copy takes the step that its original prepared, and applies the one before.
    fn follow(&self, update: Update) -> Result<(), ServiceError> {
        let mut held = lock(&self.model);
        self.check_copy()?;
        let model = held.as_mut().ok_or_else(not_loaded)?;
        let version = self.version()?;
        // What is in hand always applies to the version of the variables.
        let in_hand = lock(&self.ready).take();
        match in_hand {
            Some(decided) if update.version == version + 1 => self.apply_ready(model, decided, false)?,
            in_hand if update.version < version => {
                // Sent again although it is applied.
                *lock(&self.ready) = in_hand;
                return Ok(());
            }
            // It takes the place of one that was never decided.
            _ if update.version == version => {}
            in_hand => {
                *lock(&self.ready) = in_hand;
                let message = format!(
                    "the copy of ps-{} is at version {version} and is handed the step from version {}",
                    self.ps, update.version
                );
                return Err(ServiceError::new(ErrorCode::UnknownVersion, message));
            }
        }
        *lock(&self.ready) = Some(Arc::new(update));
        Ok(())
    }

    fn check_copy(&self) -> Result<(), ServiceError> {
        if self.is_copy() {
            return Ok(());
        }
        let message = format!("these are the variables of ps-{} themselves, not their copy", self.ps);
        Err(ServiceError::new(ErrorCode::Conflict, message))
    }
}
