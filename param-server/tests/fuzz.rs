//! What a stray or broken process may send: an error, no panic, and memory in proportion to what was sent.

use coati_common::invariants;
use coati_param_server::optimizer::OptimizerConfig;
use coati_param_server::store::{Chunk, Options, Push};
use coati_param_server::{Admit, Consistency, Contributor, Layout, Store, Strategy as Placing, Tag, plan};
use coati_proto::coati::v1;
use coati_proto::coati::v1::Encoding;
use proptest::prelude::*;
use prost::Message as _;

use crate::cluster::{ADAM, COUNTING, job, optimizer, specs};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..12, 1 => prop_oneof![Just(u64::MAX), Just(1 << 32), Just(1 << 62), Just(864)]]
}

fn any_placement() -> impl Strategy<Value = v1::Placement> {
    let dimension = prop_oneof![6 => 0i64..5, 1 => prop_oneof![Just(-1), Just(i64::MAX), Just(1 << 40)]];
    let variable = (
        "[a-c]{0,2}",
        prop::collection::vec(dimension, 0..3),
        -1i32..5,
        any::<f32>(),
    );
    let variables = prop::collection::vec(variable, 0..4);
    let piece = (0u32..4, number(), number(), 0u32..3, number());
    let pieces = prop::collection::vec(piece, 0..5);
    let count = prop_oneof![4 => 0u32..4, 1 => Just(u32::MAX)];
    (variables, pieces, count, any::<u64>()).prop_map(|(variables, pieces, ps_count, version)| v1::Placement {
        version,
        variables: variables
            .into_iter()
            .map(|(name, shape, kind, decay)| v1::Variable {
                name,
                shape,
                kind,
                decay,
            })
            .collect(),
        pieces: pieces
            .into_iter()
            .map(|(variable, start, length, ps, offset)| v1::Piece {
                variable,
                start,
                length,
                ps,
                offset,
            })
            .collect(),
        ps_count,
    })
}

/// A good placement with one number changed.
fn near_placement() -> impl Strategy<Value = v1::Placement> {
    let change = (any::<prop::sample::Index>(), 0usize..5, number());
    (1u32..4, prop::collection::vec(change, 1..3)).prop_map(|(servers, changes)| {
        let mut placement = plan(&specs(), servers, Placing::Balanced).unwrap();
        for (at, field, value) in changes {
            let at = at.index(placement.pieces.len());
            let piece = &mut placement.pieces[at];
            match field {
                0 => piece.variable = value as u32,
                1 => piece.start = value,
                2 => piece.length = value,
                3 => piece.ps = value as u32,
                _ => piece.offset = value,
            }
        }
        placement
    })
}

/// Takes it or says why not; what is taken can be used.
fn try_placement(placement: &v1::Placement) {
    let store = Store::new(Options::default());
    let optimizer = OptimizerConfig::decode(&optimizer(ADAM)).unwrap();
    let Ok(layout) = Layout::new(placement) else {
        assert!(store.configure(&job(1), 0, placement, optimizer, 0).is_err());
        return;
    };
    let configured = store.configure(&job(1), 0, placement, optimizer, 2);
    // Variables may be declared larger than anybody can hold; values are needed before memory is.
    if configured.is_ok() && layout.arena_len(0) < 1 << 20 {
        let arena = vec![0.5; layout.arena_len(0)];
        store.load(&job(1), arena, 3).unwrap();
        store.pull(&job(1), 3).unwrap();
    }
}

/// One thing that a server is asked to do.
#[derive(Clone, Debug)]
enum Request {
    Push {
        tag: (u32, u64, u64),
        chunks: Vec<(Chunk, Vec<u8>)>,
    },
    WholePush {
        tag: (u32, u64, u64),
        value: f32,
    },
    Commit {
        version: u64,
        contributors: Vec<(u32, u64, u32)>,
        drop_others: bool,
    },
    Pull {
        version: u64,
        averages: bool,
        replica: Option<u32>,
    },
    Load {
        chunks: Vec<(u64, Vec<u8>)>,
        version: u64,
    },
    Configure {
        incarnation: u64,
        staleness: u64,
    },
}

fn request() -> impl Strategy<Value = Request> {
    let tag = || (0u32..3, 0u64..6, 0u64..6);
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let chunk = move || (number(), bytes());
    let encoding = prop_oneof![Just(Encoding::Float32), Just(Encoding::Bfloat16), Just(Encoding::Topk)];
    let pushed =
        (number(), encoding, number(), number(), bytes()).prop_map(|(offset, encoding, elements, bytes, data)| {
            let elements = elements as u32;
            // Most claim the length that they have.
            let bytes = if bytes > 11 { bytes as usize } else { data.len() };
            let chunk = Chunk {
                offset,
                encoding,
                elements,
                bytes,
            };
            (chunk, data)
        });
    let value = prop_oneof![6 => -2f32..2.0, 1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::MAX)]];
    let contributor = (0u32..3, 0u64..6, 0u32..3);
    prop_oneof![
        2 => (tag(), prop::collection::vec(pushed, 0..3)).prop_map(|(tag, chunks)| Request::Push { tag, chunks }),
        6 => (tag(), value).prop_map(|(tag, value)| Request::WholePush { tag, value }),
        6 => (0u64..6, prop::collection::vec(contributor, 0..3), any::<bool>()).prop_map(
            |(version, contributors, drop_others)| Request::Commit { version, contributors, drop_others }
        ),
        2 => (0u64..6, any::<bool>(), prop::option::of(0u32..3))
            .prop_map(|(version, averages, replica)| Request::Pull { version, averages, replica }),
        1 => (prop::collection::vec(chunk(), 0..3), any::<u64>())
            .prop_map(|(chunks, version)| Request::Load { chunks, version }),
        1 => (0u64..3, 0u64..4).prop_map(|(incarnation, staleness)| Request::Configure { incarnation, staleness }),
    ]
}

fn ask(store: &Store, current: &mut u64, request: Request) {
    let placement = plan(&specs(), 1, Placing::Balanced).unwrap();
    let layout = Layout::new(&placement).unwrap();
    let pushed = layout.server(0).unwrap().pushed_len;
    let at = job(*current);
    let of = |(replica, sequence, version)| Tag {
        replica,
        sequence,
        version,
    };
    match request {
        Request::Push { tag, chunks } => {
            if let Ok(Push::Wanted(mut staging)) = store.begin_push(&at, of(tag))
                && chunks
                    .iter()
                    .all(|(chunk, data)| staging.chunk(*chunk).is_ok() && staging.write(data).is_ok())
            {
                let sparse = chunks.iter().any(|(chunk, _)| chunk.encoding == Encoding::Topk);
                assert!(staging.finish().is_err() || sparse, "so few bytes are no gradient");
            }
        }
        Request::WholePush { tag, value } => {
            let staged = store.push(&at, of(tag), &vec![value; pushed]);
            // Of a tag that is known the data is not looked at.
            let fresh = matches!(staged, Ok(Admit::Fresh));
            assert!(!fresh || value.is_finite(), "{value} was staged");
        }
        Request::Commit {
            version,
            contributors,
            drop_others,
        } => {
            let contributors: Vec<Contributor> = contributors
                .into_iter()
                .map(|(replica, sequence, samples)| Contributor {
                    replica,
                    sequence,
                    samples,
                })
                .collect();
            if let Ok(committed) = store.commit(&at, version, &contributors, drop_others) {
                assert_eq!(committed.version, version + 1);
                assert_eq!(store.commit(&at, version, &contributors, drop_others), Ok(committed));
            }
        }
        Request::Pull {
            version,
            averages,
            replica,
        } => {
            let pulled = match (averages, replica) {
                (true, _) => store.pull_averages(&at, version),
                (false, Some(replica)) => store.pull_as(&at, replica, version),
                (false, None) => store.pull(&at, version),
            };
            if let Ok(pulled) = pulled {
                assert!(pulled.version() >= version);
            }
        }
        Request::Load { chunks, version } => {
            if let Ok(mut loading) = store.begin_load(&at)
                && chunks.iter().all(|(offset, data)| loading.write(*offset, data).is_ok())
            {
                assert!(loading.finish(version).is_err(), "so few bytes are no model");
            }
        }
        Request::Configure { incarnation, staleness } => {
            let consistency = Consistency::from(staleness);
            let optimizer = OptimizerConfig::decode(&optimizer(COUNTING)).unwrap();
            if store
                .configure(&job(incarnation), 0, &placement, optimizer, consistency)
                .is_ok()
                && incarnation != *current
            {
                *current = incarnation;
                store
                    .load(&job(incarnation), vec![0.0; layout.arena_len(0)], 0)
                    .unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_placement_is_taken_or_refused(placement in any_placement()) {
        try_placement(&placement);
    }

    #[test]
    fn a_placement_with_a_wrong_number(placement in near_placement()) {
        try_placement(&placement);
    }

    #[test]
    fn messages_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(placement) = v1::Placement::decode(bytes.as_slice()) {
            try_placement(&placement);
        }
        if let Ok(request) = v1::ConfigureRequest::decode(bytes.as_slice()) {
            let _ = Consistency::try_from(&request);
            let _ = OptimizerConfig::decode(&request.optimizer);
        }
        let _ = v1::PushChunk::decode(bytes.as_slice());
        let _ = OptimizerConfig::decode(&bytes);
    }
}

proptest! {
    // Each case is up to thirty requests.
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_requests_in_any_order(requests in prop::collection::vec(request(), 1..30)) {
        let store = Store::new(Options::default());
        let mut current = 0;
        ask(&store, &mut current, Request::Configure { incarnation: 1, staleness: 2 });
        for request in requests {
            ask(&store, &mut current, request);
        }
        prop_assert_eq!(invariants::all_broken(), 0);
    }
}
