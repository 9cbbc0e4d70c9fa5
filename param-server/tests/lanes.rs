//! Lanes, spoken by hand: what a stray or broken process may do with one, and what is answered.

use std::time::Duration;

use coati_common::rpc::security::Token;
use coati_common::rpc::{ErrorCode, Security};
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_param_server::service::{Ended, Options, serve};
use coati_param_server::{Admit, PsClient, PsGroup, Strategy, plan};
use coati_proto::coati::v1;
use coati_proto::coati::v1::lane_call::Method;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{COUNTING, Cluster, LIMIT, by, job, optimizer, specs, tag};

pub(crate) const PREFACE: &[u8] = b"coati lane 1";
const END: u8 = 2;
const ALIVE: u8 = 3;

/// A message as it stands on a lane; `kind` is 0 for those of a call.
pub(crate) fn framed(kind: u8, message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[kind][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
}

pub(crate) fn call(method: Method, token: &str) -> Vec<u8> {
    let call = v1::LaneCall {
        method: method.into(),
        ps_index: 0,
        limit_ms: 20 * LIMIT.as_millis() as u64,
        token: token.to_owned().into(),
    };
    framed(0, &call)
}

pub(crate) fn end() -> Vec<u8> {
    framed(END, &v1::LaneEnd::default())
}

fn first_chunk(values: &[f32], replica: u32) -> v1::PushChunk {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    v1::PushChunk {
        tag: Some(v1::PushTag {
            job: Some(job(1)),
            version: 0,
            replica,
            sequence: 1,
        }),
        data: bytes.into(),
        ..Default::default()
    }
}

/// All of a pull of `min_version` at least.
fn pull(min_version: u64) -> [Vec<u8>; 3] {
    let request = v1::PullRequest {
        job: Some(job(1)),
        min_version,
        ..Default::default()
    };
    [call(Method::Pull, ""), framed(0, &request), end()]
}

struct Raw(TcpStream);

impl Raw {
    async fn open(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        Self(stream)
    }

    async fn say(&mut self, parts: &[Vec<u8>]) {
        self.0.write_all(&parts.concat()).await.unwrap();
    }

    /// The next message and its kind.
    async fn hear(&mut self) -> (u8, Vec<u8>) {
        let hearing = async {
            let kind = self.0.read_u8().await.unwrap();
            let mut message = vec![0; self.0.read_u32().await.unwrap() as usize];
            self.0.read_exact(&mut message).await.unwrap();
            (kind, message)
        };
        tokio::time::timeout(LIMIT, hearing).await.unwrap()
    }

    async fn hear_signs_of_life(&mut self, count: usize) {
        for _ in 0..count {
            assert_eq!(self.hear().await, (ALIVE, Vec::new()));
        }
    }

    async fn hear_end(&mut self) -> v1::LaneEnd {
        let (kind, message) = self.hear().await;
        assert_eq!(kind, END);
        v1::LaneEnd::decode(&message[..]).unwrap()
    }

    /// Nothing more comes, the connection is closed.
    async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(LIMIT, self.0.read_to_end(&mut rest))
            .await
            .unwrap();
        read.is_err() || rest.is_empty()
    }
}

async fn loaded(specs: &[VariableSpec]) -> Cluster {
    let cluster = Cluster::start(specs, 1, COUNTING, 0).await;
    let zeros = vec![0.0; flat_elements(specs)];
    cluster.group.load(&zeros, 0, LIMIT).await.unwrap();
    cluster
}

fn trainable(elements: i64) -> [VariableSpec; 1] {
    [VariableSpec {
        name: "w".into(),
        shape: vec![elements],
        kind: VariableKind::Trainable,
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lane_carries_one_call_after_the_other_and_errors_in_between() {
    let cluster = loaded(&trainable(3)).await;
    let mut raw = Raw::open(&cluster.addresses[0]).await;
    // NaN is refused by name, the lane goes on.
    raw.say(&[
        call(Method::Push, ""),
        framed(0, &first_chunk(&[1.0, f32::NAN, 1.0], 0)),
        end(),
    ])
    .await;
    let refused = raw.hear_end().await;
    assert!(refused.message.contains("holds NaN in `w`"), "{refused:?}");
    assert_ne!((refused.code, refused.detail.len()), (0, 0));

    raw.say(&[
        call(Method::Push, ""),
        framed(0, &first_chunk(&[1.0, 2.0, 3.0], 0)),
        end(),
    ])
    .await;
    let (kind, reply) = raw.hear().await;
    assert_eq!(kind, 0);
    assert!(v1::PushReply::decode(&reply[..]).unwrap().staged);
    assert_eq!(raw.hear_end().await, v1::LaneEnd::default());
    cluster.commit(0, &[by(0, 0, 1)]).await;

    raw.say(&pull(1)).await;
    let head = v1::PullChunk::decode(&raw.hear().await.1[..]).unwrap();
    let values = v1::PullChunk::decode(&raw.hear().await.1[..]).unwrap();
    assert_eq!(head.version, 1);
    let expected: Vec<u8> = [-1.0f32, -2.0, -3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(&values.data[..], &expected[..]);
    assert_eq!(raw.hear_end().await, v1::LaneEnd::default());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_breaks_off_counts_for_nothing_and_can_be_repeated() {
    let spec = trainable(1 << 20);
    let cluster = loaded(&spec).await;
    let ones = vec![1.0; 1 << 18];
    for said in [
        // In the middle of a chunk, between two chunks, all of it but without its end.
        vec![framed(0, &first_chunk(&ones, 0))[..1000].to_vec()],
        vec![framed(0, &first_chunk(&ones, 0))],
        (0..4)
            .map(|i| {
                let chunk = v1::PushChunk {
                    offset: i << 18,
                    ..first_chunk(&ones, 0)
                };
                framed(0, &chunk)
            })
            .collect(),
    ] {
        let mut raw = Raw::open(&cluster.addresses[0]).await;
        raw.say(&[vec![call(Method::Push, "")], said].concat()).await;
        raw.0.shutdown().await.unwrap();
        // That it was not understood, or nothing; no reply.
        let mut answer = Vec::new();
        let read = raw.0.read_to_end(&mut answer);
        let _ = tokio::time::timeout(LIMIT, read).await.unwrap();
        assert!(answer.first().is_none_or(|&kind| kind == END), "{answer:?}");
    }
    let error = cluster.group.commit(0, &[by(0, 0, 1)], true, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::IncompleteContribution));
    let whole = vec![1.0; 1 << 20];
    assert_eq!(
        cluster.group.push(tag(0, 0), &whole, LIMIT).await.unwrap(),
        Admit::Fresh
    );
    cluster.commit(0, &[by(0, 0, 1)]).await;
    assert!(cluster.values(1).await.iter().all(|&value| value == -1.0));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_by_name_before_anything_of_its_call_is_read() {
    let token = Token::generate();
    let server = serve(Options {
        security: Security::new(token.clone(), None),
        ..Options::new(0, "127.0.0.1:0")
    })
    .await
    .unwrap();
    for (shown, says) in [
        (String::new(), "carries no job token"),
        (Token::generate().text(), "carries the token of another job"),
        ("x".repeat(2000), "carries the token of another job"),
    ] {
        let mut raw = Raw::open(&server.address().to_string()).await;
        raw.say(&[call(Method::Push, &shown)]).await;
        let refused = raw.hear_end().await;
        assert!(
            refused.message.contains(says) && refused.message.contains("127.0.0.1:"),
            "{refused:?}"
        );
        let detail = v1::ErrorDetail::decode(&refused.detail[..]).unwrap();
        assert_eq!(detail.code, ErrorCode::Unauthenticated.name());
        assert!(raw.is_closed().await);
    }
    // The right one is heard.
    let mut raw = Raw::open(&server.address().to_string()).await;
    raw.say(&[call(Method::Push, &token.text()), end()]).await;
    assert!(raw.hear_end().await.message.contains("first chunk"));
    server.shutdown();
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_closes_the_lane_and_nothing_else() {
    let cluster = loaded(&specs()).await;
    let huge = |kind: u8| [&[kind][..], &u32::MAX.to_be_bytes(), &[0; 64]].concat();
    let pull = framed(
        0,
        &v1::PullRequest {
            job: Some(job(1)),
            ..Default::default()
        },
    );
    for said in [
        vec![huge(0)],
        vec![huge(END)],
        vec![vec![9; 100]],
        vec![end()],
        vec![call(Method::Unspecified, ""), end()],
        vec![call(Method::Push, ""), huge(0)],
        vec![call(Method::Push, ""), huge(END)],
        vec![call(Method::Push, ""), vec![7; 3000]],
        vec![call(Method::Pull, ""), pull.clone(), pull.clone(), end()],
        // A further call before the answer to the first.
        vec![call(Method::Pull, ""), pull.clone(), end(), vec![0]],
    ] {
        let mut raw = Raw::open(&cluster.addresses[0]).await;
        raw.say(&said).await;
        let mut answer = Vec::new();
        let read = raw.0.read_to_end(&mut answer);
        // Closed, or reset.
        let _ = tokio::time::timeout(LIMIT, read).await.unwrap();
        let status = cluster.group.clients()[0].status(LIMIT).await.unwrap();
        assert_eq!(status.state, "serving");
    }
    let ones = vec![1.0; flat_elements(&specs())];
    assert_eq!(cluster.group.push(tag(0, 0), &ones, LIMIT).await.unwrap(), Admit::Fresh);
    cluster.commit(0, &[by(0, 0, 1)]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leaves_closes_its_lanes() {
    let cluster = loaded(&specs()).await;
    let mut raw = Raw::open(&cluster.addresses[0]).await;
    // One that waits for a version that will not come, and one that never says anything.
    raw.say(&pull(9)).await;
    raw.hear_signs_of_life(1).await;
    let mut silent = Raw::open(&cluster.addresses[0]).await;
    // One that has not even told that it is a lane.
    let mut begun = Raw(TcpStream::connect(&cluster.addresses[0]).await.unwrap());
    begun.say(&[b"c".to_vec()]).await;
    cluster.end().await;
    let told = loop {
        match raw.hear().await {
            (ALIVE, _) => {}
            (kind, message) => break (kind, v1::LaneEnd::decode(&message[..]).unwrap()),
        }
    };
    assert!(told.0 == END && told.1.code != 0, "{told:?}");
    assert!(raw.is_closed().await && silent.is_closed().await && begun.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_version_hears_that_the_server_lives_and_who_hangs_up_is_forgotten() {
    let server = serve(Options {
        orphan_timeout: Duration::from_secs(1),
        ..Options::new(0, "127.0.0.1:0")
    })
    .await
    .unwrap();
    let address = server.address().to_string();
    {
        let client = PsClient::connect(0, &address, job(1), LIMIT).await.unwrap();
        let group = PsGroup::new(vec![client], plan(&specs(), 1, Strategy::Balanced).unwrap()).unwrap();
        group.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
        group.load(&vec![0.0; flat_elements(&specs())], 0, LIMIT).await.unwrap();
        let mut raw = Raw::open(&address).await;
        raw.say(&pull(9)).await;
        // It waits for minutes; the server, which would leave without calls, stays for as long.
        raw.hear_signs_of_life(3).await;
    }
    let ended = tokio::time::timeout(LIMIT, server.ended()).await.unwrap();
    assert!(matches!(ended, Ended::Orphaned(_)), "{ended:?}");
}
