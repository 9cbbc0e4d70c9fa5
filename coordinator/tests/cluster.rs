//! A coordinator, servers and replicas in this process, on loopback.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coati_checkpoint::bundle::Reader;
use coati_checkpoint::keep;
use coati_checkpoint::manifest::Manifest;
use coati_checkpoint::state;
use coati_common::cluster::OnNan;
use coati_common::config::PipelineConfig;
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_coordinator::membership::Identity;
use coati_coordinator::run::{Limits, Options};
use coati_coordinator::{Event, Handle, Init, Outcome, cadence};
use coati_param_server::{Consistency, Strategy, service};
use coati_proto::coati::v1;
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;

use crate::replica::{Habits, Random, Seen};

/// Longer than anything here takes; a test that waits for it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// After so long a replica that vanished counts as lost: a test waits for it, and on a busy machine nobody else may be taken for one.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);

pub(crate) const RECORDS: u64 = 50;
pub(crate) const BATCH: u32 = 4;

pub(crate) const MOMENTUM: &str = "momentum_optimizer { learning_rate { cosine_decay_learning_rate { learning_rate_base: 0.1 total_steps: 40 warmup_learning_rate: 0.01 warmup_steps: 5 } } momentum_optimizer_value: 0.9 } use_moving_average: true moving_average_decay: 0.99";
pub(crate) const RMS_PROP: &str = "rms_prop_optimizer { learning_rate { exponential_decay_learning_rate { initial_learning_rate: 0.004 decay_steps: 7 decay_factor: 0.95 } } momentum_optimizer_value: 0.9 decay: 0.9 epsilon: 1.0 } use_moving_average: true moving_average_decay: 0.9";
pub(crate) const ADAM: &str = "adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } } use_moving_average: true moving_average_decay: 0.9";

pub(crate) fn optimizer(text: &str) -> Bytes {
    let text = format!("train_config {{ optimizer {{ {text} }} }}");
    let config = PipelineConfig::parse(&text, "test").unwrap();
    config.train_config().optimizer.clone().unwrap().encode_to_vec().into()
}

pub(crate) fn variables() -> Vec<VariableSpec> {
    let spec = |name: &str, shape: &[i64], kind| VariableSpec {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    };
    vec![
        spec("Conv2d_0/weights", &[3, 3, 3, 8], VariableKind::Trainable),
        spec("Conv2d_0/BatchNorm/gamma", &[8], VariableKind::Trainable),
        spec(
            "Conv2d_0/BatchNorm/moving_mean",
            &[8],
            VariableKind::MovingStatistic { decay: 0.9 },
        ),
        spec("Conv2d_1/weights", &[1, 1, 8, 64], VariableKind::Trainable),
        spec("frozen/weights", &[7, 11], VariableKind::Constant),
        spec("BoxPredictor_0/biases", &[24], VariableKind::Trainable),
        spec("scale", &[], VariableKind::Trainable),
    ]
}

pub(crate) fn identity() -> Identity {
    Identity {
        software_version: env!("CARGO_PKG_VERSION").into(),
        config_digest: "c0ffee".into(),
        dataset_digest: "da7a".into(),
        record_count: RECORDS,
    }
}

/// Short enough for a test that waits for the end of one, long enough for a busy machine.
pub(crate) fn limits() -> Limits {
    Limits {
        formation: LIMIT,
        heartbeat_interval: Duration::from_millis(50),
        heartbeat_timeout: LIMIT,
        commit: Duration::from_secs(20),
        save: LIMIT,
        farewell: Duration::from_secs(20),
        rejoin: LIMIT,
    }
}

/// A job of three replicas with momentum, new in `model_dir`; goes on where the folder has a checkpoint.
pub(crate) fn options(model_dir: &Path, incarnation: u64) -> Options {
    let latest = state::latest(model_dir).unwrap();
    let mut random = Random(99);
    let values: Vec<f32> = (0..flat_elements(&variables()))
        .map(|_| random.below(2000) as f32 / 1000.0 - 1.0)
        .collect();
    let init = latest.map_or_else(
        || Init::Values(Arc::new(values)),
        |latest| Init::Checkpoint {
            prefix: latest.prefix,
            step: latest.step,
            data: latest.manifest.unwrap().data,
        },
    );
    Options {
        job: v1::JobRef {
            job_id: "test".into(),
            incarnation,
        },
        model_dir: model_dir.to_owned(),
        listen: "127.0.0.1:0".into(),
        ps_addresses: Vec::new(),
        workers: 2,
        variables: variables(),
        init,
        optimizer: optimizer(MOMENTUM),
        num_steps: 20,
        batch_size: BATCH,
        identity: identity(),
        data_seed: 7,
        strategy: Strategy::Balanced,
        synchronous: true,
        replicas_to_aggregate: 0,
        consistency: Consistency::default(),
        replication: false,
        on_nan: OnNan::Stop,
        compression: coati_proto::coati::v1::Compression::default(),
        cadence: cadence::Options {
            every: LIMIT * 60,
            every_steps: None,
        },
        keep: keep::Options::default(),
        limits: limits(),
    }
}

/// A job that runs.
pub(crate) struct Job {
    pub(crate) handle: Handle,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) servers: Vec<service::Handle>,
    pub(crate) replicas: Vec<JoinHandle<Result<Seen, String>>>,
    pub(crate) address: String,
    pub(crate) ps_addresses: Vec<String>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) seen: Vec<Seen>,
    pub(crate) events: Vec<Event>,
}

pub(crate) async fn servers(count: u32) -> Vec<service::Handle> {
    let mut servers = Vec::new();
    for index in 0..count {
        servers.push(
            service::serve(service::Options::new(index, "127.0.0.1:0"))
                .await
                .unwrap(),
        );
    }
    servers
}

fn addresses(servers: &[service::Handle]) -> Vec<String> {
    servers.iter().map(|server| server.address().to_string()).collect()
}

/// Servers that the options name.
async fn serving(count: u32, options: &mut Options) -> Vec<service::Handle> {
    let servers = servers(count).await;
    options.ps_addresses = addresses(&servers);
    servers
}

impl Job {
    /// Starts servers and coordinator.
    pub(crate) async fn start(servers: u32, mut options: Options) -> Self {
        let servers = serving(servers, &mut options).await;
        let (sender, events) = mpsc::unbounded_channel();
        let handle = coati_coordinator::start(options, sender).await.unwrap();
        Self::of(handle, events, servers)
    }

    fn of(handle: Handle, events: UnboundedReceiver<Event>, servers: Vec<service::Handle>) -> Self {
        Self {
            address: handle.address().to_owned(),
            ps_addresses: addresses(&servers),
            handle,
            events,
            servers,
            replicas: Vec::new(),
        }
    }

    /// Starts replica `rank`.
    pub(crate) fn replica(&mut self, rank: u32, habits: Habits) {
        let address = self.address.clone();
        self.replicas.push(tokio::spawn(async move {
            Ok(crate::replica::take_part(&address, rank, habits).await)
        }));
    }

    pub(crate) fn all_replicas(&mut self, habits: &Habits) {
        for rank in 0..3 {
            self.replica(rank, habits.clone());
        }
    }

    /// As [`Job::start`], with a coordinator that dies with the runtime returned.
    pub(crate) async fn start_to_die(servers: u32, mut options: Options) -> (Self, Runtime) {
        // A port that the next coordinator can have, too.
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        options.listen = held.local_addr().unwrap().to_string();
        drop(held);
        let servers = serving(servers, &mut options).await;
        let (sender, events) = mpsc::unbounded_channel();
        let runtime = Runtime::new().unwrap();
        let started = runtime.spawn(coati_coordinator::start(options, sender));
        let handle = started.await.unwrap().unwrap();
        (Self::of(handle, events, servers), runtime)
    }

    /// Starts another coordinator in place of one that died, with 40 steps to make.
    pub(crate) async fn coordinator_again(&mut self, mut options: Options) {
        options.ps_addresses.clone_from(&self.ps_addresses);
        options.listen.clone_from(&self.address);
        options.num_steps = 40;
        let (sender, events) = mpsc::unbounded_channel();
        let deadline = tokio::time::Instant::now() + LIMIT;
        // The dead one's listener may take a moment to close.
        self.handle = loop {
            match coati_coordinator::start(options.clone(), sender.clone()).await {
                Ok(handle) => break handle,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        self.events = events;
    }

    /// The newest step that was told.
    pub(crate) fn newest_step(&mut self) -> u64 {
        let mut newest = 0;
        while let Ok(event) = self.events.try_recv() {
            if let Event::Step { version, .. } = event {
                newest = version;
            }
        }
        newest
    }

    /// Waits for a warning that contains this; the whole of it.
    pub(crate) async fn warned(&mut self, part: &str) -> String {
        loop {
            let event = tokio::time::timeout(LIMIT, self.events.recv()).await.unwrap().unwrap();
            if let Event::Warning(text) = event
                && text.contains(part)
            {
                return text;
            }
        }
    }

    /// Starts a server again that has left, at its address.
    pub(crate) async fn server_again(&mut self, index: usize) {
        self.servers[index].ended().await;
        let options = service::Options::new(index as u32, self.ps_addresses[index].clone());
        self.servers[index] = service::serve(options).await.unwrap();
    }

    /// Waits for a step.
    pub(crate) async fn step(&mut self, at_least: u64) {
        self.until(|event| matches!(event, Event::Step { version, .. } if *version >= at_least))
            .await;
    }

    /// Waits until a checkpoint is complete.
    pub(crate) async fn checkpoint(&mut self, at_least: u64) {
        self.until(|event| matches!(event, Event::Saved { step, .. } if *step >= at_least))
            .await;
    }

    async fn until(&mut self, happened: impl Fn(&Event) -> bool) {
        while !happened(&tokio::time::timeout(LIMIT, self.events.recv()).await.unwrap().unwrap()) {}
    }

    /// Waits for the end of everybody.
    pub(crate) async fn end(mut self) -> Ended {
        let outcome = tokio::time::timeout(2 * LIMIT, self.handle.finish()).await.unwrap();
        let mut seen = Vec::new();
        for replica in self.replicas {
            let replica = tokio::time::timeout(LIMIT, replica).await.unwrap().unwrap();
            seen.push(replica.unwrap_or_else(|end| Seen { end, ..Seen::default() }));
        }
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        for server in &self.servers {
            server.shutdown();
        }
        Ended { outcome, seen, events }
    }
}

impl Ended {
    pub(crate) fn warnings(&self) -> Vec<&str> {
        let mut warnings = Vec::new();
        for event in &self.events {
            if let Event::Warning(text) = event {
                warnings.push(text.as_str());
            }
        }
        warnings
    }

    pub(crate) fn saved(&self) -> Vec<u64> {
        let saved = |event: &Event| match event {
            Event::Saved { step, .. } => Some(*step),
            _ => None,
        };
        self.events.iter().filter_map(saved).collect()
    }

    #[track_caller]
    pub(crate) fn failure(&self) -> &str {
        match &self.outcome {
            Outcome::Failed(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// The folder's newest checkpoint.
pub(crate) fn latest(model_dir: &Path) -> (PathBuf, Manifest) {
    let latest = state::latest(model_dir).unwrap().unwrap();
    (latest.prefix, latest.manifest.unwrap())
}

/// Every tensor of a checkpoint, as bytes.
pub(crate) fn tensors(prefix: &Path) -> Vec<(String, Vec<u8>)> {
    let reader = Reader::open(prefix).unwrap();
    let names: Vec<String> = reader.entries().map(|entry| entry.name.clone()).collect();
    names
        .into_iter()
        .map(|name| {
            let bytes = reader.read_raw(&name).unwrap();
            (name, bytes)
        })
        .collect()
}
