//! Which checkpoints a folder holds, and its `checkpoint` file, which says which one counts.

mod file;
mod survey;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use file::{Listed, State, resolve, state_path};
pub use survey::{Checkpoint, Condition, survey};
pub(crate) use survey::{examine, prefix_of, step_of};

use crate::manifest::{self, Manifest};
use crate::{bundle, files};

/// The folder's checkpoints cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the folder could not be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The checkpoint itself is unreadable.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// Its manifest is unreadable.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// The `checkpoint` file names a checkpoint, but none is complete.
    #[error("{}: the state file names {}, which is not complete, and there is no other\nhint: bring its files back, or remove {}/checkpoint to start anew", model_dir.display(), prefix.display(), model_dir.display())]
    Gone {
        /// The folder.
        model_dir: PathBuf,
        /// What the state names.
        prefix: PathBuf,
    },
    /// The folder goes on with a newer Coati; going back behind its steps must be somebody's decision.
    #[error("{what}; or move {}.* away to go on from an older checkpoint", prefix.display())]
    Newer {
        /// The newest such checkpoint.
        prefix: PathBuf,
        /// What its manifest says, with a hint.
        what: String,
    },
    /// The `checkpoint` file is no such file.
    #[error("{}: not a readable checkpoint state: {what}\nhint: its first line should read like: model_checkpoint_path: \"model.ckpt-2000\"", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place.
        what: String,
    },
}

/// The checkpoint from which a job goes on, or which is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Latest {
    /// `…/model.ckpt-2000`
    pub prefix: PathBuf,
    /// Its global step.
    pub step: u64,
    /// Absent when TensorFlow wrote it.
    pub manifest: Option<Manifest>,
}

/// All complete checkpoints of a folder, in order of their steps. A folder that does not exist has none.
pub fn list(model_dir: &Path) -> Result<Vec<Checkpoint>, Error> {
    let mut found = survey(model_dir)?;
    found.retain(|checkpoint| checkpoint.condition == Condition::Complete);
    Ok(found)
}

/// The checkpoint that counts: the one that the `checkpoint` file names, if it is complete. One that was finished after
/// that file was written (the process ended in between), or the newest of those that are complete when the named one is
/// not, takes its place. A folder with a state file and no complete checkpoint is an error, not a fresh start.
pub fn latest(model_dir: &Path) -> Result<Option<Latest>, Error> {
    let found = survey(model_dir)?;
    let newer = found.iter().rev().find_map(|checkpoint| match &checkpoint.condition {
        Condition::Newer(what) => Some((checkpoint.prefix.clone(), checkpoint.step, what.clone())),
        _ => None,
    });
    let complete: Vec<Checkpoint> = found
        .into_iter()
        .filter(|checkpoint| checkpoint.condition == Condition::Complete)
        .collect();
    let state = State::read(model_dir)?;
    let state_time = modified(&state_path(model_dir));
    let listed = |checkpoint: &Checkpoint| {
        state.as_ref().is_some_and(|state| {
            state
                .all
                .iter()
                .any(|listed| resolve(model_dir, &listed.path) == checkpoint.prefix)
        })
    };
    let named = state.as_ref().and_then(|state| {
        let prefix = resolve(model_dir, &state.latest);
        complete
            .iter()
            .find(|checkpoint| checkpoint.prefix == prefix)
            .cloned()
            .or_else(|| {
                // The state may name a checkpoint in another folder.
                let elsewhere = examine(&prefix);
                (elsewhere.condition == Condition::Complete).then_some(elsewhere)
            })
    });
    let newest = match &named {
        None => complete.last(),
        Some(named) => complete
            .iter()
            .rfind(|checkpoint| checkpoint.step > named.step && !listed(checkpoint) && checkpoint.manifest.is_some())
            .filter(|checkpoint| modified(&manifest::path(&checkpoint.prefix)) > state_time),
    };
    if let Some((prefix, step, what)) = newer
        && named.as_ref().is_none_or(|named| named.step < step)
    {
        return Err(Error::Newer { prefix, what });
    }
    if let (None, Some(state)) = (&named, &state) {
        let prefix = resolve(model_dir, &state.latest);
        let Some(newest) = newest else {
            return Err(Error::Gone {
                model_dir: model_dir.to_owned(),
                prefix,
            });
        };
        let instead = newest.prefix.display();
        tracing::warn!(named = %prefix.display(), %instead, "the checkpoint that the state file names is not complete");
    }
    let chosen = newest.cloned().or(named);
    Ok(chosen.map(|checkpoint| Latest {
        prefix: checkpoint.prefix,
        step: checkpoint.step,
        manifest: checkpoint.manifest,
    }))
}

fn modified(path: &Path) -> Option<SystemTime> {
    let stat = coati_storage::stat(path).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_nanos(u64::try_from(stat.modified_ns).ok()?))
}
