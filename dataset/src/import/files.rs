//! Folders of annotations and images, on a disk or in a bucket.

use std::path::{Path, PathBuf};

use super::Error;

/// What lies in a folder, by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let found = coati_storage::list(folder).map_err(|source| Error::Read {
        path: folder.to_owned(),
        source,
    })?;
    Ok(found.into_iter().map(|entry| folder.join(entry.name)).collect())
}

/// As [`entries`]; of a folder that is not there nothing.
pub(super) fn entries_if_any(folder: &Path) -> Vec<PathBuf> {
    entries(folder).unwrap_or_default()
}

/// Whether a path ends like that, whatever its case.
pub(super) fn ends_in(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}
