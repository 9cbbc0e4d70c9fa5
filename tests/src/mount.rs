//! A disk that is full soon.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it on `folder`; `None`, with a message, where that is not allowed.
    pub fn mount(folder: &Path, bytes: u64) -> Option<Self> {
        crate::or_panic(std::fs::create_dir_all(folder), folder.display());
        let size = format!("size={bytes}");
        let options = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let done = Command::new("mount").args(options).arg(folder).output();
        match done {
            Ok(output) if output.status.success() => Some(Self {
                folder: folder.to_owned(),
            }),
            other => {
                println!("skipped: no small disk can be mounted here ({other:?})");
                None
            }
        }
    }

    /// Makes it larger.
    pub fn resize(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.folder).status();
        assert!(done.is_ok_and(|status| status.success()), "cannot make the disk larger");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
