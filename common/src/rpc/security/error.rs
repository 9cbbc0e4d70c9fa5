use std::path::PathBuf;
use std::time::Duration;

/// Why a task has no credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}\nhint: {hint}", path.display())]
    Read {
        /// Which of them.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What would be right.
        hint: &'static str,
    },
    /// A file holds something else.
    #[error("{what} {}: {message}\nhint: {hint}", path.display())]
    Content {
        /// Which of them.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// What would be right.
        hint: &'static str,
    },
    /// The job's folder for them cannot be written.
    #[error(
        "cannot write the job's certificates and token to {}: {source}\nhint: --model_dir must be a folder that can be written, on a disk with room; or give `coati: security: {{ca: , cert: , key: , token_file: }}` in the cluster file", path.display()
    )]
    Write {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate could not be made.
    #[error("cannot make the job's certificate: {0}")]
    Make(String),
    /// Nobody has made them in time.
    #[error(
        "waited {:.0} s for {}, which the job makes where its first task starts\nhint: is --model_dir the same folder on all hosts? Else give `coati: security: {{ca: , cert: , key: , token_file: }}` in the cluster file, with files that are on each of them", waited.as_secs_f64(), folder.display()
    )]
    Missing {
        /// The folder that should hold them.
        folder: PathBuf,
        /// For how long.
        waited: Duration,
    },
}
