//! The sidecar `P.coati.json`: what a job needs to go on from a checkpoint and TensorFlow has no place for.
//!
//! It is written last, so a checkpoint that has one is complete. Fields may be added within a version (readers ignore what
//! they do not know); a change that an older reader would misunderstand takes a new version.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, with_suffix};

/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// Everything that belongs to the instant of a checkpoint besides the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`]
    pub version: u32,
    /// Chosen once when the job directory is made.
    pub job_id: String,
    /// Starts of the coordinator so far.
    pub incarnation: u64,
    /// Committed steps.
    pub global_step: u64,
    /// Of the effective pipeline configuration.
    pub config_digest: String,
    /// Seeds by what they are for: `data`, `model`, …
    #[serde(default)]
    pub seeds: BTreeMap<String, u64>,
    /// Which records committed steps have used.
    pub data: DataPosition,
    /// Training records in an epoch.
    pub record_count: u64,
    /// Training replicas, the master counted.
    pub replicas: u32,
    /// Records of one replica's step.
    pub batch_size: u32,
    /// Where the variables lived.
    #[serde(default)]
    pub placement: Placement,
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Of Coati.
    pub software_version: String,
    /// The checkpoint's other files.
    pub files: Vec<SavedFile>,
}

/// Which part of the endless record sequence (epoch 0, epoch 1, …) has been used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// Every position below this one has been used, but for those that are open.
    pub position: u64,
    /// Positions below that were handed out and not used by a committed step.
    #[serde(default)]
    pub open: Vec<OpenRange>,
}

/// Consecutive positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRange {
    /// The first one.
    pub start: u64,
    /// How many.
    pub count: u64,
}

/// Where the variables lived, in short; a checkpoint can be loaded into any number of servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// `round_robin`, `balanced`, …
    pub strategy: String,
    /// Of the map.
    pub version: u64,
    /// Bytes of variables on each parameter server, by index.
    pub bytes: Vec<u64>,
}

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// Without folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// What every version starts with.
#[derive(Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    software_version: String,
}

/// A manifest that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// It is no manifest.
    #[error("{}: not a readable manifest: {source}\nhint: use another checkpoint; without its manifest this one does not count", path.display())]
    Json {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// It contradicts itself.
    #[error("{}: {what}\nhint: the file was damaged or written by hand; use another checkpoint", path.display())]
    Inconsistent {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, with the values.
        what: String,
    },
    /// A newer Coati wrote it.
    #[error("{}: manifest of version {found}, this Coati reads up to {VERSION}\nhint: use the Coati that wrote it ({software})", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Who wrote it.
        software: String,
    },
}

/// `P.coati.json`
pub fn path(prefix: &Path) -> PathBuf {
    with_suffix(prefix, ".coati.json")
}

impl Manifest {
    /// Reads the manifest of a checkpoint; `None` when it has none.
    pub fn read(prefix: &Path) -> Result<Option<Self>, Error> {
        let path = path(prefix);
        let bytes = match coati_storage::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(files::error(&path, "read"))?,
        };
        let json = |source| Error::Json {
            path: path.clone(),
            source,
        };
        // The version first: what follows it may mean something else.
        let head: Head = serde_json::from_slice(&bytes).map_err(json)?;
        if head.version > VERSION {
            return Err(Error::Version {
                path,
                found: head.version,
                software: head.software_version,
            });
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(json)?;
        match manifest.data.complaint() {
            Some(what) => Err(Error::Inconsistent { path, what }),
            None => Ok(Some(manifest)),
        }
    }

    /// The file's content.
    pub(crate) fn encode(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Writes it beside its checkpoint, at once and to last.
    pub fn write(&self, prefix: &Path) -> Result<(), Error> {
        let path = path(prefix);
        Ok(files::write_atomic(&path, &self.encode(&path)?)?)
    }

    /// Records that committed steps have used.
    pub fn records_seen(&self) -> u64 {
        self.data.records_seen()
    }

    /// Epochs that are complete but for open ranges: the epoch in which the next record lies.
    pub fn epoch(&self) -> u64 {
        self.data.position.checked_div(self.record_count).unwrap_or(0)
    }
}

impl DataPosition {
    /// What is wrong with it: open ranges must be ascending, apart from each other, and below the position.
    pub fn complaint(&self) -> Option<String> {
        let mut free = 0;
        for range in &self.open {
            let of = format!("open records {}+{}", range.start, range.count);
            let Some(end) = range.start.checked_add(range.count) else {
                return Some(format!("{of} end beyond any position"));
            };
            if range.count == 0 {
                return Some(format!("{of} are none"));
            }
            if range.start < free {
                return Some(format!("{of} begin before the end of the range before them, {free}"));
            }
            if end > self.position {
                return Some(format!("{of} reach beyond the position, {}", self.position));
            }
            free = end;
        }
        None
    }

    /// Records that committed steps have used.
    pub fn records_seen(&self) -> u64 {
        let open = self
            .open
            .iter()
            .fold(0u64, |sum, range| sum.saturating_add(range.count));
        self.position.saturating_sub(open)
    }
}
