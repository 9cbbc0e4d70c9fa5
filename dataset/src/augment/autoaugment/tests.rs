#![allow(
    clippy::default_trait_access,
    reason = "a message that is spelt `{ }` has its defaults, whatever its name"
)]
use super::*;
use crate::augment::invariants::{built, noise};
use crate::augment::{Sample, apply, stream};
use coati_proto::object_detection::protos::preprocessing_step::PreprocessingStep as Step;

/// An array of `tests/fixtures/golden/components/autoaugment.npz`: what the reference's functions make of `noise(48, 64)`.
fn golden(name: &str) -> Vec<f32> {
    crate::testing::golden("autoaugment", name).1
}

fn close(found: &[u8], name: &str) {
    let expected = golden(name);
    assert_eq!(found.len(), expected.len(), "{name}");
    // Where a fraction is cut off, the last bit of a float may decide between two neighbours.
    let off = found
        .iter()
        .zip(&expected)
        .filter(|(a, b)| (f32::from(**a) - **b).abs() > 0.0);
    let (mut count, mut worst) = (0, 0.0_f32);
    for (a, b) in off {
        count += 1;
        worst = worst.max((f32::from(*a) - b).abs());
    }
    assert!(
        worst <= 1.0 && count * 200 <= found.len(),
        "{name}: {count} bytes differ, by {worst} at most"
    );
}

#[test]
fn colours_are_the_references() {
    use color::Change;
    for (name, change) in [
        ("autocontrast", Change::AutoContrast),
        ("equalize", Change::Equalize),
        ("posterize_3", Change::Posterize(3)),
        ("posterize_0", Change::Posterize(0)),
        ("solarize_204", Change::Solarize(204)),
        ("solarize_add_66", Change::SolarizeAdd(66)),
        ("color_1.18", Change::Color(1.18)),
        ("color_0.82", Change::Color(0.82)),
        ("contrast_1.54", Change::Contrast(1.54)),
        ("brightness_1.9", Change::Brightness(1.9)),
        ("brightness_0.46", Change::Brightness(0.46)),
        ("sharpness_1.54", Change::Sharpness(1.54)),
        ("sharpness_0.46", Change::Sharpness(0.46)),
    ] {
        let mut image = soft();
        change.apply(&mut image);
        close(&image.pixels, name);
    }
}

/// An image with few extremes.
fn soft() -> Image {
    let mut image = noise(48, 64);
    for (index, byte) in image.pixels.iter_mut().enumerate() {
        *byte = (usize::from(*byte) * 7 / 10 + 20 + index % 3 * 5) as u8;
    }
    image
}

#[test]
fn boxes_move_as_in_the_reference() {
    let boxes = [[0.1, 0.2, 0.5, 0.7], [0.0, 0.0, 1.0, 1.0], [0.6, 0.65, 0.95, 0.9]];
    for (name, motion) in [
        ("rotate_boxes_30", Motion::Rotate(30.0)),
        ("rotate_boxes_-18", Motion::Rotate(-18.0)),
        ("translate_x_boxes_20", Motion::TranslateX(20.0)),
        ("translate_x_boxes_-50", Motion::TranslateX(-50.0)),
        ("translate_y_boxes_100", Motion::TranslateY(100.0)),
        ("shear_x_boxes_0.3", Motion::ShearX(0.3)),
        ("shear_y_boxes_-0.12", Motion::ShearY(-0.12)),
    ] {
        let found: Vec<f32> = boxes
            .iter()
            .flat_map(|object| motion.moved_box(object, 480, 640))
            .collect();
        let expected = golden(name);
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        // A pixel of 480, where the last bit of a float decides which.
        assert!(worst < 2.2e-3, "{name}: {found:?} {expected:?}");
    }
}

#[test]
fn what_moves_away_becomes_grey_and_the_rest_moves_with_its_boxes() {
    let mut image = Image {
        height: 40,
        width: 60,
        pixels: vec![0; 40 * 60 * 3],
    };
    for row in 10..20 {
        image.pixels[(row * 60 + 20) * 3..(row * 60 + 40) * 3].fill(255);
    }
    let bounds = [0.25, 20.0 / 60.0, 0.5, 40.0 / 60.0];
    for motion in [
        Motion::TranslateX(7.0),
        Motion::TranslateY(-6.0),
        Motion::ShearX(0.2),
        Motion::ShearY(-0.2),
        Motion::Rotate(20.0),
    ] {
        let mut moved = image.clone();
        motion.apply(&mut moved);
        let white: Vec<usize> = (0..40 * 60).filter(|index| moved.pixels[index * 3] == 255).collect();
        let grey = moved.pixels.iter().filter(|&&byte| byte == 128).count();
        assert!(grey > 0, "{motion:?}");
        let [ymin, xmin, ymax, xmax] = motion.moved_box(&bounds, 40, 60);
        for index in white {
            let (y, x) = ((index / 60) as f32 / 40.0, (index % 60) as f32 / 60.0);
            assert!(
                y >= ymin - 0.05 && y <= ymax + 0.05,
                "{motion:?} row {y} of {ymin} to {ymax}"
            );
            assert!(
                x >= xmin - 0.04 && x <= xmax + 0.04,
                "{motion:?} column {x} of {xmin} to {xmax}"
            );
        }
        // The mask of the object is where its pixels are.
        let values = image
            .pixels
            .iter()
            .step_by(3)
            .map(|&byte| f32::from(u8::from(byte == 255)))
            .collect();
        let mut masks = [Pixels::plane(40, 60, values).unwrap()];
        motion.move_masks(&mut masks);
        let found: Vec<bool> = masks[0].values.iter().map(|&value| value == 1.0).collect();
        let expected: Vec<bool> = moved.pixels.iter().step_by(3).map(|&byte| byte == 255).collect();
        assert_eq!(found, expected, "{motion:?}");
        // A keypoint in the middle stays on the object.
        let mut objects = Groundtruth {
            keypoints: vec![vec![[15.0 / 40.0, 0.5]]],
            keypoint_visibilities: vec![vec![true]],
            ..Groundtruth::default()
        };
        motion.move_keypoints(&mut objects, 40, 60);
        let [y, x] = objects.keypoints[0][0];
        let index = (y * 40.0).round() as usize * 60 + (x * 60.0).round() as usize;
        assert_eq!(moved.pixels[index * 3], 255, "{motion:?} {y} {x}");
    }
}

#[test]
fn sub_policies_are_equally_likely_and_steps_come_as_often_as_written() {
    // v0's only sub-policies that move the left border of this box: 0 (0.6), 3 (0.4 / … never: it shears y) and 4 (0.6).
    let policy = policies::named("v0").unwrap();
    assert_eq!(policy.len(), 5);
    assert_eq!(
        ["v1", "v2", "v3", "test"].map(|name| policies::named(name).unwrap().len()),
        [20, 15, 15, 1]
    );
    let step = built(Step::AutoaugmentImage(Default::default()));
    let runs = 3000;
    let mut moved = 0;
    for record in 0..runs {
        let mut stored = noise(60, 90);
        let objects = Groundtruth {
            boxes: vec![[0.3, 0.4, 0.6, 0.7]],
            classes: vec![0],
            ..Groundtruth::default()
        };
        let mut sample = Sample::new(60, 90, &mut stored, objects);
        apply(&step, &mut sample, &mut stream(3, 0, record)).unwrap();
        let [ymin, xmin, ymax, xmax] = sample.objects.boxes[0];
        moved += u32::from((ymin - 0.3).abs() + (xmin - 0.4).abs() + (ymax - 0.6).abs() + (xmax - 0.7).abs() > 0.05);
    }
    // A fifth each: 0.6 (translate), 1.0 (shear y), 0.6 (rotate): 0.44; standard deviation 0.009. Shears of level 0 move nothing.
    let share = f64::from(moved) / runs as f64;
    assert!((share - 0.44).abs() < 0.04, "{share}");
}
