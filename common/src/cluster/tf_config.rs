//! `TF_CONFIG`: the environment variable by which a scheduler, or our launcher, tells a process who it is and where the
//! others are.
//!
//! ```json
//! {"cluster": {"master": ["127.0.0.1:2222"], "worker": ["127.0.0.1:2223"], "ps": ["127.0.0.1:2224"]},
//!  "task": {"type": "worker", "index": 0}, "environment": "cloud"}
//! ```

mod address;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

pub use self::address::Address;
use super::suggest;
use super::task::{TaskId, TaskType};

/// Name of the environment variable.
pub const VARIABLE: &str = "TF_CONFIG";

/// Names under which tasks are listed. `chief` is the newer word for `master`.
const LISTS: [&str; 5] = ["master", "chief", "worker", "ps", "evaluator"];

/// Why a `TF_CONFIG` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not JSON.
    #[error(
        "TF_CONFIG is not valid JSON: {reason}\nhint: it looks like {{\"cluster\": {{\"master\": [\"host:port\"], …}}, \"task\": {{\"type\": \"worker\", \"index\": 0}}}}"
    )]
    Json {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// Bytes that are no text.
    #[error("TF_CONFIG is not valid UTF-8")]
    NotText,
    /// A value of the wrong type.
    #[error("TF_CONFIG: `{key}` must be {expected}, found {found}")]
    Type {
        /// Path of the value: `task.index`.
        key: String,
        /// What would be right.
        expected: &'static str,
        /// The value as JSON.
        found: String,
    },
    /// A key that must be there is not.
    #[error("TF_CONFIG: `{key}` is missing\nhint: {hint}")]
    Missing {
        /// Path of the key.
        key: &'static str,
        /// What to write.
        hint: &'static str,
    },
    /// Both names of the master.
    #[error(
        "TF_CONFIG: `cluster` lists both a chief and a master\nhint: they are two names of the same task; keep one"
    )]
    ChiefAndMaster,
    /// More or fewer masters than one.
    #[error("TF_CONFIG: `cluster.{name}` must list exactly one address, found {count}")]
    MasterCount {
        /// `master` or `chief`.
        name: &'static str,
        /// Number of addresses.
        count: usize,
    },
    /// A list of tasks that do not exist.
    #[error("TF_CONFIG: unknown task type `{name}` in `{place}`\nhint: {hint}")]
    UnknownType {
        /// As it was given.
        name: String,
        /// `cluster` or `task.type`.
        place: &'static str,
        /// The nearest name or all of them.
        hint: String,
    },
    /// An address that cannot be one.
    #[error(
        "TF_CONFIG: `{address}` in `cluster.{list}[{index}]` is no address: {reason}\nhint: write host:port, as in `10.0.0.3:2222` or `[::1]:2222`"
    )]
    Address {
        /// As it was given.
        address: String,
        /// Which list.
        list: &'static str,
        /// Place in the list.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// One address for two tasks.
    #[error("TF_CONFIG: {first} and {second} have the same address {address}")]
    Duplicate {
        /// The task listed first.
        first: TaskId,
        /// The other.
        second: TaskId,
        /// Their address.
        address: Address,
    },
    /// The own task is not in the cluster.
    #[error("TF_CONFIG: task is {kind} {index}, but `cluster.{kind}` {}", listed(*count))]
    OutOfRange {
        /// `task.type` as it was given.
        kind: String,
        /// `task.index`.
        index: u64,
        /// Tasks of this type.
        count: usize,
    },
}

fn listed(count: usize) -> String {
    match count {
        0 => "lists none".to_owned(),
        1 => "lists 1, whose index is 0".to_owned(),
        count => format!("lists {count}, with indices 0 to {}", count - 1),
    }
}

/// Addresses of all tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// The one master.
    pub master: Address,
    /// Workers by index.
    pub workers: Vec<Address>,
    /// Parameter servers by index.
    pub ps: Vec<Address>,
    /// Evaluators by index. TensorFlow leaves them out of the cluster; both ways are read.
    pub evaluators: Vec<Address>,
}

impl ClusterSpec {
    /// The address of a task; none if there is no such task.
    pub fn address(&self, task: TaskId) -> Option<&Address> {
        self.list(task.kind).get(usize::try_from(task.index).ok()?)
    }

    /// Addresses of one kind of task, by index.
    pub fn list(&self, kind: TaskType) -> &[Address] {
        match kind {
            TaskType::Master => std::slice::from_ref(&self.master),
            TaskType::Worker => &self.workers,
            TaskType::Ps => &self.ps,
            TaskType::Evaluator => &self.evaluators,
        }
    }

    /// Every task with its address: the master, then workers, parameter servers and evaluators by index.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &Address)> {
        TaskType::ALL.into_iter().flat_map(move |kind| {
            (0_u32..)
                .zip(self.list(kind))
                .map(move |(index, address)| (TaskId::new(kind, index), address))
        })
    }

    /// Training replicas: the workers and the master, which trains too.
    pub fn replicas(&self) -> u32 {
        u32::try_from(self.workers.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// A process's role in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TfConfig {
    /// Who is where.
    pub cluster: ClusterSpec,
    /// Who this process is.
    pub task: TaskId,
    /// `environment`: `cloud` on Cloud ML Engine.
    pub environment: Option<String>,
    /// `job`: what the scheduler says of the job; kept as it is.
    pub job: Option<Value>,
    /// Whether the master is called `chief` when this is written.
    pub chief: bool,
}

impl TfConfig {
    /// A role with nothing else set.
    pub const fn new(cluster: ClusterSpec, task: TaskId) -> Self {
        Self {
            cluster,
            task,
            environment: None,
            job: None,
            chief: false,
        }
    }

    /// Reads the environment variable. `None` if it is unset, empty, or names no cluster (`{}`), which schedulers write
    /// for a process that runs alone.
    pub fn from_env() -> Result<Option<Self>, Error> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(Error::NotText),
        }
    }

    /// Reads the JSON text; `None` as in [`TfConfig::from_env`]. Keys that other frameworks put there are left alone.
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let json: Value = serde_json::from_str(text).map_err(|error| Error::Json {
            reason: error.to_string(),
        })?;
        let root = object(&json, "TF_CONFIG")?;
        let cluster = match root.get("cluster") {
            None | Some(Value::Null) => None,
            Some(cluster) => Some(object(cluster, "cluster")?).filter(|cluster| !cluster.is_empty()),
        };
        let Some(cluster) = cluster else {
            return match root.get("task") {
                Some(Value::Object(task))
                    if task.get("type").is_some_and(|kind| kind != "master" && kind != "chief") =>
                {
                    Err(Error::Missing {
                        key: "cluster",
                        hint: "a task other than the master must know where the others are",
                    })
                }
                _ => Ok(None),
            };
        };
        let chief = cluster.contains_key("chief");
        let cluster = read_cluster(cluster)?;
        let task = read_task(root, &cluster)?;
        let environment = root.get("environment").and_then(Value::as_str).map(str::to_owned);
        let job = root.get("job").filter(|job| !job.is_null()).cloned();
        Ok(Some(Self {
            cluster,
            task,
            environment,
            job,
            chief,
        }))
    }

    /// Writes the JSON text that [`TfConfig::parse`] reads, on one line.
    pub fn to_json(&self) -> String {
        let name = |kind: TaskType| {
            if kind == TaskType::Master && self.chief {
                "chief"
            } else {
                kind.name()
            }
        };
        let mut cluster = Map::new();
        for kind in TaskType::ALL {
            let list = self.cluster.list(kind);
            if !list.is_empty() {
                cluster.insert(name(kind).to_owned(), list.iter().map(ToString::to_string).collect());
            }
        }
        let mut root = Map::new();
        root.insert("cluster".to_owned(), Value::Object(cluster));
        root.insert(
            "task".to_owned(),
            json!({"type": name(self.task.kind), "index": self.task.index}),
        );
        if let Some(environment) = &self.environment {
            root.insert("environment".to_owned(), environment.as_str().into());
        }
        if let Some(job) = &self.job {
            root.insert("job".to_owned(), job.clone());
        }
        Value::Object(root).to_string()
    }
}

fn wrong_type(key: impl Into<String>, expected: &'static str, found: &Value) -> Error {
    let mut found = found.to_string();
    if let Some((end, _)) = found.char_indices().nth(60) {
        found.truncate(end);
        found.push('…');
    }
    Error::Type {
        key: key.into(),
        expected,
        found,
    }
}

fn object<'a>(value: &'a Value, key: &str) -> Result<&'a Map<String, Value>, Error> {
    value.as_object().ok_or_else(|| wrong_type(key, "an object", value))
}

fn unknown_type(name: &str, place: &'static str) -> Error {
    let hint = suggest::nearest(name, LISTS).map_or_else(
        || format!("known are {}", LISTS.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    Error::UnknownType {
        name: name.to_owned(),
        place,
        hint,
    }
}

fn read_cluster(cluster: &Map<String, Value>) -> Result<ClusterSpec, Error> {
    if let Some(name) = cluster.keys().find(|name| !LISTS.contains(&name.as_str())) {
        return Err(unknown_type(name, "cluster"));
    }
    let name = match (cluster.contains_key("master"), cluster.contains_key("chief")) {
        (true, true) => return Err(Error::ChiefAndMaster),
        (true, false) => "master",
        (false, true) => "chief",
        (false, false) => {
            return Err(Error::Missing {
                key: "cluster.master",
                hint: "one task must be the master (or `chief`): it coordinates the job and trains too",
            });
        }
    };
    let mut masters = addresses(cluster, name)?;
    let spec = match (masters.pop(), masters.len()) {
        (Some(master), 0) => ClusterSpec {
            master,
            workers: addresses(cluster, "worker")?,
            ps: addresses(cluster, "ps")?,
            evaluators: addresses(cluster, "evaluator")?,
        },
        (last, others) => {
            return Err(Error::MasterCount {
                name,
                count: others + usize::from(last.is_some()),
            });
        }
    };
    let mut seen: HashMap<&Address, TaskId> = HashMap::new();
    for (task, address) in spec.tasks() {
        if let Some(first) = seen.insert(address, task) {
            return Err(Error::Duplicate {
                first,
                second: task,
                address: address.clone(),
            });
        }
    }
    Ok(spec)
}

fn addresses(cluster: &Map<String, Value>, list: &'static str) -> Result<Vec<Address>, Error> {
    let Some(value) = cluster.get(list) else {
        return Ok(Vec::new());
    };
    let items = value
        .as_array()
        .ok_or_else(|| wrong_type(format!("cluster.{list}"), "a list of addresses (host:port)", value))?;
    let read = |(index, item): (usize, &Value)| {
        let text = item
            .as_str()
            .ok_or_else(|| wrong_type(format!("cluster.{list}[{index}]"), "a text (host:port)", item))?;
        text.parse().map_err(|address::Invalid(reason)| Error::Address {
            address: text.to_owned(),
            list,
            index,
            reason,
        })
    };
    items.iter().enumerate().map(read).collect()
}

fn read_task(root: &Map<String, Value>, cluster: &ClusterSpec) -> Result<TaskId, Error> {
    let Some(task) = root.get("task") else {
        return Err(Error::Missing {
            key: "task",
            hint: "say who this process is: \"task\": {\"type\": \"worker\", \"index\": 0}",
        });
    };
    let task = object(task, "task")?;
    let Some(kind) = task.get("type") else {
        return Err(Error::Missing {
            key: "task.type",
            hint: "one of master, chief, worker, ps, evaluator",
        });
    };
    let name = kind.as_str().ok_or_else(|| wrong_type("task.type", "a text", kind))?;
    let kind: TaskType = name.parse().map_err(|_| unknown_type(name, "task.type"))?;
    let index = match task.get("index") {
        None if kind == TaskType::Master => 0,
        None => {
            return Err(Error::Missing {
                key: "task.index",
                hint: "the place in the list of its type, from 0",
            });
        }
        // Some schedulers write the index as text.
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_str()?.parse().ok())
            .ok_or_else(|| wrong_type("task.index", "a whole number from 0", value))?,
    };
    let list = cluster.list(kind);
    // TensorFlow's evaluator stands outside the cluster.
    let outside = kind == TaskType::Evaluator && list.is_empty();
    match u32::try_from(index) {
        Ok(small) if outside || usize::try_from(index).is_ok_and(|index| index < list.len()) => {
            Ok(TaskId::new(kind, small))
        }
        _ => Err(Error::OutOfRange {
            kind: name.to_owned(),
            index,
            count: list.len(),
        }),
    }
}
