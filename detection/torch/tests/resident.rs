//! Variables that live on the device: the steps that are made there are those that a parameter server makes of the same gradients.

use coati_common::optimizer::Rule;
use coati_common::variables::VariableKind;
use coati_detection::accelerator::Device;
use coati_detection::accelerator::abi::Update;
use coati_detection::accelerator::resident::{Residence, Resident, Summing, Vectors};
use coati_detection::gradients;
use coati_detection::model::{ResidentStep, Ssd};
use coati_param_server::optimizer::{self, AdamPowers};

use super::losses::{groundtruth, ssd};
use super::noise;

const FOCAL: &str = "weighted_sigmoid_focal { gamma: 2.0 alpha: 0.25 }";
const MINER: &str = "hard_example_miner { num_hard_examples: 50 max_negatives_per_positive: 3 }";

fn images(seed: u64) -> Vec<f32> {
    let values = noise(2 * 129 * 129 * 3, seed).into_iter();
    values.map(|x| x * 127.5 + 127.5).collect()
}

fn residence(ssd: &Ssd, rule: Rule) -> Residence {
    Residence {
        rule,
        moving_average_decay: None,
        variables: ssd.roles(),
        bias_multiplier: None,
        clip: None,
        sums: None,
    }
}

/// A detector with its variables on the device, slots as before the first step.
fn resident(classes: &str, miner: &str, change: impl FnOnce(&mut Residence)) -> (Ssd, Resident, Vec<f32>) {
    let mut ssd = ssd(classes, miner, Device::TorchCpu);
    let params = ssd.init_values(3);
    let rule = Rule::Momentum {
        momentum: 0.9,
        nesterov: false,
    };
    let mut residence = residence(&ssd, rule);
    change(&mut residence);
    let vectors = Vectors {
        slots: (residence.rule.slots().iter())
            .flat_map(|slot| vec![slot.initial; params.len()])
            .collect(),
        averages: residence.moving_average_decay.map_or_else(Vec::new, |_| params.clone()),
        params: params.clone(),
    };
    let resident = ssd.reside(&residence, &vectors).unwrap().unwrap();
    (ssd, resident, params)
}

fn step<'a>(images: &'a [f32], groundtruth: &'a [coati_detection::Groundtruth]) -> ResidentStep<'a> {
    ResidentStep {
        images,
        staged: false,
        groundtruth,
        next: None,
    }
}

/// What a parameter server makes of a gradient.
fn on_the_host(
    ssd: &Ssd,
    residence: &Residence,
    update: &Update,
    gradient: &[f32],
    vectors: &mut Vectors,
    elements: usize,
) {
    let [beta1, beta2] = update.powers;
    let powers = Some(AdamPowers { beta1, beta2 });
    let (first, second) = vectors.slots.split_at_mut(elements);
    let mut start = 0;
    for spec in ssd.variables() {
        let range = start..start + spec.elements();
        start = range.end;
        let (values, gradient) = (&mut vectors.params[range.clone()], &gradient[range.clone()]);
        match spec.kind {
            VariableKind::Constant => {}
            VariableKind::MovingStatistic { decay } => optimizer::moving_average(decay, values, gradient),
            VariableKind::Trainable => {
                let second = if second.is_empty() {
                    &mut []
                } else {
                    &mut second[range.clone()]
                };
                optimizer::update(
                    &residence.rule,
                    update.rate,
                    powers,
                    gradient,
                    values,
                    &mut first[range.clone()],
                    second,
                );
                if let Some(decay) = residence.moving_average_decay {
                    optimizer::moving_average(decay, &mut vectors.averages[range], values);
                }
            }
        }
    }
}

fn trainable(ssd: &Ssd, all: &[f32]) -> Vec<f32> {
    let (mut start, mut found) = (0, Vec::new());
    for spec in ssd.variables() {
        let range = start..start + spec.elements();
        start = range.end;
        if spec.kind == VariableKind::Trainable {
            found.extend_from_slice(&all[range]);
        }
    }
    found
}

/// Of trainable elements, and of all where `vector` has them.
fn assert_same(ssd: &Ssd, what: &str, found: &[f32], expected: &[f32], all: bool) {
    let mut start = 0;
    for spec in ssd.variables() {
        let range = start..start + spec.elements();
        start = range.end;
        if !all && spec.kind != VariableKind::Trainable {
            continue;
        }
        let wrong = found[range.clone()]
            .iter()
            .zip(&expected[range.clone()])
            .position(|(a, b)| a.to_bits() != b.to_bits());
        let values = wrong.map(|at| (at, found[range.start + at], expected[range.start + at]));
        assert_eq!(values, None, "{what} of {}", spec.name);
    }
}

#[test]
fn steps_on_the_device_are_those_of_a_parameter_server() {
    let (beta1, beta2) = (0.9, 0.999);
    for (rule, average, clip, biases) in [
        (
            Rule::Momentum {
                momentum: 0.9,
                nesterov: false,
            },
            Some(0.99),
            None,
            Some(2.0),
        ),
        (
            Rule::Momentum {
                momentum: 0.8,
                nesterov: true,
            },
            None,
            None,
            None,
        ),
        (
            Rule::RmsProp {
                decay: 0.9,
                momentum: 0.9,
                epsilon: 1.0,
            },
            None,
            None,
            None,
        ),
        (
            Rule::Adam {
                beta1,
                beta2,
                epsilon: 1e-8,
            },
            Some(0.9),
            None,
            None,
        ),
    ] {
        let mut how = None;
        let (mut ssd, there, params) = resident(FOCAL, "", |residence| {
            residence.rule = rule;
            residence.moving_average_decay = average;
            residence.clip = clip;
            residence.bias_multiplier = biases;
            how = Some(residence.clone());
        });
        let how = how.unwrap();
        let mut expected = there.read().unwrap();
        assert_eq!(expected.params, params);
        let (mut power1, mut power2) = (beta1, beta2);
        for seed in 0..3 {
            let images = images(seed);
            let mut gradient = vec![f32::NAN; params.len()];
            let on_host = ssd
                .train_step(&expected.params, &images, &groundtruth(), &mut gradient)
                .unwrap();
            if let Some(multiplier) = biases {
                let specs = ssd.variables().to_vec();
                gradients::multiply_biases_within(&mut gradient, 0, &specs, multiplier);
            }
            let losses = ssd
                .train_resident(&step(&images, &groundtruth()), &there, &mut |_| panic!("nobody sums"))
                .unwrap();
            assert_eq!(
                (losses.classification, losses.localization),
                (on_host.classification, on_host.localization)
            );
            let apart = (losses.regularization - on_host.regularization).abs();
            assert!(apart <= 1e-5 * on_host.regularization, "{losses:?}, {on_host:?}");
            assert_same(&ssd, "gradient", &there.gradient().unwrap(), &gradient, true);
            assert!(there.is_finite().unwrap());
            let update = Update {
                rate: 0.01,
                powers: [power1, power2],
                divisor: 1.0,
            };
            on_the_host(&ssd, &how, &update, &gradient, &mut expected, params.len());
            there.apply(update).unwrap();
            (power1, power2) = (power1 * beta1, power2 * beta2);
            let found = there.read().unwrap();
            let what = format!("{rule:?}, step {seed}");
            if rule.slots().len() > 1 {
                // libtorch's roots are off by one in the last place now and then.
                let apart = super::apart(&found.params, &expected.params);
                assert!(apart < 1e-6, "{what}: {apart}");
                if average.is_some() {
                    let averages = [&found.averages, &expected.averages].map(|all| trainable(&ssd, all));
                    let apart = super::apart(&averages[0], &averages[1]);
                    assert!(apart < 1e-6, "{what}: {apart}");
                }
                expected = found;
                continue;
            }
            assert_same(&ssd, &what, &found.params, &expected.params, true);
            for slot in 0..rule.slots().len() {
                let range = slot * params.len()..(slot + 1) * params.len();
                assert_same(&ssd, &what, &found.slots[range.clone()], &expected.slots[range], false);
            }
            if average.is_some() {
                assert_same(&ssd, &what, &found.averages, &expected.averages, false);
            }
        }
    }
}

#[test]
fn clipping_is_that_of_the_host() {
    for most in [0.05, 1e9] {
        let (mut ssd, there, params) = resident(FOCAL, "", |residence| residence.clip = Some(most));
        let mut expected = vec![0.0; params.len()];
        ssd.train_step(&params, &images(1), &groundtruth(), &mut expected)
            .unwrap();
        let specs = ssd.variables().to_vec();
        let norm = gradients::clip_by_global_norm(&mut expected, &specs, most);
        assert!(norm > 0.05, "{norm}");
        ssd.train_resident(&step(&images(1), &groundtruth()), &there, &mut |_| {})
            .unwrap();
        let found = there.gradient().unwrap();
        let apart = super::apart(&found, &expected);
        assert!(apart < 1e-6, "{apart}");
    }
}

/// What lies where sums are made. On the CPU that is memory of this process.
fn summed(there: &Resident) -> Vec<f32> {
    let (address, how) = there.sums().unwrap();
    assert!(!how.bf16);
    // SAFETY: as many floats as the library says, which nobody writes meanwhile.
    unsafe { std::slice::from_raw_parts(address as *const f32, there.elements()) }.to_vec()
}

#[test]
fn a_backward_pass_that_is_cut_computes_the_same_and_tells_of_each_part_once() {
    for (classes, miner) in [(FOCAL, ""), ("weighted_sigmoid { }", MINER)] {
        for bucket_bytes in [1, 20_000, 1 << 30] {
            let summing = Some(Summing {
                bucket_bytes,
                bf16: false,
            });
            let (mut ssd, there, params) = resident(classes, miner, |residence| residence.sums = summing);
            let mut expected = vec![0.0; params.len()];
            let losses = ssd
                .train_step(&params, &images(2), &groundtruth(), &mut expected)
                .unwrap();
            let mut told = Vec::new();
            let found = ssd
                .train_resident(&step(&images(2), &groundtruth()), &there, &mut |elements| {
                    // All that was told of before is final.
                    told.push((elements, summed(&there)));
                })
                .unwrap();
            assert_eq!(found.classification, losses.classification);
            let last = summed(&there);
            assert_same(&ssd, "gradient", &last, &there.gradient().unwrap(), true);
            let apart = super::apart(&last, &expected);
            assert!(apart < 1e-6, "{bucket_bytes}: {apart}");
            let mut covered = vec![0; params.len()];
            for (elements, then) in &told {
                covered[elements.clone()].iter_mut().for_each(|times| *times += 1);
                assert_eq!(then[elements.clone()], last[elements.clone()], "{elements:?}");
            }
            let frozen = expected
                .iter()
                .zip(&covered)
                .all(|(value, times)| *times == 1 || *value == 0.0);
            assert!(frozen && covered.iter().all(|times| *times <= 1), "{bucket_bytes}");
            if bucket_bytes == 20_000 {
                assert!(told.len() > 4, "{}", told.len());
                let first = &told[0].0;
                assert!(
                    first.end == params.len() && first.start > 0,
                    "the end comes first: {first:?}"
                );
            }
        }
    }
}

#[test]
fn a_step_whose_losses_are_not_finite_tells_of_as_much_as_others_do() {
    // Whether the device computes the losses or the host: other ranks sum as many parts.
    for (classes, miner) in [(FOCAL, ""), ("weighted_sigmoid { }", MINER)] {
        let summing = Some(Summing {
            bucket_bytes: 20_000,
            bf16: false,
        });
        let mut told = [Vec::new(), Vec::new()];
        for (broken, told) in [false, true].into_iter().zip(&mut told) {
            let mut how = None;
            let (mut ssd, there, _) = resident(classes, miner, |residence| {
                residence.sums = summing;
                how = Some(residence.clone());
            });
            let mut vectors = there.read().unwrap();
            if broken {
                *vectors.params.last_mut().unwrap() = f32::NAN;
            }
            let there = ssd.reside(&how.unwrap(), &vectors).unwrap().unwrap();
            let step = ssd.train_resident(&step(&images(2), &groundtruth()), &there, &mut |elements| {
                told.push(elements)
            });
            assert_eq!(step.is_err_and(|error| error.is_not_finite()), broken, "{classes}");
        }
        assert!(told[0].len() > 4, "{}", told[0].len());
        assert_eq!(told[0], told[1], "{classes}");
    }
}

#[test]
fn a_rank_that_does_not_count_adds_nothing_and_one_that_does_counts_by_its_samples() {
    let summing = Some(Summing {
        bucket_bytes: 1 << 20,
        bf16: false,
    });
    let (mut ssd, there, _) = resident(FOCAL, "", |residence| residence.sums = summing);
    ssd.train_resident(&step(&images(4), &groundtruth()), &there, &mut |_| {})
        .unwrap();
    let own = there.gradient().unwrap();
    there.fill(3.0).unwrap();
    let found = summed(&there);
    assert!(found.iter().zip(&own).all(|(found, own)| *found == own * 3.0));
    there.fill(0.0).unwrap();
    assert!(
        summed(&there)
            .iter()
            .all(|value| value.to_bits() == (-0.0_f32).to_bits())
    );
}

#[test]
fn images_that_were_sent_ahead_are_those_of_the_next_step() {
    let (mut one, there, _) = resident(FOCAL, "", |_| {});
    let (mut other, elsewhere, _) = resident(FOCAL, "", |_| {});
    let (first, second, third) = (images(5), images(6), images(7));
    let groundtruth = groundtruth();
    let ahead = |images, next| ResidentStep {
        next: Some(next),
        ..step(images, &groundtruth)
    };
    one.train_resident(&ahead(&first, &second), &there, &mut |_| {})
        .unwrap();
    let staged = ResidentStep {
        staged: true,
        ..ahead(&second, &third)
    };
    let found = one.train_resident(&staged, &there, &mut |_| {}).unwrap();
    let expected = other
        .train_resident(&step(&second, &groundtruth), &elsewhere, &mut |_| {})
        .unwrap();
    assert_eq!(found, expected);
    // What was sent and is not used is forgotten.
    let found = one
        .train_resident(&step(&first, &groundtruth), &there, &mut |_| {})
        .unwrap();
    let expected = other
        .train_resident(&step(&first, &groundtruth), &elsewhere, &mut |_| {})
        .unwrap();
    assert_eq!(found, expected);
}

#[test]
fn what_is_not_finite_is_told_and_explained() {
    let (mut ssd, there, _) = resident(FOCAL, "", |_| {});
    let mut vectors = there.read().unwrap();
    vectors.params[7] = f32::NAN;
    let rule = Rule::Momentum {
        momentum: 0.9,
        nesterov: false,
    };
    let there = ssd.reside(&residence(&ssd, rule), &vectors).unwrap().unwrap();
    let error = ssd
        .train_resident(&step(&images(1), &groundtruth()), &there, &mut |_| {})
        .unwrap_err();
    assert!(error.is_not_finite(), "{error}");
    let name = &ssd.variables()[0].name;
    assert!(error.to_string().contains(name.as_str()), "{error}");
    // Vectors that do not fit are refused.
    vectors.slots.pop();
    let error = ssd.reside(&residence(&ssd, rule), &vectors).unwrap_err().to_string();
    assert!(error.contains("slots"), "{error}");
}
