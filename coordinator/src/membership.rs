//! Who takes part: registrations, signs of life, and who is being waited for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a task says of itself when it joins; all but the address must agree with the master's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Coati's version.
    pub software_version: String,
    /// Of the effective configuration.
    pub config_digest: String,
    /// Of the training records.
    pub dataset_digest: String,
    /// How many there are.
    pub record_count: u64,
}

/// Which process a task is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// host:port or empty.
    pub address: String,
    /// On its host.
    pub pid: u64,
}

/// One that joined.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who it is.
    pub process: Process,
    /// The last sign of life.
    pub seen: Instant,
    /// What it was doing then.
    pub activity: String,
}

/// The table of members.
#[derive(Clone, Debug)]
pub struct Membership {
    expected: Vec<String>,
    reference: Identity,
    timeout: Duration,
    members: BTreeMap<String, Member>,
}

/// A registration that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not part of this cluster.
    #[error(
        "{task} is not a task of this cluster, which has {expected}\nhint: is the process's TF_CONFIG of another job?"
    )]
    Unexpected {
        /// Who.
        task: String,
        /// Who would be right.
        expected: String,
    },
    /// The job is under way, with another process in this role.
    #[error(
        "{task} joined before as process {before}, this is process {now}: a task that was started again cannot take part in a running job\nhint: start the job again, it goes on from its last checkpoint"
    )]
    Again {
        /// Who.
        task: String,
        /// Its process id.
        before: u64,
        /// The new one's.
        now: u64,
    },
    /// Something differs from the master's.
    #[error("{task} has {what} {theirs}, the master has {ours}\nhint: {hint}")]
    Differs {
        /// Who.
        task: String,
        /// What differs.
        what: &'static str,
        /// The task's.
        theirs: String,
        /// The master's.
        ours: String,
        /// What would be right.
        hint: &'static str,
    },
}

impl Membership {
    /// Waits for the tasks named (`master`, `worker-0`, …), which must agree with `reference`.
    pub fn new(expected: Vec<String>, reference: Identity, timeout: Duration) -> Self {
        Self {
            expected,
            reference,
            timeout,
            members: BTreeMap::new(),
        }
    }

    /// A task joins, or repeats that because the answer was lost. Another process may take its place only while the
    /// cluster is `forming`.
    pub fn join(
        &mut self,
        task: &str,
        process: Process,
        identity: &Identity,
        forming: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        if !self.expected.iter().any(|expected| expected == task) {
            return Err(Refusal::Unexpected {
                task: task.to_owned(),
                expected: self.expected.join(", "),
            });
        }
        let ours = &self.reference;
        let differs = |what, theirs: &str, ours: &str, hint| {
            Err(Refusal::Differs {
                task: task.to_owned(),
                what,
                theirs: theirs.to_owned(),
                ours: ours.to_owned(),
                hint,
            })
        };
        if identity.software_version != ours.software_version {
            return differs(
                "Coati",
                &identity.software_version,
                &ours.software_version,
                "install the same version everywhere",
            );
        }
        if identity.config_digest != ours.config_digest {
            return differs(
                "configuration",
                &short(&identity.config_digest),
                &short(&ours.config_digest),
                "all tasks must read the same pipeline.config and flags",
            );
        }
        if identity.record_count != ours.record_count {
            return differs(
                "record count",
                &identity.record_count.to_string(),
                &ours.record_count.to_string(),
                "all tasks must see the same training records",
            );
        }
        if identity.dataset_digest != ours.dataset_digest {
            return differs(
                "data set",
                &short(&identity.dataset_digest),
                &short(&ours.dataset_digest),
                "all tasks must see the same training records",
            );
        }
        if let Some(member) = self
            .members
            .get(task)
            .filter(|member| !forming && member.process != process)
        {
            return Err(Refusal::Again {
                task: task.to_owned(),
                before: member.process.pid,
                now: process.pid,
            });
        }
        let member = Member {
            process,
            seen: now,
            activity: "starting".to_owned(),
        };
        self.members.insert(task.to_owned(), member);
        Ok(())
    }

    /// A sign of life. False where the task has not joined.
    pub fn beat(&mut self, task: &str, activity: &str, now: Instant) -> bool {
        self.members.get_mut(task).is_some_and(|member| {
            member.seen = now;
            activity.clone_into(&mut member.activity);
            true
        })
    }

    /// Expected tasks that have not joined.
    pub fn missing(&self) -> Vec<&str> {
        self.expected
            .iter()
            .map(String::as_str)
            .filter(|task| !self.members.contains_key(*task))
            .collect()
    }

    /// Joined tasks that have been silent for longer than the limit, and for how long.
    pub fn silent(&self, now: Instant) -> Vec<(&str, Duration)> {
        self.members
            .iter()
            .map(|(task, member)| (task.as_str(), now.saturating_duration_since(member.seen)))
            .filter(|&(_, silence)| silence > self.timeout)
            .collect()
    }

    /// `worker-1 (computing)`
    pub fn describe(&self, task: &str) -> String {
        self.members.get(task).map_or_else(
            || format!("{task} (not there)"),
            |member| format!("{task} ({})", member.activity),
        )
    }

    /// All that joined.
    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            software_version: "1".into(),
            config_digest: "c".into(),
            dataset_digest: "d".into(),
            record_count: 5,
        }
    }

    fn process(pid: u64) -> Process {
        Process {
            address: "h:1".into(),
            pid,
        }
    }

    fn membership() -> Membership {
        Membership::new(
            vec!["master".into(), "worker-0".into()],
            identity(),
            Duration::from_secs(10),
        )
    }

    #[test]
    fn names_who_is_missing_and_who_is_silent() {
        let start = Instant::now();
        let mut table = membership();
        table.join("master", process(1), &identity(), true, start).unwrap();
        assert_eq!(table.missing(), ["worker-0"]);
        table.join("worker-0", process(2), &identity(), true, start).unwrap();
        assert!(table.beat("worker-0", "computing", start + Duration::from_secs(9)));
        let silent = table.silent(start + Duration::from_secs(12));
        assert_eq!(silent, [("master", Duration::from_secs(12))]);
        assert_eq!(table.describe("worker-0"), "worker-0 (computing)");
    }

    #[test]
    fn refuses_strangers_and_those_who_differ() {
        let mut table = membership();
        let stranger = table
            .join("worker-7", process(3), &identity(), true, Instant::now())
            .unwrap_err()
            .to_string();
        assert!(
            stranger.contains("worker-7 is not a task of this cluster"),
            "{stranger}"
        );
        let other = Identity {
            record_count: 6,
            ..identity()
        };
        let differs = table
            .join("worker-0", process(3), &other, true, Instant::now())
            .unwrap_err()
            .to_string();
        assert!(
            differs.starts_with("worker-0 has record count 6, the master has 5"),
            "{differs}"
        );
    }

    #[test]
    fn another_process_takes_a_tasks_place_only_before_the_start() {
        let now = Instant::now();
        let mut table = membership();
        table.join("worker-0", process(1), &identity(), true, now).unwrap();
        table.join("worker-0", process(2), &identity(), true, now).unwrap();
        // The same again, as after a lost answer.
        table.join("worker-0", process(2), &identity(), false, now).unwrap();
        let again = table
            .join("worker-0", process(3), &identity(), false, now)
            .unwrap_err()
            .to_string();
        assert!(
            again.starts_with("worker-0 joined before as process 2, this is process 3"),
            "{again}"
        );
    }
}
