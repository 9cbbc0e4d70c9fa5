//! The cluster file: Cloud ML Engine's job YAML with our `coati:` section beside it.
//!
//! ```yaml
//! trainingInput:
//!   scaleTier: CUSTOM
//!   masterType: standard
//!   workerCount: 2
//!   workerType: standard
//!   parameterServerCount: 3
//!   parameterServerType: standard
//! coati:
//!   placement: balanced
//! ```
//!
//! Keys may be written in camelCase (as in the service's REST interface) or `snake_case` (as in its client libraries).

mod coati;
mod compression;
mod consistency;
mod precision;
mod security;
mod training_input;
mod validate;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::plan::ClusterPlan;
use super::yaml::Document;
pub use super::yaml::Fault;

/// Why a cluster file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read cluster file {}: {source}{}", path.display(), coati_storage::hint_or(source, "\nhint: samples are in cluster-configs/"))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is wrong at a certain place.
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

/// Reads cluster files.
pub struct ClusterFile;

impl ClusterFile {
    /// Largest file that is read; a cluster file has some twenty lines.
    const LARGEST: u64 = 1 << 20;

    /// Reads and checks a cluster file.
    ///
    /// # Errors
    /// [`Error::Read`] if it cannot be read, [`Error::Fault`] with line and column for anything wrong in it.
    pub fn load(path: &Path) -> Result<ClusterPlan, Error> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let size = coati_storage::stat(path).map_err(read)?.bytes;
        if size > Self::LARGEST {
            let source = std::io::Error::other(format!("{size} bytes are too many for a cluster file"));
            return Err(read(source));
        }
        let text = coati_storage::read_to_string(path).map_err(read)?;
        Self::parse(path, &text)
    }

    /// Checks the text of a cluster file; `path` is the name that errors carry.
    ///
    /// # Errors
    /// [`Error::Fault`] with line and column for anything wrong in it.
    pub fn parse(path: &Path, text: &str) -> Result<ClusterPlan, Error> {
        let document = Document::parse(path, text)?;
        let job = training_input::read(&document)?;
        Ok(validate::validate(&document, path, job)?)
    }
}
