//! What holds for every step, whatever is drawn.
#![allow(
    clippy::default_trait_access,
    reason = "a message that is spelt `{ }` has its defaults, whatever its name"
)]

use coati_proto::object_detection::protos as config;
use config::preprocessing_step::PreprocessingStep as Step;
use proptest::prelude::*;

use super::*;
use crate::decode::Image;
use crate::pixels::Pixels;

/// Every step that moves or changes something, at settings that make it happen often.
pub(super) fn steps() -> Vec<(&'static str, Step)> {
    let half = Some(0.5);
    vec![
        ("pixel_scale", Step::RandomPixelValueScale(Default::default())),
        ("image_scale", Step::RandomImageScale(Default::default())),
        (
            "rgb_to_gray",
            Step::RandomRgbToGray(config::RandomRgBtoGray { probability: half }),
        ),
        ("brightness", Step::RandomAdjustBrightness(Default::default())),
        ("contrast", Step::RandomAdjustContrast(Default::default())),
        (
            "hue",
            Step::RandomAdjustHue(config::RandomAdjustHue { max_delta: Some(0.9) }),
        ),
        ("saturation", Step::RandomAdjustSaturation(Default::default())),
        ("distort", Step::RandomDistortColor(Default::default())),
        (
            "distort_1",
            Step::RandomDistortColor(config::RandomDistortColor {
                color_ordering: Some(1),
            }),
        ),
        (
            "gamma",
            Step::AdjustGamma(config::AdjustGamma {
                gamma: Some(1.7),
                gain: Some(1.1),
            }),
        ),
        (
            "jitter",
            Step::RandomJitterBoxes(config::RandomJitterBoxes {
                ratio: half,
                jitter_mode: None,
            }),
        ),
        ("horizontal", Step::RandomHorizontalFlip(flip())),
        (
            "vertical",
            Step::RandomVerticalFlip(config::RandomVerticalFlip {
                keypoint_flip_permutation: vec![1, 0],
                probability: half,
            }),
        ),
        ("turn", Step::RandomRotation90(Default::default())),
        ("crop", Step::RandomCropImage(Default::default())),
        ("pad", Step::RandomPadImage(Default::default())),
        (
            "absolute_pad",
            Step::RandomAbsolutePadImage(config::RandomAbsolutePadImage {
                max_height_padding: Some(9),
                max_width_padding: Some(17),
                pad_color: vec![1.0, 2.0, 3.0],
            }),
        ),
        ("crop_pad", Step::RandomCropPadImage(Default::default())),
        ("to_aspect_ratio", Step::RandomCropToAspectRatio(Default::default())),
        ("patches", Step::RandomBlackPatches(Default::default())),
        (
            "method",
            Step::RandomResizeMethod(config::RandomResizeMethod {
                target_height: Some(13),
                target_width: Some(31),
            }),
        ),
        ("ssd", Step::SsdRandomCrop(Default::default())),
        ("ssd_pad", Step::SsdRandomCropPad(Default::default())),
        ("ssd_fixed", Step::SsdRandomCropFixedAspectRatio(Default::default())),
        (
            "ssd_pad_fixed",
            Step::SsdRandomCropPadFixedAspectRatio(Default::default()),
        ),
        (
            "concat",
            Step::RandomSelfConcatImage(config::RandomSelfConcatImage {
                concat_vertical_probability: half,
                concat_horizontal_probability: half,
            }),
        ),
        ("auto_v1", auto("v1")),
        ("auto_v2", auto("v2")),
        ("auto_v3", auto("v3")),
        (
            "drop",
            Step::DropLabelProbabilistically(config::DropLabelProbabilistically {
                label: Some(1),
                drop_probability: half,
            }),
        ),
        ("jpeg", Step::RandomJpegQuality(Default::default())),
        (
            "downscale",
            Step::RandomDownscaleToTargetPixels(config::RandomDownscaleToTargetPixels {
                random_coef: None,
                min_target_pixels: Some(100),
                max_target_pixels: Some(500),
            }),
        ),
        ("gaussian", Step::RandomPatchGaussian(Default::default())),
        ("square", Step::RandomSquareCropByScale(Default::default())),
        (
            "to_square",
            Step::RandomScaleCropAndPadToSquare(config::RandomScaleCropAndPadToSquare {
                output_size: Some(40),
                ..Default::default()
            }),
        ),
    ]
}

fn flip() -> config::RandomHorizontalFlip {
    config::RandomHorizontalFlip {
        keypoint_flip_permutation: vec![1, 0],
        probability: Some(0.5),
    }
}

fn auto(name: &str) -> Step {
    Step::AutoaugmentImage(config::AutoAugmentImage {
        policy_name: Some(name.to_owned()),
    })
}

pub(super) fn built(step: Step) -> Vec<Augmentation> {
    from_config(
        &[config::PreprocessingStep {
            preprocessing_step: Some(step),
        }],
        3,
    )
    .unwrap()
}

/// Noise.
pub(super) fn noise(height: usize, width: usize) -> Image {
    let pixels = (0..height * width * 3)
        .map(|index| (index * index / 7 * 37 % 251) as u8)
        .collect();
    Image { height, width, pixels }
}

/// An object's mask is its box, and its keypoints are the box's corners.
fn objects(boxes: &[[f32; 4]], height: usize, width: usize) -> Groundtruth {
    let n = boxes.len();
    let mask = |bounds: &[f32; 4]| {
        let inside = |at: usize, side: usize, low: f32, high: f32| {
            let center = (at as f32 + 0.5) / side as f32;
            center >= low && center <= high
        };
        let values = (0..height * width)
            .map(|index| {
                let (y, x) = (index / width, index % width);
                let both = inside(y, height, bounds[0], bounds[2]) && inside(x, width, bounds[1], bounds[3]);
                f32::from(u8::from(both))
            })
            .collect();
        Pixels::plane(height, width, values).unwrap()
    };
    Groundtruth {
        boxes: boxes.to_vec(),
        classes: (0..n as i64).collect(),
        weights: (0..n).map(|index| index as f32).collect(),
        is_crowd: vec![false; n],
        difficult: vec![false; n],
        group_of: vec![false; n],
        area: vec![1.0; n],
        confidences: vec![0.5; n],
        multiclass_scores: vec![vec![0.1, 0.9]; n],
        masks: boxes.iter().map(mask).collect(),
        mask_weights: vec![1.0; n],
        keypoints: boxes.iter().map(|b| vec![[b[0], b[1]], [b[2], b[3]]]).collect(),
        keypoint_visibilities: vec![vec![true; 2]; n],
    }
}

fn a_box() -> impl Strategy<Value = [f32; 4]> {
    (0.0_f32..0.9, 0.0_f32..0.9, 0.05_f32..1.0, 0.05_f32..1.0)
        .prop_map(|(y, x, h, w)| [y, x, (y + h).min(1.0), (x + w).min(1.0)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_step_keeps_its_promises(
        seed: u64,
        (height, width) in (1_usize..70, 1_usize..70),
        boxes in prop::collection::vec(a_box(), 0..4),
    ) {
        for (name, step) in steps() {
            let step = built(step);
            let run = || {
                let mut stored = noise(height, width);
                let mut sample = Sample::new(height, width, &mut stored, objects(&boxes, height, width));
                apply(&step, &mut sample, &mut stream(seed, 0, 0)).unwrap();
                let pixels = sample.picture.pixels().unwrap().clone();
                (pixels, sample.objects)
            };
            let (pixels, found) = run();
            prop_assert!(pixels.height > 0 && pixels.width > 0, "{}", name);
            prop_assert_eq!(pixels.channels, 3, "{}", name);
            prop_assert_eq!(pixels.values.len(), pixels.height * pixels.width * 3, "{}", name);
            // Keys's kernel overshoots, as the reference's does.
            let slack = if name == "method" { 80.0 } else { 1e-3 };
            let good = |value: &f32| (-slack..=255.0 + slack).contains(value);
            prop_assert!(pixels.values.iter().all(good), "{}", name);
            for object in &found.boxes {
                let inside = object.iter().all(|side| (-1e-6..=1.0 + 1e-6).contains(side));
                prop_assert!(inside && object[0] <= object[2] + 1e-6 && object[1] <= object[3] + 1e-6, "{} {:?}", name, object);
            }
            let n = found.boxes.len();
            let lengths = [
                found.classes.len(), found.weights.len(), found.is_crowd.len(), found.difficult.len(), found.group_of.len(),
                found.area.len(), found.confidences.len(), found.multiclass_scores.len(), found.masks.len(),
                found.mask_weights.len(), found.keypoints.len(), found.keypoint_visibilities.len(),
            ];
            prop_assert_eq!(lengths, [n; 12], "{}", name);
            for (class, weight) in found.classes.iter().zip(&found.weights) {
                prop_assert_eq!(*class as f32, *weight, "{}: lists went apart", name);
            }
            for mask in &found.masks {
                prop_assert_eq!((mask.height, mask.width), (pixels.height, pixels.width), "{}", name);
            }
            for (points, visible) in found.keypoints.iter().zip(&found.keypoint_visibilities) {
                for (point, visible) in points.iter().zip(visible) {
                    prop_assert!(!visible || !point[0].is_nan(), "{}", name);
                }
            }
            // As often as one likes.
            let (again, objects_again) = run();
            prop_assert_eq!(&again, &pixels, "{}", name);
            prop_assert_eq!(&objects_again.boxes, &found.boxes, "{}", name);
        }
    }

    #[test]
    fn masks_and_keypoints_stay_with_their_boxes(seed: u64, bounds in a_box()) {
        let (height, width) = (60, 80);
        let moving = ["image_scale", "horizontal", "vertical", "turn", "crop", "pad", "absolute_pad", "crop_pad",
            "to_aspect_ratio", "ssd", "ssd_pad", "ssd_fixed", "ssd_pad_fixed", "concat", "downscale", "square", "to_square"];
        for (name, step) in steps().into_iter().filter(|(name, _)| moving.contains(name)) {
            let mut stored = noise(height, width);
            let mut sample = Sample::new(height, width, &mut stored, objects(&[bounds], height, width));
            apply(&built(step), &mut sample, &mut stream(seed, 0, 0)).unwrap();
            let (rows, columns) = sample.picture.size();
            for ((object, mask), points) in
                sample.objects.boxes.iter().zip(&sample.objects.masks).zip(&sample.objects.keypoints)
            {
                // The frame of the mask is the box, but for what rounding to pixels takes; a small image is coarse.
                let set = |index: &usize| mask.values[*index] > 0.5;
                let all: Vec<usize> = (0..rows * columns).filter(set).collect();
                let scale = (rows.max(columns) as f32 / 80.0).max(1.0);
                let (dy, dx) = (2.5 * scale / rows as f32 + 0.01, 2.5 * scale / columns as f32 + 0.01);
                if let (Some(first), Some(last)) = (all.first(), all.last()) {
                    let (top, bottom) = (first / columns, last / columns + 1);
                    let left = all.iter().map(|index| index % columns).min().unwrap_or(0);
                    let right = all.iter().map(|index| index % columns).max().unwrap_or(0) + 1;
                    prop_assert!((top as f32 / rows as f32 - object[0]).abs() < dy, "{} top {} {:?}", name, top, object);
                    prop_assert!((bottom as f32 / rows as f32 - object[2]).abs() < dy, "{} {} {:?}", name, bottom, object);
                    prop_assert!((left as f32 / columns as f32 - object[1]).abs() < dx, "{} {} {:?}", name, left, object);
                    prop_assert!((right as f32 / columns as f32 - object[3]).abs() < dx, "{} {} {:?}", name, right, object);
                }
                for point in points.iter().filter(|point| !point[0].is_nan()) {
                    let near = |value: f32, low: f32, high: f32| (value - low).abs() < 1e-3 || (value - high).abs() < 1e-3;
                    prop_assert!(near(point[0], object[0], object[2]), "{} {:?} {:?}", name, point, object);
                    prop_assert!(near(point[1], object[1], object[3]), "{} {:?} {:?}", name, point, object);
                }
            }
        }
    }
}

#[test]
fn keypoints_without_a_permutation_stop_a_flip() {
    let mut stored = noise(4, 4);
    let mut sample = Sample::new(4, 4, &mut stored, objects(&[[0.0, 0.0, 1.0, 1.0]], 4, 4));
    let always = [RandomHorizontalFlip::new(1.0).into()];
    let error = apply(&always, &mut sample, &mut stream(0, 0, 0))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("random_horizontal_flip: the record has 2 keypoints"),
        "{error}"
    );
    assert!(error.contains("hint:"), "{error}");
}

#[test]
fn sizes_beyond_reason_are_refused() {
    let step = Step::ResizeImage(config::ResizeImage {
        new_height: Some(1 << 20),
        new_width: Some(1 << 20),
        method: None,
    });
    let mut stored = noise(4, 4);
    let mut sample = Sample::new(4, 4, &mut stored, Groundtruth::default());
    let error = apply(&built(step), &mut sample, &mut stream(0, 0, 0)).unwrap_err();
    assert!(matches!(error, Failure::TooLarge { .. }), "{error}");
}
