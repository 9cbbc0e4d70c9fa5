//! `coati-progress.json` beside the launcher's report: how far a job without parameter servers is, which has no coordinator to ask. Rank 0
//! writes it while it trains.

use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::report::replace;

/// The file's name.
pub const FILE: &str = "coati-progress.json";
/// What [`Progress::version`] must be.
pub const VERSION: u32 = 1;
/// It takes some 200 bytes.
const LARGEST: u64 = 1 << 16;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Of the format.
    pub version: u32,
    /// The newest step.
    pub step: u64,
    /// The step that ends the job.
    pub num_steps: u64,
    /// The epoch in which the next record lies.
    pub epoch: u64,
    /// Records that steps have used.
    pub records_seen: u64,
    /// The step of the newest checkpoint; 0 before the first.
    pub last_checkpoint: u64,
}

impl Progress {
    /// Reads the file; nothing where there is none that makes sense.
    pub fn read(job_dir: &Path) -> Option<Self> {
        let mut text = Vec::new();
        let file = std::fs::File::open(job_dir.join(FILE)).ok()?;
        file.take(LARGEST).read_to_end(&mut text).ok()?;
        let found: Self = serde_json::from_slice(&text).ok()?;
        (found.version == VERSION).then_some(found)
    }

    /// Replaces the file in one instant.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, job_dir: &Path) -> io::Result<()> {
        replace(job_dir, FILE, &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nonsense_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Progress::read(folder.path()), None);
        let progress = Progress {
            version: VERSION,
            step: 120,
            num_steps: 1000,
            epoch: 3,
            records_seen: 960,
            last_checkpoint: 100,
        };
        progress.write(folder.path()).unwrap();
        assert_eq!(Progress::read(folder.path()).as_ref(), Some(&progress));
        let newer = Progress {
            version: VERSION + 1,
            ..progress
        };
        newer.write(folder.path()).unwrap();
        assert_eq!(Progress::read(folder.path()), None);
        std::fs::write(folder.path().join(FILE), b"{\"step\": ").unwrap();
        assert_eq!(Progress::read(folder.path()), None);
    }
}
