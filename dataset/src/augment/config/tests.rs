#![allow(
    clippy::default_trait_access,
    reason = "a message that is spelt `{ }` has its defaults, whatever its name"
)]
use coati_proto::object_detection::protos as config;

use super::*;
use crate::augment::sample::Constraints;
use crate::augment::{CropOperation, RandomHorizontalFlip, SsdRandomCrop, ssd_operations};

/// How the step shows itself, or the error.
fn convert(step: Step) -> Result<String, String> {
    let step = PreprocessingStep {
        preprocessing_step: Some(step),
    };
    from_config(&[step], 3)
        .map(|mut steps| format!("{:?}", steps.remove(0)))
        .map_err(|error| error.to_string())
}

fn shown<T: Operation + 'static>(operation: T) -> Result<String, String> {
    Ok(format!("{:?}", Augmentation::from(operation)))
}

#[test]
fn defaults_are_the_references() {
    let flip = convert(Step::RandomHorizontalFlip(config::RandomHorizontalFlip::default()));
    assert_eq!(flip, shown(RandomHorizontalFlip::new(0.5)));
    let crop = convert(Step::RandomCropImage(config::RandomCropImage::default()));
    assert_eq!(crop, shown(CropOperation::default()));
    let ssd = convert(Step::SsdRandomCrop(config::SsdRandomCrop::default()));
    assert_eq!(ssd, shown(SsdRandomCrop(ssd_operations())));
    let table = ssd_operations();
    let covered: Vec<_> = table.iter().map(|row| row.constraints.min_object_covered).collect();
    assert_eq!(covered, [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]);
    assert!(
        table
            .iter()
            .all(|row| row.overlap_thresh == row.constraints.min_object_covered)
    );
    assert!(table.iter().all(|row| row.random_coef == 0.15 && row.clip_boxes));
    // The builder hands over only what is set, so the function's default counts, not the proto's 500 000.
    let down = convert(Step::RandomDownscaleToTargetPixels(
        config::RandomDownscaleToTargetPixels::default(),
    ));
    assert!(down.as_ref().is_ok_and(|shown| shown.contains("800000")), "{down:?}");
}

#[test]
fn all_thirty_nine_are_built() {
    let means = vec![1.0, 2.0, 3.0];
    let normalize = config::NormalizeImage {
        original_minval: Some(0.0),
        original_maxval: Some(255.0),
        ..Default::default()
    };
    let target = config::RandomResizeMethod {
        target_height: Some(10),
        target_width: Some(10),
    };
    let resize = config::ResizeImage {
        new_height: Some(10),
        new_width: Some(10),
        ..Default::default()
    };
    let steps = [
        Step::NormalizeImage(normalize),
        Step::RandomHorizontalFlip(Default::default()),
        Step::RandomPixelValueScale(Default::default()),
        Step::RandomImageScale(Default::default()),
        Step::RandomRgbToGray(Default::default()),
        Step::RandomAdjustBrightness(Default::default()),
        Step::RandomAdjustContrast(Default::default()),
        Step::RandomAdjustHue(Default::default()),
        Step::RandomAdjustSaturation(Default::default()),
        Step::RandomDistortColor(Default::default()),
        Step::RandomJitterBoxes(Default::default()),
        Step::RandomCropImage(Default::default()),
        Step::RandomPadImage(Default::default()),
        Step::RandomCropPadImage(Default::default()),
        Step::RandomCropToAspectRatio(Default::default()),
        Step::RandomBlackPatches(Default::default()),
        Step::RandomResizeMethod(target),
        Step::ScaleBoxesToPixelCoordinates(Default::default()),
        Step::ResizeImage(resize),
        Step::SubtractChannelMean(config::SubtractChannelMean { means }),
        Step::SsdRandomCrop(Default::default()),
        Step::SsdRandomCropPad(Default::default()),
        Step::SsdRandomCropFixedAspectRatio(Default::default()),
        Step::SsdRandomCropPadFixedAspectRatio(Default::default()),
        Step::RandomVerticalFlip(Default::default()),
        Step::RandomRotation90(Default::default()),
        Step::RgbToGray(Default::default()),
        Step::ConvertClassLogitsToSoftmax(Default::default()),
        Step::RandomAbsolutePadImage(Default::default()),
        Step::RandomSelfConcatImage(Default::default()),
        Step::AutoaugmentImage(Default::default()),
        Step::DropLabelProbabilistically(config::DropLabelProbabilistically {
            label: Some(1),
            ..Default::default()
        }),
        Step::RemapLabels(config::RemapLabels {
            original_labels: vec![1, 2],
            new_label: Some(3),
        }),
        Step::RandomJpegQuality(Default::default()),
        Step::RandomDownscaleToTargetPixels(Default::default()),
        Step::RandomPatchGaussian(Default::default()),
        Step::RandomSquareCropByScale(Default::default()),
        Step::RandomScaleCropAndPadToSquare(Default::default()),
        Step::AdjustGamma(Default::default()),
    ];
    assert_eq!(steps.len(), 39);
    for step in steps {
        let name = format!("{step:?}");
        assert!(convert(step).is_ok(), "{name}");
    }
}

fn row() -> config::SsdRandomCropOperation {
    config::SsdRandomCropOperation {
        min_object_covered: Some(0.4),
        min_aspect_ratio: Some(0.8),
        max_aspect_ratio: Some(1.25),
        min_area: Some(0.2),
        max_area: Some(0.9),
        overlap_thresh: Some(0.45),
        random_coef: Some(0.3),
        clip_boxes: None,
    }
}

#[test]
fn a_configured_table_is_taken_over() {
    let crop = config::SsdRandomCrop {
        operations: vec![row()],
    };
    let constraints = Constraints {
        min_object_covered: 0.4,
        aspect_ratio: (0.8, 1.25),
        area: (0.2, 0.9),
    };
    let expected = CropOperation {
        constraints,
        overlap_thresh: 0.45,
        clip_boxes: true,
        random_coef: 0.3,
    };
    assert_eq!(convert(Step::SsdRandomCrop(crop)), shown(SsdRandomCrop(vec![expected])));
}

#[test]
fn values_a_channel_go_by_the_channels_that_a_step_is_given() {
    let step = |step| PreprocessingStep {
        preprocessing_step: Some(step),
    };
    let means = |count: usize| {
        step(Step::SubtractChannelMean(config::SubtractChannelMean {
            means: vec![7.0; count],
        }))
    };
    let grey = step(Step::RgbToGray(Default::default()));
    assert!(from_config(&[means(3)], 3).is_ok() && from_config(&[means(4)], 4).is_ok());
    assert!(from_config(&[grey.clone(), means(1)], 3).is_ok());
    let refused = |steps: &[PreprocessingStep], channels| from_config(steps, channels).unwrap_err().to_string();
    assert_eq!(
        refused(&[grey, means(3)], 3),
        "train_config.data_augmentation_options[1].subtract_channel_mean.means: [7.0, 7.0, 7.0] for images of 1 channels must be a value a channel"
    );
    assert!(refused(&[means(3)], 4).contains("for images of 4 channels"));

    let pad = |pad_color: Vec<f32>| {
        step(Step::RandomPadImage(config::RandomPadImage {
            pad_color,
            ..Default::default()
        }))
    };
    assert!(from_config(&[pad(vec![]), pad(vec![9.0]), pad(vec![9.0; 4])], 4).is_ok());
    let error = refused(&[pad(vec![9.0; 3])], 4);
    assert!(
        error.contains("pad_color: [9.0, 9.0, 9.0] for images of 4 channels"),
        "{error}"
    );
    let table = |red: f32| {
        let row = config::SsdRandomCropPadOperation {
            min_object_covered: Some(0.4),
            min_aspect_ratio: Some(0.8),
            max_aspect_ratio: Some(1.25),
            min_area: Some(0.2),
            max_area: Some(0.9),
            pad_color_r: Some(red),
            ..Default::default()
        };
        step(Step::SsdRandomCropPad(config::SsdRandomCropPad {
            operations: vec![row],
        }))
    };
    assert!(from_config(&[table(0.0)], 4).is_ok() && from_config(&[table(8.0)], 3).is_ok());
    assert!(refused(&[table(8.0)], 4).contains("operations[0].pad_color"));
}

#[test]
fn boxes_may_not_be_turned_inside_out() {
    use config::random_jitter_boxes::JitterMode;
    let jitter = |ratio, mode: JitterMode| {
        convert(Step::RandomJitterBoxes(config::RandomJitterBoxes {
            ratio: Some(ratio),
            jitter_mode: Some(mode.into()),
        }))
    };
    assert!(jitter(1.0, JitterMode::Default).is_ok() && jitter(3.0, JitterMode::Expand).is_ok());
    for mode in [JitterMode::Default, JitterMode::Shrink, JitterMode::ShrinkSymmetricXy] {
        let error = jitter(1.5, mode).unwrap_err();
        assert!(
            error.contains("random_jitter_boxes.ratio: 1.5 must be from 0 to 1"),
            "{error}"
        );
    }
}

#[test]
fn what_cannot_be_is_named() {
    let second = config::SsdRandomCropOperation {
        min_area: None,
        ..row()
    };
    let crop = config::SsdRandomCrop {
        operations: vec![row(), second],
    };
    let error = convert(Step::SsdRandomCrop(crop)).unwrap_err();
    let expected = "data_augmentation_options[0].ssd_random_crop.operations[1].min_area: 0 must be greater than 0";
    assert!(error.contains(expected), "{error}");
    assert!(from_config(&[PreprocessingStep::default()], 3).is_err());

    let wrong = [
        (
            Step::AutoaugmentImage(config::AutoAugmentImage {
                policy_name: Some("v7".to_owned()),
            }),
            "autoaugment_image.policy_name: v7 must be v0, v1, v2, v3 or test",
        ),
        (
            Step::RandomPadImage(config::RandomPadImage {
                min_image_height: Some(10),
                ..Default::default()
            }),
            "random_pad_image.min_image_width: nothing must be set where min_image_height is",
        ),
        (
            Step::RandomHorizontalFlip(config::RandomHorizontalFlip {
                keypoint_flip_permutation: vec![0, 2],
                ..Default::default()
            }),
            "keypoint_flip_permutation: [0, 2] must be each of 0, 1, …, n - 1 once",
        ),
        (
            Step::NormalizeImage(Default::default()),
            "normalize_image.original_maxval: 0 must be",
        ),
        (
            Step::RandomDistortColor(config::RandomDistortColor {
                color_ordering: Some(2),
            }),
            "random_distort_color.color_ordering: 2 must be 0 or 1",
        ),
        (
            Step::ResizeImage(Default::default()),
            "resize_image.new_height: 0 must be at least 1",
        ),
        (
            Step::SubtractChannelMean(Default::default()),
            "subtract_channel_mean.means: [] for images of 3 channels must be a value a channel",
        ),
    ];
    for (step, expected) in wrong {
        let error = convert(step).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
