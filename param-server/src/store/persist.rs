//! Checkpoints: this server's pieces, slots included, as slices of TensorFlow's tensors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coati_checkpoint::bundle::{self, DataFileWriter, Reader, Slice, flat_range_slices};
use coati_checkpoint::rescue;
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_common::variables::{VariableKind, VariableSpec};
use coati_proto::coati::v1;

use super::engine::Engine;
use super::model::Model;
use crate::optimizer::{AdamPowers, MOVING_AVERAGE};
use crate::placement::{LocalPiece, ServerLayout};

/// Names of Adam's two scalars.
const POWERS: [&str; 2] = ["beta1_power", "beta2_power"];

/// Suffix of adaptive delay compensation's mean square of the gradients.
const MEAN_SQUARE: &str = "DelayCompensation";

/// What a save wrote.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// For the index.
    pub tensors: Vec<v1::SavedTensor>,
    /// Bytes of the data file.
    pub bytes: u64,
}

/// What a restore read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Number of tensors (or parts of them) read.
    pub tensors: u64,
    /// Slots that the checkpoint does not have; they start as the optimiser defines.
    pub slots_initialised: Vec<String>,
}

/// A data file that is complete.
#[derive(Debug)]
pub(crate) struct Written {
    incarnation: u64,
    version: u64,
    path: PathBuf,
    saved: Saved,
}

pub(super) fn save(
    engine: &Engine,
    written: &mut Option<Written>,
    prefix: &str,
    shard: u32,
    shard_count: u32,
    version: u64,
) -> Result<Saved, ServiceError> {
    let incarnation = engine.job().incarnation;
    let path = bundle::data_path(Path::new(prefix), shard, shard_count);
    let model = match engine.saved_model(version) {
        Ok(model) => model,
        Err(error) => {
            let before = written
                .as_ref()
                .filter(|before| (before.incarnation, before.version) == (incarnation, version) && before.path == path);
            return before
                .filter(|before| coati_storage::stat(&before.path).is_ok_and(|file| file.bytes == before.saved.bytes))
                .map(|before| before.saved.clone())
                .ok_or(error);
        }
    };
    let result = write(engine, &model, prefix, shard, shard_count, version);
    engine.release(version);
    *written = result.as_ref().ok().map(|saved| Written {
        incarnation,
        version,
        path,
        saved: saved.clone(),
    });
    result
}

fn write(
    engine: &Engine,
    model: &Model,
    prefix: &str,
    shard: u32,
    shard_count: u32,
    version: u64,
) -> Result<Saved, ServiceError> {
    let server = engine.server()?;
    let mut file = DataFileWriter::create(Path::new(prefix), shard, shard_count).map_err(failed)?;
    for piece in &server.pieces {
        let spec = &engine.layout.variables()[piece.variable];
        write_piece(&mut file, &spec.name, spec, piece, &model.values).map_err(failed)?;
        if spec.kind == VariableKind::Trainable {
            for (slot, vector) in engine.optimizer.rule.slots().iter().zip(&model.slots) {
                write_piece(&mut file, &slot_name(spec, slot.suffix), spec, piece, vector).map_err(failed)?;
            }
            if let Some(averages) = &model.averages {
                write_piece(&mut file, &slot_name(spec, MOVING_AVERAGE), spec, piece, averages).map_err(failed)?;
            }
            if let Some(squares) = &model.mean_squares {
                write_piece(&mut file, &slot_name(spec, MEAN_SQUARE), spec, piece, squares).map_err(failed)?;
            }
        }
    }
    if engine.ps == 0 {
        let step = i64::try_from(version).unwrap_or(i64::MAX);
        file.append_i64("global_step", &[], &[step]).map_err(failed)?;
        if let Some(powers) = model.powers {
            file.append_f32(POWERS[0], &[], None, [[powers.beta1].as_slice()])
                .map_err(failed)?;
            file.append_f32(POWERS[1], &[], None, [[powers.beta2].as_slice()])
                .map_err(failed)?;
        }
    }
    let bytes = file.bytes();
    let tensors = file.finish().map_err(failed)?;
    Ok(Saved { tensors, bytes })
}

fn slot_name(spec: &VariableSpec, suffix: &str) -> String {
    format!("{}/{suffix}", spec.name)
}

/// Writes one piece of a vector that is laid out like the arena: whole, or as the slices that make it up.
fn write_piece(
    file: &mut DataFileWriter,
    name: &str,
    spec: &VariableSpec,
    piece: &LocalPiece,
    arena: &[f32],
) -> Result<(), bundle::Error> {
    let mut values = &arena[piece.offset..piece.offset + piece.length];
    if piece.length == spec.elements() {
        return file.append_f32(name, &spec.shape, None, [values]);
    }
    let slices: Vec<Slice> = flat_range_slices(&spec.shape, piece.start as u64, piece.length as u64);
    for slice in &slices {
        let (now, later) = values.split_at((slice.elements() as usize).min(values.len()));
        file.append_f32(name, &spec.shape, Some(slice), [now])?;
        values = later;
    }
    Ok(())
}

pub(super) fn restore(
    engine: &Engine,
    prefix: &str,
    version: u64,
    slots_optional: bool,
) -> Result<Restored, ServiceError> {
    engine.check_loadable()?;
    let server = engine.server()?;
    let reader = Reader::open(Path::new(prefix)).map_err(|error| unreadable(Path::new(prefix), &error))?;
    let mut source = Source {
        reader,
        engine,
        server,
        slots_optional,
        restored: Restored::default(),
    };

    let mut values = vec![0.0; server.arena_len];
    for piece in &server.pieces {
        let spec = &engine.layout.variables()[piece.variable];
        source.read(&spec.name, spec, piece, &mut values)?;
    }
    let mut model = engine.new_model(values)?;
    for (slot, vector) in engine.optimizer.rule.slots().iter().zip(&mut model.slots) {
        source.read_slots(slot.suffix, Arc::<Vec<f32>>::make_mut(vector))?;
    }
    if let Some(averages) = &mut model.averages {
        source.read_slots(MOVING_AVERAGE, Arc::<Vec<f32>>::make_mut(averages))?;
    }
    if let Some(powers) = &mut model.powers {
        source.read_powers(powers)?;
    }
    if let Some(squares) = &mut model.mean_squares {
        // Compensation may be turned on at any time: then it starts anew.
        source.slots_optional = true;
        source.read_slots(MEAN_SQUARE, Arc::<Vec<f32>>::make_mut(squares))?;
    }
    engine.install(model, version)?;
    Ok(source.restored)
}

struct Source<'a> {
    reader: Reader,
    engine: &'a Engine,
    server: &'a ServerLayout,
    slots_optional: bool,
    restored: Restored,
}

impl Source<'_> {
    fn read(
        &mut self,
        name: &str,
        spec: &VariableSpec,
        piece: &LocalPiece,
        arena: &mut [f32],
    ) -> Result<(), ServiceError> {
        if let Some(entry) = self.reader.entry(name)
            && entry.shape != spec.shape
        {
            let message = format!(
                "{}: `{name}` has shape {:?}, the model's variable has {:?}",
                self.reader.prefix().display(),
                entry.shape,
                spec.shape
            );
            return Err(ServiceError::new(ErrorCode::Checkpoint, message)
                .with_hint("the checkpoint belongs to another configuration of the model"));
        }
        let target = &mut arena[piece.offset..piece.offset + piece.length];
        self.reader
            .read_f32_range_into(name, piece.start as u64, target)
            .map_err(|error| unreadable(self.reader.prefix(), &error))?;
        self.restored.tensors += 1;
        Ok(())
    }

    fn read_slots(&mut self, suffix: &str, arena: &mut [f32]) -> Result<(), ServiceError> {
        for piece in &self.server.pieces {
            let spec = &self.engine.layout.variables()[piece.variable];
            if spec.kind != VariableKind::Trainable {
                continue;
            }
            let name = slot_name(spec, suffix);
            if self.slots_optional && self.reader.entry(&name).is_none() {
                self.restored.slots_initialised.push(name);
            } else {
                self.read(&name, spec, piece, arena)?;
            }
        }
        Ok(())
    }

    fn read_powers(&mut self, powers: &mut AdamPowers) -> Result<(), ServiceError> {
        for (name, power) in POWERS.into_iter().zip([&mut powers.beta1, &mut powers.beta2]) {
            if self.slots_optional && self.reader.entry(name).is_none() {
                self.restored.slots_initialised.push(name.to_owned());
            } else {
                self.reader
                    .read_f32_range_into(name, 0, std::slice::from_mut(power))
                    .map_err(|error| unreadable(self.reader.prefix(), &error))?;
                self.restored.tensors += 1;
            }
        }
        Ok(())
    }
}

fn code(error: &bundle::Error) -> ErrorCode {
    match error {
        bundle::Error::File(file) if file.is_out_of_space() => ErrorCode::OutOfSpace,
        bundle::Error::File(_) => ErrorCode::Io,
        _ => ErrorCode::Checkpoint,
    }
}

/// A checkpoint that cannot be read: where its files are damaged, the hint names an older one that is whole.
fn unreadable(prefix: &Path, error: &bundle::Error) -> ServiceError {
    let (message, hint) = rescue::explain(prefix, error);
    let failed = ServiceError::new(code(error), message);
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: bundle::Error) -> ServiceError {
    let code = code(&error);
    let text = error.to_string();
    match text.split_once("\nhint: ") {
        Some((message, hint)) => ServiceError::new(code, message).with_hint(hint),
        None => ServiceError::new(code, text),
    }
}
