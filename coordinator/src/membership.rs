//! Who takes part: registrations, signs of life, and who is being waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

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
    /// Grows each time the task joins again; requests of older ones are refused.
    pub generation: u32,
    /// The last sign of life.
    pub seen: Instant,
    /// What it was doing then.
    pub activity: String,
    /// Whether it still takes part.
    pub standing: Standing,
    /// Whose place it took, if that was there a moment before.
    before: Option<Process>,
    /// Whether its clock was looked at.
    clock_seen: bool,
}

/// Whether a member takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Joined; has not begun to train.
    New,
    /// Trains.
    Training,
    /// Silent for too long; may join again.
    Lost,
    /// Went in order.
    Left,
}

impl Member {
    fn takes_part(&self) -> bool {
        matches!(self.standing, Standing::New | Standing::Training)
    }
}

/// What joining amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The member's, for its requests.
    pub generation: u32,
    /// The task was there before: what it has under way is void.
    pub again: bool,
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

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// The task has not joined (this incarnation).
    Unknown,
    /// It counts as lost: its work went to others.
    Lost,
    /// Another process took its place.
    Superseded {
        /// The other one's.
        pid: u64,
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

    /// One more task belongs to the cluster from now on: a worker that was added to a running job.
    pub fn admit_also(&mut self, task: &str) {
        if !self.expected.iter().any(|expected| expected == task) {
            self.expected.push(task.to_owned());
        }
    }

    /// A task joins, or repeats that because the answer was lost. Whoever joins last takes the task's place: an earlier
    /// process of it is taken for dead.
    pub fn join(&mut self, task: &str, process: Process, identity: &Identity, now: Instant) -> Result<Joined, Refusal> {
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
        let before = self.members.get(task);
        let repeated = before.filter(|member| member.process == process && member.standing == Standing::New);
        let joined = Joined {
            generation: match (repeated, before) {
                (Some(member), _) => member.generation,
                (None, Some(member)) => member.generation + 1,
                (None, None) => 0,
            },
            again: before.is_some() && repeated.is_none(),
        };
        let member = Member {
            generation: joined.generation,
            seen: now,
            activity: "starting".to_owned(),
            standing: Standing::New,
            before: before
                .filter(|member| member.takes_part() && member.process != process)
                .map(|member| member.process.clone()),
            clock_seen: false,
            process,
        };
        self.members.insert(task.to_owned(), member);
        Ok(joined)
    }

    /// Whether a request of this generation of the task may be answered.
    pub fn admit(&self, task: &str, generation: u32) -> Result<(), Stranger> {
        match self.members.get(task) {
            None => Err(Stranger::Unknown),
            Some(member) if member.generation != generation => Err(Stranger::Superseded {
                pid: member.process.pid,
            }),
            Some(member) if !member.takes_part() => Err(Stranger::Lost),
            Some(_) => Ok(()),
        }
    }

    /// Two processes that take each other for dead, where a request of the generation before the newest shows that both are
    /// there.
    pub fn rivals(&self, task: &str, generation: u32) -> Option<(&Process, &Process)> {
        let member = self.members.get(task)?;
        let before = member.before.as_ref()?;
        (generation.checked_add(1) == Some(member.generation)).then_some((before, &member.process))
    }

    /// True the first time that it is asked for a member.
    pub fn first_look_at_clock(&mut self, task: &str, generation: u32) -> bool {
        let member = self.members.get_mut(task);
        member.is_some_and(|member| member.generation == generation && !std::mem::replace(&mut member.clock_seen, true))
    }

    /// A sign of life.
    pub fn beat(&mut self, task: &str, generation: u32, activity: &str, now: Instant) -> Result<(), Stranger> {
        self.admit(task, generation)?;
        if let Some(member) = self.members.get_mut(task) {
            member.seen = now;
            activity.clone_into(&mut member.activity);
        }
        Ok(())
    }

    /// All count as seen now: nobody was there to hear them.
    pub fn all_seen(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.seen = now;
        }
    }

    /// Changes whether a member takes part. False where that is what it was, or nobody of that name joined.
    pub fn set(&mut self, task: &str, standing: Standing) -> bool {
        self.members.get_mut(task).is_some_and(|member| {
            let changes = member.standing != standing;
            member.standing = standing;
            changes
        })
    }

    /// The tasks that take part.
    pub fn present(&self) -> Vec<&str> {
        let members = self.members.iter().filter(|(_, member)| member.takes_part());
        members.map(|(task, _)| task.as_str()).collect()
    }

    /// The tasks that take part, and those who fell silent so lately that whatever hides others may have hidden them.
    pub fn present_until_lately(&self, now: Instant) -> Vec<&str> {
        let lately = |member: &Member| {
            member.standing == Standing::Lost && now.saturating_duration_since(member.seen) <= 2 * self.timeout
        };
        let there = self.members.iter();
        there
            .filter(|(_, member)| member.takes_part() || lately(member))
            .map(|(task, _)| task.as_str())
            .collect()
    }

    /// The tasks of this cluster.
    pub fn expected(&self) -> &[String] {
        &self.expected
    }

    /// Expected tasks that have not joined.
    pub fn missing(&self) -> Vec<&str> {
        self.expected
            .iter()
            .map(String::as_str)
            .filter(|task| !self.members.get(*task).is_some_and(Member::takes_part))
            .collect()
    }

    /// Silence after which a task counts as lost.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Nobody could be heard until now: everybody's silence begins anew.
    pub fn excuse(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.seen = member.seen.max(now);
        }
    }

    /// Tasks that take part and have been silent for longer than the limit, and for how long.
    pub fn silent(&self, now: Instant) -> Vec<(&str, Duration)> {
        self.members
            .iter()
            .filter(|(_, member)| member.takes_part())
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
    fn silence_begins_anew_when_nobody_could_be_heard() {
        let start = Instant::now();
        let mut table = membership();
        table.join("worker-0", process(2), &identity(), start).unwrap();
        let later = start + Duration::from_secs(12);
        table.excuse(later);
        assert_eq!(table.silent(later), []);
        assert_eq!(table.silent(later + Duration::from_secs(11)).len(), 1);
    }

    #[test]
    fn names_who_is_missing_and_who_is_silent() {
        let start = Instant::now();
        let mut table = membership();
        table.join("master", process(1), &identity(), start).unwrap();
        assert_eq!(table.missing(), ["worker-0"]);
        table.join("worker-0", process(2), &identity(), start).unwrap();
        let later = start + Duration::from_secs(9);
        assert_eq!(table.beat("worker-0", 0, "computing", later), Ok(()));
        let silent = table.silent(start + Duration::from_secs(12));
        assert_eq!(silent, [("master", Duration::from_secs(12))]);
        assert_eq!(table.describe("worker-0"), "worker-0 (computing)");
    }

    #[test]
    fn refuses_strangers_and_those_who_differ() {
        let mut table = membership();
        let stranger = table
            .join("worker-7", process(3), &identity(), Instant::now())
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
            .join("worker-0", process(3), &other, Instant::now())
            .unwrap_err()
            .to_string();
        assert!(
            differs.starts_with("worker-0 has record count 6, the master has 5"),
            "{differs}"
        );
    }

    #[test]
    fn whoever_joins_last_takes_the_tasks_place() {
        let now = Instant::now();
        let mut table = membership();
        let join = |table: &mut Membership, pid| table.join("worker-0", process(pid), &identity(), now).unwrap();
        let joined = |generation, again| Joined { generation, again };
        assert_eq!(join(&mut table, 1), joined(0, false));
        // The same again, as after a lost answer.
        assert_eq!(join(&mut table, 1), joined(0, false));
        table.set("worker-0", Standing::Training);
        assert_eq!(join(&mut table, 2), joined(1, true));
        assert_eq!(table.admit("worker-0", 0), Err(Stranger::Superseded { pid: 2 }));
        assert_eq!(table.admit("worker-0", 1), Ok(()));
        assert_eq!(table.rivals("worker-0", 0), Some((&process(1), &process(2))));
        assert_eq!(table.rivals("worker-0", 1), None);
        // A process that trained and joins again has nothing under way any more.
        table.set("worker-0", Standing::Training);
        assert_eq!(join(&mut table, 2), joined(2, true));
        assert_eq!(table.rivals("worker-0", 1), None, "it is the same one");
    }

    #[test]
    fn the_lost_must_join_again() {
        let now = Instant::now();
        let mut table = membership();
        assert_eq!(table.beat("worker-0", 0, "computing", now), Err(Stranger::Unknown));
        table.join("worker-0", process(1), &identity(), now).unwrap();
        assert!(table.set("worker-0", Standing::Lost));
        assert_eq!(table.beat("worker-0", 0, "computing", now), Err(Stranger::Lost));
        assert_eq!(table.missing(), ["master", "worker-0"]);
        assert_eq!(table.silent(now + Duration::from_secs(60)), []);
        assert_eq!(table.present(), [""; 0]);
        assert_eq!(table.present_until_lately(now + Duration::from_secs(20)), ["worker-0"]);
        assert_eq!(table.present_until_lately(now + Duration::from_secs(21)), [""; 0]);
        let joined = table.join("worker-0", process(1), &identity(), now).unwrap();
        assert_eq!((joined.generation, joined.again), (1, true));
        assert_eq!(table.present(), ["worker-0"]);
    }
}
