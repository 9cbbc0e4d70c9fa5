//! What `coati checkpoint show` tells.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bundle::{Reader, dtype_name, index_path};
use crate::files::folder;
use crate::manifest::OpenRange;
use crate::state::{self, Checkpoint, Condition};

/// A folder's checkpoints, and what is in the one that counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The folder.
    pub model_dir: PathBuf,
    /// The checkpoint that counts, and whose variables are listed.
    pub latest: Option<PathBuf>,
    /// All of them, unfinished and broken ones too, in order of their steps.
    pub checkpoints: Vec<Summary>,
    /// Tensors of the checkpoint that counts, in order of their names.
    pub variables: Vec<Variable>,
    /// Elements of all of them.
    pub elements: u64,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `…/model.ckpt-2000`
    pub prefix: PathBuf,
    /// Its global step.
    pub step: u64,
    /// `complete`, `unfinished`, `newer` (a newer Coati wrote it) or `broken`
    pub condition: &'static str,
    /// What is broken, or newer.
    pub problem: Option<String>,
    /// `coati` when there is a manifest, else `tensorflow`.
    pub writer: &'static str,
    /// Bytes of all its files but the manifest, if complete.
    pub bytes: Option<u64>,
    /// When it was saved, in seconds since 1970, if there is a manifest; so for all below.
    pub wall_time: Option<f64>,
    /// Records that committed steps had used.
    pub records_seen: Option<u64>,
    /// The epoch that training was in, counted from 0.
    pub epoch: Option<u64>,
    /// Training records in an epoch.
    pub record_count: Option<u64>,
    /// Positions of the endless record sequence that were leased to replicas or had come back, and are used first by
    /// whoever goes on from here.
    pub outstanding_leases: Option<Vec<OpenRange>>,
    /// Training replicas.
    pub replicas: Option<u32>,
    /// Records of one replica's step.
    pub batch_size: Option<u32>,
    /// Which Coati wrote it.
    pub software_version: Option<String>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// TensorFlow's name.
    pub name: String,
    /// `float32`, `int64`, …
    pub dtype: &'static str,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// Parts in which it is stored.
    pub slices: usize,
}

/// Looks at a folder, or at one checkpoint named by its prefix.
pub fn report(path: &Path) -> Result<Report, state::Error> {
    if !coati_storage::is_dir(path) {
        let reader = Reader::open(path)?;
        let checkpoint = state::examine(path);
        return Ok(describe(folder(path), std::slice::from_ref(&checkpoint), Some(&reader)));
    }
    let found = state::survey(path)?;
    let latest = match state::latest(path) {
        // A folder whose checkpoint is broken is just what one looks at here.
        Err(state::Error::Gone { .. } | state::Error::Newer { .. }) => None,
        latest => latest?.map(|latest| Reader::open(&latest.prefix)).transpose()?,
    };
    Ok(describe(path, &found, latest.as_ref()))
}

fn describe(model_dir: &Path, found: &[Checkpoint], latest: Option<&Reader>) -> Report {
    let entries = || latest.into_iter().flat_map(Reader::entries);
    let variables = entries().map(|entry| Variable {
        name: entry.name.clone(),
        dtype: dtype_name(entry.dtype),
        shape: entry.shape.clone(),
        slices: entry.slices.len().max(1),
    });
    Report {
        model_dir: model_dir.to_owned(),
        latest: latest.map(|reader| reader.prefix().to_owned()),
        checkpoints: found.iter().map(summary).collect(),
        variables: variables.collect(),
        elements: entries().fold(0, |sum, entry| sum.saturating_add(entry.elements())),
    }
}

fn summary(checkpoint: &Checkpoint) -> Summary {
    let (condition, problem) = match &checkpoint.condition {
        Condition::Complete => ("complete", None),
        Condition::Unfinished => ("unfinished", None),
        Condition::Newer(what) => ("newer", Some(what.clone())),
        Condition::Broken(what) => ("broken", Some(what.clone())),
    };
    let manifest = checkpoint.manifest.as_ref();
    let bytes = match manifest {
        Some(manifest) => Some(
            manifest
                .files
                .iter()
                .fold(0, |sum: u64, file| sum.saturating_add(file.bytes)),
        ),
        None if condition == "complete" => foreign_bytes(&checkpoint.prefix),
        None => None,
    };
    Summary {
        prefix: checkpoint.prefix.clone(),
        step: checkpoint.step,
        condition,
        problem,
        writer: if manifest.is_some() { "coati" } else { "tensorflow" },
        bytes,
        wall_time: manifest.map(|manifest| manifest.wall_time),
        records_seen: manifest.map(crate::manifest::Manifest::records_seen),
        epoch: manifest.map(crate::manifest::Manifest::epoch),
        record_count: manifest.map(|manifest| manifest.record_count),
        outstanding_leases: manifest.map(|manifest| manifest.data.open.clone()),
        replicas: manifest.map(|manifest| manifest.replicas),
        batch_size: manifest.map(|manifest| manifest.batch_size),
        software_version: manifest.map(|manifest| manifest.software_version.clone()),
    }
}

fn foreign_bytes(prefix: &Path) -> Option<u64> {
    let data = Reader::open(prefix).ok()?.check_files().ok()?;
    Some(data + coati_storage::stat(&index_path(prefix)).ok()?.bytes)
}
