use coati_common::variables::{VariableKind, VariableSpec};
use coati_param_server::placement::{Error, slice_of};
use coati_param_server::{Layout, Strategy as Placing, plan};
use proptest::prelude::*;

use crate::golden;

/// The reference's variable list of `ssd_mobilenet_v1` with 90 classes.
pub(crate) fn ssd_mobilenet_v1() -> Vec<VariableSpec> {
    let text = std::fs::read_to_string(golden::path("variable_names/ssd_mobilenet_v1.txt")).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && line.contains("float32"));
    lines
        .map(|line| {
            let mut fields = line.split('\t');
            let name = fields.next().unwrap().to_owned();
            let shape = fields.next().unwrap().trim_matches(['[', ']']);
            let shape = shape
                .split(',')
                .map(str::trim)
                .filter(|s| !s.is_empty())
                .map(|s| s.parse().unwrap())
                .collect();
            let trainable = fields.nth(1) == Some("T");
            let kind = if trainable {
                VariableKind::Trainable
            } else {
                VariableKind::MovingStatistic { decay: 0.9997 }
            };
            VariableSpec { name, shape, kind }
        })
        .collect()
}

fn largest_to_mean(loads: &[usize]) -> f64 {
    let mean = loads.iter().sum::<usize>() as f64 / loads.len() as f64;
    loads.iter().max().copied().unwrap_or(0) as f64 / mean
}

#[test]
fn ssd_mobilenet_is_balanced_on_any_number_of_servers() {
    let specs = ssd_mobilenet_v1();
    assert_eq!(specs.len(), 199);
    for servers in 1..=9 {
        let placement = plan(&specs, servers, Placing::Balanced).unwrap();
        let layout = Layout::new(&placement).unwrap();
        for slots in 0..=3 {
            let loads: Vec<_> = layout
                .servers()
                .iter()
                .map(|s| s.arena_len + slots * s.slotted_len)
                .collect();
            let ratio = largest_to_mean(&loads);
            assert!(ratio <= 1.05, "{servers} servers, {slots} slots: {ratio}");
        }
        assert!(
            placement.pieces.len() < 199 + 60 * servers as usize,
            "{} pieces",
            placement.pieces.len()
        );
        assert_eq!(placement, plan(&specs, servers, Placing::Balanced).unwrap());
    }
}

#[test]
fn a_large_variable_is_cut_into_pieces_of_at_most_4_mib() {
    let spec = VariableSpec {
        name: "w".into(),
        shape: vec![1, 1, 2048, 2048],
        kind: VariableKind::Trainable,
    };
    let placement = plan(&[spec], 3, Placing::Balanced).unwrap();
    assert!(placement.pieces.len() > 3);
    assert!(placement.pieces.iter().any(|piece| piece.length <= 1 << 20));
}

#[test]
fn round_robin_deals_whole_variables_in_their_order() {
    let specs = ssd_mobilenet_v1();
    let placement = plan(&specs, 3, Placing::RoundRobin).unwrap();
    assert_eq!(placement.pieces.len(), specs.len());
    assert!(
        placement
            .pieces
            .iter()
            .all(|piece| piece.ps == piece.variable % 3 && piece.start == 0)
    );
    Layout::new(&placement).unwrap();
}

#[test]
fn impossible_models_are_refused() {
    let kind = VariableKind::Trainable;
    let spec = |name: &str, shape: &[i64]| VariableSpec {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    };
    assert_eq!(plan(&[spec("a", &[1])], 0, Placing::Balanced), Err(Error::NoServers));
    let twice = plan(&[spec("a", &[1]), spec("a", &[2])], 1, Placing::Balanced);
    assert_eq!(twice, Err(Error::Duplicate { name: "a".into() }));
    for shape in [&[-1, 3][..], &[i64::MAX, 2], &[1 << 40, 1 << 30]] {
        assert!(matches!(
            plan(&[spec("a", shape)], 1, Placing::Balanced),
            Err(Error::Shape { .. })
        ));
    }
}

#[test]
fn a_damaged_placement_is_refused() {
    let specs = ssd_mobilenet_v1();
    let good = plan(&specs, 3, Placing::Balanced).unwrap();
    let spoiled = |spoil: fn(&mut coati_proto::coati::v1::Placement)| {
        let mut placement = good.clone();
        spoil(&mut placement);
        Layout::new(&placement).unwrap_err().to_string()
    };
    assert!(spoiled(|p| p.pieces.truncate(p.pieces.len() - 1)).contains("held by no server"));
    assert!(spoiled(|p| p.pieces[0].ps = 3).contains("no such server"));
    assert!(spoiled(|p| p.pieces[0].offset = 1).contains("0 is next"));
    assert!(spoiled(|p| p.pieces[0].length += 1 << 40).contains("elements"));
    assert!(spoiled(|p| p.pieces[0].variable = 9999).contains("no such variable"));
    assert!(spoiled(|p| p.ps_count = 0).contains("0 servers"));
    assert!(spoiled(|p| p.ps_count = u32::MAX).contains("servers"));
    assert!(
        spoiled(|p| {
            let mut copy = p.pieces[0];
            copy.ps = 2;
            copy.offset = p
                .pieces
                .iter()
                .filter(|piece| piece.ps == 2)
                .map(|piece| piece.length)
                .sum();
            p.pieces.push(copy);
        })
        .contains("held twice")
    );
}

fn any_specs() -> impl Strategy<Value = Vec<VariableSpec>> {
    let kind = prop_oneof![
        3 => Just(VariableKind::Trainable),
        1 => Just(VariableKind::MovingStatistic { decay: 0.9 }),
        1 => Just(VariableKind::Constant),
    ];
    let shape = prop::collection::vec(0i64..40, 0..5);
    prop::collection::vec((shape, kind), 1..20).prop_map(|all| {
        let named = all.into_iter().enumerate();
        named
            .map(|(i, (shape, kind))| VariableSpec {
                name: format!("v{i}"),
                shape,
                kind,
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_element_is_held_once_and_pieces_are_slices(specs in any_specs(), servers in 1u32..12, balanced: bool) {
        let strategy = if balanced { Placing::Balanced } else { Placing::RoundRobin };
        let placement = plan(&specs, servers, strategy).unwrap();
        // Layout::new checks the covering; gathering and scattering back checks it once more, by value.
        let layout = Layout::new(&placement).unwrap();
        let flat: Vec<f32> = (0..layout.flat_len()).map(|i| i as f32).collect();
        let mut back = vec![-1.0; flat.len()];
        let mut split = vec![-1.0; flat.len()];
        let mut arenas = Vec::new();
        for ps in 0..servers {
            let mut arena = Vec::new();
            layout.gather(ps, &flat, &mut arena);
            prop_assert_eq!(arena.len(), layout.arena_len(ps));
            layout.scatter(ps, &arena, &mut back);
            arenas.push(arena);
        }
        prop_assert_eq!(&back, &flat);
        for (pieces, arena) in layout.split_mut(&mut split).unwrap().into_iter().zip(&arenas) {
            let mut next = 0;
            for piece in pieces {
                piece.copy_from_slice(&arena[next..next + piece.len()]);
                next += piece.len();
            }
        }
        prop_assert_eq!(&split, &flat);
        for piece in &placement.pieces {
            let shape = &placement.variables[piece.variable as usize].shape;
            let (_, lengths) = slice_of(shape, piece.start, piece.length).unwrap();
            prop_assert_eq!(lengths.iter().product::<i64>() as u64, piece.length);
        }
        for server in layout.servers() {
            prop_assert!(server.slotted_len <= server.pushed_len && server.pushed_len <= server.arena_len);
        }
        if balanced {
            let loads: Vec<_> = layout.servers().iter().map(|s| s.arena_len).collect();
            // One element more than the mean cannot be avoided.
            let mean = layout.flat_len() as f64 / f64::from(servers);
            prop_assert!(*loads.iter().max().unwrap() as f64 <= (mean * 1.05).max(mean.ceil()), "{loads:?}");
        }
    }
}
