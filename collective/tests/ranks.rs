//! Starts ranks and hears how they end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than anything takes, so that a test that hangs fails.
const LIMIT: Duration = Duration::from_secs(240);

/// Processes of one communicator; killed when dropped.
pub(crate) struct Ranks {
    pub(crate) folder: tempfile::TempDir,
    transport: &'static str,
    scene: &'static str,
    world: usize,
    running: BTreeMap<usize, Child>,
}

impl Ranks {
    pub(crate) fn new(transport: &'static str, scene: &'static str, world: usize) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            transport,
            scene,
            world,
            running: BTreeMap::new(),
        }
    }

    pub(crate) fn start(&mut self, rank: usize, settings: &[(&str, &str)]) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rank", "--nocapture"])
            .env("RANKS_FOLDER", self.folder.path())
            .env("RANKS_TRANSPORT", self.transport)
            .env("RANKS_SCENE", self.scene)
            .env("RANKS_WORLD", self.world.to_string())
            .env("RANKS_RANK", rank.to_string())
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.running.insert(rank, child);
    }

    pub(crate) fn start_all(&mut self, settings: &[(&str, &str)]) {
        for rank in 0..self.world {
            self.start(rank, settings);
        }
    }

    pub(crate) fn pid(&self, rank: usize) -> u32 {
        self.running[&rank].id()
    }

    /// As `kill -9`.
    pub(crate) fn kill(&mut self, rank: usize) {
        let mut child = self.running.remove(&rank).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As `kill -STOP`.
    pub(crate) fn stop(&self, rank: usize) {
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.pid(rank) as libc::pid_t, libc::SIGSTOP) }, 0);
    }

    /// What a rank wrote to `name`, once it is there.
    pub(crate) fn read(&self, name: &str) -> String {
        await_file(&self.folder.path().join(name))
    }

    /// How a rank ended: `ok`, or its error.
    pub(crate) fn end(&mut self, rank: usize) -> String {
        let mut child = self.running.remove(&rank).unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > LIMIT {
                child.kill().unwrap();
                panic!("rank {rank} hangs");
            }
            sleep(Duration::from_millis(5));
        }
        std::fs::read_to_string(self.folder.path().join(format!("end-{rank}")))
            .unwrap_or_else(|_| "it crashed".to_owned())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The contents of a file that appears whole.
pub(crate) fn await_file(path: &Path) -> String {
    let begun = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        assert!(begun.elapsed() < LIMIT, "{} does not appear", path.display());
        sleep(Duration::from_millis(2));
    }
}

/// Writes a file so that it appears whole.
pub(crate) fn put(path: &Path, text: &str) {
    let part = PathBuf::from(format!("{}.part", path.display()));
    std::fs::write(&part, text).unwrap();
    std::fs::rename(part, path).unwrap();
}
