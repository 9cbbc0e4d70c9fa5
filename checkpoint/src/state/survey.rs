//! Looking through a folder for checkpoints, whole and broken ones.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use crate::bundle::{self, Reader};
use crate::files::{self, folder};
use crate::manifest::{self, Manifest};

/// What there is of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// `…/model.ckpt-2000`
    pub prefix: PathBuf,
    /// Its global step: from the manifest, else the name, else the tensor `global_step`.
    pub step: u64,
    /// Absent when TensorFlow wrote it, or when it was not finished.
    pub manifest: Option<Manifest>,
    /// Whether it counts.
    pub condition: Condition,
}

/// Whether a checkpoint counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All files are there, as long as they should be.
    Complete,
    /// A job of ours began to write it and did not come to the manifest.
    Unfinished,
    /// A newer Coati wrote it: whether it is complete cannot be told. The manifest's error.
    Newer(String),
    /// It was complete once, or is not ours; what is wrong.
    Broken(String),
}

/// Every checkpoint of which the folder has any file, in order of their steps. A folder that does not exist has none.
pub fn survey(model_dir: &Path) -> Result<Vec<Checkpoint>, Error> {
    let prefixes = prefixes(model_dir)?;
    let mut found: Vec<_> = prefixes.iter().map(|name| examine(&model_dir.join(name))).collect();
    found.sort_by_key(|checkpoint| checkpoint.step);
    Ok(found)
}

/// Names (without folder and ending) of what may be checkpoints.
fn prefixes(model_dir: &Path) -> Result<BTreeSet<String>, Error> {
    let entries = match coati_storage::list(model_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(files::error(model_dir, "list"))?,
    };
    let mut prefixes = BTreeSet::new();
    for entry in entries {
        if let Some(prefix) = prefix_of(&entry.name) {
            prefixes.insert(prefix.to_owned());
        }
    }
    Ok(prefixes)
}

/// The prefix to which a file belongs by its name.
pub(crate) fn prefix_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    if let Some(prefix) = name.strip_suffix(".index").or_else(|| name.strip_suffix(".coati.json")) {
        return Some(prefix);
    }
    let (prefix, numbers) = name.rsplit_once(".data-")?;
    let (shard, count) = numbers.split_once("-of-")?;
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (number(shard) && number(count)).then_some(prefix)
}

/// The step in a checkpoint's name: `…-2000`.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    name.rsplit_once('-')?.1.parse().ok()
}

/// Looks at one checkpoint.
pub(crate) fn examine(prefix: &Path) -> Checkpoint {
    let name = prefix.file_name().unwrap_or_default().to_string_lossy();
    let named_step = step_of(&name);
    let make = |step, manifest, condition| Checkpoint {
        prefix: prefix.to_owned(),
        step,
        manifest,
        condition,
    };
    let broken = |what: String| make(named_step.unwrap_or(0), None, Condition::Broken(what));
    match Manifest::read(prefix) {
        Err(error @ manifest::Error::Version { .. }) => {
            return make(named_step.unwrap_or(0), None, Condition::Newer(error.to_string()));
        }
        Err(error) => return broken(error.to_string()),
        Ok(Some(manifest)) => {
            let condition = match missing(prefix, &manifest) {
                None => Condition::Complete,
                Some(what) => Condition::Broken(what),
            };
            return make(manifest.global_step, Some(manifest), condition);
        }
        Ok(None) => {}
    }
    match Reader::open(prefix) {
        Err(bundle::Error::NoCheckpoint { .. }) => make(named_step.unwrap_or(0), None, Condition::Unfinished),
        Err(error) => broken(error.to_string()),
        Ok(reader) if reader.needs_manifest() => make(named_step.unwrap_or(0), None, Condition::Unfinished),
        Ok(reader) => match reader.check_files() {
            Err(error) => broken(error.to_string()),
            Ok(_) => make(
                named_step.unwrap_or_else(|| stored_step(&reader)),
                None,
                Condition::Complete,
            ),
        },
    }
}

fn stored_step(reader: &Reader) -> u64 {
    let stored = reader
        .entry("global_step")
        .and_then(|entry| reader.read_i64(&entry.name).ok());
    stored
        .and_then(|values| values.first().copied())
        .and_then(|step| u64::try_from(step).ok())
        .unwrap_or(0)
}

/// What is wrong with the files that a manifest names.
fn missing(prefix: &Path, manifest: &Manifest) -> Option<String> {
    if manifest.files.is_empty() {
        return Some(format!("{}: names no files", manifest::path(prefix).display()));
    }
    manifest.files.iter().find_map(|file| {
        let path = folder(prefix).join(&file.name);
        match files::size(&path) {
            Ok(Some(bytes)) if bytes == file.bytes => None,
            Ok(Some(bytes)) => Some(format!(
                "{}: {bytes} bytes, the manifest says {}",
                path.display(),
                file.bytes
            )),
            Ok(None) => Some(format!("{}: is missing", path.display())),
            Err(error) => Some(error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_prefixes() {
        assert_eq!(prefix_of("model.ckpt-20.index"), Some("model.ckpt-20"));
        assert_eq!(prefix_of("model.ckpt-20.index.tmp"), Some("model.ckpt-20"));
        assert_eq!(prefix_of("model.ckpt-20.data-00001-of-00003"), Some("model.ckpt-20"));
        assert_eq!(prefix_of("model.ckpt.data-1-of-3"), None);
        assert_eq!(prefix_of("model.ckpt-20.meta"), None);
        assert_eq!(prefix_of("checkpoint"), None);
        assert_eq!(step_of("model.ckpt-2000"), Some(2000));
        assert_eq!(step_of("model.ckpt"), None);
    }
}
