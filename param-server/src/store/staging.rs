use std::sync::Arc;

use coati_common::rpc::{ErrorCode, ServiceError};

use super::engine::Engine;
use super::ledger::{Admit, Tag};
use crate::pool::Buffer;

/// Copied and checked at a time, so that the check finds the values in the cache.
const BLOCK_BYTES: usize = 16 << 10;

/// Whether a contribution's data is wanted.
#[derive(Debug)]
pub enum Push {
    /// Send it.
    Wanted(Staging),
    /// It is known, or too old: acknowledged without its data.
    Ignored(Admit),
}

/// A contribution under way. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Staging {
    engine: Arc<Engine>,
    tag: Tag,
    buffer: Buffer,
}

impl Staging {
    pub(super) fn begin(engine: Arc<Engine>, tag: Tag) -> Result<Push, ServiceError> {
        Ok(match engine.admit(tag)? {
            Admit::Fresh => {
                let buffer = engine.pool.take();
                Push::Wanted(Self { engine, tag, buffer })
            }
            ignored => Push::Ignored(ignored),
        })
    }

    /// Takes the next chunk: float32, little endian, from arena element `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ServiceError> {
        let limit = self.engine.server()?.pushed_len;
        let check = !self.engine.accepts_non_finite();
        let mut next = offset;
        for block in bytes.chunks(BLOCK_BYTES) {
            take(&mut self.buffer.data, limit, next, block)
                .map_err(|what| ServiceError::new(ErrorCode::LayoutMismatch, format!("{}: {what}", self.name())))?;
            let new = &self.buffer.data[next as usize..];
            if check && !new.iter().fold(true, |finite, value| finite & value.is_finite()) {
                let index = new.iter().position(|value| !value.is_finite()).unwrap_or(0);
                return Err(self.non_finite(next as usize + index));
            }
            next += block.len() as u64 / 4;
        }
        Ok(())
    }

    /// Whose gradient, and where it is refused.
    fn name(&self) -> String {
        let (tag, ps) = (self.tag, self.engine.ps);
        format!(
            "gradient of replica {} for version {} on ps-{ps}",
            tag.replica, tag.version
        )
    }

    fn variable(&self, index: usize) -> &str {
        let variable = self.engine.layout.variable_at(self.engine.ps, index);
        variable.map_or("?", |spec| spec.name.as_str())
    }

    #[cold]
    fn non_finite(&self, index: usize) -> ServiceError {
        let (value, variable) = (self.buffer.data[index], self.variable(index));
        let message = format!("{} holds {value} in `{variable}`", self.name());
        ServiceError::new(ErrorCode::NonFiniteGradient, message).with_hint(
            "lower the learning rate or set gradient_clipping_by_norm, and check the data; `coati.on_nan` says what becomes of such a gradient",
        )
    }

    /// Stages what was written, if it is complete.
    pub fn finish(self) -> Result<Admit, ServiceError> {
        let (have, want) = (self.buffer.data.len(), self.engine.server()?.pushed_len);
        if have != want {
            let message = format!(
                "{} ended after {have} of {want} elements, in `{}`",
                self.name(),
                self.variable(have)
            );
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        }
        self.engine.stage(self.tag, self.buffer)
    }
}

/// Initial values under way. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Loading {
    engine: Arc<Engine>,
    values: Vec<f32>,
}

impl Loading {
    pub(super) fn new(engine: Arc<Engine>) -> Result<Self, ServiceError> {
        engine.check_loadable()?;
        let values = Vec::with_capacity(engine.server()?.arena_len);
        Ok(Self { engine, values })
    }

    /// Takes the next chunk: float32, little endian, from arena element `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ServiceError> {
        take(&mut self.values, self.engine.server()?.arena_len, offset, bytes)
            .map_err(|what| ServiceError::new(ErrorCode::LayoutMismatch, format!("initial values: {what}")))
    }

    /// Makes the values the variables' values at `version`; returns their number.
    pub fn finish(self, version: u64) -> Result<u64, ServiceError> {
        let count = self.values.len() as u64;
        self.engine.load(self.values, version)?;
        Ok(count)
    }
}

fn take(data: &mut Vec<f32>, limit: usize, offset: u64, bytes: &[u8]) -> Result<(), String> {
    let (next, count) = (data.len(), bytes.len() / 4);
    if !bytes.len().is_multiple_of(4) {
        return Err(format!(
            "a chunk of {} bytes is no whole number of float32",
            bytes.len()
        ));
    }
    if offset != next as u64 {
        return Err(format!("a chunk begins at element {offset}, {next} is next"));
    }
    if count > limit - next {
        return Err(format!(
            "elements {offset} to {} are beyond the arena's {limit}",
            next + count
        ));
    }
    data.extend(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
    Ok(())
}
