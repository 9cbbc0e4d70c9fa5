//! What a job is told, and what it tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coati_checkpoint::keep;
use coati_checkpoint::manifest::DataPosition;
use coati_common::cluster::OnNan;
use coati_common::variables::VariableSpec;
use coati_param_server::{Consistency, Strategy};
use coati_proto::coati::v1;

use crate::cadence;
use crate::membership::Identity;

/// Where the variables come from.
#[derive(Clone, Debug)]
pub enum Init {
    /// The model's flat vector, at version 0.
    Values(Arc<Vec<f32>>),
    /// A checkpoint that all parameter servers can read.
    Checkpoint {
        /// Its prefix.
        prefix: PathBuf,
        /// Its global step.
        step: u64,
        /// What of the data it has used.
        data: DataPosition,
    },
}

impl Init {
    /// The version that training goes on from, and what of the data was used until there.
    pub(super) fn position(&self) -> (u64, DataPosition) {
        match self {
            Self::Values(_) => (0, DataPosition::default()),
            Self::Checkpoint { step, data, .. } => (*step, data.clone()),
        }
    }
}

/// A job.
#[derive(Clone, Debug)]
pub struct Options {
    /// The job and this start of it.
    pub job: v1::JobRef,
    /// Folder for checkpoints; parameter servers see it under the same path.
    pub model_dir: PathBuf,
    /// `host:port` to listen on.
    pub listen: String,
    /// `host:port` of each parameter server, by index.
    pub ps_addresses: Vec<String>,
    /// Replicas besides the master.
    pub workers: u32,
    /// The model's variables, in declared order.
    pub variables: Vec<VariableSpec>,
    /// Their values.
    pub init: Init,
    /// Serialised `object_detection.protos.Optimizer`.
    pub optimizer: Bytes,
    /// The step to end at.
    pub num_steps: u64,
    /// Examples a replica and step.
    pub batch_size: u32,
    /// What all replicas must agree on.
    pub identity: Identity,
    /// Of the order of the records.
    pub data_seed: u64,
    /// How variables are spread.
    pub strategy: Strategy,
    /// `train_config.sync_replicas`
    pub synchronous: bool,
    /// `train_config.replicas_to_aggregate`; 0 means all.
    pub replicas_to_aggregate: u32,
    /// In asynchronous training: how old gradients may be, and what their age changes.
    pub consistency: Consistency,
    /// `coati.replication`: every server's variables have a copy on another one.
    pub replication: bool,
    /// What becomes of gradients with NaN or infinity.
    pub on_nan: OnNan,
    /// What travels in a shorter form than float32.
    pub compression: v1::Compression,
    /// When to save.
    pub cadence: cadence::Options,
    /// What to keep.
    pub keep: keep::Options,
    /// Longest waits.
    pub limits: Limits,
}

/// Longest waits; each ends in an error that names the peer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For everybody to join and the variables to be loaded.
    pub formation: Duration,
    /// Between two signs of life that tasks are asked for.
    pub heartbeat_interval: Duration,
    /// Silence after which a task counts as lost.
    pub heartbeat_timeout: Duration,
    /// For a commit on all servers, retries included.
    pub commit: Duration,
    /// For a checkpoint.
    pub save: Duration,
    /// For replicas and servers to leave at the end.
    pub farewell: Duration,
    /// For lost servers to come back, and for replicas to find the coordinator again.
    pub rejoin: Duration,
}

impl Limits {
    /// How often to look for tasks that have fallen silent.
    pub(super) fn look_every(&self) -> Duration {
        (self.heartbeat_timeout / 4).max(Duration::from_millis(50))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            formation: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(30),
            commit: Duration::from_secs(30),
            save: Duration::from_secs(300),
            farewell: Duration::from_secs(10),
            rejoin: Duration::from_secs(600),
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everybody is there, training starts.
    Formed {
        /// Training replicas.
        replicas: u32,
    },
    /// A step was committed.
    Step {
        /// Its version: `global_step` after it.
        version: u64,
        /// Means over the contributors' samples.
        losses: Vec<(String, f64)>,
        /// Of the update.
        learning_rate: f64,
        /// Examples in it.
        samples: u64,
        /// Epoch of the newest record used.
        epoch: u64,
        /// The slowest contributor's seconds by phase.
        seconds: Vec<(String, f64)>,
        /// The contributors' ranks, ascending, and how many versions the gradient of each was behind.
        staleness: Vec<(u32, u64)>,
        /// Bytes of gradients that the contributors sent.
        bytes_pushed: u64,
        /// Bytes of variables that they received.
        bytes_pulled: u64,
    },
    /// Servers lost their variables: the job goes on from an earlier step.
    WentBack {
        /// The newest committed step.
        from: u64,
        /// The step of the checkpoint.
        to: u64,
    },
    /// With `coati.replication`: the servers whose variables have no whole copy (yet, or any more). While there is none, losing
    /// any one process loses no step.
    Copies {
        /// Their indices, ascending.
        without: Vec<u32>,
    },
    /// A checkpoint is complete.
    Saved {
        /// Its prefix.
        prefix: PathBuf,
        /// Its step.
        step: u64,
    },
    /// Something that the user should know.
    Warning(String),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The last step is committed and saved.
    Completed,
    /// Stopped on request after saving.
    Interrupted(String),
    /// Failed, with the reason.
    Failed(String),
}

impl Outcome {
    /// For those who are told to leave.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Completed => "the job is complete",
            Self::Interrupted(reason) | Self::Failed(reason) => reason,
        }
    }
}
