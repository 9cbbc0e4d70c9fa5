//! One suite for every [`Exchange`]: the same gradients must end in the same checkpoint, bit for bit.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coati_checkpoint::bundle::Reader;
use coati_checkpoint::{keep, saver, state};
use coati_common::cluster::OnNan;
use coati_common::config::PipelineConfig;
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_coordinator::membership::Identity;
use coati_coordinator::run::Limits;
use coati_coordinator::{self as coordinator, Client, Init, Outcome, cadence};
use coati_param_server::{Consistency, OptimizerConfig, PsGroup, Strategy, service};
use coati_proto::coati::v1::{JobRef, Task};
use coati_proto::object_detection::protos::Optimizer;
use prost::Message as _;
use tokio::runtime::Runtime;

use crate::exchange::{Contribution, Exchange, Fate, Lease, Phases};
use crate::local::{self, Local, Saving, Start};
use crate::remote::Remote;
use crate::stop::StopFlag;

const LIMIT: Duration = Duration::from_secs(60);
const STEPS: u64 = 12;
const BATCH: u32 = 4;
const RECORDS: u64 = 10;
const SEED: u64 = 7;

const OPTIMIZERS: [&str; 3] = [
    "momentum_optimizer { learning_rate { cosine_decay_learning_rate { learning_rate_base: 0.1 total_steps: 12 warmup_learning_rate: 0.01 warmup_steps: 3 } } momentum_optimizer_value: 0.9 } use_moving_average: true",
    "rms_prop_optimizer { learning_rate { exponential_decay_learning_rate { initial_learning_rate: 0.004 decay_steps: 5 decay_factor: 0.9 } } momentum_optimizer_value: 0.9 decay: 0.9 epsilon: 1.0 } use_moving_average: false",
    "adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } } use_moving_average: true",
];

fn optimizer(text: &str) -> Optimizer {
    let text = format!("train_config {{ optimizer {{ {text} }} }}");
    let config = PipelineConfig::parse(&text, "test").unwrap();
    config.train_config().optimizer.clone().unwrap()
}

fn variables() -> Vec<VariableSpec> {
    let spec = |name: &str, shape: &[i64], kind| VariableSpec {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    };
    vec![
        spec("conv/weights", &[3, 3, 8, 16], VariableKind::Trainable),
        spec(
            "conv/BatchNorm/moving_variance",
            &[16],
            VariableKind::MovingStatistic { decay: 0.9 },
        ),
        spec("frozen", &[5], VariableKind::Constant),
        spec("biases", &[16], VariableKind::Trainable),
    ]
}

fn job() -> JobRef {
    JobRef {
        job_id: "conformance".into(),
        incarnation: 1,
    }
}

fn values() -> Vec<f32> {
    (0..flat_elements(&variables()))
        .map(|i| (i as f32 * 0.37).sin())
        .collect()
}

/// What the loop of a replica does, with made-up gradients. Returns the first positions of the batches, in their order.
fn train(exchange: &mut impl Exchange) -> Vec<u64> {
    let mut variables = vec![0.0; flat_elements(&self::variables())];
    let (mut version, mut used) = (0, Vec::new());
    let mut ahead = std::collections::VecDeque::new();
    let mut exhausted = false;
    loop {
        assert_eq!(exchange.asked_to_leave().unwrap(), None);
        if !exhausted && ahead.len() < 3 {
            let (leases, no_more) = exchange.lease(3 - ahead.len() as u32).unwrap();
            ahead.extend(leases);
            exhausted = no_more;
        }
        let lease = ahead.pop_front().expect("a batch for each step");
        let pulled = exchange.pull(version, &mut variables).unwrap();
        assert_eq!(pulled, version, "the only replica sees each version");
        let gradients: Vec<f32> = variables
            .iter()
            .zip(0..)
            .map(|(value, i)| 0.1 * value + ((lease.first_position * 31 + i) as f32).cos())
            .collect();
        // As a backward pass completes them: from the end, in parts; those of some steps not at all, of others not all.
        let parts = (0..gradients.len()).step_by(97).rev();
        for start in parts.take((version as usize % 4) * 6) {
            let part = start..gradients.len().min(start + 97);
            exchange.ready(version, part.clone(), &gradients[part]);
        }
        let contribution = Contribution {
            version,
            lease,
            samples: lease.count,
            gradients: &std::sync::Arc::new(gradients),
            losses: vec![("Loss/total_loss", 1.0)],
            phases: Phases::default(),
            bad_records: Vec::new(),
        };
        used.push(lease.first_position);
        match exchange.contribute(&contribution, &mut variables).unwrap() {
            Fate::Committed { version: next, last } => {
                assert_eq!(next, version + 1);
                version = next;
                if last {
                    assert!(exhausted && ahead.is_empty(), "no more batches than steps");
                    return used;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn local_options(folder: &Path, text: &str) -> local::Options {
    local::Options {
        model_dir: folder.to_owned(),
        job: job(),
        variables: variables(),
        optimizer: OptimizerConfig::try_from(&optimizer(text)).unwrap(),
        num_steps: STEPS,
        batch_size: BATCH,
        record_count: RECORDS,
        config_digest: "c".into(),
        seed: SEED,
        saving: Saving {
            every: LIMIT,
            every_steps: None,
            keep: keep::Options::default(),
        },
        stop: StopFlag::default(),
        on_nan: OnNan::Stop,
    }
}

fn in_process(folder: &Path, text: &str) -> Vec<u64> {
    let mut exchange = Local::new(local_options(folder, text), &Start::Values(&values())).unwrap();
    let used = train(&mut exchange);
    exchange.save().unwrap();
    used
}

/// Contributes once to a job in one process, with NaN in the gradient; returns what became of it, and the next lease.
fn broken(on_nan: OnNan) -> (Result<Fate, String>, Lease, Lease) {
    let folder = tempfile::tempdir().unwrap();
    let options = local::Options {
        on_nan,
        ..local_options(folder.path(), OPTIMIZERS[0])
    };
    let mut exchange = Local::new(options, &Start::Values(&values())).unwrap();
    let mut variables = values();
    let (leases, _) = exchange.lease(1).unwrap();
    let contribution = Contribution {
        version: 0,
        lease: leases[0],
        samples: BATCH,
        gradients: &Arc::new(vec![f32::NAN; variables.len()]),
        losses: Vec::new(),
        phases: Phases::default(),
        bad_records: Vec::new(),
    };
    let fate = exchange.contribute(&contribution, &mut variables);
    let said = exchange.take_events();
    if on_nan == OnNan::Skip {
        assert!(
            matches!(&said[..], [local::Event::Skipped(text)] if text.contains("NaN")),
            "{said:?}"
        );
    }
    (
        fate.map_err(|error| error.to_string()),
        leases[0],
        exchange.lease(1).unwrap().0[0],
    )
}

#[test]
fn a_job_in_one_process_does_with_nan_what_the_cluster_file_says() {
    let (stopped, ..) = broken(OnNan::Stop);
    assert!(stopped.unwrap_err().contains("NaN in `"));
    let (applied, ..) = broken(OnNan::Apply);
    assert_eq!(
        applied,
        Ok(Fate::Committed {
            version: 1,
            last: false
        })
    );
    let (skipped, used, next) = broken(OnNan::Skip);
    assert_eq!(skipped, Ok(Fate::Dropped { version: 0 }));
    assert_eq!(next.first_position, used.first_position, "its records went back");
}

fn over_the_wire(folder: &Path, text: &str, servers: u32) -> Vec<u64> {
    let runtime = Runtime::new().unwrap();
    let identity = Identity {
        software_version: env!("CARGO_PKG_VERSION").into(),
        config_digest: "c".into(),
        dataset_digest: "d".into(),
        record_count: RECORDS,
    };
    let (handle, exchange) = runtime.block_on(async {
        let mut ps_addresses = Vec::new();
        for index in 0..servers {
            let server = service::serve(service::Options::new(index, "127.0.0.1:0"))
                .await
                .unwrap();
            ps_addresses.push(server.address().to_string());
        }
        let options = coordinator::Options {
            job: job(),
            model_dir: folder.to_owned(),
            listen: "127.0.0.1:0".into(),
            ps_addresses,
            workers: 0,
            variables: variables(),
            init: Init::Values(std::sync::Arc::new(values())),
            optimizer: optimizer(text).encode_to_vec().into(),
            num_steps: STEPS,
            batch_size: BATCH,
            identity: identity.clone(),
            data_seed: SEED,
            strategy: Strategy::Balanced,
            synchronous: true,
            replicas_to_aggregate: 0,
            consistency: Consistency::default(),
            replication: false,
            on_nan: OnNan::Stop,
            compression: coati_proto::coati::v1::Compression::default(),
            cadence: cadence::Options {
                every: LIMIT,
                every_steps: None,
            },
            keep: keep::Options::default(),
            limits: Limits::default(),
        };
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        let handle = coordinator::start(options, events).await.unwrap();
        let task = Task {
            r#type: "master".into(),
            index: 0,
        };
        let mut client = Client::join(handle.address(), task, "", &identity, LIMIT, LIMIT)
            .await
            .unwrap();
        let plan = client.plan(LIMIT, |_| ()).await.unwrap();
        let placement = plan.placement.clone().unwrap();
        let group = PsGroup::connect(placement, &plan.ps_addresses, client.job(), LIMIT)
            .await
            .unwrap();
        let exchange = Remote::new(
            tokio::runtime::Handle::current(),
            client,
            group,
            &plan,
            crate::stop::StopFlag::default(),
        );
        (handle, exchange)
    });
    let mut exchange = exchange;
    let used = train(&mut exchange);
    let outcome = runtime.block_on(handle.finish());
    assert_eq!(outcome, Outcome::Completed);
    used
}

#[test]
fn a_job_in_one_process_and_one_on_servers_end_in_the_same_checkpoint() {
    for text in OPTIMIZERS {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().join("here");
        std::fs::create_dir(&here).unwrap();
        let used = in_process(&here, text);
        let expected: Vec<u64> = (0..STEPS).map(|step| step * u64::from(BATCH)).collect();
        assert_eq!(used, expected);
        for servers in [1, 3] {
            let there = folder.path().join(format!("there-{servers}"));
            std::fs::create_dir(&there).unwrap();
            assert_eq!(over_the_wire(&there, text, servers), used);
            assert_same_checkpoint(&here, &there, text);
        }
    }
}

#[track_caller]
fn assert_same_checkpoint(here: &Path, there: &Path, what: &str) {
    let data = |folder: &Path| state::latest(folder).unwrap().unwrap().manifest.unwrap().data;
    assert_eq!(data(here), data(there));
    let open = |folder: &Path| Reader::open(&saver::prefix(folder, STEPS)).unwrap();
    let (here, there) = (open(here), open(there));
    let names = |reader: &Reader| reader.entries().map(|entry| entry.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&here), names(&there), "{what}");
    for name in names(&here) {
        let same = here.read_raw(&name).unwrap() == there.read_raw(&name).unwrap();
        assert!(same, "{name} differs with {what}");
    }
}
