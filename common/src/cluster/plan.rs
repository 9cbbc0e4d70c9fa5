//! What a cluster file asks for, checked: the input of launchers and of `coati check`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use coati_proto::coati::v1;
use serde::Serialize;

use super::precision::Numerics;
use super::security::{OnNan, Security};
use super::task::{TaskId, TaskType};
use super::tier::ScaleTier;

/// How many machines play a role, and what they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MachineRole {
    /// Number of machines, each with one task.
    pub count: u32,
    /// Machine type; none when the role is not played.
    pub machine_type: Option<String>,
    /// Accelerators of each machine.
    pub accelerators: u32,
}

/// How variables are spread over parameter servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// By bytes: large variables are split, the longest placed first.
    #[default]
    Balanced,
    /// Variable by variable in turn, as TensorFlow's `replica_device_setter` does.
    RoundRobin,
}

/// What replicas of a local cluster compute on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// GPUs if there are any, else the CPU.
    #[default]
    Auto,
    /// The CPU alone.
    Cpu,
    /// All GPUs; an error where there is none.
    Gpu,
    /// These GPUs, by the driver's numbers.
    GpuList(Vec<u32>),
    /// So many processes on the CPU for each replica, as if they were devices.
    Cpus(NonZeroU32),
}

/// Most CPU ranks of a replica.
pub const MOST_CPUS: u32 = 256;

impl Devices {
    /// Reads `auto`, `cpu`, `cpu:2`, `gpu`, or numbers of GPUs: `0,2`. The error says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{text}` names no devices: write auto, cpu, cpu:2 (two processes on the CPU), gpu, or numbers of GPUs such as 0,2"
            )
        };
        match text.trim() {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "gpu" => return Ok(Self::Gpu),
            _ => {}
        }
        if let Some(count) = text.trim().strip_prefix("cpu:") {
            let count = count
                .parse()
                .ok()
                .and_then(NonZeroU32::new)
                .filter(|count| count.get() <= MOST_CPUS);
            return count
                .map(Self::Cpus)
                .ok_or_else(|| format!("`{text}`: the number of processes must be 1 to {MOST_CPUS}"));
        }
        let mut list = Vec::new();
        for item in text.split(',') {
            let gpu: u32 = item.trim().parse().map_err(|_| expected())?;
            if list.contains(&gpu) {
                return Err(format!("`{text}` names GPU {gpu} twice"));
            }
            list.push(gpu);
        }
        Ok(Self::GpuList(list))
    }
}

/// What joins the ranks of a job without parameter servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Shared memory where all ranks are on one host, else TCP.
    #[default]
    Auto,
    /// Shared memory.
    SharedMemory,
    /// TCP.
    Tcp,
}

/// How ranks sum their gradients (`coati.all_reduce`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AllReduce {
    /// Bytes of float32 gradients that are summed at a time, while the backward pass goes on.
    pub bucket_bytes: u64,
    /// What joins the ranks.
    pub transport: Transport,
}

impl Default for AllReduce {
    fn default() -> Self {
        Self {
            bucket_bytes: 4 << 20,
            transport: Transport::Auto,
        }
    }
}

/// Smallest bucket, in bytes.
pub const LEAST_BUCKET: u64 = 1 << 10;

/// Reads a size: `4194304`, `4MiB`, `25MB`. The error says what would be right.
pub fn bucket_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" | "kB" => 1000,
        "KiB" | "K" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" | "M" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" | "G" => 1 << 30,
        _ => 0,
    };
    let bytes = digits
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit));
    bytes
        .filter(|&bytes| (LEAST_BUCKET..=1 << 40).contains(&bytes))
        .ok_or_else(|| format!("`{text}` is no size of a bucket: write at least 1KiB, such as 4MiB or 25MB"))
}

/// Where processes are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Launcher {
    /// All on this machine.
    #[default]
    Local,
}

/// Bounds on how far replicas may drift apart. Synchronous or asynchronous is the pipeline's choice
/// (`train_config.sync_replicas`).
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Consistency {
    /// In asynchronous training, the most versions that a gradient may be behind when it is applied.
    /// None: the engine's default.
    pub max_staleness: Option<u64>,
    /// In asynchronous training, divide the learning rate of an update by 1 + the staleness of its gradient.
    pub scale_learning_rate: bool,
    /// In asynchronous training, make up for what changed since the gradient's variables were pulled (DC-ASGD).
    pub delay_compensation: Option<DelayCompensation>,
}

impl Consistency {
    /// The keys that are set and mean nothing in synchronous training, where every gradient is of the newest version.
    pub fn asynchronous_keys(&self) -> Vec<&'static str> {
        let set = [
            ("max_staleness", self.max_staleness.is_some()),
            ("scale_learning_rate", self.scale_learning_rate),
            ("delay_compensation", self.delay_compensation.is_some()),
        ];
        set.into_iter().filter_map(|(key, set)| set.then_some(key)).collect()
    }
}

/// `coati.consistency.delay_compensation`: `g + lambda * g * g * (w - w_pulled)` instead of `g`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DelayCompensation {
    /// Which lambda.
    pub kind: DelayCompensationKind,
    /// `coati.consistency.delay_compensation_lambda`, above 0.
    pub lambda: f32,
}

/// The two variants of the paper (Zheng et al. 2017).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DelayCompensationKind {
    /// DC-ASGD-c: lambda as it is.
    Constant,
    /// DC-ASGD-a: lambda divided by the root of the gradient's mean square.
    Adaptive,
}

impl DelayCompensationKind {
    /// The lambda of the paper's experiments.
    pub const fn default_lambda(self) -> f32 {
        match self {
            Self::Constant => 0.04,
            Self::Adaptive => 2.0,
        }
    }

    /// Decay of the mean square, as in the paper's experiments; the constant variant keeps none.
    pub const fn mean_square_decay(self) -> Option<f32> {
        match self {
            Self::Constant => None,
            Self::Adaptive => Some(0.95),
        }
    }
}

/// How gradients travel to parameter servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientCompression {
    /// As float32.
    #[default]
    None,
    /// As bfloat16: half the bytes.
    Bf16,
    /// The largest elements alone; what is left out is added to the next step's.
    TopK,
}

/// How variables travel to replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightCompression {
    /// As float32.
    #[default]
    None,
    /// As bfloat16: half the bytes.
    Bf16,
}

/// What travels in a shorter form than float32, for slow links. Servers add up and keep float32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Compression {
    /// Of gradients.
    pub gradients: GradientCompression,
    /// Of variables.
    pub weights: WeightCompression,
    /// With [`GradientCompression::TopK`]: the share of elements that is sent, above 0 and at most 1.
    pub topk_fraction: f64,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            gradients: GradientCompression::None,
            weights: WeightCompression::None,
            topk_fraction: 0.01,
        }
    }
}

// The fraction is never NaN.
impl Eq for Compression {}

impl Compression {
    /// As replicas are told.
    pub fn to_wire(self) -> v1::Compression {
        let gradients = match self.gradients {
            GradientCompression::None => v1::Encoding::Float32,
            GradientCompression::Bf16 => v1::Encoding::Bfloat16,
            GradientCompression::TopK => v1::Encoding::Topk,
        };
        let weights = match self.weights {
            WeightCompression::None => v1::Encoding::Float32,
            WeightCompression::Bf16 => v1::Encoding::Bfloat16,
        };
        v1::Compression {
            gradients: gradients.into(),
            weights: weights.into(),
            topk_fraction: self.topk_fraction,
        }
    }
}

/// Liveness of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Heartbeat {
    /// Time between two signs of life.
    pub interval: Duration,
    /// Silence after which a task counts as lost.
    pub timeout: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
        }
    }
}

/// How often the launcher starts a crashed task again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// New starts of one task within [`Restart::window`]; one more crash ends the job. 0: every crash ends it.
    pub max: u32,
    /// Starts longer ago than this are forgotten.
    pub window: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            max: 10,
            window: Duration::from_secs(600),
        }
    }
}

/// A checked cluster file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterPlan {
    /// The file it was read from.
    pub path: PathBuf,
    /// `jobId`, if the file is a whole job.
    pub job_id: Option<String>,
    /// `scaleTier`.
    #[serde(serialize_with = "tier_name")]
    pub scale_tier: ScaleTier,
    /// The master; its count is always 1.
    pub master: MachineRole,
    /// Workers beside the master.
    pub workers: MachineRole,
    /// Parameter servers.
    pub parameter_servers: MachineRole,
    /// Evaluators.
    pub evaluators: MachineRole,
    /// `jobDir`: where the model goes when the command line does not say.
    pub job_dir: Option<String>,
    /// `args`: flags that stand behind those of the command line.
    pub args: Vec<String>,
    /// `scheduling.maxRunningTime`.
    pub max_running_time: Option<Duration>,
    /// `useChiefInTfConfig`: the master is called `chief` in `TF_CONFIG`.
    pub use_chief_in_tf_config: bool,
    /// `coati.launcher`.
    pub launcher: Launcher,
    /// `coati.placement`.
    pub placement: Placement,
    /// `coati.consistency`.
    pub consistency: Consistency,
    /// `coati.security`.
    pub security: Security,
    /// `coati.replication`: every parameter server's variables have a copy on another one.
    pub replication: bool,
    /// `coati.on_nan`.
    pub on_nan: OnNan,
    /// `coati.compression`.
    pub compression: Compression,
    /// `coati.threads_per_replica`. None: the machine's CPUs are divided among the replicas.
    pub threads_per_replica: Option<NonZeroU32>,
    /// `coati.heartbeat_interval` and `coati.heartbeat_timeout`.
    pub heartbeat: Heartbeat,
    /// `coati.restart`.
    pub restart: Restart,
    /// `coati.devices`.
    pub devices: Devices,
    /// `coati.bucket_size` and `coati.transport`.
    pub all_reduce: AllReduce,
    /// `coati.local_reduce`: replicas on one host sum their gradients, and one of them talks to the parameter servers.
    pub local_reduce: bool,
    /// `coati.keep_best`: the metric by which the best checkpoint is kept.
    pub keep_best: Option<String>,
    /// `coati.precision` and `coati.tf32`.
    pub numerics: Numerics,
    /// Keys that were accepted and mean nothing outside Google Cloud, in the file's order: `region`, `masterConfig.imageUri`.
    pub ignored: Vec<String>,
    /// Things that work but may not be what was meant, each a sentence.
    pub warnings: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn tier_name<S: serde::Serializer>(tier: &ScaleTier, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(tier.name())
}

impl ClusterPlan {
    /// Training replicas: the workers and the master, which trains too.
    pub fn replicas(&self) -> u32 {
        self.workers.count.saturating_add(1)
    }

    /// Whether its replicas sum their gradients among themselves: there is no parameter server, and more than one replica.
    pub fn is_all_reduce(&self) -> bool {
        self.workers.count > 0 && self.parameter_servers.count == 0
    }

    /// Whether the plan is one process: a master and nothing else.
    pub fn is_single(&self) -> bool {
        self.workers.count == 0 && self.parameter_servers.count == 0 && self.evaluators.count == 0
    }

    /// How many machines play this role.
    pub fn count(&self, kind: TaskType) -> u32 {
        match kind {
            TaskType::Master => 1,
            TaskType::Worker => self.workers.count,
            TaskType::Ps => self.parameter_servers.count,
            TaskType::Evaluator => self.evaluators.count,
        }
    }

    /// Every task: the master, then workers, parameter servers and evaluators by index.
    pub fn tasks(&self) -> Vec<TaskId> {
        TaskType::ALL
            .into_iter()
            .flat_map(|kind| (0..self.count(kind)).map(move |index| TaskId::new(kind, index)))
            .collect()
    }

    /// The value of a flag in `args`: `--name value` or `--name=value`, dashes and underscores alike. The last one counts.
    pub fn arg(&self, name: &str) -> Option<&str> {
        let same = |flag: &str| flag.replace('-', "_") == name.replace('-', "_");
        let mut found = None;
        let mut args = self.args.iter().peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else { continue };
            if let Some((flag, value)) = flag.split_once('=') {
                if same(flag) {
                    found = Some(value);
                }
            } else if same(flag) {
                found = args
                    .peek()
                    .map(|value| value.as_str())
                    .filter(|value| !value.starts_with("--"))
                    .or(found);
            }
        }
        found
    }

    /// Where the model goes when the command line does not say: `--model_dir` of `args`, else `jobDir`.
    pub fn model_dir(&self) -> Option<&str> {
        self.arg("model_dir").or(self.job_dir.as_deref())
    }

    /// `--pipeline_config_path` of `args`.
    pub fn pipeline_config_path(&self) -> Option<&str> {
        self.arg("pipeline_config_path")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_people_write_them() {
        let cpus = |count| Devices::Cpus(NonZeroU32::new(count).unwrap());
        for (text, devices) in [
            ("auto", Devices::Auto),
            ("cpu", Devices::Cpu),
            ("cpu:2", cpus(2)),
            ("gpu", Devices::Gpu),
            ("0", Devices::GpuList(vec![0])),
            ("0, 2", Devices::GpuList(vec![0, 2])),
        ] {
            assert_eq!(Devices::parse(text), Ok(devices), "{text}");
        }
        for (text, words) in [
            ("cpu:0", "must be 1 to 256"),
            ("cpu:x", "must be 1 to 256"),
            ("0,0", "names GPU 0 twice"),
            ("", "names no devices"),
            ("cuda", "names no devices"),
            ("-1", "names no devices"),
        ] {
            let error = Devices::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bucket_bytes("4MiB"), Ok(4 << 20));
        assert_eq!(bucket_bytes("25MB"), Ok(25_000_000));
        assert_eq!(bucket_bytes("2048"), Ok(2048));
        for wrong in ["", "0", "1B", "MiB", "4 furlongs", "-4MiB", "99999999999GiB"] {
            assert!(bucket_bytes(wrong).unwrap_err().contains("such as 4MiB"), "{wrong}");
        }
    }
}
