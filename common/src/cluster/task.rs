//! Names of a cluster's members.

use std::fmt;
use std::str::FromStr;

/// What a task of the cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskType {
    /// Coordinates the job and trains as replica 0. `chief` in newer `TF_CONFIG`s.
    Master,
    /// Trains; worker `i` is replica `i + 1`.
    Worker,
    /// Holds variables.
    Ps,
    /// Evaluates checkpoints while the others train.
    Evaluator,
}

impl TaskType {
    /// All types, in the order in which clusters are listed.
    pub const ALL: [Self; 4] = [Self::Master, Self::Worker, Self::Ps, Self::Evaluator];

    /// The name used in `TF_CONFIG` and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Worker => "worker",
            Self::Ps => "ps",
            Self::Evaluator => "evaluator",
        }
    }

    /// Whether tasks of this type compute gradients.
    pub const fn trains(self) -> bool {
        matches!(self, Self::Master | Self::Worker)
    }

    /// Whether tasks of this type listen on their address: the master for the coordinator's service, a parameter server
    /// for its variables. Workers and evaluators only call others.
    pub const fn serves(self) -> bool {
        matches!(self, Self::Master | Self::Ps)
    }
}

impl fmt::Display for TaskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TaskType {
    type Err = UnknownTask;

    /// Reads the names of [`TaskType::name`] and `chief`, which is the master.
    fn from_str(text: &str) -> Result<Self, UnknownTask> {
        match text {
            "master" | "chief" => Ok(Self::Master),
            "worker" => Ok(Self::Worker),
            "ps" => Ok(Self::Ps),
            "evaluator" => Ok(Self::Evaluator),
            _ => Err(UnknownTask { name: text.to_owned() }),
        }
    }
}

/// A name that is no task: `trainer`, `ps-x`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task `{name}`: expected master (or chief), worker, ps or evaluator, with an index as in `ps-0`")]
pub struct UnknownTask {
    /// The name as it was given.
    pub name: String,
}

/// One member of the cluster.
///
/// Written `ps-0`, `worker-1`; the one master is `master`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// What it does.
    pub kind: TaskType,
    /// Its place in the list of its kind, from 0.
    pub index: u32,
}

impl TaskId {
    /// The one master.
    pub const MASTER: Self = Self {
        kind: TaskType::Master,
        index: 0,
    };

    /// The task of this kind and index.
    pub const fn new(kind: TaskType, index: u32) -> Self {
        Self { kind, index }
    }

    /// The rank among the training replicas: the master is 0, worker `i` is `i + 1`, others have none.
    pub const fn replica(self) -> Option<u32> {
        match self.kind {
            TaskType::Master => Some(0),
            TaskType::Worker => Some(self.index.saturating_add(1)),
            TaskType::Ps | TaskType::Evaluator => None,
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            // `pad` keeps the width that callers ask for with `{task:<9}`.
            TaskType::Master => f.pad("master"),
            kind => f.pad(&format!("{kind}-{}", self.index)),
        }
    }
}

impl FromStr for TaskId {
    type Err = UnknownTask;

    /// Reads what `Display` writes, and `master-0`.
    fn from_str(text: &str) -> Result<Self, UnknownTask> {
        let unknown = || UnknownTask { name: text.to_owned() };
        let Some((kind, index)) = text.split_once('-') else {
            let kind: TaskType = text.parse()?;
            return if kind == TaskType::Master {
                Ok(Self::MASTER)
            } else {
                Err(unknown())
            };
        };
        let kind = kind.parse().map_err(|_| unknown())?;
        let index = index.parse().map_err(|_| unknown())?;
        if kind == TaskType::Master && index != 0 {
            return Err(unknown());
        }
        Ok(Self { kind, index })
    }
}

#[cfg(test)]
mod tests {
    use super::{TaskId, TaskType};

    #[test]
    fn names_are_written_and_read_back() {
        for (task, name) in [
            (TaskId::MASTER, "master"),
            (TaskId::new(TaskType::Worker, 1), "worker-1"),
            (TaskId::new(TaskType::Ps, 0), "ps-0"),
            (TaskId::new(TaskType::Evaluator, 12), "evaluator-12"),
        ] {
            assert_eq!(task.to_string(), name);
            assert_eq!(name.parse(), Ok(task));
        }
        assert_eq!(format!("{:<8}|", TaskId::new(TaskType::Ps, 2)), "ps-2    |");
        assert_eq!("chief".parse(), Ok(TaskId::MASTER));
        for wrong in ["", "ps", "ps-", "ps-x", "master-1", "trainer-0", "ps--1"] {
            assert!(wrong.parse::<TaskId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_master_is_replica_zero_and_servers_are_none() {
        assert_eq!(TaskId::MASTER.replica(), Some(0));
        assert_eq!(TaskId::new(TaskType::Worker, 0).replica(), Some(1));
        assert_eq!(TaskId::new(TaskType::Ps, 0).replica(), None);
    }
}
