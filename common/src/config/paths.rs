//! Relative paths of a configuration.

use std::path::{Path, PathBuf};

use super::PipelineConfig;

impl PipelineConfig {
    /// Where a path or pattern of the configuration points.
    ///
    /// The reference resolves relative paths against the current folder; a configuration that travels with its data is
    /// easier to use when they are relative to its own folder. So the current folder comes first, then the
    /// configuration's, and where neither has it, the current folder's path is returned (for the error to name).
    /// Absolute paths and URLs come back as they are, `file://` without its scheme.
    pub fn resolve_path(&self, path: &str) -> PathBuf {
        let path = path.strip_prefix("file://").unwrap_or(path);
        if path.is_empty() || path.contains("://") || Path::new(path).is_absolute() || exists(Path::new(path)) {
            return PathBuf::from(path);
        }
        let beside = self.folder.join(path);
        if exists(&beside) { beside } else { PathBuf::from(path) }
    }
}

/// Whether a file is there; of a pattern (`*`, `?`, `[…]`, `NAME@3`), whether some file starts as it does.
fn exists(path: &Path) -> bool {
    if coati_storage::exists(path) {
        return true;
    }
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let Some(at) = name.find(['*', '?', '[', '@']) else {
        return false;
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let start = &name[..at];
    coati_storage::list(folder).is_ok_and(|entries| entries.iter().any(|entry| entry.name.starts_with(start)))
}
