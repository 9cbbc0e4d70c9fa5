//! The best checkpoint by some figure, in a folder of its own beside the newest ones, which [`crate::keep`] never looks into.
//!
//! `MODEL_DIR/best` is a folder of one checkpoint with its state file, so whatever reads model folders reads it; `best.json` says by which figure
//! it is the best. A checkpoint that may become the best is held by hard links while it is looked at: it costs nothing, and the job may delete it
//! meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bundle::index_path;
use crate::files::{self, folder};
use crate::state::{self, Listed, State};
use crate::{keep, manifest};

/// The folder's name in a job's folder.
pub const FOLDER: &str = "best";
/// In that folder: why this one is the best.
pub const NOTE: &str = "best.json";
/// Beginning of the names of folders that hold candidates.
const CANDIDATE: &str = ".candidate-";
/// The job's configuration, without which a model cannot be read.
const PIPELINE: &str = "pipeline.config";

const VERSION: u32 = 1;

/// Why a checkpoint is the best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Of this file's format.
    pub version: u32,
    /// The figure that decides.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// The checkpoint's step.
    pub step: u64,
    /// Its prefix, without folder.
    pub checkpoint: String,
    /// The job that it belongs to; another job's figures are not compared with.
    pub job_id: Option<String>,
}

impl Note {
    /// Of a checkpoint with this value.
    pub fn new(metric: &str, value: f64, step: u64, prefix: &Path, job_id: Option<String>) -> Self {
        let name = prefix.file_name().unwrap_or_default().to_string_lossy();
        Self {
            version: VERSION,
            metric: metric.to_owned(),
            value,
            step,
            checkpoint: name.into_owned(),
            job_id,
        }
    }
}

/// `MODEL_DIR/best`
pub fn path(model_dir: &Path) -> PathBuf {
    model_dir.join(FOLDER)
}

/// What was kept so far; none where nothing was, or what is there is of another version or not readable.
pub fn read(model_dir: &Path) -> Option<Note> {
    let note: Note = serde_json::from_slice(&coati_storage::read(&path(model_dir).join(NOTE)).ok()?).ok()?;
    (note.version == VERSION).then_some(note)
}

/// A checkpoint that nobody deletes while this lives; in a bucket, and where there are no hard links, it is only named.
#[derive(Debug)]
pub struct Candidate {
    model_dir: PathBuf,
    prefix: PathBuf,
    held: Option<PathBuf>,
}

impl Candidate {
    /// Holds a complete checkpoint.
    pub fn hold(model_dir: &Path, prefix: &Path) -> Self {
        let folder = path(model_dir).join(format!("{CANDIDATE}{}", std::process::id()));
        let held = !coati_storage::is_remote(prefix) && link_all(prefix, &folder).is_ok();
        Self {
            model_dir: model_dir.to_owned(),
            prefix: prefix.to_owned(),
            held: held.then_some(folder),
        }
    }

    /// Makes it the best one: data files, index, manifest, state and note in this order; then the former best goes.
    pub fn keep(self, note: &Note) -> Result<(), state::Error> {
        let best = path(&self.model_dir);
        coati_storage::create_dir_all(&best).map_err(files::error(&best, "make"))?;
        let source = match &self.held {
            Some(held) => held.join(self.prefix.file_name().unwrap_or_default()),
            None => self.prefix.clone(),
        };
        let kept = best.join(self.prefix.file_name().unwrap_or_default());
        // One of the same name must not be taken for complete while its files are replaced.
        files::remove(&manifest::path(&kept))?;
        for from in parts(&source)? {
            let to = best.join(from.file_name().unwrap_or_default());
            if self.held.is_some() {
                files::rename(&from, &to)?;
            } else {
                copy(&from, &to)?;
            }
        }
        let config = self.model_dir.join(PIPELINE);
        if coati_storage::is_file(&config) {
            copy(&config, &best.join(PIPELINE))?;
        }
        let listed = Listed {
            path: note.checkpoint.clone(),
            time: None,
        };
        State {
            latest: note.checkpoint.clone(),
            all: vec![listed],
            last_preserved: None,
        }
        .write(&best)?;
        let text = serde_json::to_vec_pretty(note).map_err(io::Error::other);
        let at = best.join(NOTE);
        files::write_atomic(&at, &text.map_err(files::error(&at, "write"))?)?;
        for other in state::survey(&best)? {
            if other.prefix != kept {
                keep::delete(&other.prefix)?;
            }
        }
        Ok(())
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(folder) = &self.held {
            let _ = fs::remove_dir_all(folder);
            // Made for the candidate alone, if nothing was ever kept.
            let _ = fs::remove_dir(path(&self.model_dir));
        }
    }
}

/// Removes what processes that were killed held.
pub fn clean(model_dir: &Path) {
    let best = path(model_dir);
    if coati_storage::is_remote(&best) {
        return;
    }
    for entry in fs::read_dir(&best).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(CANDIDATE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A checkpoint's files, data first, manifest last.
fn parts(prefix: &Path) -> Result<Vec<PathBuf>, files::Error> {
    let mut parts = keep::data_files(prefix)?;
    parts.push(index_path(prefix));
    let manifest = manifest::path(prefix);
    if coati_storage::is_file(&manifest) {
        parts.push(manifest);
    }
    Ok(parts)
}

fn link_all(prefix: &Path, into: &Path) -> Result<(), files::Error> {
    if into.exists() {
        fs::remove_dir_all(into).map_err(files::error(into, "remove"))?;
    }
    fs::create_dir_all(into).map_err(files::error(into, "make"))?;
    let linked = parts(prefix).and_then(|parts| {
        parts.iter().try_for_each(|part| {
            let name = part.file_name().unwrap_or_default();
            fs::hard_link(part, into.join(name)).map_err(files::error(part, "link"))
        })
    });
    if linked.is_err() {
        let _ = fs::remove_dir_all(into);
    }
    linked
}

fn copy(from: &Path, to: &Path) -> Result<(), files::Error> {
    let copied = || -> io::Result<()> {
        if !coati_storage::is_remote(to) {
            // A link of an earlier run would be written through.
            match fs::remove_file(to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut reader = coati_storage::File::open(from)?.sequential()?;
        let mut writer = coati_storage::create(to)?;
        io::copy(&mut reader, &mut writer)?;
        writer.finish()
    };
    copied().map_err(files::error(from, "copy"))?;
    files::sync_folder(folder(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;
    use crate::saver;

    fn save(model_dir: &Path, step: u64) -> PathBuf {
        let text = format!(
            r#"{{"version": 1, "job_id": "job", "incarnation": 1, "global_step": {step}, "config_digest": "", "data": {{"position": 0}},
            "record_count": 1, "replicas": 1, "batch_size": 1, "wall_time": 1.0, "software_version": "0", "files": []}}"#
        );
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        let prefix = saver::prefix(model_dir, step);
        let values = [step as f32; 4];
        let steps = [("global_step", i64::try_from(step).unwrap())];
        saver::save(&prefix, &[("v", &[4], &values)], &steps, Some(manifest)).unwrap();
        keep::update(
            model_dir,
            &prefix,
            step as f64,
            keep::Options {
                max_to_keep: 1,
                ..keep::Options::default()
            },
        )
        .unwrap();
        prefix
    }

    fn note(step: u64, value: f64) -> Note {
        Note::new(
            "mAP",
            value,
            step,
            &saver::prefix(Path::new(""), step),
            Some("job".into()),
        )
    }

    #[test]
    fn the_best_outlives_the_job_s_own_copy_and_is_read_as_any_folder() {
        let folder = tempfile::tempdir().unwrap();
        let model_dir = folder.path();
        fs::write(model_dir.join(PIPELINE), "model { }").unwrap();
        let first = Candidate::hold(model_dir, &save(model_dir, 5));
        // Meanwhile the job goes on, and deletes it.
        let second = save(model_dir, 10);
        assert!(!index_path(&saver::prefix(model_dir, 5)).exists());
        first.keep(&note(5, 0.25)).unwrap();
        let best = path(model_dir);
        let latest = state::latest(&best).unwrap().unwrap();
        assert_eq!(
            (latest.step, latest.manifest.map(|manifest| manifest.global_step)),
            (5, Some(5))
        );
        assert_eq!(read(model_dir).unwrap(), note(5, 0.25));
        assert_eq!(fs::read_to_string(best.join(PIPELINE)).unwrap(), "model { }");

        // One that is no better leaves no trace; one that is takes the place.
        drop(Candidate::hold(model_dir, &second));
        assert_eq!(state::latest(&best).unwrap().unwrap().step, 5);
        Candidate::hold(model_dir, &second).keep(&note(10, 0.5)).unwrap();
        let steps: Vec<u64> = state::list(&best).unwrap().iter().map(|found| found.step).collect();
        assert_eq!(steps, [10]);
        let names: Vec<String> = fs::read_dir(&best)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with('.') || name.contains("-5."))
            .collect();
        assert!(names.is_empty(), "{names:?}");
        assert!(index_path(&second).exists(), "the job's own stays where it is");
    }

    #[test]
    fn without_links_it_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let model_dir = folder.path();
        let prefix = save(model_dir, 5);
        let candidate = Candidate {
            model_dir: model_dir.to_owned(),
            prefix: prefix.clone(),
            held: None,
        };
        candidate.keep(&note(5, 0.25)).unwrap();
        let reader = crate::bundle::Reader::open(&state::latest(&path(model_dir)).unwrap().unwrap().prefix).unwrap();
        assert_eq!(reader.read_f32("v").unwrap(), [5.0; 4]);
        // Again, over a file that is a link to the job's own.
        Candidate::hold(model_dir, &prefix).keep(&note(5, 0.3)).unwrap();
        assert_eq!(read(model_dir).unwrap().value, 0.3);
        assert!(index_path(&prefix).exists());
    }

    #[test]
    fn what_a_killed_process_held_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let left = path(folder.path()).join(format!("{CANDIDATE}1"));
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("model.ckpt-5.index"), "x").unwrap();
        clean(folder.path());
        assert!(!left.exists());
        clean(&folder.path().join("none"));
    }
}
