//! A job's folder: which configuration it belongs to, how often it was started, where it goes on.

pub mod lock;

use std::io;
use std::path::{Path, PathBuf};

use coati_checkpoint::state::{self, Latest};
use coati_common::config::PipelineConfig;
use coati_proto::coati::v1::JobRef;
use coati_proto::object_detection::protos::{TrainConfig, TrainEvalPipelineConfig, optimizer};
use serde::{Deserialize, Serialize};

pub use lock::Lock;

/// Name of the file that marks a folder as a job's.
pub const FILE: &str = "coati-job.json";

const VERSION: u32 = 1;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    job_id: String,
    /// Starts of the coordinator so far.
    incarnation: u64,
    /// The effective model and the kind of optimiser: what a checkpoint depends on.
    model: String,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder or a file in it cannot be read or written.
    #[error(
        "{path}: {source}{}",
        coati_storage::hint_or(
            source,
            "\nhint: --model_dir must be a folder that can be written, on a disk with room"
        )
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not ours.
    #[error("{path}: {message}\nhint: choose another --model_dir, or remove the file if the folder holds no job")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Another model's.
    #[error(
        "{folder} belongs to another configuration: {difference}\nhint: choose another --model_dir for {config}, or go back to the configuration that the folder was made with"
    )]
    OtherConfiguration {
        /// The folder.
        folder: PathBuf,
        /// The configuration.
        config: String,
        /// The first line that differs.
        difference: String,
    },
    /// Another coordinator runs the job.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] coati_checkpoint::files::Error),
    /// The checkpoints cannot be read.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// A job folder, opened for one more start.
#[derive(Debug)]
pub struct Job {
    /// The job and this start of it.
    pub job: JobRef,
    /// The checkpoint to go on from.
    pub latest: Option<Latest>,
    /// Files of checkpoints that were never finished and are gone now.
    pub cleaned: Vec<PathBuf>,
    /// Nobody else coordinates this job for as long as this lives.
    pub lock: Lock,
}

/// What of a configuration checkpoints depend on.
fn essence(config: &PipelineConfig) -> String {
    let mut essential = config.clone();
    let kind = config
        .train_config()
        .optimizer
        .as_ref()
        .and_then(|optimizer| optimizer.optimizer.as_ref())
        .map(|kind| match kind {
            optimizer::Optimizer::RmsPropOptimizer(_) => "rms_prop_optimizer",
            optimizer::Optimizer::MomentumOptimizer(_) => "momentum_optimizer",
            optimizer::Optimizer::AdamOptimizer(_) => "adam_optimizer",
        });
    essential.proto = TrainEvalPipelineConfig {
        model: config.proto.model.clone(),
        train_config: None::<TrainConfig>,
        ..TrainEvalPipelineConfig::default()
    };
    format!("{}optimizer: {}\n", essential.effective_text(), kind.unwrap_or("none"))
}

/// Whether nobody runs the job of this folder now; else who, at once and before anything is opened.
pub fn check_free(folder: &Path) -> Result<(), Error> {
    Ok(lock::check(folder)?)
}

/// Whether a folder may be used with this configuration; one that does not exist or holds no job may.
pub fn check_model_dir(folder: &Path, config: &PipelineConfig) -> Result<(), Error> {
    read(folder)?.map_or(Ok(()), |record| agrees(folder, config, &record))
}

fn agrees(folder: &Path, config: &PipelineConfig, record: &Record) -> Result<(), Error> {
    let essence = essence(config);
    if record.model == essence {
        return Ok(());
    }
    let (mut theirs, mut ours) = (record.model.lines(), essence.lines());
    let difference = loop {
        match (theirs.next(), ours.next()) {
            (None, None) => break "the configurations differ".to_owned(),
            (theirs, ours) if theirs == ours => {}
            (theirs, ours) => {
                let line = |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("`{}`", line.trim()));
                break format!(
                    "it was made with {}, {} has {}",
                    line(theirs),
                    config.name(),
                    line(ours)
                );
            }
        }
    };
    Err(Error::OtherConfiguration {
        folder: folder.to_owned(),
        config: config.name().to_owned(),
        difference,
    })
}

fn read(folder: &Path) -> Result<Option<Record>, Error> {
    let path = folder.join(FILE);
    match coati_storage::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
        Ok(bytes) => {
            let record: Record = serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
                path: path.clone(),
                message: format!("not a job file: {error}"),
            })?;
            if record.version > VERSION {
                return Err(Error::Damaged {
                    path,
                    message: format!(
                        "version {} of it is newer than this Coati knows ({VERSION})",
                        record.version
                    ),
                });
            }
            Ok(Some(record))
        }
    }
}

/// Opens (or makes) a job's folder for one more start. Only the master calls this.
pub fn open(folder: &Path, config: &PipelineConfig) -> Result<Job, Error> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    coati_storage::create_dir_all(folder).map_err(io(folder))?;
    let lock = Lock::take(folder)?;
    let known = read(folder)?;
    if let Some(record) = &known {
        agrees(folder, config, record)?;
    }
    let cleaned = coati_checkpoint::keep::clean(folder)?;
    let latest = state::latest(folder)?;
    let mut record = known.unwrap_or_else(|| Record {
        version: VERSION,
        job_id: new_id(),
        incarnation: 0,
        model: essence(config),
    });
    // An earlier start took further ones when it lost servers: none of its tasks may speak for this one.
    let saved = latest.as_ref().and_then(|latest| latest.manifest.as_ref());
    let taken = saved.filter(|manifest| manifest.job_id == record.job_id);
    record.incarnation = record.incarnation.max(taken.map_or(0, |manifest| manifest.incarnation)) + 1;
    let path = folder.join(FILE);
    let text = serde_json::to_vec_pretty(&record).map_err(|error| Error::Damaged {
        path: path.clone(),
        message: error.to_string(),
    })?;
    coati_checkpoint::files::write_atomic(&path, &text)?;
    // The configuration as it runs, beside what it made, as the reference writes it.
    let effective = folder.join("pipeline.config");
    coati_storage::put(&effective, config.effective_text().as_bytes()).map_err(io(&effective))?;
    Ok(Job {
        job: JobRef {
            job_id: record.job_id,
            incarnation: record.incarnation,
        },
        latest,
        cleaned,
        lock,
    })
}

/// An id that no other job on this or another machine has.
fn new_id() -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The standard library's hasher is seeded by the system's randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!("{now:x}-{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn config(classes: u32, steps: u32) -> PipelineConfig {
        let text = format!(
            "model {{ ssd {{ num_classes: {classes} }} }} train_config {{ num_steps: {steps} optimizer {{ momentum_optimizer {{ }} }} }}"
        );
        PipelineConfig::parse(&text, "p.config").unwrap()
    }

    #[test]
    fn starts_are_counted_and_other_models_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), &config(3, 10)).unwrap().job;
        let second = open(folder.path(), &config(3, 500)).unwrap().job;
        assert_eq!(second.job_id, first.job_id);
        assert_eq!((first.incarnation, second.incarnation), (1, 2));
        let error = open(folder.path(), &config(4, 10)).unwrap_err().to_string();
        assert!(
            error.contains("it was made with `num_classes: 3`, p.config has `num_classes: 4`"),
            "{error}"
        );
    }

    #[test]
    fn a_start_is_above_every_incarnation_that_a_checkpoint_of_the_job_knows() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), &config(3, 10)).unwrap().job;
        // Lost servers took further ones before this was saved.
        let save = |job_id: &str, step: u32| {
            let text = format!(
                r#"{{"version": 1, "job_id": "{job_id}", "incarnation": 7, "global_step": {step}, "config_digest": "", "data": {{"position": 0}},
                "record_count": 1, "replicas": 1, "batch_size": 1, "wall_time": 1.0, "software_version": "0", "files": []}}"#
            );
            let manifest = serde_json::from_str(&text).unwrap();
            let prefix = coati_checkpoint::saver::prefix(folder.path(), u64::from(step));
            let steps = [("global_step", i64::from(step))];
            coati_checkpoint::saver::save(&prefix, &[], &steps, Some(manifest)).unwrap();
            coati_checkpoint::keep::update(folder.path(), &prefix, 1.0, coati_checkpoint::keep::Options::default())
                .unwrap();
        };
        save(&first.job_id, 10);
        assert_eq!(open(folder.path(), &config(3, 10)).unwrap().job.incarnation, 8);
        // Another job's numbers mean nothing here.
        save("other", 20);
        assert_eq!(open(folder.path(), &config(3, 10)).unwrap().job.incarnation, 9);
    }

    #[test]
    fn a_folder_in_use_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), &config(3, 10)).unwrap();
        let before = fs::read(folder.path().join(FILE)).unwrap();
        let error = open(folder.path(), &config(3, 10)).unwrap_err();
        assert!(matches!(error, Error::Lock(lock::Error::Held { .. })), "{error}");
        assert!(check_free(folder.path()).is_err());
        assert_eq!(
            fs::read(folder.path().join(FILE)).unwrap(),
            before,
            "no start was counted"
        );
        drop(first);
        assert_eq!(open(folder.path(), &config(3, 10)).unwrap().job.incarnation, 2);
    }

    #[test]
    fn a_damaged_job_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        let error = open(folder.path(), &config(3, 10)).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("not a job file"), "{error}");
    }
}
