//! Steps without chance (or with a chance of 1) against the reference's results.

use coati_proto::object_detection::protos as config;
use config::preprocessing_step::PreprocessingStep as Step;

use super::color::{adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation};
use super::*;
use crate::pixels::Pixels;
use crate::resize::View;
use crate::testing::golden;

fn array(name: &str) -> (Vec<usize>, Vec<f32>) {
    golden("preprocessor", name)
}

fn image(name: &str) -> Pixels {
    let (shape, values) = array(name);
    Pixels {
        height: shape[0],
        width: shape[1],
        channels: shape[2],
        values,
    }
}

/// Hands out pixels that are not bytes.
struct Ready(Pixels);

impl Stored for Ready {
    fn pixels(&mut self, view: View) -> Result<Pixels, decode::Error> {
        let mut pixels = self.0.clone();
        pixels.show(view);
        Ok(pixels)
    }
}

fn objects() -> Groundtruth {
    let (shape, values) = array("masks");
    let plane = |mask: &[f32]| Pixels::plane(shape[1], shape[2], mask.to_vec()).unwrap();
    let boxes: Vec<[f32; 4]> = array("boxes").1.as_chunks::<4>().0.to_vec();
    let n = boxes.len();
    Groundtruth {
        boxes,
        classes: (0..n as i64).collect(),
        weights: vec![1.0; n],
        is_crowd: vec![false; n],
        difficult: vec![false; n],
        group_of: vec![false; n],
        area: vec![1.0; n],
        masks: values.chunks_exact(shape[1] * shape[2]).map(plane).collect(),
        keypoints: array("keypoints")
            .1
            .as_chunks::<2>()
            .0
            .chunks_exact(3)
            .map(<[_]>::to_vec)
            .collect(),
        keypoint_visibilities: vec![vec![true, false, true]; n],
        ..Groundtruth::default()
    }
}

fn run(step: Step) -> (Pixels, Groundtruth) {
    let steps = from_config(
        &[config::PreprocessingStep {
            preprocessing_step: Some(step),
        }],
        3,
    )
    .unwrap();
    let mut stored = Ready(image("image"));
    let mut sample = Sample::new(24, 32, &mut stored, objects());
    apply(&steps, &mut sample, &mut stream(1, 2, 3)).unwrap();
    let pixels = sample.picture.pixels().unwrap().clone();
    (pixels, sample.objects)
}

#[track_caller]
fn close(found: &[f32], name: &str) {
    let (_, expected) = array(name);
    assert_eq!(found.len(), expected.len(), "{name}");
    let worst = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst < 1e-4, "{name}: {worst}");
}

#[track_caller]
fn same(found: &Pixels, name: &str) {
    let (shape, _) = array(name);
    assert_eq!([found.height, found.width, found.channels], shape[..], "{name}");
    close(&found.values, name);
}

fn flat<const N: usize>(values: &[[f32; N]]) -> Vec<f32> {
    values.as_flattened().to_vec()
}

fn masks(objects: &Groundtruth) -> Vec<f32> {
    objects.masks.iter().flat_map(|mask| mask.values.clone()).collect()
}

fn points(objects: &Groundtruth) -> Vec<f32> {
    objects.keypoints.iter().flatten().flatten().copied().collect()
}

#[test]
fn linear_changes() {
    let normalize = config::NormalizeImage {
        original_minval: Some(0.0),
        original_maxval: Some(255.0),
        target_minval: Some(-1.0),
        target_maxval: Some(1.0),
    };
    same(&run(Step::NormalizeImage(normalize)).0, "normalize_image");
    let means = vec![123.68, 116.779, 103.939];
    let subtracted = run(Step::SubtractChannelMean(config::SubtractChannelMean { means })).0;
    same(&subtracted, "subtract_channel_mean");
}

#[test]
fn greys() {
    same(&run(Step::RgbToGray(config::RgBtoGray {})).0, "rgb_to_gray");
    let always = config::RandomRgBtoGray { probability: Some(1.0) };
    same(&run(Step::RandomRgbToGray(always)).0, "rgb_to_gray_prob1");
}

#[test]
fn mirrors_and_turns_move_everything() {
    let permutation = vec![0, 2, 1];
    let horizontal = config::RandomHorizontalFlip {
        keypoint_flip_permutation: permutation.clone(),
        probability: Some(1.0),
    };
    let vertical = config::RandomVerticalFlip {
        keypoint_flip_permutation: permutation.clone(),
        probability: Some(1.0),
    };
    let turn = config::RandomRotation90 {
        keypoint_rot_permutation: permutation,
        probability: Some(1.0),
    };
    for (name, step) in [
        ("horizontal_flip", Step::RandomHorizontalFlip(horizontal)),
        ("vertical_flip", Step::RandomVerticalFlip(vertical)),
        ("rotation90", Step::RandomRotation90(turn)),
    ] {
        let (pixels, objects) = run(step);
        same(&pixels, &format!("{name}__0"));
        close(&flat(&objects.boxes), &format!("{name}__1"));
        close(&masks(&objects), &format!("{name}__2"));
        if name == "rotation90" {
            // The golden turn was made without a permutation or with one; either way points land on the same places.
            let mut expected = array("rotation90__3").1;
            let mut found = points(&objects);
            expected.sort_by(f32::total_cmp);
            found.sort_by(f32::total_cmp);
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        } else {
            close(&points(&objects), &format!("{name}__3"));
        }
        assert_eq!(objects.keypoint_visibilities[0], [true, true, false], "{name}");
    }
}

#[test]
fn sizes_and_coordinates() {
    let resize = config::ResizeImage {
        new_height: Some(17),
        new_width: Some(29),
        method: None,
    };
    let (pixels, objects) = run(Step::ResizeImage(resize));
    same(&pixels, "resize_image__0");
    close(&masks(&objects), "resize_image__1");
    let (pixels, objects) = run(Step::ScaleBoxesToPixelCoordinates(
        config::ScaleBoxesToPixelCoordinates {},
    ));
    same(&pixels, "scale_boxes_to_pixel_coordinates__0");
    close(&flat(&objects.boxes), "scale_boxes_to_pixel_coordinates__1");
    close(&points(&objects), "scale_boxes_to_pixel_coordinates__2");
}

#[test]
fn colours() {
    let adjusted = |change: &dyn Fn(&mut Pixels)| {
        let mut pixels = image("image");
        change(&mut pixels);
        pixels
    };
    same(
        &adjusted(&|pixels| adjust_brightness(pixels, 0.13)),
        "adjust_brightness_fixed",
    );
    same(
        &adjusted(&|pixels| adjust_contrast(pixels, 1.2)),
        "adjust_contrast_fixed",
    );
    same(
        &adjusted(&|pixels| adjust_saturation(pixels, 1.23)),
        "adjust_saturation_fixed",
    );
    same(&adjusted(&|pixels| adjust_hue(pixels, 0.02)), "adjust_hue_fixed");
}
