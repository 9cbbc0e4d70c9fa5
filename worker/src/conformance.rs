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

use crate::book::{self, Book, Saving, Start};
use crate::exchange::{Contribution, Exchange, Fate, Lease, Phases};
use crate::local::Local;
use crate::ranks::{Grouped, testing};
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

/// What the loop of a replica does, with made-up gradients that depend on the batch. Returns the first positions of the batches, in their
/// order.
pub(crate) fn train(exchange: &mut impl Exchange) -> Vec<u64> {
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
        assert_eq!(pulled, version, "a replica of every step sees each version");
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

pub(crate) fn local_options(folder: &Path, text: &str) -> book::Options {
    book::Options {
        model_dir: folder.to_owned(),
        job: job(),
        variables: variables(),
        optimizer: OptimizerConfig::try_from(&optimizer(text)).unwrap(),
        num_steps: STEPS,
        replicas: 1,
        batch_size: BATCH,
        record_count: RECORDS,
        config_digest: "c".into(),
        seed: SEED,
        saving: Saving {
            every: LIMIT,
            every_steps: None,
            keep: keep::Options::default(),
        },
        on_nan: OnNan::Stop,
    }
}

fn in_process(folder: &Path, text: &str) -> Vec<u64> {
    let mut exchange = Local::new(
        local_options(folder, text),
        Start::Values(&values()),
        StopFlag::default(),
    )
    .unwrap();
    let used = train(&mut exchange);
    exchange.save().unwrap();
    used
}

/// Contributes once to a job in one process, with NaN in the gradient; returns what became of it, and the next lease.
fn broken(on_nan: OnNan) -> (Result<Fate, String>, Lease, Lease) {
    let folder = tempfile::tempdir().unwrap();
    let options = book::Options {
        on_nan,
        ..local_options(folder.path(), OPTIMIZERS[0])
    };
    let mut exchange = Local::new(options, Start::Values(&values()), StopFlag::default()).unwrap();
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
            matches!(&said[..], [book::Event::Skipped(text)] if text.contains("NaN")),
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

/// A job on parameter servers; the batches of its replicas.
fn over_the_wire(folder: &Path, text: &str, servers: u32, replicas: u32) -> Vec<Vec<u64>> {
    let runtime = Runtime::new().unwrap();
    let identity = Identity {
        software_version: env!("CARGO_PKG_VERSION").into(),
        config_digest: "c".into(),
        dataset_digest: "d".into(),
        record_count: RECORDS,
    };
    let (handle, exchanges) = runtime.block_on(async {
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
            workers: replicas - 1,
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
        let join = |rank: u32| {
            let task = Task {
                r#type: if rank == 0 { "master" } else { "worker" }.into(),
                index: rank.saturating_sub(1),
            };
            let (address, identity) = (handle.address().to_owned(), identity.clone());
            tokio::spawn(async move {
                let mut client = Client::join(&address, task, "", &identity, LIMIT, LIMIT).await.unwrap();
                let plan = client.plan(LIMIT, |_| ()).await.unwrap();
                let placement = plan.placement.clone().unwrap();
                let group = PsGroup::connect(placement, &plan.ps_addresses, client.job(), LIMIT)
                    .await
                    .unwrap();
                let here = tokio::runtime::Handle::current();
                let group = group.for_replica(plan.replica);
                Remote::new(here, client, group, &plan, StopFlag::default())
            })
        };
        let joining: Vec<_> = (0..replicas).map(join).collect();
        let mut exchanges = Vec::new();
        for joined in joining {
            exchanges.push(joined.await.unwrap());
        }
        (handle, exchanges)
    });
    let used = at_once(exchanges, |mut exchange| train(&mut exchange));
    let outcome = runtime.block_on(handle.finish());
    assert_eq!(outcome, Outcome::Completed);
    used
}

/// Each replica on a thread of its own; what they return, in their order.
pub(crate) fn at_once<E: Send, R: Send>(exchanges: Vec<E>, work: impl Fn(E) -> R + Sync) -> Vec<R> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = exchanges
            .into_iter()
            .map(|exchange| scope.spawn(move || work(exchange)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A job whose ranks sum among themselves.
fn among_ranks(folder: &Path, text: &str, world: u32, form: testing::Form) -> Vec<Vec<u64>> {
    let ranks = testing::ranks(world, form, &|_| {
        let options = book::Options {
            replicas: world,
            ..local_options(folder, text)
        };
        Book::new(options, Start::Values(&values())).unwrap()
    });
    at_once(ranks, |mut exchange| {
        let used = train(&mut exchange);
        if exchange.writes() {
            exchange.save().unwrap();
        }
        exchange.close().unwrap();
        used
    })
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
            assert_eq!(over_the_wire(&there, text, servers, 1), [used.clone()]);
            assert_same_checkpoint(&here, &there, text);
        }
    }
}

/// Buckets of some sizes: all in one, some dozens, one for each variable at least.
const FORMS: [testing::Form; 3] = [
    testing::Form::f32(1 << 20),
    testing::Form::f32(512),
    testing::Form::f32(4),
];

#[test]
fn ranks_that_sum_among_themselves_end_in_the_checkpoint_of_the_parameter_servers() {
    for (text, form) in OPTIMIZERS.into_iter().zip(FORMS) {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let made = folder.path().join(name);
            std::fs::create_dir(&made).unwrap();
            made
        };
        for world in [1, 2, 3] {
            let servers = made(&format!("servers-{world}"));
            let used = over_the_wire(&servers, text, 3, world);
            let expected = |rank| -> Vec<u64> {
                let batches = (0..STEPS).map(|step| step * u64::from(world) + rank);
                batches.map(|batch| batch * u64::from(BATCH)).collect()
            };
            assert_eq!(used, (0..u64::from(world)).map(expected).collect::<Vec<_>>());
            let ranks = made(&format!("ranks-{world}"));
            assert_eq!(among_ranks(&ranks, text, world, form), used);
            assert_same_checkpoint(&servers, &ranks, &format!("{world} ranks, {text}"));
        }
    }
}

#[test]
fn replicas_of_a_host_with_one_of_them_before_the_servers_make_the_same_steps() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let made = folder.path().join(name);
        std::fs::create_dir(&made).unwrap();
        made
    };
    let (ranks, host) = (made("ranks"), made("host"));
    let form = testing::Form::f32(512);
    let used = among_ranks(&ranks, OPTIMIZERS[0], 3, form);
    let on_host = at_once(testing::communicators(3), |communicator| {
        let lead = (communicator.rank() == 0).then(|| {
            // One replica with a large batch, for whoever is behind it.
            let options = book::Options {
                batch_size: 3 * BATCH,
                ..local_options(&host, OPTIMIZERS[0])
            };
            Local::new(options, Start::Values(&values()), StopFlag::default()).unwrap()
        });
        let mut grouped = Grouped::of_host(lead, communicator, &variables(), form.0, LIMIT).unwrap();
        assert_eq!(grouped.first(0).unwrap(), 0);
        let used = train(&mut grouped);
        if let Some(lead) = grouped.lead() {
            lead.save().unwrap();
        }
        grouped.close().unwrap();
        used
    });
    assert_eq!(on_host, used);
    assert_same_checkpoint(&ranks, &host, "one behind the other");
}

type OneStep = (Result<Fate, String>, Vec<book::Event>, Vec<f32>, u64);

/// One step of two ranks, of which the second one has NaN in its gradient. Returns what became of it on each, what was said, the variables
/// afterwards, and the first rank's next batch.
fn broken_rank(on_nan: OnNan) -> Vec<OneStep> {
    let folder = tempfile::tempdir().unwrap();
    let ranks = testing::ranks(2, testing::Form::f32(512), &|_| {
        let options = book::Options {
            replicas: 2,
            on_nan,
            ..local_options(folder.path(), OPTIMIZERS[0])
        };
        Book::new(options, Start::Values(&values())).unwrap()
    });
    let ranks: Vec<_> = ranks.into_iter().enumerate().collect();
    at_once(ranks, |(rank, mut exchange)| {
        let mut variables = values();
        let (leases, _) = exchange.lease(1).unwrap();
        let mut gradients = vec![0.5; variables.len()];
        if rank == 1 {
            gradients[7] = f32::NAN;
        }
        let contribution = Contribution {
            version: 0,
            lease: leases[0],
            samples: BATCH,
            gradients: &Arc::new(gradients),
            losses: vec![("Loss/total_loss", rank as f64)],
            phases: Phases::default(),
            bad_records: Vec::new(),
        };
        let fate = exchange.contribute(&contribution, &mut variables);
        let fate = fate.map_err(|error| error.to_string());
        if fate.is_err() {
            return (fate, Vec::new(), Vec::new(), 0);
        }
        exchange.pull(0, &mut variables).unwrap();
        let next = exchange.lease(1).unwrap().0[0].first_position;
        let events = exchange.take_events();
        exchange.close().unwrap();
        (fate, events, variables, next)
    })
}

#[test]
fn a_rank_whose_gradient_is_not_finite_is_named_and_left_out_on_request() {
    for (stopped, ..) in broken_rank(OnNan::Stop) {
        let text = stopped.unwrap_err();
        assert!(
            text.contains("the gradient of rank 1 (") && text.contains("holds NaN in `conv/weights`"),
            "{text}"
        );
    }
    let ranks = broken_rank(OnNan::Skip);
    for (fate, ..) in &ranks {
        let made = Fate::Committed {
            version: 1,
            last: false,
        };
        assert_eq!(*fate, Ok(made));
    }
    let [first, second] = [&ranks[0], &ranks[1]];
    assert_eq!(first.2, second.2, "all ranks have the same variables");
    assert!(first.2.iter().all(|value| value.is_finite()));
    // The records of the one that was left out go to whoever asks next.
    assert_eq!(first.3, u64::from(BATCH));
    let said = format!("{:?}", first.1);
    assert!(said.contains("Skipped") && said.contains("rank 1 ("), "{said}");
    assert!(said.contains("(\"Loss/total_loss\", 0.0)"), "only what counted: {said}");
    assert!(second.1.is_empty());
}

#[test]
fn sums_of_bfloat16_are_near_those_of_float32_and_the_same_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, form| {
        let made = folder.path().join(name);
        std::fs::create_dir(&made).unwrap();
        among_ranks(&made, OPTIMIZERS[0], 2, form);
        Reader::open(&saver::prefix(&made, STEPS))
            .unwrap()
            .read_f32("biases")
            .unwrap()
    };
    let (exact, short) = (
        run("f32", testing::Form::f32(512)),
        run("bf16", testing::Form::bf16(512)),
    );
    assert_ne!(exact, short);
    for (exact, short) in exact.iter().zip(&short) {
        assert!((exact - short).abs() < 0.02 * exact.abs().max(0.1), "{exact} {short}");
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
