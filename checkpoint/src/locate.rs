//! From what people write to a checkpoint: a prefix, or what is often written in its place.

use std::path::{Path, PathBuf};

use crate::bundle::{self, Reader, data_path};
use crate::state;

/// Endings that are not part of a checkpoint's name.
const ENDINGS: [&str; 3] = [".index", ".meta", ".coati.json"];

/// Opens the checkpoint `prefix` for reading all of it: index and data files are there. Where they are not, the error tells which
/// mistake it looks like and what would be right.
pub fn open(prefix: &Path) -> Result<Reader, bundle::Error> {
    let reader = Reader::open(prefix)?;
    match reader.check_files() {
        Ok(_) => Ok(reader),
        Err(bundle::Error::File(error)) if error.source.kind() == std::io::ErrorKind::NotFound => {
            Err(bundle::Error::NoData {
                prefix: prefix.to_owned(),
                path: error.path,
                hint: beside(prefix, reader.shard_count()),
            })
        }
        Err(error) => Err(error),
    }
}

/// What may have been meant by a name that is no checkpoint's prefix.
pub(crate) fn hint(prefix: &Path) -> String {
    if let Some(stem) = without_ending(prefix) {
        let there = if coati_storage::is_file(&bundle::index_path(&stem)) {
            String::new()
        } else {
            format!(" (but {} is not there either)", bundle::index_path(&stem).display())
        };
        return format!(
            "a checkpoint is named by what its files have in common: {}{there}",
            stem.display()
        );
    }
    if coati_storage::is_dir(prefix) {
        return match newest(prefix) {
            Some(newest) => format!("this is a folder; its newest checkpoint is {}", newest.display()),
            None => "this is a folder without a checkpoint (files *.index and *.data-*)".to_owned(),
        };
    }
    if is_v1(prefix) {
        return "this one file is a checkpoint of TensorFlow's old V1 format; write it again in the V2 format: \
                tf.compat.v1.train.Saver with write_version=tf.compat.v1.train.SaverDef.V2, or any newer release of the model"
            .to_owned();
    }
    if coati_storage::is_file(prefix) {
        return "this is a file, but no checkpoint; a checkpoint is named by what its files have in common, such as \
                out/model/model.ckpt-2000"
            .to_owned();
    }
    if coati_storage::is_file(&data_path(prefix, 0, 1)) {
        return format!(
            "{} is there, its index is not; copy both files",
            data_path(prefix, 0, 1).display()
        );
    }
    let folder = prefix.parent().filter(|folder| !folder.as_os_str().is_empty());
    match newest(folder.unwrap_or(Path::new("."))) {
        Some(newest) => format!("in this folder there is {}", newest.display()),
        None => "a checkpoint is named by what its files have in common, such as out/model/model.ckpt-2000".to_owned(),
    }
}

/// The prefix in a name with the ending of one of a checkpoint's files.
fn without_ending(path: &Path) -> Option<PathBuf> {
    let text = path.to_string_lossy();
    let stem = ENDINGS.iter().find_map(|ending| text.strip_suffix(ending));
    let stem = stem.or_else(|| text.rsplit_once(".data-").map(|(stem, _)| stem));
    stem.map(PathBuf::from)
}

/// The checkpoint of a folder with the highest step, by the names of index files: nothing is opened.
fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = coati_storage::list(folder).ok()?.into_iter();
    let prefixes = entries.filter_map(|entry| Some(entry.name.strip_suffix(".index")?.to_owned()));
    let newest = prefixes.max_by_key(|name| (state::step_of(name), name.clone()))?;
    Some(folder.join(newest))
}

/// A V1 checkpoint is one file: a table, as the V2 index is, whose first entry describes all tensors.
fn is_v1(path: &Path) -> bool {
    let Ok(file) = coati_storage::File::open(path) else {
        return false;
    };
    let size = file.len().unwrap_or(0);
    let mut magic = [0; 8];
    let read = size.checked_sub(8).map(|at| file.read_exact_at(&mut magic, at));
    matches!(read, Some(Ok(()))) && u64::from_le_bytes(magic) == bundle::table::MAGIC
}

/// What to say of data files that are missing.
fn beside(prefix: &Path, shards: u32) -> String {
    let names: Vec<String> = (0..shards)
        .map(|shard| data_path(prefix, shard, shards))
        .filter(|path| !coati_storage::is_file(path))
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 3 { " …" } else { "" };
    format!("copy {shown}{more} into the same folder: the index alone holds no values")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saver;

    fn complaint(prefix: &Path) -> String {
        open(prefix).unwrap_err().to_string()
    }

    #[test]
    fn the_usual_mistakes_are_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("model.ckpt-7");
        saver::save(&prefix, &[("a", &[1], &[1.0])], &[("global_step", 7)], None).unwrap();
        assert!(open(&prefix).is_ok());
        let named = |ending: &str| folder.path().join(format!("model.ckpt-7{ending}"));
        let right = prefix.display().to_string();
        for ending in [".index", ".data-00000-of-00001", ".meta"] {
            let text = complaint(&named(ending));
            assert!(text.ends_with(&format!("have in common: {right}")), "{text}");
        }
        let text = complaint(folder.path());
        assert!(
            text.contains("this is a folder; its newest checkpoint is ") && text.ends_with(&right),
            "{text}"
        );
        let text = complaint(&folder.path().join("model.ckpt"));
        assert!(text.ends_with(&format!("in this folder there is {right}")), "{text}");
        let text = complaint(&folder.path().join("model.ckpt-9.index"));
        assert!(text.contains("model.ckpt-9 (but "), "{text}");

        // The index is what a V1 checkpoint looks like: a table in one file.
        let old = folder.path().join("old.ckpt");
        std::fs::copy(named(".index"), &old).unwrap();
        assert!(complaint(&old).contains("old V1 format"), "{}", complaint(&old));
        std::fs::write(&old, "no table").unwrap();
        assert!(complaint(&old).contains("this is a file, but no checkpoint"));

        std::fs::remove_file(named(".data-00000-of-00001")).unwrap();
        let text = complaint(&prefix);
        assert!(text.contains("hint: copy model.ckpt-7.data-00000-of-00001"), "{text}");
        saver::save(&prefix, &[("a", &[1], &[1.0])], &[], None).unwrap();
        std::fs::remove_file(named(".index")).unwrap();
        let text = complaint(&prefix);
        assert!(text.contains("its index is not; copy both files"), "{text}");
    }
}
