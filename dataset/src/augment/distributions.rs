//! How often things happen, and how far they go: shares and means over many records, seed 17.
#![allow(
    clippy::default_trait_access,
    reason = "a message that is spelt `{ }` has its defaults, whatever its name"
)]

use coati_proto::object_detection::protos as config;
use config::preprocessing_step::PreprocessingStep as Step;

use super::invariants::{built, noise};
use super::*;
use crate::pixels::Pixels;

const RUNS: u64 = 2000;

/// Runs a step on copies of an image with one box, and gives each result to `see`.
fn many(step: Step, height: usize, width: usize, mut see: impl FnMut(&Pixels, &Groundtruth)) {
    let step = built(step);
    let objects = Groundtruth {
        boxes: vec![[0.25, 0.25, 0.75, 0.75]],
        classes: vec![0],
        weights: vec![1.0],
        is_crowd: vec![false],
        difficult: vec![false],
        group_of: vec![false],
        area: vec![1.0],
        ..Groundtruth::default()
    };
    let mut stored = noise(height, width);
    for record in 0..RUNS {
        let mut sample = Sample::new(height, width, &mut stored, objects.clone());
        apply(&step, &mut sample, &mut stream(17, 0, record)).unwrap();
        let pixels = sample.picture.pixels().unwrap().clone();
        see(&pixels, &sample.objects);
    }
}

/// The share of runs in which something holds; with 2000 runs a standard deviation is at most 0.0112.
fn share(step: Step, height: usize, width: usize, holds: impl Fn(&Pixels, &Groundtruth) -> bool) -> f64 {
    let mut count = 0;
    many(step, height, width, |pixels, objects| {
        count += u64::from(holds(pixels, objects));
    });
    count as f64 / RUNS as f64
}

#[track_caller]
fn about(found: f64, expected: f64) {
    assert!((found - expected).abs() < 0.045, "{found}, {expected} is expected");
}

#[test]
fn probabilities_are_as_configured() {
    let original = Pixels::from(&noise(6, 8));
    let changed = |step| share(step, 6, 8, |pixels, _| *pixels != original);
    let vertical = config::RandomVerticalFlip {
        probability: Some(0.3),
        ..Default::default()
    };
    about(changed(Step::RandomVerticalFlip(vertical)), 0.3);
    about(
        share(Step::RandomRotation90(Default::default()), 6, 8, |pixels, _| {
            pixels.height == 8
        }),
        0.5,
    );
    about(changed(Step::RandomRgbToGray(Default::default())), 0.1);
    let quality = config::RandomJpegQuality {
        random_coef: Some(0.4),
        ..Default::default()
    };
    about(changed(Step::RandomJpegQuality(quality)), 0.6);
    let gaussian = config::RandomPatchGaussian {
        random_coef: Some(0.7),
        min_gaussian_stddev: Some(0.5),
        ..Default::default()
    };
    about(changed(Step::RandomPatchGaussian(gaussian)), 0.3);
    let drop = config::DropLabelProbabilistically {
        label: Some(1),
        drop_probability: Some(0.2),
    };
    about(
        share(Step::DropLabelProbabilistically(drop), 6, 8, |_, objects| {
            objects.is_empty()
        }),
        0.2,
    );
    let wide = share(Step::RandomSelfConcatImage(Default::default()), 6, 8, |pixels, _| {
        pixels.width == 16
    });
    about(wide, 0.1);
    // Rows without padding leave the image alone in 15 % of all cases.
    let left = share(Step::SsdRandomCrop(Default::default()), 60, 80, |pixels, _| {
        (pixels.height, pixels.width) == (60, 80)
    });
    about(left, 0.15);
}

#[test]
fn black_patches_come_as_often_and_as_large_as_configured() {
    let patches = config::RandomBlackPatches {
        max_black_patches: Some(1),
        probability: Some(0.25),
        size_to_image_ratio: Some(0.5),
    };
    let mut drawn = 0.0;
    let step = built(Step::RandomBlackPatches(patches));
    for record in 0..RUNS {
        let mut stored = crate::decode::Image {
            height: 10,
            width: 20,
            pixels: vec![255; 600],
        };
        let mut sample = Sample::new(10, 20, &mut stored, Groundtruth::default());
        apply(&step, &mut sample, &mut stream(17, 0, record)).unwrap();
        let black = sample
            .picture
            .pixels()
            .unwrap()
            .values
            .iter()
            .filter(|&&value| value == 0.0)
            .count();
        assert!(black == 0 || black == 5 * 5 * 3, "{black}");
        drawn += f64::from(u8::from(black > 0));
    }
    about(drawn / RUNS as f64, 0.25);
}

#[test]
fn factors_are_uniform_within_their_bounds() {
    // The golden figures of the reference: from 0.90001 to 1.09983, mean 1.00065.
    let original = Pixels::from(&noise(6, 8));
    let (mut low, mut high, mut sum, mut count) = (f32::MAX, 0.0_f32, 0.0, 0.0);
    many(Step::RandomPixelValueScale(Default::default()), 6, 8, |pixels, _| {
        let inside = pixels
            .values
            .iter()
            .zip(&original.values)
            .filter(|(_, old)| **old > 0.0 && **old < 230.0);
        for (new, old) in inside {
            let factor = new / old;
            low = low.min(factor);
            high = high.max(factor);
            sum += f64::from(factor);
            count += 1.0;
        }
    });
    assert!(
        (0.8999..0.9005).contains(&low) && (1.0995..1.1001).contains(&high),
        "{low} {high}"
    );
    assert!((sum / count - 1.0_f64).abs() < 1e-3);
}

#[test]
fn sizes_are_uniform_within_their_bounds() {
    let mut heights = Vec::new();
    many(Step::RandomImageScale(Default::default()), 20, 30, |pixels, _| {
        heights.push(pixels.height);
    });
    assert!(heights.iter().all(|height| (10..40).contains(height)));
    let mean = heights.iter().sum::<usize>() as f64 / RUNS as f64;
    // Uniform from 10 to 40, rounded down: 24.5, standard deviation of the mean 0.19.
    assert!((mean - 24.5).abs() < 0.8, "{mean}");
    assert!(heights.iter().any(|&height| height < 12) && heights.iter().any(|&height| height > 37));

    let mut sizes = Vec::new();
    many(Step::RandomPadImage(Default::default()), 10, 10, |pixels, objects| {
        sizes.push((pixels.height, objects.boxes[0][0], objects.boxes[0][2]));
    });
    assert!(
        sizes.iter().all(|(height, ..)| (10..20).contains(height)),
        "the largest size is never drawn"
    );
    for (height, top, bottom) in sizes {
        assert!(
            ((bottom - top) * height as f32 - 5.0).abs() < 1e-4,
            "the box keeps its pixels"
        );
    }
    let pixels_of = |name: Step| {
        let mut found = Vec::new();
        many(name, 40, 40, |pixels, _| found.push(pixels.height * pixels.width));
        found
    };
    let down = pixels_of(Step::RandomDownscaleToTargetPixels(
        config::RandomDownscaleToTargetPixels {
            random_coef: None,
            min_target_pixels: Some(400),
            max_target_pixels: Some(900),
        },
    ));
    assert!(down.iter().all(|pixels| (361..900).contains(pixels)));
}

#[test]
fn jitter_moves_corners_as_far_as_its_mode_says() {
    use config::random_jitter_boxes::JitterMode;
    // The golden figures of the reference for the default: 0.025 of a side either way.
    for (mode, low, high) in [
        (JitterMode::Default, -0.025, 0.025),
        (JitterMode::Expand, 0.0, 0.025),
        (JitterMode::Shrink, -0.025, 0.0),
        (JitterMode::ExpandSymmetric, 0.0, 0.025),
        (JitterMode::ShrinkSymmetric, -0.025, 0.0),
        (JitterMode::ExpandSymmetricXy, 0.0, 0.025),
        (JitterMode::ShrinkSymmetricXy, -0.025, 0.0),
    ] {
        let jitter = config::RandomJitterBoxes {
            ratio: None,
            jitter_mode: Some(mode.into()),
        };
        let (mut least, mut most) = (f32::MAX, f32::MIN);
        many(Step::RandomJitterBoxes(jitter), 4, 4, |_, objects| {
            // Outwards, in sides of the box.
            let [ymin, xmin, ymax, xmax] = objects.boxes[0];
            let moves = [
                (0.25 - ymin) / 0.5,
                (0.25 - xmin) / 0.5,
                (ymax - 0.75) / 0.5,
                (xmax - 0.75) / 0.5,
            ];
            for value in moves {
                least = least.min(value);
                most = most.max(value);
            }
            let equal = |a: f32, b: f32| (a - b).abs() < 1e-5;
            match mode {
                JitterMode::ExpandSymmetric | JitterMode::ShrinkSymmetric => {
                    assert!(equal(moves[0], moves[2]) && equal(moves[1], moves[3]));
                }
                JitterMode::ExpandSymmetricXy | JitterMode::ShrinkSymmetricXy => {
                    assert!(moves.iter().all(|&value| equal(value, moves[0])));
                }
                _ => {}
            }
        });
        let width = high - low;
        assert!(
            least >= low - 1e-5 && most <= high + 1e-5,
            "{mode:?}: {least} to {most}"
        );
        assert!(
            least < low + 0.1 * width && most > high - 0.1 * width,
            "{mode:?}: {least} to {most}"
        );
    }
}

#[test]
fn squares_are_squares() {
    many(
        Step::RandomSquareCropByScale(Default::default()),
        30,
        40,
        |pixels, _| {
            assert_eq!(pixels.height, pixels.width);
            // 0.6, 0.7, …, 1.3 times 40, rounded down.
            assert!(
                [24, 27, 28, 31, 32, 35, 36, 39, 40, 43, 44, 47, 48, 51, 52].contains(&pixels.height),
                "{}",
                pixels.height
            );
        },
    );
    let to_square = config::RandomScaleCropAndPadToSquare {
        output_size: Some(33),
        ..Default::default()
    };
    many(Step::RandomScaleCropAndPadToSquare(to_square), 30, 40, |pixels, _| {
        assert_eq!((pixels.height, pixels.width), (33, 33));
    });
    let wide = config::RandomCropToAspectRatio {
        aspect_ratio: Some(2.0),
        ..Default::default()
    };
    many(Step::RandomCropToAspectRatio(wide), 30, 40, |pixels, _| {
        assert_eq!((pixels.height, pixels.width), (20, 40));
    });
    many(
        Step::SsdRandomCropPadFixedAspectRatio(Default::default()),
        60,
        40,
        |pixels, _| {
            assert_eq!(pixels.height, pixels.width);
        },
    );
}

#[test]
fn labels_are_the_label_maps() {
    let remap = config::RemapLabels {
        original_labels: vec![1, 5],
        new_label: Some(9),
    };
    many(Step::RemapLabels(remap), 4, 4, |_, objects| {
        assert_eq!(objects.classes, [8]);
    });
    let other = config::DropLabelProbabilistically {
        label: Some(2),
        drop_probability: Some(1.0),
    };
    many(Step::DropLabelProbabilistically(other), 4, 4, |_, objects| {
        assert_eq!(objects.len(), 1);
    });
}

#[test]
fn logits_become_shares() {
    let mut stored = noise(4, 4);
    let objects = Groundtruth {
        multiclass_scores: vec![vec![0.0, 2.0_f32.ln(), 4.0_f32.ln()]],
        ..Groundtruth::default()
    };
    let mut sample = Sample::new(4, 4, &mut stored, objects);
    let half = config::ConvertClassLogitsToSoftmax { temperature: Some(0.5) };
    apply(
        &built(Step::ConvertClassLogitsToSoftmax(half)),
        &mut sample,
        &mut stream(0, 0, 0),
    )
    .unwrap();
    let expected = [1.0 / 21.0, 4.0 / 21.0, 16.0 / 21.0];
    let found = &sample.objects.multiclass_scores[0];
    assert!(
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
        "{found:?}"
    );
}
