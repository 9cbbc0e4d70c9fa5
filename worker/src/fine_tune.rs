//! `train_config.fine_tune_checkpoint`: a job's first values from another job's checkpoint.
//!
//! Only a job without a checkpoint of its own starts from there; one that goes on reads its own.

use std::path::{Path, PathBuf};

use coati_checkpoint::bundle::{self, Reader};
use coati_checkpoint::restore::{self, Kind, Plan};
use coati_checkpoint::{files, locate, state};
use coati_common::config::PipelineConfig;
use coati_common::variables::VariableSpec;

use crate::observe::Observer;

/// In the job's folder: what became of each variable.
pub const TABLE: &str = "fine_tune.tsv";

/// Variables that did not fit and are named one by one.
const NAMED: usize = 8;

/// What a TF2 object checkpoint has besides its values.
const OBJECT_GRAPH: &str = "_CHECKPOINTABLE_OBJECT_GRAPH";

/// Why a job cannot start from a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error("{config}: train_config.fine_tune_checkpoint: {source}")]
    Checkpoint {
        /// The configuration.
        config: String,
        /// Why.
        source: bundle::Error,
    },
    /// No such kind.
    #[error(
        "{config}: train_config.fine_tune_checkpoint_type: {found:?} is none\nhint: classification (a backbone's checkpoint), detection (a detector's, without its box predictors) or full (all of a detector)"
    )]
    Kind {
        /// The configuration.
        config: String,
        /// What stands there.
        found: String,
    },
    /// No variable fits.
    #[error("{config}: train_config.fine_tune_checkpoint: {prefix}: {what}\nhint: {hint}")]
    Nothing {
        /// The configuration.
        config: String,
        /// The checkpoint.
        prefix: String,
        /// What was looked for and what there is.
        what: String,
        /// What would fit.
        hint: String,
    },
}

/// The checkpoint that a configuration starts from.
#[derive(Debug)]
pub struct Source {
    config: String,
    reader: Reader,
    kind: Kind,
}

/// `train_config.fine_tune_checkpoint_type` and the older ways to say it.
///
/// # Errors
/// [`Error::Kind`] for any other word.
pub fn kind(config: &PipelineConfig) -> Result<Kind, Error> {
    let train = config.train_config();
    let kind = match train.fine_tune_checkpoint_type() {
        "classification" => Kind::Classification,
        "detection" => Kind::Detection,
        "full" => Kind::Full,
        "" if train.from_detection_checkpoint() => Kind::Detection,
        "" => Kind::Classification,
        other => {
            return Err(Error::Kind {
                config: config.name().to_owned(),
                found: other.to_owned(),
            });
        }
    };
    Ok(match kind {
        Kind::Detection if train.load_all_detection_checkpoint_vars() => Kind::Full,
        kind => kind,
    })
}

/// Opens the checkpoint that the configuration names; none if it names none.
///
/// # Errors
/// A checkpoint that is not there, or not whole.
pub fn open(config: &PipelineConfig) -> Result<Option<Source>, Error> {
    let path = config.train_config().fine_tune_checkpoint();
    if path.is_empty() {
        return Ok(None);
    }
    let kind = kind(config)?;
    let reader = locate::open(&prefix(config, path)).map_err(|source| Error::Checkpoint {
        config: config.name().to_owned(),
        source,
    })?;
    Ok(Some(Source {
        config: config.name().to_owned(),
        reader,
        kind,
    }))
}

/// As [`open`], for a job that may go on from a checkpoint of its own: then none is needed.
///
/// # Errors
/// As [`open`].
pub fn open_for_job(config: &PipelineConfig, model_dir: &Path) -> Result<Option<Source>, Error> {
    // A folder that cannot be read is somebody else's to complain about.
    match state::latest(model_dir) {
        Ok(Some(_)) => Ok(None),
        _ => open(config),
    }
}

/// A prefix is no file, so what tells where it lies is its index.
fn prefix(config: &PipelineConfig, path: &str) -> PathBuf {
    let path = path.strip_suffix('/').unwrap_or(path);
    let direct = config.resolve_path(path);
    if direct.exists() {
        return direct;
    }
    let index = config.resolve_path(&format!("{path}.index"));
    match index.to_str().and_then(|index| index.strip_suffix(".index")) {
        Some(found) if index.exists() => PathBuf::from(found),
        _ => direct,
    }
}

/// What was decided, and where the values came from.
#[derive(Clone, Debug)]
pub struct Restored {
    prefix: PathBuf,
    plan: Plan,
}

impl Source {
    /// The checkpoint's prefix.
    pub fn prefix(&self) -> &Path {
        self.reader.prefix()
    }

    /// Decides what of the model's `variables` comes from the checkpoint.
    ///
    /// # Errors
    /// [`Error::Nothing`] where none does.
    pub fn plan(&self, variables: &[VariableSpec]) -> Result<Plan, Error> {
        let plan = restore::plan(variables, self.reader.entries(), self.kind);
        if plan.restored() > 0 {
            return Ok(plan);
        }
        let wanted = plan.rows.iter().find_map(|row| row.key.as_deref()).unwrap_or("none");
        let there = self.reader.entries().find(|entry| entry.name.contains('/'));
        let mut what = format!(
            "none of its {} variables fits as {:?}: the model looks for `{wanted}` and others",
            self.reader.entries().len(),
            self.kind.name()
        );
        if let Some(there) = there {
            what += &format!(", the checkpoint has `{}` and others", there.name);
        }
        let hint = if self.reader.entry(OBJECT_GRAPH).is_some() {
            "this is a TF2 object checkpoint, whose variables are named by their place in Keras objects; use a checkpoint of TensorFlow 1 \
             (the TF1 detection zoo's, or slim's classifiers)"
                .to_owned()
        } else {
            match Plan::better_kind(variables, &self.reader.entries().collect::<Vec<_>>(), self.kind) {
                Some((kind, count)) => {
                    format!(
                        "fine_tune_checkpoint_type: \"{}\" would restore {count} variables",
                        kind.name()
                    )
                }
                None => "it is the checkpoint of another model; `coati checkpoint list` shows what it holds".to_owned(),
            }
        };
        Err(Error::Nothing {
            config: self.config.clone(),
            prefix: self.reader.prefix().display().to_string(),
            what,
            hint,
        })
    }

    /// Puts the checkpoint's values into `values` (flat: all `variables` in order).
    ///
    /// # Errors
    /// Nothing fits, or the checkpoint is damaged.
    pub fn restore(&self, variables: &[VariableSpec], values: &mut [f32]) -> Result<Restored, Error> {
        let plan = self.plan(variables)?;
        let mut rest = values;
        for (spec, row) in variables.iter().zip(&plan.rows) {
            let (own, others) = rest.split_at_mut(spec.elements().min(rest.len()));
            rest = others;
            if let (restore::Verdict::Restored, Some(key)) = (&row.verdict, &row.key) {
                let read = self.reader.read_f32_range_into(key, 0, own);
                read.map_err(|source| Error::Checkpoint {
                    config: self.config.clone(),
                    source,
                })?;
            }
        }
        Ok(Restored {
            prefix: self.reader.prefix().to_owned(),
            plan,
        })
    }
}

/// `105 of 129 variables from …/model.ckpt (detection)`
pub fn headline(prefix: &Path, plan: &Plan) -> String {
    format!(
        "{} of {} variables from {} ({})",
        plan.restored(),
        plan.rows.len(),
        prefix.display(),
        plan.kind.name()
    )
}

impl Restored {
    /// Tells the user, and keeps the whole table in the job's folder.
    pub(crate) fn tell(&self, model_dir: &Path, observer: &mut dyn Observer) {
        let mut text = format!("fine-tuning: {}", headline(&self.prefix, &self.plan));
        for line in self.plan.table(NAMED) {
            text.push('\n');
            text += &line;
        }
        observer.note(&text);
        let path = model_dir.join(TABLE);
        if let Err(error) = files::write_atomic(&path, self.plan.tsv().as_bytes()) {
            observer.warning(&error.to_string());
        }
    }
}
