//! The cluster: who takes part in a job, read from a cluster file or from `TF_CONFIG`.
//!
//! - [`file`] reads Cloud ML Engine's `TrainingInput` YAML and our own `coati:` section into a [`ClusterPlan`].
//! - [`machine`] and [`tier`] know the documented machine types and scale tiers.
//! - [`task`] names the members of a cluster (`master`, `worker-1`, `ps-0`).
//! - [`tf_config`] parses and writes the environment variable that gives a process its role.

pub mod duration;
pub mod file;
pub mod machine;
pub mod plan;
pub mod precision;
pub mod security;
pub mod task;
pub mod tf_config;
pub mod tier;

mod suggest;
mod yaml;

pub use file::ClusterFile;
pub use plan::{
    AllReduce, ClusterPlan, Compression, Consistency, DelayCompensation, DelayCompensationKind, Devices,
    GradientCompression, MachineRole, Placement, Restart, Transport, WeightCompression, bucket_bytes,
};
pub use precision::{Numerics, Precision};
pub use security::OnNan;
pub use suggest::nearest;
pub use task::{TaskId, TaskType};
pub use tf_config::{Address, ClusterSpec, TfConfig};
