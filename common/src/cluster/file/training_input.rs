//! Keys and types of the service's `Job` and `TrainingInput` messages.

use std::time::Duration;

use super::coati::{self, Coati};
use crate::cluster::duration;
use crate::cluster::task::TaskType;
use crate::cluster::tier::ScaleTier;
use crate::cluster::yaml::{Document, Fault, Fields, Node, Position, Value};

/// Keys of `Job`. What the service itself fills in is accepted, so that the output of a job's description is a cluster file.
const JOB: [&str; 13] = [
    "jobId",
    "trainingInput",
    "labels",
    "coati",
    "createTime",
    "startTime",
    "endTime",
    "state",
    "errorMessage",
    "trainingOutput",
    "etag",
    "jobPosition",
    "predictionInput",
];

const TRAINING_INPUT: [&str; 26] = [
    "scaleTier",
    "masterType",
    "masterConfig",
    "workerType",
    "workerConfig",
    "workerCount",
    "parameterServerType",
    "parameterServerConfig",
    "parameterServerCount",
    "evaluatorType",
    "evaluatorConfig",
    "evaluatorCount",
    "packageUris",
    "pythonModule",
    "args",
    "hyperparameters",
    "region",
    "jobDir",
    "runtimeVersion",
    "pythonVersion",
    "encryptionConfig",
    "scheduling",
    "network",
    "serviceAccount",
    "useChiefInTfConfig",
    "enableWebAccess",
];

/// Keys of `ReplicaConfig`.
const REPLICA: [&str; 6] = [
    "imageUri",
    "acceleratorConfig",
    "containerCommand",
    "containerArgs",
    "diskConfig",
    "tpuTfVersion",
];
const ACCELERATOR: [&str; 2] = ["count", "type"];
const DISK: [&str; 2] = ["bootDiskType", "bootDiskSizeGb"];
const ENCRYPTION: [&str; 1] = ["kmsKeyName"];
const SCHEDULING: [&str; 3] = ["maxRunningTime", "maxWaitTime", "priority"];
const HYPERPARAMETERS: [&str; 9] = [
    "goal",
    "params",
    "maxTrials",
    "maxParallelTrials",
    "maxFailedTrials",
    "hyperparameterMetricTag",
    "resumePreviousJobId",
    "enableTrialEarlyStopping",
    "algorithm",
];
const PARAMETER: [&str; 7] = [
    "parameterName",
    "type",
    "minValue",
    "maxValue",
    "categoricalValues",
    "discreteValues",
    "scaleType",
];

/// More machines of one kind than this are surely a slip of the finger.
const MOST_MACHINES: i128 = 1000;

/// A value with the place of its key.
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) at: Position,
    pub(super) key: Position,
}

/// One role as the file has it.
#[derive(Default)]
pub(super) struct Role {
    pub(super) count: Option<Placed<u32>>,
    pub(super) machine_type: Option<Placed<String>>,
    pub(super) accelerators: Option<Placed<(String, u32)>>,
}

/// The keys of a role: `workerType`, `workerConfig`, `workerCount`.
pub(super) struct RoleKeys {
    pub(super) machine_type: &'static str,
    pub(super) config: &'static str,
    pub(super) count: &'static str,
}

pub(super) const fn keys(kind: TaskType) -> RoleKeys {
    match kind {
        // The master is always one: `masterCount` is no key.
        TaskType::Master => RoleKeys {
            machine_type: "masterType",
            config: "masterConfig",
            count: "",
        },
        TaskType::Worker => RoleKeys {
            machine_type: "workerType",
            config: "workerConfig",
            count: "workerCount",
        },
        TaskType::Ps => RoleKeys {
            machine_type: "parameterServerType",
            config: "parameterServerConfig",
            count: "parameterServerCount",
        },
        TaskType::Evaluator => RoleKeys {
            machine_type: "evaluatorType",
            config: "evaluatorConfig",
            count: "evaluatorCount",
        },
    }
}

/// The whole file, typed but not yet judged.
pub(super) struct Job {
    pub(super) id: Option<String>,
    /// Where to point for what is missing from `trainingInput`.
    pub(super) training_input: Position,
    pub(super) scale_tier: Option<Placed<ScaleTier>>,
    /// In the order of [`TaskType::ALL`].
    pub(super) roles: [Role; 4],
    pub(super) args: Vec<String>,
    pub(super) model_dir: Option<String>,
    pub(super) max_running_time: Option<Duration>,
    pub(super) use_chief: bool,
    pub(super) coati: Coati,
    pub(super) ignored: Vec<String>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn read(document: &Document) -> Result<Job, Fault> {
    let root = &document.root;
    if matches!(root.value, Value::Null) {
        return Err(document.fault(
            root.at,
            "the cluster file is empty",
            Some("it needs `trainingInput:` with `scaleTier`; samples are in cluster-configs/".to_owned()),
        ));
    }
    let job = document.fields(
        root,
        "",
        &JOB,
        &[("trainingInput", &TRAINING_INPUT), ("coati", &coati::KEYS)],
    )?;
    if job.get("predictionInput").is_some() {
        return Err(document.fault(
            job.key_position("predictionInput"),
            "a prediction job cannot be trained",
            None,
        ));
    }
    let Some(training_input) = job.get("trainingInput") else {
        return Err(document.fault(
            job.at,
            "`trainingInput` is missing",
            Some("the cluster is described under `trainingInput:`; samples are in cluster-configs/".to_owned()),
        ));
    };
    let mut ignored: Vec<String> = Vec::new();
    if let Some(labels) = job.get("labels") {
        string_map(document, labels, "labels")?;
    }
    for name in job
        .names()
        .filter(|name| !["jobId", "trainingInput", "coati"].contains(name))
    {
        ignored.push(name.to_owned());
    }
    let id = job.get("jobId").map(|node| document.text(node, "jobId")).transpose()?;
    let coati = job
        .get("coati")
        .map(|node| coati::read(document, node))
        .transpose()?
        .unwrap_or_default();
    let mut result = Job {
        id,
        training_input: job.key_position("trainingInput"),
        scale_tier: None,
        roles: Default::default(),
        args: Vec::new(),
        model_dir: None,
        max_running_time: None,
        use_chief: false,
        coati,
        ignored,
        warnings: Vec::new(),
    };
    read_training_input(document, training_input, &mut result)?;
    Ok(result)
}

fn read_training_input(document: &Document, node: &Node, job: &mut Job) -> Result<(), Fault> {
    let fields = document.fields(node, "trainingInput", &TRAINING_INPUT, &[("coati", &coati::KEYS)])?;
    if let Some(node) = fields.get("scaleTier") {
        let name = document.text(node, "scaleTier")?;
        let value = ScaleTier::find(&name).map_err(|refusal| document.fault(node.at, refusal.message, refusal.hint))?;
        job.scale_tier = Some(Placed {
            value,
            at: node.at,
            key: fields.key_position("scaleTier"),
        });
    }
    for name in fields.names() {
        let Some(node) = fields.get(name) else { continue };
        match name {
            "jobDir" => job.model_dir = Some(document.text(node, name)?),
            "args" => job.args = document.text_list(node, name)?,
            "useChiefInTfConfig" => job.use_chief = document.boolean(node, name)?,
            "scheduling" => read_scheduling(document, node, job)?,
            "hyperparameters" => {
                read_hyperparameters(document, node)?;
                job.ignored.push(name.to_owned());
                job.warnings.push(
                    "`hyperparameters`: tuning over several trials is not built; one model is trained with the flags given"
                        .to_owned(),
                );
            }
            "encryptionConfig" => {
                let inner = document.fields(node, name, &ENCRYPTION, &[])?;
                optional_text(document, &inner, "kmsKeyName")?;
                job.ignored.push(name.to_owned());
            }
            "packageUris" => {
                document.text_list(node, name)?;
                job.ignored.push(name.to_owned());
            }
            "enableWebAccess" => {
                document.boolean(node, name)?;
                job.ignored.push(name.to_owned());
            }
            "pythonModule" | "region" | "runtimeVersion" | "pythonVersion" | "network" | "serviceAccount" => {
                document.text(node, name)?;
                job.ignored.push(name.to_owned());
            }
            // Read below, role by role.
            _ => {}
        }
    }
    for (kind, role) in TaskType::ALL.into_iter().zip(&mut job.roles) {
        read_role(document, &fields, &keys(kind), role, &mut job.ignored)?;
    }
    Ok(())
}

fn read_role(
    document: &Document,
    fields: &Fields<'_>,
    keys: &RoleKeys,
    role: &mut Role,
    ignored: &mut Vec<String>,
) -> Result<(), Fault> {
    if let Some(node) = fields.get(keys.machine_type) {
        let value = document.text(node, keys.machine_type)?;
        role.machine_type = Some(Placed {
            value,
            at: node.at,
            key: fields.key_position(keys.machine_type),
        });
    }
    if let Some(node) = fields.get(keys.count) {
        let count = document.integer(node, keys.count, 0, MOST_MACHINES)?;
        let value = u32::try_from(count).unwrap_or(u32::MAX);
        role.count = Some(Placed {
            value,
            at: node.at,
            key: fields.key_position(keys.count),
        });
    }
    let Some(node) = fields.get(keys.config) else {
        return Ok(());
    };
    let config = document.fields(node, keys.config, &REPLICA, &[("trainingInput", &TRAINING_INPUT)])?;
    for name in config.names() {
        let Some(node) = config.get(name) else { continue };
        let path = format!("{}.{name}", keys.config);
        match name {
            "acceleratorConfig" => {
                let inner = document.fields(node, &path, &ACCELERATOR, &[])?;
                let missing = |what: &str| document.fault(inner.at, format!("`{path}` needs `{what}`"), None);
                let count = inner.get("count").ok_or_else(|| missing("count"))?;
                let count = document.integer(count, &format!("{path}.count"), 0, 64)?;
                let of_type = inner.get("type").ok_or_else(|| missing("type"))?;
                let value = (
                    document.text(of_type, &format!("{path}.type"))?,
                    u32::try_from(count).unwrap_or(u32::MAX),
                );
                role.accelerators = Some(Placed {
                    value,
                    at: of_type.at,
                    key: config.key_position(name),
                });
            }
            "containerCommand" | "containerArgs" => {
                document.text_list(node, &path)?;
                ignored.push(path);
            }
            "diskConfig" => {
                let inner = document.fields(node, &path, &DISK, &[])?;
                optional_text(document, &inner, "bootDiskType")?;
                if let Some(size) = inner.get("bootDiskSizeGb") {
                    document.integer(size, &format!("{path}.bootDiskSizeGb"), 1, 65_536)?;
                }
                ignored.push(path);
            }
            _ => {
                document.text(node, &path)?;
                ignored.push(path);
            }
        }
    }
    Ok(())
}

fn read_scheduling(document: &Document, node: &Node, job: &mut Job) -> Result<(), Fault> {
    let fields = document.fields(node, "scheduling", &SCHEDULING, &[])?;
    for name in fields.names() {
        let Some(node) = fields.get(name) else { continue };
        let path = format!("scheduling.{name}");
        if name == "priority" {
            document.integer(node, &path, 0, 1000)?;
            job.ignored.push(path);
            continue;
        }
        let text = document.text(node, &path)?;
        let value = duration::parse(&text).filter(|value| !value.is_zero()).ok_or_else(|| {
            let message = format!("`{path}` must be a duration above zero, found `{text}`");
            document.fault(node.at, message, Some(format!("write {}", duration::EXPECTED)))
        })?;
        if name == "maxRunningTime" {
            job.max_running_time = Some(value);
        } else {
            job.ignored.push(path);
        }
    }
    Ok(())
}

fn read_hyperparameters(document: &Document, node: &Node) -> Result<(), Fault> {
    let fields = document.fields(node, "hyperparameters", &HYPERPARAMETERS, &[])?;
    for name in ["maxTrials", "maxParallelTrials", "maxFailedTrials"] {
        if let Some(node) = fields.get(name) {
            document.integer(node, &format!("hyperparameters.{name}"), 0, i128::from(i32::MAX))?;
        }
    }
    if let Some(node) = fields.get("enableTrialEarlyStopping") {
        document.boolean(node, "hyperparameters.enableTrialEarlyStopping")?;
    }
    for name in ["goal", "hyperparameterMetricTag", "resumePreviousJobId", "algorithm"] {
        optional_text(document, &fields, name)?;
    }
    if let Some(params) = fields.get("params") {
        for param in document.list(params, "hyperparameters.params")? {
            let inner = document.fields(param, "hyperparameters.params[]", &PARAMETER, &[])?;
            for name in ["parameterName", "type", "scaleType"] {
                optional_text(document, &inner, name)?;
            }
        }
    }
    Ok(())
}

fn optional_text(document: &Document, fields: &Fields<'_>, name: &str) -> Result<(), Fault> {
    let key = format!("{}.{name}", fields.section);
    fields
        .get(name)
        .map(|node| document.text(node, &key))
        .transpose()
        .map(|_| ())
}

fn string_map(document: &Document, node: &Node, key: &str) -> Result<(), Fault> {
    let Value::Map(entries) = &node.value else {
        return Err(document.fault(node.at, format!("`{key}` must be a mapping of texts"), None));
    };
    for (name, _, value) in entries {
        document.text(value, &format!("{key}.{name}"))?;
    }
    Ok(())
}
