//! The coordinator's log of steps (`coati-steps.log`) of a job that runs: who contributed which records to which step.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::chaos::log::{self, Entry};

/// Longest wait for a step.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// What the log says since the newest checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Of the coordinator that writes.
    pub incarnation: u64,
    /// Where the log begins.
    pub first: u64,
    /// For each step the contributing replicas, and the positions of the records that they used.
    pub steps: Vec<Vec<(u32, Range<u64>)>>,
}

impl Steps {
    /// Reads the log of a job's folder; nothing where there is none.
    pub fn read(model_dir: &Path) -> Self {
        let mut found = Self::default();
        // The last record may be half written.
        let bytes = std::fs::read(model_dir.join("coati-steps.log")).unwrap_or_default();
        for entry in log::entries(&bytes) {
            match entry {
                Entry::Begin { incarnation, version } => {
                    found.incarnation = incarnation;
                    found.first = version;
                }
                Entry::Step { version, shares } => {
                    assert_eq!(version, found.newest(), "the log has a gap");
                    let used = shares.iter().map(|by| (by.replica, by.first..by.first + by.count));
                    found.steps.push(used.collect());
                }
            }
        }
        found
    }

    /// The version that the last step makes.
    pub fn newest(&self) -> u64 {
        self.first + self.steps.len() as u64
    }

    /// The replicas that contributed to the last step.
    pub fn replicas(&self) -> Vec<u32> {
        self.steps
            .last()
            .into_iter()
            .flatten()
            .map(|(replica, _)| *replica)
            .collect()
    }

    /// Who contributed to `count` steps from the one that `version` makes on.
    pub fn by(&self, version: u64, count: usize) -> impl Iterator<Item = Vec<u32>> {
        let skipped = version.saturating_sub(self.first + 1) as usize;
        let steps = self.steps.iter().skip(skipped).take(count);
        steps.map(|by| by.iter().map(|(replica, _)| *replica).collect())
    }

    /// Waits until the log is as wanted, or panics with what it held last.
    pub fn wait(model_dir: &Path, what: &str, wanted: impl Fn(&Self) -> bool) -> Self {
        let deadline = Instant::now() + LIMIT;
        loop {
            let steps = Self::read(model_dir);
            if wanted(&steps) {
                return steps;
            }
            assert!(
                Instant::now() < deadline,
                "waiting for {what}: the log is of incarnation {}, at step {} by {:?}",
                steps.incarnation,
                steps.newest(),
                steps.replicas()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Panics if a record was used twice. The log must begin with the job.
    pub fn assert_no_record_twice(&self) {
        assert_eq!(
            self.first, 0,
            "a checkpoint was written: the log does not hold all steps"
        );
        let mut used = BTreeSet::new();
        for (step, (replica, records)) in self
            .steps
            .iter()
            .zip(1..)
            .flat_map(|(by, step)| by.iter().map(move |by| (step, by)))
        {
            for position in records.clone() {
                assert!(
                    used.insert(position),
                    "step {step}: replica {replica} used record {position}, which was used before"
                );
            }
        }
    }
}
