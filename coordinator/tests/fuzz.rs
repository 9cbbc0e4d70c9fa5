//! Requests of any content to a running coordinator: it answers each one, and goes on answering. Files of any content in its folder: it
//! goes on from what can be, or begins as if they were not there.

use std::fs;

use coati_checkpoint::manifest::{DataPosition, OpenRange};
use coati_common::rpc::Channel;
use coati_common::rpc::{self, Peer};
use coati_common::tfrecord::Writer;
use coati_coordinator::ledger::{Ledger, Options};
use coati_coordinator::step_log;
use coati_proto::coati::v1;
use coati_proto::coati::v1::coordinator_client::CoordinatorClient;
use coati_proto::coati::v1::step_log_record;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use prost::Message as _;
use tonic::Code;

use crate::cluster::{Job, LIMIT, identity, options};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..6, 1 => prop_oneof![Just(u64::MAX), Just(1 << 33), Just(u64::from(u32::MAX))]]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "",
        "master",
        "worker",
        "ps",
        "evaluator",
        "test",
        "c0ffee",
        "da7a",
        "[ -~]{0,40}",
        "\\PC{0,20}"
    ]
}

fn job() -> impl Strategy<Value = Option<v1::JobRef>> {
    let any = (text(), number()).prop_map(|(job_id, incarnation)| Some(v1::JobRef { job_id, incarnation }));
    let right = Just(Some(v1::JobRef {
        job_id: "test".into(),
        incarnation: 1,
    }));
    prop_oneof![1 => Just(None), 2 => any, 5 => right]
}

fn task() -> impl Strategy<Value = Option<v1::Task>> {
    let any = (text(), number()).prop_map(|(r#type, index)| v1::Task {
        r#type,
        index: index as u32,
    });
    prop::option::weighted(0.9, any)
}

#[derive(Clone, Debug)]
enum Request {
    Register(v1::RegisterRequest),
    Heartbeat(v1::HeartbeatRequest),
    GetPlan(v1::GetPlanRequest),
    Lease(v1::LeaseRequest),
    Report(v1::ReportRequest),
}

fn request() -> impl Strategy<Value = Request> {
    let own = identity();
    let register = (text(), task(), text(), text(), text(), number()).prop_map(
        move |(job_id, task, address, software_version, config_digest, record_count)| {
            Request::Register(v1::RegisterRequest {
                job_id,
                task,
                address,
                software_version,
                config_digest,
                dataset_digest: own.dataset_digest.clone(),
                record_count,
                pid: record_count,
                // A forming job would end with each that says something here.
                cannot: String::new(),
            })
        },
    );
    let heartbeat = (job(), task(), text(), 0_u32..2).prop_map(|(job, task, activity, generation)| {
        Request::Heartbeat(v1::HeartbeatRequest {
            job,
            task,
            activity,
            generation,
        })
    });
    let plan = (job(), task(), 0_u32..2, number()).prop_map(|(job, task, generation, clock)| {
        Request::GetPlan(v1::GetPlanRequest {
            job,
            task,
            wait_ms: 0,
            generation,
            clock_ahead_ms: (clock as i64).wrapping_neg(),
            clock_error_ms: clock,
        })
    });
    let lease = (job(), number(), number()).prop_map(|(job, replica, batches)| {
        Request::Lease(v1::LeaseRequest {
            job,
            replica: replica as u32,
            batches: batches as u32,
            generation: 0,
        })
    });
    let tag = (job(), number(), number(), number()).prop_map(|(job, version, replica, sequence)| v1::PushTag {
        job,
        version,
        replica: replica as u32,
        sequence,
    });
    let scalar = || {
        let scalars = (text(), any::<f64>()).prop_map(|(name, value)| v1::Scalar { name, value });
        prop::collection::vec(scalars, 0..3)
    };
    let report = (
        prop::option::weighted(0.9, tag),
        number(),
        number(),
        scalar(),
        scalar(),
        text(),
    )
        .prop_map(|(tag, lease, samples, losses, seconds, bad)| {
            Request::Report(v1::ReportRequest {
                tag,
                lease,
                samples: samples as u32,
                losses,
                seconds,
                wait_ms: 0,
                bad_records: vec![bad],
                generation: 0,
                non_finite: String::new(),
                bytes_pushed: samples,
                bytes_pulled: u64::MAX,
            })
        });
    prop_oneof![register, heartbeat, plan, lease, report]
}

/// A refusal is an answer; a panic is `Unknown` or `Internal`, or a broken connection.
async fn ask(client: &mut CoordinatorClient<Channel>, request: Request) {
    let said = format!("{request:?}");
    let answered = match request {
        Request::Register(request) => client.register(request).await.map(drop),
        Request::Heartbeat(request) => client.heartbeat(request).await.map(drop),
        Request::GetPlan(request) => client.get_plan(request).await.map(drop),
        Request::Lease(request) => client.lease(request).await.map(drop),
        Request::Report(request) => {
            let alone = client.report(request.clone()).await.map(drop);
            let on_stream = match client.reports(futures::stream::iter([request])).await {
                Ok(answers) => answers.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            };
            alone.and(on_stream)
        }
    };
    if let Err(status) = answered {
        let odd = [Code::Unknown, Code::Internal, Code::Cancelled].contains(&status.code());
        assert!(!odd && !status.message().is_empty(), "{said}: {status}");
    }
}

/// Asks so many times; before the cluster has formed, and with its replicas at work.
async fn ask_anything(address: &str, count: usize) {
    let peer = Peer::new("master", address);
    let mut client = CoordinatorClient::new(rpc::connect(&peer, LIMIT).await.unwrap());
    let mut runner = TestRunner::deterministic();
    let requests = request();
    for _ in 0..count {
        ask(&mut client, requests.new_tree(&mut runner).unwrap().current()).await;
    }
    client.job_status(v1::JobStatusRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_requests_to_a_cluster_that_forms() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job::start(1, options(folder.path(), 1)).await;
    Box::pin(ask_anything(&job.address, 1500)).await;
    job.handle.stopper().stop("the test is over");
    // A stranger that disagrees ends the forming of a cluster; whichever way, it ends.
    let _ = job.end().await;
}

fn log_ranges() -> impl Strategy<Value = Vec<v1::LogRange>> {
    let range = (number(), number()).prop_map(|(first, count)| v1::LogRange { first, count });
    prop::collection::vec(range, 0..3)
}

fn contributor() -> impl Strategy<Value = v1::Contributor> {
    (number(), number(), number()).prop_map(|(replica, sequence, samples)| v1::Contributor {
        replica: replica as u32,
        sequence,
        samples: samples as u32,
    })
}

fn log_begin() -> impl Strategy<Value = step_log_record::Record> {
    let last = prop::collection::vec(contributor(), 0..3);
    (0_u32..3, job(), number(), number(), log_ranges(), number(), last).prop_map(
        |(format, job, version, position, open, since, last)| {
            step_log_record::Record::Begin(v1::LogBegin {
                format: format.max(1),
                job,
                version,
                position,
                open,
                since,
                last,
            })
        },
    )
}

/// Steps one after the other from a version, so that some of them follow.
fn log_steps() -> impl Strategy<Value = Vec<step_log_record::Record>> {
    let contributor =
        (prop::option::weighted(0.9, contributor()), log_ranges()).prop_map(|(contributor, mut records)| {
            v1::LogContributor {
                contributor,
                records: records.pop(),
            }
        });
    let contributors = prop::collection::vec(contributor, 0..3);
    (number(), prop::collection::vec((contributors, 0_u64..8), 0..5)).prop_map(|(from, steps)| {
        let step = |(at, (contributors, gap)): (u64, (Vec<_>, u64))| {
            let version = from.wrapping_add(at).wrapping_add(gap / 7);
            step_log_record::Record::Step(v1::LogStep { version, contributors })
        };
        (0..).zip(steps).map(step).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The checksums are right, so that what is in the records is looked at.
    #[test]
    fn a_log_of_any_records(begin in log_begin(), steps in log_steps(), begins_twice: bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = Writer::new(Vec::new());
        let again = begins_twice.then(|| begin.clone());
        for record in std::iter::once(begin).chain(steps).chain(again) {
            let record = v1::StepLogRecord { record: Some(record) };
            bytes.write(&record.encode_to_vec()).unwrap();
        }
        fs::write(folder.path().join(step_log::FILE), bytes.into_inner()).unwrap();
        let Some(log) = step_log::read(folder.path()) else { return Ok(()) };
        prop_assert!(log.data.complaint().is_none(), "{:?}", log);
        prop_assert_eq!(log.version.checked_add(log.steps.len() as u64), Some(log.end()));
        for (version, step) in (log.version..).zip(&log.steps) {
            prop_assert_eq!(step.version, version);
            prop_assert!(step.contributors.iter().all(|(_, first, count)| first.checked_add(*count).is_some()));
        }
    }

    #[test]
    fn a_log_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(step_log::FILE), bytes).unwrap();
        prop_assert_eq!(step_log::read(folder.path()), None);
    }

    /// What a manifest that was accepted says of the data can be gone on from: no position is used twice.
    #[test]
    fn any_data_position_can_be_gone_on_from(
        position in number(),
        open in prop::collection::vec((number(), number()), 0..4),
        lockstep: bool,
    ) {
        let position = DataPosition {
            position: position.min(1 << 40),
            open: open.into_iter().map(|(start, count)| OpenRange { start, count }).collect(),
        };
        if position.complaint().is_some() {
            return Ok(());
        }
        let mut ledger = Ledger::new(Options { replicas: 2, batch: 4, lockstep }, &position);
        prop_assert_eq!(ledger.position().records_seen(), position.records_seen());
        let mut used = std::collections::BTreeSet::new();
        let mut seen = position.records_seen();
        for step in 0..6 {
            let lease = ledger.lease(step % 2);
            for at in lease.first..lease.first + lease.count {
                let was_open = position.open.iter().any(|range| (range.start..range.start + range.count).contains(&at));
                prop_assert!(used.insert(at) && (at >= position.position || was_open), "{} again", at);
            }
            ledger.complete(lease.id);
            seen += lease.count;
            prop_assert_eq!(ledger.position().records_seen(), seen);
        }
    }
}
