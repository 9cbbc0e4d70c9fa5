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
    /// What `CUDA_VISIBLE_DEVICES` says, if it is set: GPUs that it does not name are not among these.
    pub visible: Option<String>,
}

impl Inventory {
    /// Looks at this machine. A `CUDA_VISIBLE_DEVICES` that is already set limits the GPUs.
    pub fn detect() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpus,
            gpus: gpus::detect(),
            visible: gpus::visible(),
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

/// GPUs that the user asks for are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// GPUs without any.
    #[error(
        "GPUs are asked for (`--devices` or `coati.devices`), but none was found on this machine{}\nhint: `auto` trains on the CPU where there is no GPU; CUDA_VISIBLE_DEVICES can hide GPUs",
        limited(visible.as_deref())
    )]
    NoGpu {
        /// What `CUDA_VISIBLE_DEVICES` says.
        visible: Option<String>,
    },
    /// A number that is none of the GPUs.
    #[error(
        "GPU {wanted} is asked for (`--devices` or `coati.devices`), but this machine has {}\nhint: `nvidia-smi -L` lists all",
        found(available)
    )]
    UnknownGpu {
        /// The number in the list.
        wanted: u32,
        /// Those that are there.
        available: Vec<String>,
    },
    /// A number that the environment leaves out.
    #[error(
        "GPU {wanted} is asked for (`--devices` or `coati.devices`), but CUDA_VISIBLE_DEVICES={visible} hides it\nhint: unset CUDA_VISIBLE_DEVICES, or ask for {}",
        found(available)
    )]
    Hidden {
        /// The number in the list.
        wanted: u32,
        /// What `CUDA_VISIBLE_DEVICES` says.
        visible: String,
        /// Those that it names.
        available: Vec<String>,
    },
}

fn limited(visible: Option<&str>) -> String {
    visible.map_or_else(String::new, |visible| {
        format!(" (CUDA_VISIBLE_DEVICES={visible} hides others)")
    })
}

fn found(gpus: &[String]) -> String {
    if gpus.is_empty() {
        "none".to_owned()
    } else {
        gpus.join(", ")
    }
}

/// How many devices each replica has here, at least 1, and what may surprise about that.
///
/// `cpu:N` are N processes on the CPU. Otherwise GPUs are shared out evenly; a machine type with GPUs means at most as many as it has on
/// Cloud ML Engine, unless the devices are named.
pub fn devices_per_replica(plan: &ClusterPlan, inventory: &Inventory) -> Result<(u32, Option<String>), Error> {
    if let Devices::Cpus(count) = plan.devices {
        return Ok((count.get(), None));
    }
    let gpus = usable_gpus(&plan.devices, inventory)?;
    let models = to_usize(plan.replicas()) + to_usize(plan.evaluators.count);
    let here = u32::try_from(gpus.len() / models).unwrap_or(u32::MAX);
    let wanted = plan.master.accelerators;
    if here == 0 || wanted == 0 || plan.devices != Devices::Auto {
        return Ok((here.max(1), None));
    }
    let machine = plan.master.machine_type.as_deref().unwrap_or_default();
    let surprise = match here.cmp(&wanted) {
        std::cmp::Ordering::Less => Some(format!(
            "masterType {machine} has {wanted} GPUs, this machine has {here} for each replica"
        )),
        std::cmp::Ordering::Greater => Some(format!(
            "masterType {machine} has {wanted} GPU(s), so {} of {here} are left alone; `coati.devices: gpu` uses all",
            here - wanted
        )),
        std::cmp::Ordering::Equal => None,
    };
    Ok((here.min(wanted), surprise))
}

/// The plan with a process for each device: `devices` for each replica, all of them training replicas of their own.
pub fn with_devices(mut plan: ClusterPlan, devices: u32) -> ClusterPlan {
    if devices > 1 {
        plan.workers.count = plan.replicas().saturating_mul(devices).saturating_sub(1);
        if plan.workers.machine_type.is_none() {
            plan.workers.machine_type.clone_from(&plan.master.machine_type);
            plan.workers.accelerators = plan.master.accelerators;
        }
    }
    plan
}

/// Divides the machine among the plan's tasks.
///
/// GPUs go to the tasks that run the model (training replicas and evaluators), one to each, since a process computes on one
/// ([`with_devices`] makes more processes); with fewer GPUs than such tasks they take turns. CPU threads are divided among the same tasks. Parameter servers get a few
/// threads and no GPU.
pub fn divide(plan: &ClusterPlan, inventory: &Inventory) -> Result<Division, Error> {
    let gpus = usable_gpus(&plan.devices, inventory)?;
    let mut warnings = Vec::new();
    let models = to_usize(plan.replicas()) + to_usize(plan.evaluators.count);
    let servers = to_usize(plan.parameter_servers.count).max(1);
    let threads = plan
        .threads_per_replica
        .map_or((inventory.cpus / models).max(1), |threads| to_usize(threads.get()));
    let sharing = match plan.evaluators.count {
        0 => format!("{} replicas", plan.replicas()),
        _ => format!("{} replicas and an evaluator", plan.replicas()),
    };
    if inventory.cpus < models && gpus.is_empty() {
        warnings.push(format!(
            "{sharing} share {} CPUs: each step takes longer than with fewer of them",
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
        warnings.push(format!("{sharing} share {} GPUs", gpus.len()));
    }
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
            let own = gpus.get(rank % gpus.len().max(1)).cloned().into_iter().collect();
            rank += 1;
            (task, Share { threads, gpus: own })
        })
        .collect();
    Ok(Division { shares, warnings })
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn usable_gpus(devices: &Devices, inventory: &Inventory) -> Result<Vec<String>, Error> {
    let available = &inventory.gpus;
    match devices {
        Devices::Cpu | Devices::Cpus(_) => Ok(Vec::new()),
        Devices::Gpu if available.is_empty() => Err(Error::NoGpu {
            visible: inventory.visible.clone(),
        }),
        Devices::Auto | Devices::Gpu => Ok(available.clone()),
        Devices::GpuList(list) => list
            .iter()
            .map(|wanted| {
                let name = wanted.to_string();
                if available.contains(&name) {
                    return Ok(name);
                }
                let (wanted, available) = (*wanted, available.clone());
                Err(match inventory.visible.clone() {
                    Some(visible) => Error::Hidden {
                        wanted,
                        visible,
                        available,
                    },
                    None => Error::UnknownGpu { wanted, available },
                })
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coati_common::cluster::{ClusterFile, ClusterPlan};

    use super::{Inventory, devices_per_replica, divide, with_devices};

    fn plan(coati: &str) -> ClusterPlan {
        let text = format!(
            "trainingInput: {{scaleTier: CUSTOM, masterType: standard, workerCount: 2, workerType: standard, \
             parameterServerCount: 3, parameterServerType: standard}}\ncoati: {coati}\n"
        );
        ClusterFile::parse(Path::new("c.yaml"), &text).unwrap()
    }

    fn inventory(cpus: usize, gpus: Vec<String>) -> Inventory {
        Inventory {
            cpus,
            gpus,
            visible: None,
        }
    }

    fn shares(coati: &str, cpus: usize, gpus: usize) -> (Vec<String>, Vec<String>) {
        let gpus = (0..gpus).map(|gpu| gpu.to_string()).collect();
        let division = divide(&plan(coati), &inventory(cpus, gpus)).unwrap();
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
            ["3 replicas share 2 CPUs: each step takes longer than with fewer of them"]
        );
        assert_eq!(shares("{threads_per_replica: 4}", 2, 0).0[1], "worker-0:4:");
    }

    #[test]
    fn an_evaluator_is_no_replica() {
        let text = "trainingInput: {scaleTier: CUSTOM, masterType: standard, workerCount: 1, workerType: standard, \
                    parameterServerCount: 1, parameterServerType: standard, evaluatorCount: 1, evaluatorType: standard}\n";
        let plan = ClusterFile::parse(Path::new("c.yaml"), text).unwrap();
        assert_eq!(
            divide(&plan, &inventory(2, Vec::new())).unwrap().warnings,
            ["2 replicas and an evaluator share 2 CPUs: each step takes longer than with fewer of them"]
        );
        assert_eq!(
            divide(&plan, &inventory(8, vec!["0".to_owned(), "1".to_owned()]))
                .unwrap()
                .warnings,
            ["2 replicas and an evaluator share 2 GPUs"]
        );
    }

    #[test]
    fn a_training_replica_gets_one_gpu() {
        assert_eq!(
            shares("{}", 16, 7).0[..4],
            ["master:5:0", "worker-0:5:1", "worker-1:5:2", "ps-0:1:"]
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
        let divide = |coati: &str, gpus: &[&str], visible: Option<&str>| {
            let inventory = Inventory {
                visible: visible.map(ToOwned::to_owned),
                ..inventory(2, gpus.iter().map(ToString::to_string).collect())
            };
            divide(&plan(coati), &inventory).unwrap_err().to_string()
        };
        let text = divide("{devices: gpu}", &[], None);
        assert!(text.starts_with(
            "GPUs are asked for (`--devices` or `coati.devices`), but none was found on this machine\nhint:"
        ));
        let text = divide("{devices: gpu}", &[], Some(""));
        assert!(text.contains("(CUDA_VISIBLE_DEVICES= hides others)"), "{text}");
        let text = divide("{devices: [2]}", &["0", "1"], None);
        assert!(text.contains("but this machine has 0, 1\nhint: "), "{text}");
        let text = divide("{devices: [2]}", &["0", "1"], Some("0,1"));
        assert!(
            text.contains("GPU 2 is asked for") && text.contains("CUDA_VISIBLE_DEVICES=0,1 hides it"),
            "{text}"
        );
        assert!(text.ends_with("or ask for 0, 1"), "{text}");
    }

    #[test]
    fn a_machine_type_says_how_many_devices_a_replica_has() {
        let of = |machine: &str, workers: u32, coati: &str, gpus: usize| {
            let workers = match workers {
                0 => String::new(),
                count => format!(", workerCount: {count}, workerType: {machine}"),
            };
            let text =
                format!("trainingInput: {{scaleTier: CUSTOM, masterType: {machine}{workers}}}\ncoati: {coati}\n");
            let plan = ClusterFile::parse(Path::new("c.yaml"), &text).unwrap();
            let inventory = inventory(16, (0..gpus).map(|gpu| gpu.to_string()).collect());
            let (devices, surprise) = devices_per_replica(&plan, &inventory).unwrap();
            let tasks = divide(&with_devices(plan, devices), &inventory).unwrap().shares;
            let gpus: Vec<String> = tasks.iter().map(|(_, share)| share.gpus.join("+")).collect();
            (gpus.join(" "), surprise.unwrap_or_default())
        };
        assert_eq!(of("complex_model_l_gpu", 0, "{}", 8).0, "0 1 2 3 4 5 6 7");
        let (gpus, surprise) = of("complex_model_l_gpu", 0, "{}", 2);
        assert_eq!(gpus, "0 1");
        assert!(surprise.contains("has 8 GPUs, this machine has 2"), "{surprise}");
        let (gpus, surprise) = of("standard_gpu", 0, "{}", 4);
        assert_eq!(gpus, "0");
        assert!(surprise.contains("3 of 4 are left alone"), "{surprise}");
        assert_eq!(of("standard_gpu", 0, "{devices: gpu}", 4).0, "0 1 2 3");
        assert_eq!(of("complex_model_m_v100", 1, "{}", 8).0, "0 1 2 3 4 5 6 7");
        assert_eq!(
            of("standard", 0, "{}", 3).0,
            "0 1 2",
            "a machine without GPUs of its own takes what is there"
        );
        assert_eq!(of("standard", 0, "{devices: [2, 0]}", 3).0, "2 0");
        assert_eq!(of("standard", 0, "{}", 0).0, "");
        assert_eq!(
            of("standard", 1, "{devices: \"cpu:2\"}", 8).0,
            "   ",
            "four processes on the CPU"
        );
    }

    #[test]
    fn a_share_becomes_environment() {
        let division = divide(
            &plan("{}"),
            &Inventory {
                visible: None,
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
