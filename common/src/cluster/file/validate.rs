//! The rules that span several keys: tiers against counts, types against counts, and how many parameter servers make sense.

use std::path::Path;

use super::precision;
use super::training_input::{Job, Placed, Role, keys};
use crate::cluster::machine::{self, Category, MachineType};
use crate::cluster::plan::{ClusterPlan, MachineRole, Placement};
use crate::cluster::task::TaskType;
use crate::cluster::tier::{ScaleTier, TierShape};
use crate::cluster::yaml::{Document, Fault};

/// Judges a typed file and turns it into a plan.
pub(super) fn validate(document: &Document, path: &Path, job: Job) -> Result<ClusterPlan, Fault> {
    let tier = job.scale_tier.as_ref().map_or(ScaleTier::Basic, |tier| tier.value);
    let [master, workers, parameter_servers, evaluators] = match tier.shape() {
        Some(shape) => fixed_roles(document, &job, tier, shape)?,
        None => custom_roles(document, &job)?,
    };
    let mut warnings = job.warnings.clone();
    check_parameter_servers(document, &job, parameter_servers.count, &mut warnings)?;
    check_evaluators(document, &job)?;
    warnings.extend(precision::warning(job.coati.numerics));
    Ok(ClusterPlan {
        path: path.to_owned(),
        job_id: job.id,
        scale_tier: tier,
        master,
        workers,
        parameter_servers,
        evaluators,
        job_dir: job.model_dir,
        args: job.args,
        max_running_time: job.max_running_time,
        use_chief_in_tf_config: job.use_chief,
        launcher: job.coati.launcher,
        placement: job.coati.placement,
        consistency: job.coati.consistency,
        security: job.coati.security,
        replication: job.coati.replication.is_some(),
        on_nan: job.coati.on_nan,
        compression: job.coati.compression,
        threads_per_replica: job.coati.threads_per_replica,
        heartbeat: job.coati.heartbeat,
        restart: job.coati.restart,
        devices: job.coati.devices,
        all_reduce: job.coati.all_reduce,
        local_reduce: job.coati.local_reduce.is_some(),
        keep_best: job.coati.keep_best,
        numerics: job.coati.numerics,
        ignored: job.ignored,
        warnings,
    })
}

/// What a role is called in sentences.
const fn plural(kind: TaskType) -> &'static str {
    match kind {
        TaskType::Master => "masters",
        TaskType::Worker => "workers",
        TaskType::Ps => "parameter servers",
        TaskType::Evaluator => "evaluators",
    }
}

/// A fixed tier leaves nothing to choose: the service refuses types and counts beside it.
fn fixed_roles(document: &Document, job: &Job, tier: ScaleTier, shape: TierShape) -> Result<[MachineRole; 4], Fault> {
    let shapes = [
        (1, shape.master),
        shape.workers,
        shape.parameter_servers,
        (0, "standard"),
    ];
    let mut roles: [MachineRole; 4] = Default::default();
    for (((kind, role), (count, name)), out) in TaskType::ALL.into_iter().zip(&job.roles).zip(shapes).zip(&mut roles) {
        let keys = keys(kind);
        let given = [
            role.machine_type.as_ref().map(|placed| (keys.machine_type, placed.key)),
            role.count.as_ref().map(|placed| (keys.count, placed.key)),
            role.accelerators.as_ref().map(|placed| (keys.config, placed.key)),
        ];
        if let Some((key, at)) = given.into_iter().flatten().next() {
            let hint = "write `scaleTier: CUSTOM` to choose machines and their number".to_owned();
            let message = if job.scale_tier.is_none() {
                format!("`{key}` can only be set when scaleTier is CUSTOM, and scaleTier is missing")
            } else if kind == TaskType::Master {
                format!("`{key}` can only be set when scaleTier is CUSTOM; {tier} fixes the master to {name}")
            } else {
                format!(
                    "`{key}` can only be set when scaleTier is CUSTOM; {tier} has {count} {}",
                    plural(kind)
                )
            };
            return Err(document.fault(at, message, Some(hint)));
        }
        if count > 0 {
            let accelerators = machine::find(name).map_or(0, |machine| machine.accelerators);
            *out = MachineRole {
                count,
                machine_type: Some(name.to_owned()),
                accelerators,
            };
        }
    }
    Ok(roles)
}

fn custom_roles(document: &Document, job: &Job) -> Result<[MachineRole; 4], Fault> {
    let mut roles: [MachineRole; 4] = Default::default();
    let mut master: Option<MachineType> = None;
    for ((kind, role), out) in TaskType::ALL.into_iter().zip(&job.roles).zip(&mut roles) {
        let machine = role
            .machine_type
            .as_ref()
            .map(|placed| find(document, placed))
            .transpose()?;
        let keys = keys(kind);
        let count = if kind == TaskType::Master {
            1
        } else {
            role.count.as_ref().map_or(0, |placed| placed.value)
        };
        if count > 0 && machine.is_none() {
            let (at, message) = if kind == TaskType::Master {
                let at = job.scale_tier.as_ref().map_or(job.training_input, |tier| tier.at);
                (at, "scaleTier CUSTOM needs `masterType`".to_owned())
            } else {
                let at = role.count.as_ref().map_or(job.training_input, |placed| placed.at);
                (
                    at,
                    format!("`{}` is {count}, so `{}` is needed", keys.count, keys.machine_type),
                )
            };
            let hint = format!("add `{}: standard` (or another machine type)", keys.machine_type);
            return Err(document.fault(at, message, Some(hint)));
        }
        check_category(document, master.as_ref(), machine.as_ref(), role, keys.machine_type)?;
        let accelerators = accelerators(document, machine.as_ref(), role, keys.machine_type)?;
        if count > 0 {
            *out = MachineRole {
                count,
                machine_type: machine.as_ref().map(|machine| machine.name.clone()),
                accelerators,
            };
        }
        if kind == TaskType::Master {
            master = machine;
        }
    }
    Ok(roles)
}

fn find(document: &Document, placed: &Placed<String>) -> Result<MachineType, Fault> {
    machine::find(&placed.value).map_err(|refusal| document.fault(placed.at, refusal.message, refusal.hint))
}

fn check_category(
    document: &Document,
    master: Option<&MachineType>,
    machine: Option<&MachineType>,
    role: &Role,
    key: &str,
) -> Result<(), Fault> {
    let (Some(master), Some(machine), Some(placed)) = (master, machine, role.machine_type.as_ref()) else {
        return Ok(());
    };
    if master.category == machine.category {
        return Ok(());
    }
    let message = format!(
        "`{key}` `{}` is a {} machine type and `masterType` `{}` a {} one: they cannot be mixed",
        machine.name, machine.category, master.name, master.category
    );
    let hint = match master.category {
        Category::Legacy => "use a legacy type such as `standard` or `standard_gpu`",
        Category::ComputeEngine => "use a Compute Engine type such as `n1-standard-8`",
    };
    Err(document.fault(placed.at, message, Some(hint.to_owned())))
}

fn accelerators(document: &Document, machine: Option<&MachineType>, role: &Role, key: &str) -> Result<u32, Fault> {
    let built_in = machine.map_or(0, |machine| machine.accelerators);
    let Some(config) = &role.accelerators else {
        return Ok(built_in);
    };
    let (accelerator, count) = &config.value;
    // The service's own examples write a count of zero for "none".
    if *count == 0 {
        return Ok(built_in);
    }
    let Some(machine) = machine else {
        return Err(document.fault(config.key, format!("acceleratorConfig needs `{key}`"), None));
    };
    machine::attach(machine, accelerator, *count)
        .map_err(|refusal| document.fault(config.at, refusal.message, refusal.hint))
}

/// As in TensorFlow, where a cluster's evaluator is one: it takes each checkpoint in turn.
fn check_evaluators(document: &Document, job: &Job) -> Result<(), Fault> {
    let [_, _, _, role] = &job.roles;
    match &role.count {
        Some(count) if count.value > 1 => Err(document.fault(
            count.at,
            format!(
                "`evaluatorCount` is {}: a job has one evaluator, which takes each checkpoint in turn",
                count.value
            ),
            Some(
                "set it to 1, or leave it out for the master to evaluate between steps; a GPU, a smaller `num_examples` or fewer \
                 checkpoints help an evaluator that falls behind"
                    .to_owned(),
            ),
        )),
        _ => Ok(()),
    }
}

fn check_parameter_servers(
    document: &Document,
    job: &Job,
    servers: u32,
    warnings: &mut Vec<String>,
) -> Result<(), Fault> {
    let [_, _, server_role, _] = &job.roles;
    if let Some(at) = job.coati.local_reduce.filter(|_| servers == 0) {
        let message =
            "`coati.local_reduce` without a parameter server: replicas sum all gradients among themselves anyway";
        return Err(document.fault(at, message, Some("leave it out".to_owned())));
    }
    if let Some(at) = job.coati.replication.filter(|_| servers < 2) {
        return Err(document.fault(
            at,
            format!("`coati.replication: 1` with {servers} parameter server(s): a copy lies on another server"),
            Some("use 3 parameter servers, or `replication: 0`".to_owned()),
        ));
    }
    if servers == 0 || servers % 2 == 1 {
        return Ok(());
    }
    let (below, above) = (servers - 1, servers + 1);
    match job.coati.placement {
        Placement::RoundRobin => {
            let at = server_role
                .count
                .as_ref()
                .map_or(job.training_input, |placed| placed.at);
            Err(document.fault(
                at,
                format!(
                    "`parameterServerCount` is {servers}, which is even, under round-robin placement: weights and biases \
                     alternate in a model, so an even number of servers gives one server all weights and its neighbour all biases"
                ),
                Some(format!("use {below} or {above} parameter servers, or `placement: balanced` under `coati:`")),
            ))
        }
        Placement::Balanced => {
            warnings.push(format!(
                "`parameterServerCount` is {servers}, which is even: fine under balanced placement, but the same file is refused \
                 under `placement: round_robin`; {below} or {above} work under both"
            ));
            Ok(())
        }
    }
}
