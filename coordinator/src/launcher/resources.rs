//! Shares this machine's CPUs and GPUs out among the tasks. Pure; [`Inventory::detect`] looks at the machine.

use coati_common::cluster::{ClusterPlan, Devices, TaskId, TaskType};

use super::gpus;

/// What there is to share out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
}

impl Inventory {
    /// Looks at this machine. A `CUDA_VISIBLE_DEVICES` that is already set limits the GPUs.
    pub fn detect() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpus,
            gpus: gpus::detect(),
        }
    }
}

/// What one task gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Threads to compute with, at least 1.
    pub threads: usize,
    /// GPUs; empty means the CPU.
    pub gpus: Vec<String>,
}

impl Share {
    /// The environment that makes libraries keep to the share.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let threads = self.threads.to_string();
        let mut env: Vec<(&'static str, String)> = [
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "RAYON_NUM_THREADS",
            "COATI_THREADS",
        ]
        .map(|name| (name, threads.clone()))
        .into();
        env.push(("CUDA_VISIBLE_DEVICES", self.gpus.join(",")));
        env
    }
}

/// All shares, in the order of [`ClusterPlan::tasks`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    /// Who gets what.
    pub shares: Vec<(TaskId, Share)>,
    /// What may surprise: fewer GPUs or CPUs than tasks.
    pub warnings: Vec<String>,
}

/// GPUs that the cluster file asks for are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `devices: gpu` without any.
    #[error(
        "`coati.devices` asks for GPUs, but none was found on this machine\nhint: `devices: auto` trains on the CPU where there is no GPU; \
         CUDA_VISIBLE_DEVICES can hide GPUs"
    )]
    NoGpu,
    /// A number in `devices: […]` that is none of the GPUs.
    #[error(
        "`coati.devices` lists GPU {wanted}, but this machine has {}\nhint: CUDA_VISIBLE_DEVICES, if it is set, limits them; \
         `nvidia-smi -L` lists all",
        found(available)
    )]
    UnknownGpu {
        /// The number in the list.
        wanted: u32,
        /// Those that are there.
        available: Vec<String>,
    },
}

fn found(gpus: &[String]) -> String {
    if gpus.is_empty() {
        "none".to_owned()
    } else {
        gpus.join(", ")
    }
}

/// Divides the machine among the plan's tasks.
///
/// GPUs go to the tasks that run the model (training replicas and evaluators), as many to each as there are for all alike;
/// with fewer GPUs than such tasks they take turns. CPU threads are divided among the same tasks. Parameter servers get a few
/// threads and no GPU.
pub fn divide(plan: &ClusterPlan, inventory: &Inventory) -> Result<Division, Error> {
    let gpus = usable_gpus(&plan.devices, &inventory.gpus)?;
    let mut warnings = Vec::new();
    let models = to_usize(plan.replicas()) + to_usize(plan.evaluators.count);
    let servers = to_usize(plan.parameter_servers.count).max(1);
    let threads = plan
        .threads_per_replica
        .map_or((inventory.cpus / models).max(1), |threads| to_usize(threads.get()));
    if inventory.cpus < models && gpus.is_empty() {
        warnings.push(format!(
            "{models} replicas share {} CPUs: each step takes longer than with fewer replicas",
            inventory.cpus
        ));
    }
    let wanted = plan.master.accelerators > 0 || plan.workers.accelerators > 0;
    if gpus.is_empty() && wanted && plan.devices == Devices::Auto {
        warnings.push(
            "the machine types of the cluster file have GPUs, but none was found here: training on the CPU".to_owned(),
        );
    }
    if !gpus.is_empty() && gpus.len() < models {
        warnings.push(format!("{models} replicas share {} GPUs", gpus.len()));
    }
    let each = gpus.len() / models;
    let mut rank = 0;
    let shares = plan
        .tasks()
        .into_iter()
        .map(|task| {
            if task.kind == TaskType::Ps {
                return (
                    task,
                    Share {
                        threads: (inventory.cpus / (4 * servers)).clamp(1, 4),
                        gpus: Vec::new(),
                    },
                );
            }
            let own = match each {
                0 => gpus.get(rank % gpus.len().max(1)).cloned().into_iter().collect(),
                each => gpus.iter().skip(rank * each).take(each).cloned().collect(),
            };
            rank += 1;
            (task, Share { threads, gpus: own })
        })
        .collect();
    Ok(Division { shares, warnings })
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn usable_gpus(devices: &Devices, available: &[String]) -> Result<Vec<String>, Error> {
    match devices {
        Devices::Cpu => Ok(Vec::new()),
        Devices::Gpu if available.is_empty() => Err(Error::NoGpu),
        Devices::Auto | Devices::Gpu => Ok(available.to_vec()),
        Devices::GpuList(list) => list
            .iter()
            .map(|wanted| {
                let name = wanted.to_string();
                let known = available.contains(&name);
                known.then_some(name).ok_or_else(|| Error::UnknownGpu {
                    wanted: *wanted,
                    available: available.to_vec(),
                })
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coati_common::cluster::{ClusterFile, ClusterPlan};

    use super::{Inventory, divide};

    fn plan(coati: &str) -> ClusterPlan {
        let text = format!(
            "trainingInput: {{scaleTier: CUSTOM, masterType: standard, workerCount: 2, workerType: standard, \
             parameterServerCount: 3, parameterServerType: standard}}\ncoati: {coati}\n"
        );
        ClusterFile::parse(Path::new("c.yaml"), &text).unwrap()
    }

    fn shares(coati: &str, cpus: usize, gpus: usize) -> (Vec<String>, Vec<String>) {
        let gpus = (0..gpus).map(|gpu| gpu.to_string()).collect();
        let division = divide(&plan(coati), &Inventory { cpus, gpus }).unwrap();
        let shares = division
            .shares
            .iter()
            .map(|(task, share)| format!("{task}:{}:{}", share.threads, share.gpus.join("+")));
        (shares.collect(), division.warnings)
    }

    #[test]
    fn cpu_threads_are_divided_among_training_replicas() {
        let (all, warnings) = shares("{}", 16, 0);
        assert_eq!(
            all,
            [
                "master:5:",
                "worker-0:5:",
                "worker-1:5:",
                "ps-0:1:",
                "ps-1:1:",
                "ps-2:1:"
            ]
        );
        assert!(warnings.is_empty());
        let (few, warnings) = shares("{}", 2, 0);
        assert_eq!(few[..3], ["master:1:", "worker-0:1:", "worker-1:1:"]);
        assert_eq!(
            warnings,
            ["3 replicas share 2 CPUs: each step takes longer than with fewer replicas"]
        );
        assert_eq!(shares("{threads_per_replica: 4}", 2, 0).0[1], "worker-0:4:");
    }

    #[test]
    fn gpus_go_to_training_replicas_in_equal_shares() {
        assert_eq!(
            shares("{}", 16, 7).0[..4],
            ["master:5:0+1", "worker-0:5:2+3", "worker-1:5:4+5", "ps-0:1:"]
        );
        let (two, warnings) = shares("{}", 16, 2);
        assert_eq!(two[..3], ["master:5:0", "worker-0:5:1", "worker-1:5:0"]);
        assert_eq!(warnings, ["3 replicas share 2 GPUs"]);
        assert_eq!(shares("{devices: cpu}", 16, 4).0[0], "master:5:");
        assert_eq!(
            shares("{devices: [3, 1, 0]}", 16, 4).0[..3],
            ["master:5:3", "worker-0:5:1", "worker-1:5:0"]
        );
    }

    #[test]
    fn gpus_that_are_not_there_are_an_error() {
        let divide = |coati: &str, gpus: &[&str]| {
            let gpus = gpus.iter().map(ToString::to_string).collect();
            divide(&plan(coati), &Inventory { cpus: 2, gpus })
                .unwrap_err()
                .to_string()
        };
        assert!(
            divide("{devices: gpu}", &[])
                .starts_with("`coati.devices` asks for GPUs, but none was found on this machine\nhint:")
        );
        assert_eq!(
            divide("{devices: [2]}", &["0", "1"]),
            "`coati.devices` lists GPU 2, but this machine has 0, 1\nhint: CUDA_VISIBLE_DEVICES, if it is set, limits them; \
             `nvidia-smi -L` lists all"
        );
    }

    #[test]
    fn a_share_becomes_environment() {
        let division = divide(
            &plan("{}"),
            &Inventory {
                cpus: 6,
                gpus: vec!["0".to_owned()],
            },
        )
        .unwrap();
        let env = division.shares[0].1.env();
        for name in [
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "RAYON_NUM_THREADS",
            "COATI_THREADS",
        ] {
            assert!(env.contains(&(name, "2".to_owned())), "{name}");
        }
        assert!(env.contains(&("CUDA_VISIBLE_DEVICES", "0".to_owned())));
        assert!(
            division.shares[3]
                .1
                .env()
                .contains(&("CUDA_VISIBLE_DEVICES", String::new()))
        );
    }
}
