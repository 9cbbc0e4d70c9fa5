use coati_common::variables::{VariableKind, VariableSpec};
use coati_param_server::optimizer::{AdamPowers, OptimizerConfig, moving_average, update};
use coati_param_server::schedule::learning_rate;
use coati_param_server::{Contributor, Layout, Store, Strategy, Tag, plan};
use coati_proto::coati::v1::JobRef;

use crate::golden;

const FILE: &str = "components/optimizers.npz";

/// The configurations that the arrays were recorded with.
const CASES: [(&str, &str); 6] = [
    (
        "momentum",
        "momentum_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.1 } } momentum_optimizer_value: 0.9 }",
    ),
    (
        "rms_prop_stock",
        "rms_prop_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.1 } } momentum_optimizer_value: 0.9 decay: 0.9 epsilon: 1.0 }",
    ),
    (
        "rms_prop_small_eps",
        "rms_prop_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } momentum_optimizer_value: 0.9 decay: 0.95 epsilon: 0.001 }",
    ),
    (
        "rms_prop_proto_defaults",
        "rms_prop_optimizer { learning_rate { exponential_decay_learning_rate { } } }",
    ),
    (
        "adam",
        "adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.05 } } epsilon: 1e-08 }",
    ),
    (
        "momentum_decaying_lr",
        "momentum_optimizer { learning_rate { exponential_decay_learning_rate { initial_learning_rate: 0.1 decay_steps: 2 decay_factor: 0.5 staircase: true } } momentum_optimizer_value: 0.9 }",
    ),
];

fn config(text: &str, rest: &str) -> OptimizerConfig {
    OptimizerConfig::try_from(&golden::parse("Optimizer", &format!("{text} {rest}"))).unwrap()
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= 1e-6 * expected.abs(),
            "{what}: {found}, expected {expected}"
        );
    }
}

#[test]
fn five_updates_agree_with_the_reference() {
    let (start, gradients) = (golden::array(FILE, "var0"), golden::array(FILE, "grads"));
    let mut bitwise = 0;
    for (name, text) in CASES {
        let config = config(text, "use_moving_average: false");
        let expected = golden::array(FILE, &format!("{name}__var"));
        let slots: Vec<_> = config
            .rule
            .slots()
            .iter()
            .map(|slot| golden::array(FILE, &format!("{name}__slot__v.{}", slot.suffix)))
            .collect();
        let mut values = start.clone();
        let mut held: Vec<Vec<f32>> = config.rule.slots().iter().map(|slot| vec![slot.initial; 6]).collect();
        let mut powers = AdamPowers::initial(&config.rule);
        for step in 0..5 {
            for (slot, expected) in held.iter().zip(&slots) {
                close(
                    slot,
                    &expected[step * 6..][..6],
                    &format!("{name} slot before step {step}"),
                );
            }
            if let Some(powers) = powers {
                close(
                    &[powers.beta1],
                    &golden::array(FILE, "adam__slot__beta1_power")[step..=step],
                    "beta1_power",
                );
                close(
                    &[powers.beta2],
                    &golden::array(FILE, "adam__slot__beta2_power")[step..=step],
                    "beta2_power",
                );
            }
            let rate = learning_rate(&config.learning_rate, step as u64);
            let (first, second) = held.split_at_mut(1);
            let second = second.first_mut().map_or(&mut [][..], |v| v.as_mut_slice());
            update(
                &config.rule,
                rate,
                powers,
                &gradients[step * 6..][..6],
                &mut values,
                &mut first[0],
                second,
            );
            powers = powers.map(|powers| powers.next(&config.rule));
            close(&values, &expected[step * 6..][..6], &format!("{name} step {step}"));
            bitwise += values
                .iter()
                .zip(&expected[step * 6..][..6])
                .filter(|(a, b)| a.to_bits() == b.to_bits())
                .count();
        }
    }
    // All of TensorFlow's operations in its order: not just close.
    assert_eq!(bitwise, 6 * 5 * 6);
}

#[test]
fn moving_averages_agree_with_the_reference() {
    let (values, expected) = (
        golden::array(FILE, "momentum__var"),
        golden::array(FILE, "ema_0p9_over_momentum"),
    );
    let mut shadow = golden::array(FILE, "var0");
    close(&shadow, &expected[..6], "before");
    for step in 0..5 {
        moving_average(0.9, &mut shadow, &values[step * 6..][..6]);
        close(&shadow, &expected[(step + 1) * 6..][..6], &format!("step {step}"));
    }
}

#[test]
fn the_store_gives_the_same_for_values_averages_and_statistics() {
    let job = JobRef {
        job_id: "j".into(),
        incarnation: 1,
    };
    let specs = [
        VariableSpec {
            name: "s".into(),
            shape: vec![2],
            kind: VariableKind::MovingStatistic { decay: 0.75 },
        },
        VariableSpec {
            name: "v".into(),
            shape: vec![6],
            kind: VariableKind::Trainable,
        },
        VariableSpec {
            name: "c".into(),
            shape: vec![1],
            kind: VariableKind::Constant,
        },
    ];
    let placement = plan(&specs, 1, Strategy::Balanced).unwrap();
    let layout = Layout::new(&placement).unwrap();
    let store = Store::default();
    let optimizer = config(CASES[0].1, "use_moving_average: true moving_average_decay: 0.9");
    store.configure(&job, 0, &placement, optimizer, 0).unwrap();
    let mut flat = vec![1.0, 2.0];
    flat.extend(golden::array(FILE, "var0"));
    flat.push(7.0);
    let mut arena = Vec::new();
    layout.gather(0, &flat, &mut arena);
    store.load(&job, arena, 0).unwrap();

    let gradients = golden::array(FILE, "grads");
    for step in 0..5 {
        let mut push = vec![4.0, 0.0];
        push.extend(&gradients[step * 6..][..6]);
        push.push(f32::NAN);
        let mut arena = Vec::new();
        layout.gather(0, &push, &mut arena);
        let tag = Tag {
            replica: 0,
            sequence: step as u64,
            version: step as u64,
        };
        // The constant is not pushed, so what stands there does not matter.
        store
            .push(&job, tag, &arena[..layout.server(0).unwrap().pushed_len])
            .unwrap();
        let contributor = Contributor {
            replica: 0,
            sequence: step as u64,
            samples: 4,
        };
        let committed = store.commit(&job, step as u64, &[contributor], true).unwrap();
        assert_eq!((committed.version, committed.learning_rate), (step as u64 + 1, 0.1));
    }
    let server = layout.server(0).unwrap();
    store.pull(&job, 5).unwrap().scatter(server, &mut flat);
    close(&flat[2..8], &golden::array(FILE, "momentum__var")[24..], "values");
    // 4 - 3 * 0.75^5 and 2 * 0.75^5, exact in float32.
    assert_eq!(flat[..2], [3.288_086, 0.474_609_38]);
    assert_eq!(flat[8], 7.0);
    store.pull_averages(&job, 5).unwrap().scatter(server, &mut flat);
    close(
        &flat[2..8],
        &golden::array(FILE, "ema_0p9_over_momentum")[30..],
        "averages",
    );
    assert_eq!(flat[..2], [3.288_086, 0.474_609_38]);
}
