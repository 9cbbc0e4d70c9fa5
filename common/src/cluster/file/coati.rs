//! Our own section of the cluster file, `coati:`. What is not built is refused by name.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{compression, consistency, precision, security};
use crate::cluster::duration;
use crate::cluster::plan::{
    AllReduce, Compression, Consistency, Devices, Heartbeat, Launcher, Placement, Restart, Transport, bucket_bytes,
};
use crate::cluster::precision::Numerics;
use crate::cluster::security::{OnNan, Security};
use crate::cluster::suggest;
use crate::cluster::yaml::{Document, Fault, Fields, Node, Position, Value};

pub(super) const KEYS: [&str; 19] = [
    "launcher",
    "hosts",
    "placement",
    "consistency",
    "replication",
    "compression",
    "security",
    "on_nan",
    "threads_per_replica",
    "heartbeat_interval",
    "heartbeat_timeout",
    "restart",
    "devices",
    "bucket_size",
    "transport",
    "local_reduce",
    "keep_best",
    "precision",
    "tf32",
];

const RESTART: [&str; 2] = ["max", "window"];

/// Settings of the pipeline that people may look for here.
const OF_THE_PIPELINE: [&str; 4] = ["sync_replicas", "replicas_to_aggregate", "mode", "synchronous"];

/// Launchers that are planned; naming one gives a better answer than "unknown".
const LATER_LAUNCHERS: [&str; 6] = ["ssh", "kubernetes", "slurm", "docker", "gcloud", "vertex"];

/// The section with its defaults.
#[derive(Default)]
pub(super) struct Coati {
    pub(super) launcher: Launcher,
    pub(super) placement: Placement,
    pub(super) consistency: Consistency,
    /// Where it is asked for.
    pub(super) replication: Option<Position>,
    pub(super) security: Security,
    pub(super) on_nan: OnNan,
    pub(super) compression: Compression,
    pub(super) threads_per_replica: Option<NonZeroU32>,
    pub(super) heartbeat: Heartbeat,
    pub(super) restart: Restart,
    pub(super) devices: Devices,
    pub(super) all_reduce: AllReduce,
    /// Where it is asked for.
    pub(super) local_reduce: Option<Position>,
    pub(super) keep_best: Option<String>,
    pub(super) numerics: Numerics,
}

pub(super) fn read(document: &Document, node: &Node) -> Result<Coati, Fault> {
    let pipeline: &[(&str, &[&str])] = &[("train_config (of the pipeline configuration)", &OF_THE_PIPELINE)];
    let fields = document.fields(node, "coati", &KEYS, pipeline)?;
    let mut coati = Coati::default();
    for name in fields.names() {
        let Some(node) = fields.get(name) else { continue };
        let key = format!("coati.{name}");
        match name {
            "launcher" => coati.launcher = launcher(document, node, &key)?,
            "hosts" => hosts(document, node, &key)?,
            "placement" => coati.placement = placement(document, node, &key)?,
            "consistency" => coati.consistency = consistency::read(document, node, pipeline)?,
            "replication" => {
                let copies = document.integer(node, &key, 0, 1000)?;
                if copies > 1 {
                    let supported = "1 (every parameter server has a copy on the next one) and 0";
                    return Err(not_built(document, node.at, &format!("`{key}: {copies}`"), supported));
                }
                coati.replication = (copies == 1).then_some(node.at);
            }
            "security" => coati.security = security::read(document, node)?,
            "on_nan" => coati.on_nan = security::on_nan(document, node, &key)?,
            "compression" => coati.compression = compression::read(document, node, &key)?,
            "threads_per_replica" => {
                let value = document.integer(node, &key, 1, 1024)?;
                coati.threads_per_replica = u32::try_from(value).ok().and_then(NonZeroU32::new);
            }
            "heartbeat_interval" => coati.heartbeat.interval = positive(document, node, &key)?,
            "heartbeat_timeout" => coati.heartbeat.timeout = positive(document, node, &key)?,
            "restart" => coati.restart = restart(document, node)?,
            "keep_best" => coati.keep_best = Some(document.text(node, &key)?),
            "precision" => coati.numerics.precision = precision::precision(document, node, &key)?,
            "tf32" => coati.numerics.tf32 = precision::tf32(document, node, &key)?,
            "devices" => coati.devices = devices(document, node, &key)?,
            "bucket_size" => {
                let text = document.text(node, &key)?;
                coati.all_reduce.bucket_bytes = bucket_bytes(&text).map_err(|what| {
                    let hint = "gradients are summed in buckets of this size while the backward pass goes on";
                    document.fault(node.at, format!("`{key}`: {what}"), Some(hint.to_owned()))
                })?;
            }
            "transport" => coati.all_reduce.transport = transport(document, node, &key)?,
            _ => coati.local_reduce = document.boolean(node, &key)?.then_some(node.at),
        }
    }
    check_heartbeat(document, &fields, &coati.heartbeat)?;
    precision::check(document, &fields, coati.numerics, &coati.devices)?;
    Ok(coati)
}

fn not_built(document: &Document, at: Position, what: &str, supported: &str) -> Fault {
    document.fault(
        at,
        format!("{what} is not built yet"),
        Some(format!("supported today: {supported}")),
    )
}

pub(super) fn choice(document: &Document, node: &Node, key: &str, value: &str, known: &[&'static str]) -> Fault {
    let hint = suggest::nearest(value, known.iter().copied()).map_or_else(
        || format!("known are {}", known.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    document.fault(node.at, format!("unknown value `{value}` of `{key}`"), Some(hint))
}

fn launcher(document: &Document, node: &Node, key: &str) -> Result<Launcher, Fault> {
    let value = document.text(node, key)?;
    match value.as_str() {
        "local" => Ok(Launcher::Local),
        later if LATER_LAUNCHERS.contains(&later) => {
            Err(not_built(document, node.at, &format!("launcher `{later}`"), "local"))
        }
        _ => Err(choice(document, node, key, &value, &["local"])),
    }
}

fn hosts(document: &Document, node: &Node, key: &str) -> Result<(), Fault> {
    for host in document.list(node, key)? {
        let name = document.text(host, key)?;
        if !["localhost", "127.0.0.1", "::1"].contains(&name.as_str()) {
            return Err(not_built(
                document,
                host.at,
                &format!("starting tasks on another host (`{name}`)"),
                "localhost, which needs no list",
            ));
        }
    }
    Ok(())
}

fn placement(document: &Document, node: &Node, key: &str) -> Result<Placement, Fault> {
    let value = document.text(node, key)?;
    match value.as_str() {
        "balanced" => Ok(Placement::Balanced),
        "round_robin" => Ok(Placement::RoundRobin),
        _ => Err(choice(document, node, key, &value, &["balanced", "round_robin"])),
    }
}

fn transport(document: &Document, node: &Node, key: &str) -> Result<Transport, Fault> {
    let value = document.text(node, key)?;
    match value.as_str() {
        "auto" => Ok(Transport::Auto),
        "shared_memory" => Ok(Transport::SharedMemory),
        "tcp" => Ok(Transport::Tcp),
        _ => Err(choice(document, node, key, &value, &["auto", "shared_memory", "tcp"])),
    }
}

fn devices(document: &Document, node: &Node, key: &str) -> Result<Devices, Fault> {
    if let Value::List(items) = &node.value {
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            let device = u32::try_from(document.integer(item, key, 0, 1023)?).unwrap_or(u32::MAX);
            if list.contains(&device) {
                return Err(document.fault(item.at, format!("GPU {device} is listed twice in `{key}`"), None));
            }
            list.push(device);
        }
        return if list.is_empty() {
            Err(document.fault(
                node.at,
                format!("`{key}` lists no GPU"),
                Some("write `cpu` to train without GPUs".to_owned()),
            ))
        } else {
            Ok(Devices::GpuList(list))
        };
    }
    let value = document.text(node, key)?;
    match value.as_str() {
        "auto" => Ok(Devices::Auto),
        "cpu" => Ok(Devices::Cpu),
        "gpu" => Ok(Devices::Gpu),
        counted if counted.starts_with("cpu:") => {
            Devices::parse(counted).map_err(|what| document.fault(node.at, format!("`{key}`: {what}"), None))
        }
        _ => Err(choice(document, node, key, &value, &["auto", "cpu", "cpu:2", "gpu"])),
    }
}

fn restart(document: &Document, node: &Node) -> Result<Restart, Fault> {
    let fields = document.fields(node, "coati.restart", &RESTART, &[])?;
    let mut restart = Restart::default();
    if let Some(node) = fields.get("max") {
        let max = document.integer(node, "coati.restart.max", 0, 1_000_000)?;
        restart.max = u32::try_from(max).unwrap_or(u32::MAX);
    }
    if let Some(node) = fields.get("window") {
        restart.window = positive(document, node, "coati.restart.window")?;
    }
    Ok(restart)
}

fn positive(document: &Document, node: &Node, key: &str) -> Result<Duration, Fault> {
    let text = document.text(node, key)?;
    duration::parse(&text).filter(|value| !value.is_zero()).ok_or_else(|| {
        let message = format!("`{key}` must be a duration above zero, found `{text}`");
        document.fault(node.at, message, Some(format!("write {}", duration::EXPECTED)))
    })
}

/// One lost message must not count as a lost task.
fn check_heartbeat(document: &Document, fields: &Fields<'_>, heartbeat: &Heartbeat) -> Result<(), Fault> {
    if heartbeat.timeout >= heartbeat.interval.saturating_mul(2) {
        return Ok(());
    }
    let name = if fields.get("heartbeat_timeout").is_some() {
        "heartbeat_timeout"
    } else {
        "heartbeat_interval"
    };
    let at = fields.get(name).map_or(fields.at, |node| node.at);
    let message = format!(
        "`coati.heartbeat_timeout` ({}) must be at least twice `coati.heartbeat_interval` ({})",
        duration::format(heartbeat.timeout),
        duration::format(heartbeat.interval)
    );
    Err(document.fault(at, message, None))
}
