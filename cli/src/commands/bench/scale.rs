//! What the control plane costs as a job grows: replicas that compute nothing, real servers, a real coordinator, loopback.
//!
//! Everything runs in this process, each part on threads of its own, so that one clock dates all that happens and the system
//! counts each part's CPU time. The *control-plane time* of a step is what replicas wait for that is no transfer of variables or
//! gradients: from the moment that the last report leaves its replica, through the decision, the log and the commit on all
//! servers, until a replica hears that there is a new version. It is given for the first replica that hears it (the time until
//! the step is made) and for the last one (until everybody goes on).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, process};

use anyhow::Context as _;
use coati_common::cluster::OnNan;
use coati_common::rpc::security::Sources;
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_coordinator::membership::Identity;
use coati_coordinator::run::Limits;
use coati_coordinator::{Client, Event, Init, Outcome, cadence};
use coati_param_server::{Consistency, PsGroup, Strategy, Tag, service};
use coati_proto::coati::v1;
use coati_proto::object_detection::protos;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::median;
use crate::args::{BenchScaleArgs, Format};
use crate::console::report;

/// Steps before those that are measured: connections, memory and caches warm up.
const WARM_UP: u64 = 10;

const LIMIT: Duration = Duration::from_secs(60);

/// Batches leased ahead, as replicas do in synchronous training.
const RESERVE: u32 = 8;

/// Threads of the master's runtime, and here of the others'.
const THREADS: usize = 2;

pub(crate) fn run(arguments: &BenchScaleArgs) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let mut rows = Vec::new();
    for tls in [true, false] {
        for &replicas in &arguments.workers {
            let measured = measure(&folder.0, replicas, arguments.servers, arguments.steps, tls)
                .with_context(|| format!("{replicas} replicas, {} servers", arguments.servers))?;
            rows.push(measured);
        }
    }
    match arguments.format {
        Format::Json => {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            let data = json!({"bench": "scale", "servers": arguments.servers, "steps": arguments.steps, "threads": THREADS, "rows": rows});
            report(&serde_json::to_string(&data)?);
        }
        Format::Text => {
            report("replicas  tls  step made ms (p90)  all know ms  coordinator CPU ms  whole step ms");
            for row in &rows {
                report(&format!(
                    "{:>8}  {:>3}  {:>9.3} ({:>6.3})  {:>11.3}  {:>18.3}  {:>13.2}",
                    row.replicas,
                    if row.tls { "on" } else { "off" },
                    row.made.0,
                    row.made.1,
                    row.known,
                    row.cpu,
                    row.step
                ));
            }
        }
    }
    Ok(())
}

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("coati-bench-scale-{}", process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Milliseconds a step, medians over the steps unless it says otherwise.
struct Row {
    replicas: u32,
    tls: bool,
    /// From the last report's leaving until the first replica knows; and that of which 90 % of the steps stay below.
    made: (f64, f64),
    /// … until the last replica knows.
    known: f64,
    /// CPU time of the coordinator's threads, the mean.
    cpu: f64,
    /// From one step to the next.
    step: f64,
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "replicas": self.replicas, "tls": self.tls,
            "made_ms": {"median": self.made.0, "p90": self.made.1}, "known_ms": self.known,
            "coordinator_cpu_ms": self.cpu, "step_ms": self.step,
        })
    }
}

/// When a replica sent its report of a step, and when it heard of the step.
type Times = BTreeMap<u64, Vec<(Instant, Instant)>>;

fn runtime(name: &str) -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(THREADS).thread_name(name).enable_all().build()?)
}

const COORDINATOR: &str = "coordinator";

fn measure(folder: &Path, replicas: u32, servers: u32, steps: u64, tls: bool) -> anyhow::Result<Row> {
    let sources = Sources::of_job(folder);
    sources.make()?;
    let security = sources.load(LIMIT)?;
    let security = if tls { security } else { security.without_tls() };
    security.clone().install();
    let (serving, coordinating, computing) = (runtime("servers")?, runtime(COORDINATOR)?, runtime("replicas")?);

    let mut handles = Vec::new();
    for index in 0..servers {
        let options = service::Options::new(index, "127.0.0.1:0");
        handles.push(serving.block_on(async { service::serve(options).await })?);
    }
    let ps_addresses = handles.iter().map(|handle| handle.address().to_string()).collect();
    let job_folder = folder.join(format!("{replicas}-{tls}"));
    let options = options(&job_folder, replicas, ps_addresses, steps + WARM_UP);
    let (sender, mut events) = mpsc::unbounded_channel();
    let coordinator = coordinating.block_on(async { coati_coordinator::start(options, sender).await })?;
    let address = coordinator.address().to_owned();

    let times = Arc::new(Mutex::new(Times::new()));
    let training: Vec<_> = (0..replicas)
        .map(|rank| {
            let (address, times) = (address.clone(), Arc::clone(&times));
            computing.spawn(async move { take_part(&address, rank, &times).await })
        })
        .collect();
    // CPU time counts from the first measured step to the last one.
    let (mut from, mut to) = (None, None);
    coordinating.block_on(async {
        while let Some(event) = events.recv().await {
            if let Event::Step { version, .. } = event {
                if version == WARM_UP {
                    from = Some(cpu_of(COORDINATOR));
                }
                if version == WARM_UP + steps {
                    to = Some(cpu_of(COORDINATOR));
                    break;
                }
            }
        }
    });
    for task in training {
        computing.block_on(task)?.map_err(anyhow::Error::msg)?;
    }
    match coordinating.block_on(coordinator.finish()) {
        Outcome::Completed => {}
        Outcome::Interrupted(reason) | Outcome::Failed(reason) => anyhow::bail!(reason),
    }
    for handle in handles {
        serving.block_on(handle.ended());
    }
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    let cpu = from.zip(to).map_or(f64::NAN, |(from, to)| to - from);
    row(replicas, tls, &times, cpu / steps as f64)
}

fn row(replicas: u32, tls: bool, times: &Times, cpu: f64) -> anyhow::Result<Row> {
    let (mut made, mut known, mut whole, mut before) = (Vec::new(), Vec::new(), Vec::new(), None);
    for (_, times) in times.iter().filter(|(version, _)| **version > WARM_UP) {
        let sent = times
            .iter()
            .map(|(sent, _)| *sent)
            .max()
            .context("a step without a report")?;
        let heard = times.iter().map(|(_, heard)| heard.saturating_duration_since(sent));
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        made.push(millis(heard.clone().min().unwrap_or_default()));
        known.push(millis(heard.max().unwrap_or_default()));
        if let Some(before) = before.replace(sent) {
            whole.push(millis(sent.saturating_duration_since(before)));
        }
    }
    made.sort_by(f64::total_cmp);
    let high = made.get(made.len() * 9 / 10).copied().unwrap_or(f64::NAN);
    Ok(Row {
        replicas,
        tls,
        made: (median(&made), high),
        known: median(&known),
        cpu,
        step: median(&whole),
    })
}

/// Milliseconds of CPU time that threads of this name have used.
fn cpu_of(name: &str) -> f64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let used = |task: &Path| -> Option<f64> {
        let named = fs::read_to_string(task.join("comm")).ok()?.trim() == name;
        let times = fs::read_to_string(task.join("schedstat")).ok().filter(|_| named)?;
        let nanos: f64 = times.split_whitespace().next()?.parse().ok()?;
        Some(nanos / 1e6)
    };
    tasks.flatten().filter_map(|task| used(&task.path())).sum()
}

fn variables() -> Vec<VariableSpec> {
    let spec = |index: usize| VariableSpec {
        name: format!("layer_{index}/weights"),
        shape: vec![16],
        kind: VariableKind::Trainable,
    };
    (0..20).map(spec).collect()
}

fn identity() -> Identity {
    Identity {
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        config_digest: "bench".to_owned(),
        dataset_digest: "bench".to_owned(),
        record_count: 1_000_000,
    }
}

fn options(folder: &Path, replicas: u32, ps_addresses: Vec<String>, num_steps: u64) -> coati_coordinator::Options {
    let rate = protos::ConstantLearningRate {
        learning_rate: Some(0.01),
    };
    let optimizer = protos::Optimizer {
        use_moving_average: Some(false),
        optimizer: Some(protos::optimizer::Optimizer::MomentumOptimizer(
            protos::MomentumOptimizer {
                learning_rate: Some(protos::LearningRate {
                    learning_rate: Some(protos::learning_rate::LearningRate::ConstantLearningRate(rate)),
                }),
                momentum_optimizer_value: Some(0.9),
            },
        )),
        ..protos::Optimizer::default()
    };
    coati_coordinator::Options {
        job: v1::JobRef {
            job_id: "bench".to_owned(),
            incarnation: 1,
        },
        model_dir: folder.to_owned(),
        listen: "127.0.0.1:0".to_owned(),
        ps_addresses,
        workers: replicas - 1,
        init: Init::Values(Arc::new(vec![0.5; flat_elements(&variables())])),
        variables: variables(),
        optimizer: optimizer.encode_to_vec().into(),
        num_steps,
        batch_size: 8,
        identity: identity(),
        data_seed: 1,
        strategy: Strategy::Balanced,
        synchronous: true,
        replicas_to_aggregate: 0,
        consistency: Consistency::default(),
        replication: false,
        on_nan: OnNan::Stop,
        compression: v1::Compression::default(),
        cadence: cadence::Options {
            every: LIMIT * 60,
            every_steps: None,
        },
        keep: coati_checkpoint::keep::Options::default(),
        limits: Limits::default(),
    }
}

/// A replica from joining to the last step; what went wrong comes in words.
async fn take_part(address: &str, rank: u32, times: &Mutex<Times>) -> Result<(), String> {
    let words = |error: coati_coordinator::client::Error| error.to_string();
    let ps_words = |error: coati_param_server::client::Error| error.to_string();
    let task = v1::Task {
        r#type: if rank == 0 { "master" } else { "worker" }.to_owned(),
        index: rank.saturating_sub(1),
    };
    let mut client = Client::join(address, task, "", &identity(), LIMIT, LIMIT)
        .await
        .map_err(words)?;
    let plan = client.plan(LIMIT, |_| ()).await.map_err(words)?;
    let placement = plan.placement.clone().unwrap_or_default();
    let servers = PsGroup::connect(placement, &plan.ps_addresses, client.job(), LIMIT)
        .await
        .map_err(ps_words)?
        .for_replica(rank);
    let mut flat = vec![0.0; servers.layout().flat_len()];
    let gradient = vec![1e-3; flat.len()];
    let (mut version, mut sequence, mut ahead) = (plan.start_version, plan.first_sequence, Vec::new());
    loop {
        if ahead.is_empty() {
            (ahead, _) = client.lease(rank, RESERVE).await.map_err(words)?;
        }
        let Some(lease) = ahead.pop() else { return Ok(()) };
        version = servers.pull(version, LIMIT, &mut flat).await.map_err(ps_words)?;
        let tag = Tag {
            replica: rank,
            sequence,
            version,
        };
        servers.push(tag, &gradient, LIMIT).await.map_err(ps_words)?;
        let request = v1::ReportRequest {
            tag: Some(v1::PushTag {
                job: Some(client.job().clone()),
                version,
                replica: rank,
                sequence,
            }),
            lease: lease.lease,
            samples: lease.count,
            losses: vec![v1::Scalar {
                name: "Loss/total_loss".to_owned(),
                value: 1.0,
            }],
            ..v1::ReportRequest::default()
        };
        let sent = Instant::now();
        let reply = client.report(request, |_| ()).await.map_err(words)?;
        let heard = Instant::now();
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        times.entry(reply.version).or_default().push((sent, heard));
        drop(times);
        if reply.last {
            return Ok(());
        }
        (version, sequence) = (reply.version, sequence + 1);
    }
}
