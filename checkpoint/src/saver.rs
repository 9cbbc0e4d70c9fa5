//! Saving whole checkpoints.

use std::path::{Path, PathBuf};

use crate::bundle::{self, DataFileWriter, SavedTensor, data_path, index_path};
use crate::files::{self, folder, with_suffix};
use crate::manifest::{self, Manifest, SavedFile};
use crate::{keep, state};

/// A float32 tensor to be saved: name, shape and elements in C order.
pub type Tensor<'a> = (&'a str, &'a [i64], &'a [f32]);

/// `MODEL_DIR/model.ckpt-STEP`
pub fn prefix(model_dir: &Path, step: u64) -> PathBuf {
    model_dir.join(format!("model.ckpt-{step}"))
}

/// Makes way for a checkpoint of which servers are about to write the data files: an older one of the same step (training
/// went back behind it) must not be taken for complete while its files are replaced one by one.
pub fn begin(prefix: &Path) -> Result<(), state::Error> {
    files::remove(&manifest::path(prefix))?;
    files::remove(&index_path(prefix))?;
    // What stays is written over, or has the number of servers of another time in its name and belongs to nothing.
    for path in keep::data_files(prefix)? {
        let _ = files::remove(&path);
    }
    Ok(())
}

/// Completes a checkpoint whose data files are all written: index, then manifest (its `files` are filled in here). When
/// that fails, the checkpoint is removed; older ones are untouched. The state file follows with [`keep::update`].
pub fn publish(
    prefix: &Path,
    shard_count: u32,
    tensors: &[SavedTensor],
    manifest: Manifest,
) -> Result<Manifest, state::Error> {
    let result = write_both(prefix, shard_count, tensors, manifest);
    if result.is_err() {
        // The error that counts is the first one.
        let _ = keep::delete(prefix);
    }
    result
}

fn write_both(
    prefix: &Path,
    shard_count: u32,
    tensors: &[SavedTensor],
    mut manifest: Manifest,
) -> Result<Manifest, state::Error> {
    let data = (0..shard_count).map(|shard| data_path(prefix, shard, shard_count));
    let mut paths: Vec<PathBuf> = data.collect();
    bundle::write_index(prefix, shard_count, tensors)?;
    paths.insert(0, index_path(prefix));
    manifest.files = paths
        .iter()
        .map(|path| saved_file(path, path))
        .collect::<Result<_, _>>()?;
    manifest.write(prefix)?;
    Ok(manifest)
}

/// A file's entry in the manifest; `written` is where it lies now.
fn saved_file(path: &Path, written: &Path) -> Result<SavedFile, files::Error> {
    let bytes = coati_storage::stat(written)
        .map_err(files::error(written, "stat"))?
        .bytes;
    Ok(SavedFile {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes,
    })
}

/// Saves a checkpoint from one process, in one data file: `tensors`, the int64 scalars `integers` (`global_step` among
/// them), and the manifest, without which it is one that TensorFlow might have written.
///
/// Everything is written under temporary names first: when the disk is full, a checkpoint of the same name is what it was
/// before, and nothing is left behind.
pub fn save(
    prefix: &Path,
    tensors: &[Tensor<'_>],
    integers: &[(&str, i64)],
    manifest: Option<Manifest>,
) -> Result<(), state::Error> {
    let model_dir = folder(prefix);
    coati_storage::create_dir_all(model_dir).map_err(files::error(model_dir, "make"))?;
    if coati_storage::is_remote(prefix) {
        return save_in_bucket(prefix, tensors, integers, manifest);
    }
    let targets = [data_path(prefix, 0, 1), index_path(prefix), manifest::path(prefix)];
    let temporary = targets.clone().map(|path| with_suffix(&path, files::TEMPORARY));
    let prepared = prepare(&targets, &temporary, tensors, integers, manifest);
    let Ok(with_manifest) = prepared else {
        for path in &temporary {
            let _ = files::remove(path);
        }
        return prepared.map(drop);
    };

    // From here on nothing needs space. The old manifest goes first, the new one comes last.
    files::remove(&targets[2])?;
    for path in keep::data_files(prefix)?.iter().filter(|path| **path != targets[0]) {
        files::remove(path)?;
    }
    let count = if with_manifest { 3 } else { 2 };
    for (from, to) in temporary.iter().zip(&targets).take(count) {
        files::rename(from, to)?;
    }
    Ok(files::sync_folder(model_dir)?)
}

/// As [`save`], where there are no renames: what stands between an older checkpoint of this name and the new one is its manifest, which
/// goes first and comes last. One that was never finished is removed.
fn save_in_bucket(
    prefix: &Path,
    tensors: &[Tensor<'_>],
    integers: &[(&str, i64)],
    manifest: Option<Manifest>,
) -> Result<(), state::Error> {
    begin(prefix)?;
    let written = (|| {
        let saved = write_data(data_path(prefix, 0, 1), tensors, integers)?;
        match manifest {
            Some(manifest) => write_both(prefix, 1, &saved, manifest).map(drop),
            None => Ok(bundle::write_plain_index(prefix, 1, &saved)?),
        }
    })();
    if written.is_err() {
        // The error that counts is the first one.
        let _ = keep::delete(prefix);
    }
    written
}

/// Writes the data file.
fn write_data(
    path: PathBuf,
    tensors: &[Tensor<'_>],
    integers: &[(&str, i64)],
) -> Result<Vec<SavedTensor>, state::Error> {
    enum Values<'a> {
        Floats(&'a [i64], &'a [f32]),
        Integer(i64),
    }
    // In order of their names, as TensorFlow's `Saver` does.
    let floats = tensors
        .iter()
        .map(|&(name, shape, values)| (name, Values::Floats(shape, values)));
    let mut all: Vec<_> = floats
        .chain(integers.iter().map(|&(name, value)| (name, Values::Integer(value))))
        .collect();
    all.sort_by_key(|&(name, _)| name);
    let mut data = DataFileWriter::create_at(path, 0)?;
    for (name, values) in all {
        match values {
            Values::Floats(shape, values) => data.append_f32(name, shape, None, [values])?,
            Values::Integer(value) => data.append_i64(name, &[], &[value])?,
        }
    }
    Ok(data.finish()?)
}

/// Writes the three files under their temporary names; tells whether there is a manifest.
fn prepare(
    targets: &[PathBuf; 3],
    temporary: &[PathBuf; 3],
    tensors: &[Tensor<'_>],
    integers: &[(&str, i64)],
    manifest: Option<Manifest>,
) -> Result<bool, state::Error> {
    let saved = write_data(temporary[0].clone(), tensors, integers)?;
    let index = bundle::encode_index(&targets[1], 1, &saved, manifest.is_some())?;
    files::write_synced(&temporary[1], &index)?;
    let Some(mut manifest) = manifest else { return Ok(false) };
    manifest.files = vec![
        saved_file(&targets[1], &temporary[1])?,
        saved_file(&targets[0], &temporary[0])?,
    ];
    files::write_synced(&temporary[2], &manifest.encode(&targets[2])?)?;
    Ok(true)
}
