//! What parameter servers move, beside what a plain TCP stream moves on the same machine in the same minute: no model.
//!
//! Servers, workers and both ends of the stream are processes of their own on loopback. A round is: as many bytes through the
//! stream as the workers will move; then all workers pull all variables; then all push a gradient for all. Afterwards the
//! contributions are committed (momentum), which is told apart. CPU seconds are those of all processes on both ends.

mod checkpoint;
mod children;
mod tcp;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use coati_common::rpc::security::Sources;
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_param_server::{Compression, Contributor, PsGroup, Strategy, Tag, plan};
use coati_proto::coati::v1::JobRef;
use coati_proto::object_detection::protos;
use prost::Message as _;
use serde_json::json;
use tokio::runtime::Runtime;

use super::spread;
use crate::args::{BenchPsArgs, BenchTaskArgs, TaskRole};
use crate::console::report;
use children::{Child, cpu_of};

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(120);

/// So many equal variables; those above 4 MiB are cut by the placement.
const VARIABLES: usize = 50;

/// Rounds before those that count: memory is touched, connections have their windows.
const WARM_UP: u64 = 2;

fn specs(megabytes: f64) -> Vec<VariableSpec> {
    let rows = (megabytes * 1e6 / 4.0 / VARIABLES as f64 / 100.0).ceil() as i64;
    (0..VARIABLES)
        .map(|i| VariableSpec {
            name: format!("v{i}"),
            shape: vec![rows, 100],
            kind: VariableKind::Trainable,
        })
        .collect()
}

async fn group(megabytes: f64, addresses: &[String]) -> anyhow::Result<PsGroup> {
    let job = JobRef {
        job_id: "bench".to_owned(),
        incarnation: 1,
    };
    let placement = plan(&specs(megabytes), addresses.len() as u32, Strategy::Balanced)?;
    Ok(PsGroup::connect(placement, addresses, &job, LIMIT).await?)
}

/// Momentum at a constant rate.
fn optimizer() -> bytes::Bytes {
    protos::Optimizer {
        optimizer: Some(protos::optimizer::Optimizer::MomentumOptimizer(
            protos::MomentumOptimizer {
                learning_rate: Some(protos::LearningRate {
                    learning_rate: Some(protos::learning_rate::LearningRate::ConstantLearningRate(
                        protos::ConstantLearningRate::default(),
                    )),
                }),
                momentum_optimizer_value: Some(0.9),
            },
        )),
        use_moving_average: Some(false),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

/// One of the processes that [`run`] starts.
pub(crate) fn task(arguments: &BenchTaskArgs) -> anyhow::Result<()> {
    if let Some(folder) = &arguments.credentials {
        Sources::of_folder(folder.clone()).load(LIMIT)?.install();
    }
    match arguments.role {
        TaskRole::Server => children::serve(arguments.index),
        TaskRole::Worker => children::work(arguments, LIMIT),
        TaskRole::Source => tcp::source(arguments),
        TaskRole::Sink => tcp::sink(arguments),
    }
}

pub(crate) fn run(arguments: &BenchPsArgs) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let folder = tempfile::tempdir()?;
    let mut credentials = Vec::new();
    if arguments.tls {
        let made = folder.path().join("tls");
        let sources = Sources::of_folder(made.clone());
        sources.make()?;
        sources.load(LIMIT)?.install();
        credentials.push(format!("--credentials={}", made.display()));
    }
    let (mut servers, addresses) = children::servers(arguments.servers, &credentials)?;
    let group = runtime.block_on(async {
        let group = group(arguments.megabytes, &addresses).await?;
        group.configure(optimizer(), 0, LIMIT).await?;
        let elements = group.layout().flat_len();
        group.load(&vec![1.0; elements], 0, LIMIT).await?;
        anyhow::Ok(group)
    })?;
    let data = if let Some(folder) = &arguments.checkpoint {
        runtime.block_on(checkpoint::measure(&group, folder, arguments))?
    } else {
        let mut workers = children::workers(arguments, &addresses, &credentials)?;
        measure(&runtime, &group, arguments, &mut servers, &mut workers)?
    };
    runtime.block_on(group.shutdown("measured", LIMIT))?;
    report(&serde_json::to_string(&data)?);
    Ok(())
}

/// Seconds that passed and CPU seconds that `processes` used while `work` was done.
fn timed(processes: &[u32], work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<(f64, f64)> {
    let cpu = cpu_of(processes)?;
    let begun = Instant::now();
    work()?;
    let passed = begun.elapsed().as_secs_f64();
    Ok((passed, cpu_of(processes)? - cpu))
}

/// Tells all at the same time and waits for all.
fn all(children: &mut [Child], order: &str) -> anyhow::Result<()> {
    for child in children.iter_mut() {
        child.tell(order)?;
    }
    for child in children {
        child.hear().with_context(|| format!("`{order}`"))?;
    }
    Ok(())
}

fn measure(
    runtime: &Runtime,
    group: &PsGroup,
    arguments: &BenchPsArgs,
    servers: &mut [Child],
    workers: &mut [Child],
) -> anyhow::Result<serde_json::Value> {
    let bytes = flat_elements(&specs(arguments.megabytes)) as f64 * 4.0 * workers.len() as f64;
    let mut stream = tcp::Stream::start((2.0 * bytes) as u64, arguments.megabytes)?;
    let ours: Vec<u32> = servers
        .iter()
        .chain(workers.iter())
        .map(Child::id)
        .chain([std::process::id()])
        .collect();
    let contributors = |sequence| -> Vec<Contributor> {
        (0..arguments.workers)
            .map(|replica| Contributor {
                replica,
                sequence,
                samples: 8,
            })
            .collect()
    };
    let mut rounds: Vec<Round> = Vec::new();
    let begun = Instant::now();
    for version in 0.. {
        let plain = stream.send()?;
        let pull = timed(&ours, || all(workers, &format!("pull {version}")))?;
        let push = timed(&ours, || all(workers, &format!("push {version}")))?;
        let commit = timed(&ours, || {
            runtime.block_on(group.commit(version, &contributors(version), true, LIMIT))?;
            Ok(())
        })?;
        if version >= WARM_UP {
            rounds.push(Round {
                plain,
                pull,
                push,
                commit,
            });
        }
        if begun.elapsed().as_secs_f64() >= arguments.seconds && rounds.len() >= 5 {
            break;
        }
    }
    let megabytes = bytes / 1e6;
    let of = |figure: &dyn Fn(&Round) -> f64| spread(&rounds.iter().map(figure).collect::<Vec<_>>());
    // CPU clocks of several processes are read one after the other: over all rounds together, that does not matter.
    let per_gb = |seconds: &dyn Fn(&Round) -> f64| {
        rounds.iter().map(seconds).sum::<f64>() / (rounds.len() as f64 * 2.0 * bytes / 1e9)
    };
    let goodput = |round: &Round| 2.0 * megabytes / (round.pull.0 + round.push.0);
    let plain = |round: &Round| 2.0 * megabytes / round.plain.0;
    Ok(json!({
        "bench": "ps", "servers": arguments.servers, "workers": arguments.workers,
        "megabytes": bytes / f64::from(arguments.workers) / 1e6, "rounds": rounds.len(),
        "gradients": arguments.gradients, "weights": arguments.weights, "tls": arguments.tls,
        "goodput_mb_per_s": of(&goodput),
        "pull_mb_per_s": of(&|round| megabytes / round.pull.0),
        "push_mb_per_s": of(&|round| megabytes / round.push.0),
        "tcp_mb_per_s": of(&plain),
        "of_tcp": of(&|round| goodput(round) / plain(round)),
        "cpu_s_per_gb": per_gb(&|round| round.pull.1 + round.push.1),
        "pull_cpu_s_per_gb": 2.0 * per_gb(&|round| round.pull.1),
        "push_cpu_s_per_gb": 2.0 * per_gb(&|round| round.push.1),
        "tcp_cpu_s_per_gb": per_gb(&|round| round.plain.1),
        "with_commits_mb_per_s": of(&|round| 2.0 * megabytes / (round.pull.0 + round.push.0 + round.commit.0)),
        "with_commits_cpu_s_per_gb": per_gb(&|round| round.pull.1 + round.push.1 + round.commit.1),
        "commit_ms": of(&|round| round.commit.0 * 1e3),
    }))
}

/// Seconds and CPU seconds.
struct Round {
    plain: (f64, f64),
    pull: (f64, f64),
    push: (f64, f64),
    commit: (f64, f64),
}

fn tag(replica: u32, version: u64) -> Tag {
    Tag {
        replica,
        sequence: version,
        version,
    }
}

fn compression(arguments: &BenchTaskArgs) -> Compression {
    use coati_common::cluster::{Compression as Chosen, GradientCompression, WeightCompression};
    let chosen = Chosen {
        gradients: match arguments.gradients.as_str() {
            "bf16" => GradientCompression::Bf16,
            "topk" => GradientCompression::TopK,
            _ => GradientCompression::None,
        },
        weights: if arguments.weights == "bf16" {
            WeightCompression::Bf16
        } else {
            WeightCompression::None
        },
        ..Chosen::default()
    };
    Compression::from(&chosen.to_wire())
}
