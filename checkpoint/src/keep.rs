//! Which checkpoints stay: `max_to_keep` and `keep_checkpoint_every_n_hours` as `tf.train.Saver` understands them.

use std::path::{Path, PathBuf};

use crate::bundle::index_path;
use crate::files::{self, folder, with_suffix};
use crate::manifest;
use crate::state::{self, Condition, Listed, State, resolve, survey};

/// How many checkpoints stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The newest so many stay; 0 keeps all.
    pub max_to_keep: usize,
    /// Besides, one stays for good every so many hours.
    pub keep_every_n_hours: f64,
}

impl Default for Options {
    /// `tf.train.Saver`'s: the newest five, and practically none besides.
    fn default() -> Self {
        Self {
            max_to_keep: 5,
            keep_every_n_hours: 10_000.0,
        }
    }
}

/// A checkpoint as far as keeping it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// As in the state file.
    pub path: String,
    /// When it was saved, in seconds since 1970.
    pub time: f64,
    /// It has a manifest. Others are never deleted.
    pub ours: bool,
}

/// What becomes of the checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Stay listed, oldest first.
    pub listed: Vec<Known>,
    /// Are deleted.
    pub delete: Vec<Known>,
    /// Are no longer listed but stay for good, with the reason.
    pub preserve: Vec<(Known, &'static str)>,
    /// The time from which `keep_every_n_hours` counts now.
    pub last_preserved: f64,
}

/// Decides what becomes of the checkpoints `known` (oldest first, the one just saved last).
///
/// As the reference's `_MaybeDeleteOldCheckpoints`: of those in excess, one that was saved more than
/// `keep_every_n_hours` after `last_preserved` stays, and the clock moves on by exactly that.
pub fn decide(known: &[Known], last_preserved: f64, options: Options) -> Decision {
    let excess = if options.max_to_keep == 0 {
        0
    } else {
        known.len().saturating_sub(options.max_to_keep)
    };
    let (old, listed) = known.split_at(excess);
    let mut decision = Decision {
        listed: listed.to_vec(),
        delete: Vec::new(),
        preserve: Vec::new(),
        last_preserved,
    };
    let period = options.keep_every_n_hours.max(0.0) * 3600.0;
    for checkpoint in old {
        if !checkpoint.ours {
            decision.preserve.push((checkpoint.clone(), "not written by this job"));
        } else if checkpoint.time > decision.last_preserved + period {
            decision.last_preserved += period;
            decision
                .preserve
                .push((checkpoint.clone(), "keep_checkpoint_every_n_hours"));
        } else {
            decision.delete.push(checkpoint.clone());
        }
    }
    decision
}

/// Makes `prefix`, which is complete, the folder's newest checkpoint: updates the state file, then deletes what is in
/// excess. `now` is in seconds since 1970.
pub fn update(model_dir: &Path, prefix: &Path, now: f64, options: Options) -> Result<Decision, state::Error> {
    let old = State::read(model_dir)?.unwrap_or_default();
    let name = match prefix.parent() {
        Some(parent) if parent == model_dir => prefix.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        _ => prefix.to_string_lossy().into_owned(),
    };
    let mut known = Vec::new();
    for listed in old.all {
        let listed_prefix = resolve(model_dir, &listed.path);
        // A checkpoint that is gone must not count towards the limit.
        if listed_prefix == prefix || !coati_storage::is_file(&index_path(&listed_prefix)) {
            continue;
        }
        let ours = coati_storage::is_file(&manifest::path(&listed_prefix));
        let time = listed.time.unwrap_or_else(|| saved_at(&listed_prefix));
        known.push(Known {
            path: listed.path,
            time,
            ours,
        });
    }
    known.push(Known {
        path: name.clone(),
        time: now,
        ours: coati_storage::is_file(&manifest::path(prefix)),
    });

    let decision = decide(&known, old.last_preserved.unwrap_or(now), options);
    let all = decision.listed.iter().map(|known| Listed {
        path: known.path.clone(),
        time: Some(known.time),
    });
    let state = State {
        latest: name,
        all: all.collect(),
        last_preserved: Some(decision.last_preserved),
    };
    state.write(model_dir)?;
    for known in &decision.delete {
        let deleted = resolve(model_dir, &known.path);
        tracing::debug!(checkpoint = %deleted.display(), "deleting an old checkpoint");
        delete(&deleted)?;
    }
    Ok(decision)
}

fn saved_at(prefix: &Path) -> f64 {
    coati_storage::stat(&index_path(prefix)).map_or(0.0, |stat| stat.modified_ns as f64 / 1e9)
}

/// Deletes a checkpoint's files: manifest first, so that it does not count while it goes, then index, then data. One that
/// cannot be deleted does not keep the others; the first error is returned.
pub fn delete(prefix: &Path) -> Result<(), state::Error> {
    files::remove(&manifest::path(prefix))?;
    let mut deleted = files::remove(&index_path(prefix));
    for path in other_files(prefix)? {
        deleted = deleted.and(files::remove(&path));
    }
    Ok(deleted?)
}

/// Data files, what was left under temporary names, and TensorFlow's graph.
fn other_files(prefix: &Path) -> Result<Vec<PathBuf>, files::Error> {
    let mut paths = files_of(prefix)?;
    paths.push(with_suffix(prefix, ".meta"));
    Ok(paths)
}

/// Data files under their final names, whatever their count says.
pub(crate) fn data_files(prefix: &Path) -> Result<Vec<PathBuf>, files::Error> {
    let mut paths = files_of(prefix)?;
    let start = with_suffix(prefix, ".data-");
    paths.retain(|path| {
        let path = path.as_os_str().as_encoded_bytes();
        path.starts_with(start.as_os_str().as_encoded_bytes()) && !path.ends_with(b".tmp")
    });
    Ok(paths)
}

/// All files that belong to a checkpoint by their names.
fn files_of(prefix: &Path) -> Result<Vec<PathBuf>, files::Error> {
    let model_dir = folder(prefix);
    let wanted = prefix.file_name().unwrap_or_default();
    let mut paths = Vec::new();
    for entry in coati_storage::list(model_dir).map_err(files::error(model_dir, "list"))? {
        // What no checkpoint consists of (folders, pipes) is somebody else's, whatever its name.
        if entry.is_file && state::prefix_of(&entry.name).is_some_and(|stem| stem == wanted) {
            paths.push(model_dir.join(entry.name));
        }
    }
    Ok(paths)
}

/// Removes checkpoints that a job of ours began and did not finish, and files that were about to replace others. To be
/// called only while no job writes to the folder, that is at its start. Returns the checkpoints that were removed.
pub fn clean(model_dir: &Path) -> Result<Vec<PathBuf>, state::Error> {
    let mut removed = Vec::new();
    // The content of a temporary file is in its final one, or was never to be seen.
    files::remove(&with_suffix(&state::state_path(model_dir), files::TEMPORARY))?;
    for checkpoint in survey(model_dir)? {
        let name = checkpoint.prefix.file_name().unwrap_or_default().to_string_lossy();
        if checkpoint.condition == Condition::Unfinished && is_ours(&name) {
            tracing::info!(checkpoint = %checkpoint.prefix.display(), "removing an unfinished checkpoint");
            delete(&checkpoint.prefix)?;
            removed.push(checkpoint.prefix);
        } else if is_ours(&name) {
            for path in files_of(&checkpoint.prefix)? {
                if path
                    .as_os_str()
                    .as_encoded_bytes()
                    .ends_with(files::TEMPORARY.as_bytes())
                {
                    tracing::info!(path = %path.display(), "removing a file that was never finished");
                    files::remove(&path)?;
                }
            }
        }
    }
    Ok(removed)
}

/// `model.ckpt-N`
fn is_ours(name: &str) -> bool {
    name.strip_prefix("model.ckpt-")
        .is_some_and(|step| step.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(hours: &[f64]) -> Vec<Known> {
        hours
            .iter()
            .map(|&hour| Known {
                path: format!("model.ckpt-{hour}"),
                time: hour * 3600.0,
                ours: true,
            })
            .collect()
    }

    fn names(known: &[Known]) -> Vec<&str> {
        known.iter().map(|known| known.path.as_str()).collect()
    }

    #[test]
    fn the_newest_stay() {
        let decision = decide(
            &saved(&[1.0, 2.0, 3.0, 4.0]),
            0.0,
            Options {
                max_to_keep: 3,
                ..Options::default()
            },
        );
        assert_eq!(names(&decision.delete), ["model.ckpt-1"]);
        assert_eq!(
            names(&decision.listed),
            ["model.ckpt-2", "model.ckpt-3", "model.ckpt-4"]
        );
        let all = decide(
            &saved(&[1.0, 2.0]),
            0.0,
            Options {
                max_to_keep: 0,
                ..Options::default()
            },
        );
        assert_eq!(all.listed.len(), 2);
        assert_eq!(Options::default().max_to_keep, 5);
    }

    /// Saves every half hour for six hours, keeps two, and one every two hours: what `tf.train.Saver` leaves behind.
    #[test]
    fn one_every_n_hours_stays_for_good() {
        let options = Options {
            max_to_keep: 2,
            keep_every_n_hours: 2.0,
        };
        let (mut listed, mut last, mut preserved, mut deleted) = (Vec::new(), 0.0, Vec::new(), 0);
        for half in 1..=12 {
            listed.extend(saved(&[f64::from(half) / 2.0]));
            let decision = decide(&listed, last, options);
            (listed, last) = (decision.listed, decision.last_preserved);
            preserved.extend(decision.preserve.into_iter().map(|(known, _)| known.time / 3600.0));
            deleted += decision.delete.len();
        }
        assert_eq!(preserved, [2.5, 4.5]);
        assert_eq!(deleted, 8);
        assert_eq!(names(&listed), ["model.ckpt-5.5", "model.ckpt-6"]);
    }

    #[test]
    fn what_others_wrote_is_never_deleted() {
        let mut known = saved(&[1.0, 2.0]);
        known[0].ours = false;
        let decision = decide(
            &known,
            0.0,
            Options {
                max_to_keep: 1,
                ..Options::default()
            },
        );
        assert!(decision.delete.is_empty());
        assert_eq!(decision.preserve[0].0.path, "model.ckpt-1");
    }
}
