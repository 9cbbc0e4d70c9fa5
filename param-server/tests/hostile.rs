//! Strangers on a server's port: whatever they send, the service goes on and nothing changes.

use std::time::Duration;

use coati_common::rpc::security::{OwnCertificate, Security, Sources, Token};
use coati_common::rpc::{self, Error, ErrorCode, Peer};
use coati_common::variables::flat_elements;
use coati_param_server::service::{Handle, Options, serve};
use coati_param_server::{PsClient, PsGroup, Strategy, plan};
use coati_proto::coati::v1;
use coati_proto::coati::v1::lane_call::Method;
use coati_proto::coati::v1::parameter_server_client::ParameterServerClient;
use coati_proto::coati::v1::transfer_client::TransferClient;
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{COUNTING, LIMIT, by, job, optimizer, specs, tag};
use crate::lanes;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn credentials() -> (TempDir, Security) {
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources::of_job(folder.path());
    sources.make().unwrap();
    (folder, sources.load(Duration::ZERO).unwrap())
}

/// A server with credentials of its own that holds zeros, and one who may use it.
struct Guarded {
    server: Handle,
    address: String,
    security: Security,
    folder: TempDir,
    group: PsGroup,
}

impl Guarded {
    async fn start(tls: bool) -> Self {
        let (folder, security) = credentials();
        let security = if tls { security } else { security.without_tls() };
        let server = serve(Options {
            security: security.clone(),
            ..Options::new(0, "127.0.0.1:0")
        })
        .await
        .unwrap();
        let address = server.address().to_string();
        let client = PsClient::connect_as(&security, 0, &address, job(1), LIMIT)
            .await
            .unwrap();
        let group = PsGroup::new(vec![client], plan(&specs(), 1, Strategy::Balanced).unwrap()).unwrap();
        group.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
        group.load(&vec![0.0; flat_elements(&specs())], 0, LIMIT).await.unwrap();
        Self {
            server,
            address,
            security,
            folder,
            group,
        }
    }

    async fn connect(&self, security: &Security) -> Result<PsClient, Error> {
        PsClient::connect_as(security, 0, &self.address, job(1), LIMIT).await
    }

    /// Trains from version `from` on for so many steps, each of which takes one from each value.
    async fn train(&self, from: u64, steps: u64) {
        let ones = vec![1.0; flat_elements(&specs())];
        for version in from..from + steps {
            self.group.push(tag(0, version), &ones, LIMIT).await.unwrap();
            self.group
                .commit(version, &[by(0, version, 1)], true, LIMIT)
                .await
                .unwrap();
        }
        let mut flat = ones;
        assert_eq!(
            self.group.pull(from + steps, LIMIT, &mut flat).await.unwrap(),
            from + steps
        );
        let trained = self.group.layout().variable_at(0, 0).unwrap().elements();
        assert!(flat[..trained].iter().all(|&value| value == -((from + steps) as f32)));
    }

    async fn end(self) {
        self.train(0, 2).await;
        self.group.shutdown("the test is over", LIMIT).await.unwrap();
        tokio::time::timeout(LIMIT, self.server.ended()).await.unwrap();
    }
}

/// An HTTP/2 frame with any length in its header.
fn frame(length: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Random bytes, truncated prefaces and handshakes, oversized and senseless frames.
fn garbage() -> Vec<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |length: usize| {
        let mut bytes = vec![0; length];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let mut all = vec![Vec::new(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()];
    for length in [1, 9, 100, 5000, 200_000] {
        all.push(random(length));
    }
    for length in [1, 10, PREFACE.len() - 1, PREFACE.len()] {
        all.push(PREFACE[..length].to_vec());
    }
    let after_preface = |frames: &[Vec<u8>]| [PREFACE.to_vec(), frames.concat()].concat();
    let settings = frame(0, 4, 0, 0, &[]);
    all.push(after_preface(&[frame(0x00FF_FFFF, 0, 0, 1, &random(100))]));
    all.push(after_preface(&[
        settings.clone(),
        frame(0x00FF_FFFF, 1, 4, 1, &random(5000)),
    ]));
    // Header blocks that are no HPACK, data for streams that are not open, frames of unknown kinds.
    all.push(after_preface(&[settings.clone(), frame(64, 1, 4, 1, &random(64))]));
    all.push(after_preface(&[settings.clone(), frame(8, 0, 1, 5, &random(8))]));
    for kind in 0..20 {
        all.push(after_preface(&[
            settings.clone(),
            frame(16, kind, 0xFF, 3, &random(16)),
        ]));
    }
    // Lanes: cut off, of another version, with a handshake that is none, with calls that are none.
    let lane = |rest: &[u8]| [lanes::PREFACE, rest].concat();
    all.push(lanes::PREFACE[..5].to_vec());
    all.push(b"coati lane 9 and more".to_vec());
    for length in [0, 1, 100, 70_000] {
        all.push(lane(&random(length)));
    }
    all.push(lane(&lanes::call(Method::Push, "")));
    all.push(lane(&[lanes::call(Method::Pull, ""), lanes::end()].concat()));
    // A TLS handshake that is cut off, one of an absurd length, and an alert.
    all.push([&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &random(20)].concat());
    all.push([&[0x16, 3, 1, 0xFF, 0xFF][..], &random(70_000)].concat());
    all.push(vec![0x15, 3, 3, 0, 2, 2, 0]);
    all
}

/// Sends bytes and waits until the server closes; a reset is as good.
async fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let talk = async {
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(LIMIT, talk).await.unwrap();
}

async fn bears_garbage(tls: bool) {
    let guarded = Guarded::start(tls).await;
    let address = guarded.address.clone();
    let attack = tokio::spawn(async move {
        for bytes in garbage() {
            send(&address, &bytes).await;
        }
    });
    guarded.train(0, 20).await;
    tokio::time::timeout(LIMIT, attack).await.unwrap().unwrap();
    guarded.train(20, 5).await;
    guarded.group.shutdown("the test is over", LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_port_with_tls_disturbs_nobody() {
    bears_garbage(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_port_without_tls_disturbs_nobody() {
    bears_garbage(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_jobs_token_nothing_is_read_written_or_ended() {
    for tls in [true, false] {
        let guarded = Guarded::start(tls).await;
        let other = Security::new(Token::generate(), guarded.security.tls().cloned());
        for (stranger, carries) in [
            (other, "carries the token of another job"),
            (guarded.security.clone().without_token(), "carries no job token"),
        ] {
            let client = guarded.connect(&stranger).await.unwrap();
            let group = PsGroup::new(vec![client.clone()], plan(&specs(), 1, Strategy::Balanced).unwrap()).unwrap();
            let mut flat = vec![0.0; group.layout().flat_len()];
            for error in [
                client.status(LIMIT).await.unwrap_err().into(),
                group.configure(optimizer(COUNTING), 3, LIMIT).await.unwrap_err(),
                group.pull(0, LIMIT, &mut flat).await.unwrap_err(),
                group.commit(0, &[by(0, 0, 1)], true, LIMIT).await.unwrap_err(),
                group.save("/nowhere/model.ckpt-0", 0, LIMIT).await.unwrap_err(),
                group.shutdown("go away", LIMIT).await.unwrap_err(),
            ] {
                assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{error}");
                let text = error.to_string();
                assert!(text.contains(carries) && text.contains("127.0.0.1:"), "{text}");
                assert!(text.starts_with(&format!("ps-0 ({})", guarded.address)), "{text}");
            }
            // While chunks are still on their way the answer may get lost, but none of them arrives.
            flat.fill(1.0);
            let refused = group.push(tag(0, 0), &flat, LIMIT).await.unwrap_err();
            assert_eq!(refused.code(), Some(ErrorCode::Unauthenticated), "{refused}");
            group.load(&flat, 0, LIMIT).await.unwrap_err();
        }
        guarded.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_of_the_job_cannot_connect_and_is_told_why() {
    let guarded = Guarded::start(true).await;
    let (other_folder, other) = credentials();

    let error = guarded.connect(&other).await.unwrap_err();
    assert!(!error.retryable(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("its certificate is not one of this job") && text.contains("hint: "),
        "{text}"
    );

    // Trusts the server, knows the token, has a certificate of another authority.
    let (ours, theirs) = (guarded.folder.path().join("tls"), other_folder.path().join("tls"));
    let thief = Sources {
        own: Some(OwnCertificate {
            ca: ours.join("ca.pem"),
            cert: theirs.join("cert.pem"),
            key: theirs.join("key.pem"),
        }),
        ..Sources::of_job(guarded.folder.path())
    };
    let client = guarded.connect(&thief.load(Duration::ZERO).unwrap()).await.unwrap();
    let error = client.shutdown("go away", LIMIT).await.unwrap_err();
    // The alert that says so may be overtaken by the end of the connection; refused it is in either case, see the end.
    if error.code() == Some(ErrorCode::Unauthenticated) {
        assert!(
            error.to_string().contains("it refuses this task's certificate"),
            "{error}"
        );
    }

    // Without TLS, the token alone is not enough.
    let plain = guarded.security.clone().without_tls();
    let refused = match guarded.connect(&plain).await {
        Ok(client) => client.shutdown("go away", LIMIT).await.unwrap_err(),
        Err(error) => error,
    };
    if refused.code() == Some(ErrorCode::Unauthenticated) {
        assert!(refused.to_string().contains("coati.security.tls"), "{refused}");
    }
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_not_taken_for_one_of_the_job() {
    let guarded = Guarded::start(false).await;
    let (_folder, other) = credentials();
    let error = guarded.connect(&other).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("it does not speak TLS") && text.contains("coati.security.tls"),
        "{text}"
    );
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_requests_of_a_member_are_refused_before_memory_is_taken() {
    let guarded = Guarded::start(true).await;
    let channel = rpc::connect_as(&guarded.security, &Peer::ps(0, &guarded.address), LIMIT)
        .await
        .unwrap();
    let mut raw = ParameterServerClient::new(channel.clone());
    let mut bulk = TransferClient::new(channel).max_encoding_message_size(usize::MAX);

    // A message above the limit.
    let chunk = v1::PushChunk {
        data: vec![0; rpc::MESSAGE_LIMIT_BYTES + 1].into(),
        ..Default::default()
    };
    bulk.push(tokio_stream::iter([chunk])).await.unwrap_err();

    // Placements that no memory holds, and names that no variable has.
    let variable = |name: &str, shape: &[i64]| v1::Variable {
        name: name.into(),
        shape: shape.to_vec(),
        kind: v1::VariableKind::Trainable.into(),
        decay: 0.0,
    };
    let placed = |variables: Vec<v1::Variable>, length: u64| v1::Placement {
        version: 1,
        pieces: vec![v1::Piece {
            length,
            ..Default::default()
        }],
        variables,
        ps_count: 1,
    };
    for (placement, what) in [
        (placed(vec![variable("huge", &[1 << 50])], 1 << 50), "ps-0 would hold"),
        (placed(vec![variable("huge", &[1 << 62, 8])], 1), "cannot be counted"),
        (placed(vec![variable("", &[4])], 4), "has name \"\""),
        (placed(vec![variable(&"x".repeat(5000), &[4])], 4), "of 5000 bytes"),
        (placed(vec![variable("a\nb", &[4])], 4), "control characters"),
        (placed(vec![variable("w", &[1; 64])], 1), "64 dimensions"),
        (
            placed(vec![variable("w", &[4]), variable("w", &[4])], 4),
            "occurs twice",
        ),
        (placed(vec![variable("w", &[4])], u64::MAX), "has 4 elements"),
    ] {
        let request = v1::ConfigureRequest {
            job: Some(job(2)),
            ps_index: 0,
            placement: Some(placement),
            optimizer: optimizer(COUNTING),
            ..Default::default()
        };
        let status = raw.configure(request).await.unwrap_err();
        assert!(status.message().contains(what), "{what}: {status}");
    }

    // A gradient of the wrong length names its sender, the server and the variable that is cut off.
    let push = |offset: u64, elements: usize| v1::PushChunk {
        tag: Some(v1::PushTag {
            job: Some(job(1)),
            version: 0,
            replica: 4,
            sequence: 1,
        }),
        offset,
        data: vec![0; elements * 4].into(),
        ..Default::default()
    };
    let all = flat_elements(&specs());
    for (chunk, what) in [
        (
            push(0, 3),
            "gradient of replica 4 for version 0 on ps-0 ended after 3 of",
        ),
        (push(0, all * 2), "beyond the arena"),
        (push(7, 3), "ended after 3 of"),
    ] {
        let status = bulk.push(tokio_stream::iter([chunk])).await.unwrap_err();
        assert!(status.message().contains(what), "{what}: {status}");
    }
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leftover_of_an_older_incarnation_is_fenced_though_it_knows_the_token() {
    let guarded = Guarded::start(true).await;
    let placement = plan(&specs(), 1, Strategy::Balanced).unwrap();
    let newer = guarded.connect(&guarded.security).await.unwrap().with_job(job(2));
    let newer = PsGroup::new(vec![newer], placement).unwrap();
    newer.configure(optimizer(COUNTING), 0, LIMIT).await.unwrap();
    let ones = vec![1.0; flat_elements(&specs())];
    newer.load(&ones, 0, LIMIT).await.unwrap();
    let error = guarded.group.push(tag(0, 0), &ones, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::StaleIncarnation), "{error}");
    let error = guarded.group.shutdown("old", LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::StaleIncarnation), "{error}");
    let mut flat = vec![0.0; ones.len()];
    assert_eq!(newer.pull(0, LIMIT, &mut flat).await.unwrap(), 0);
    assert_eq!(flat, ones);
    newer.shutdown("the test is over", LIMIT).await.unwrap();
}
