//! What a job keeps on the machine even when its folder is in a bucket: sockets, locks of the system, private keys, logs.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::location::is_remote;

/// The folder of this machine that goes with a job's folder: a local one itself; for one in a bucket
/// `$XDG_STATE_HOME/coati/NAME-HASH`, `~/.local/state/coati/…` where that is not set. It is not made here.
pub fn local_side(folder: &Path) -> PathBuf {
    if !is_remote(folder) {
        return folder.to_owned();
    }
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .unwrap_or_else(std::env::temp_dir);
    base.join("coati").join(name(folder))
}

fn name(folder: &Path) -> String {
    let text = folder.to_string_lossy();
    let text = text.trim_end_matches('/');
    let hash: String = Sha256::digest(text)
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let last = text.rsplit('/').next().unwrap_or_default();
    // Sockets have short names.
    let last: String = last
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(32)
        .collect();
    format!("{last}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_folder_of_its_own_here() {
        assert_eq!(local_side(Path::new("/out/model")), Path::new("/out/model"));
        let found = local_side(Path::new("s3://b/out/model"));
        assert!(found.is_absolute() && found.parent().unwrap().ends_with("coati"));
        assert!(name(Path::new("s3://b/out/model")).starts_with("model-"));
        assert_eq!(
            name(Path::new("s3://b/out/model/")),
            name(Path::new("s3://b/out/model"))
        );
        assert_ne!(name(Path::new("gs://b/out/model")), name(Path::new("s3://b/out/model")));
    }
}
