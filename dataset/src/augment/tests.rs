use proptest::prelude::*;

use super::*;
use crate::decode::Image;
use crate::resize::{Resizer, View};

fn objects(boxes: &[[f32; 4]]) -> Groundtruth {
    let n = boxes.len();
    Groundtruth {
        boxes: boxes.to_vec(),
        classes: (0..n as i64).collect(),
        weights: vec![1.0; n],
        is_crowd: vec![false; n],
        difficult: vec![false; n],
        group_of: vec![false; n],
        area: vec![1.0; n],
        ..Groundtruth::default()
    }
}

/// Applies steps that leave pixels alone to an image that nobody looks at.
fn apply(steps: &[Augmentation], height: usize, width: usize, objects: &mut Groundtruth, random: &mut Stream) -> View {
    let mut nothing = Image::default();
    let mut sample = Sample::new(height, width, &mut nothing, std::mem::take(objects));
    super::apply(steps, &mut sample, random).unwrap();
    *objects = sample.objects;
    match sample.picture.finish() {
        Finished::View(view) => view,
        Finished::Pixels(_) => panic!("pixels were looked at"),
    }
}

/// A box of a sensible size.
fn a_box() -> impl Strategy<Value = [f32; 4]> {
    (0.0_f32..0.9, 0.0_f32..0.9, 0.02_f32..1.0, 0.02_f32..1.0)
        .prop_map(|(y, x, h, w)| [y, x, (y + h).min(1.0), (x + w).min(1.0)])
}

fn area(object: &[f32; 4]) -> f64 {
    f64::from(object[2] - object[0]) * f64::from(object[3] - object[1])
}

fn window_of(view: View, height: usize, width: usize) -> [f32; 4] {
    let (h, w) = (height as f32, width as f32);
    let (bottom, right) = (view.top + view.height, view.left + view.width);
    [
        view.top as f32 / h,
        view.left as f32 / w,
        bottom as f32 / h,
        right as f32 / w,
    ]
}

/// Share of `object` inside `window`.
fn share(object: &[f32; 4], window: &[f32; 4]) -> f64 {
    let part = [
        object[0].max(window[0]),
        object[1].max(window[1]),
        object[2].min(window[2]),
        object[3].min(window[3]),
    ];
    if part[0] >= part[2] || part[1] >= part[3] {
        0.0
    } else {
        area(&part) / area(object)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_crop_keeps_its_promises(
        seed: u64,
        (height, width) in (20_usize..700, 20_usize..700),
        boxes in prop::collection::vec(a_box(), 0..8),
        row in 0_usize..7,
    ) {
        let operation = CropOperation { random_coef: 0.0, ..ssd_operations()[row] };
        let constraints = operation.constraints;
        let mut kept = objects(&boxes);
        let view = apply(&[operation.into()], height, width, &mut kept, &mut stream(seed, 0, 0));
        let whole = View::whole(height, width);

        prop_assert!(view.height > 0 && view.top + view.height <= height);
        prop_assert!(view.width > 0 && view.left + view.width <= width);
        let window = window_of(view, height, width);
        if view != whole {
            // Sizes are rounded to whole pixels.
            let ratio = view.width as f32 / view.height as f32;
            let rounding = 0.6 / view.height as f32;
            prop_assert!(ratio >= 0.5 - rounding && ratio <= 2.0 + rounding, "{ratio}");
            let share_of_image = (view.height * view.width) as f32 / (height * width) as f32;
            prop_assert!((0.0999..=1.0).contains(&share_of_image), "{share_of_image}");
            let pixel = 2.5 / (height.min(width) as f64 * 0.02);
            let best = boxes.iter().map(|object| share(object, &window)).fold(0.0, f64::max);
            let wanted = f64::from(constraints.min_object_covered);
            prop_assert!(boxes.is_empty() || best >= wanted - pixel.min(wanted), "{best} < {wanted}");
        }

        // Exactly the boxes with enough overlap are there, in order, cut at the window.
        let mut expected = Vec::new();
        for (class, object) in boxes.iter().enumerate() {
            let share = share(object, &window);
            let sure = (share - f64::from(operation.overlap_thresh)).abs() > 1e-4;
            let found = kept.classes.contains(&(class as i64));
            if sure && share > 1e-6 {
                prop_assert_eq!(found, share >= f64::from(operation.overlap_thresh), "object {} share {}", class, share);
            }
            prop_assert!(share > 0.0 || !found || !sure, "a box outside was kept");
            if found {
                expected.push(*object);
            }
        }
        prop_assert_eq!(kept.len(), expected.len());
        prop_assert!(kept.classes.is_sorted());
        for (object, original) in kept.boxes.iter().zip(&expected) {
            let [ymin, xmin, ymax, xmax] = *object;
            prop_assert!(0.0 <= ymin && ymin <= ymax && ymax <= 1.0 && 0.0 <= xmin && xmin <= xmax && xmax <= 1.0);
            let back = ymin * (window[2] - window[0]) + window[0];
            prop_assert!((back - original[0].max(window[0])).abs() < 1e-4);
        }
        prop_assert_eq!(kept.weights.len(), kept.len());
    }

    #[test]
    fn all_steps_together_stay_inside(
        seed: u64,
        (height, width) in (1_usize..300, 1_usize..300),
        boxes in prop::collection::vec(a_box(), 0..5),
    ) {
        let steps = [
            SsdRandomCrop(ssd_operations()).into(),
            RandomHorizontalFlip::new(0.5).into(),
            CropOperation::default().into(),
        ];
        let mut kept = objects(&boxes);
        let view = apply(&steps, height, width, &mut kept, &mut stream(seed, 1, 2));
        prop_assert!(view.height > 0 && view.width > 0);
        prop_assert!(view.top + view.height <= height && view.left + view.width <= width);
        for object in &kept.boxes {
            prop_assert!(object.iter().all(|side| (0.0..=1.0).contains(side)));
        }
        let mut again = objects(&boxes);
        prop_assert_eq!(apply(&steps, height, width, &mut again, &mut stream(seed, 1, 2)), view);
        prop_assert_eq!(again, kept);
    }
}

#[test]
fn flipping_mirrors_boxes_and_view() {
    let mut flipped = objects(&[[0.1, 0.2, 0.3, 0.7]]);
    let always = [RandomHorizontalFlip::new(1.0).into()];
    let view = apply(&always, 10, 20, &mut flipped, &mut stream(0, 0, 0));
    assert!(view.mirrored);
    let expected = [0.1, 0.3, 0.3, 0.8];
    assert!(
        flipped.boxes[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
        "{:?}",
        flipped.boxes
    );
}

#[test]
fn boxes_stay_on_their_objects() {
    // A white rectangle on black: whatever is cropped and mirrored, the box must still frame it.
    let (height, width) = (90, 120);
    let bounds = [20.0 / 90.0, 70.0 / 120.0, 60.0 / 90.0, 110.0 / 120.0];
    let mut image = Image {
        height,
        width,
        pixels: vec![0; height * width * 3],
    };
    for row in 20..60 {
        image.pixels[(row * width + 70) * 3..(row * width + 110) * 3].fill(255);
    }
    let steps = [
        SsdRandomCrop(ssd_operations()).into(),
        RandomHorizontalFlip::new(0.5).into(),
        SsdRandomCrop(ssd_operations()).into(),
        RandomHorizontalFlip::new(0.5).into(),
    ];
    let (rows, columns) = (64, 48);
    let mut pixels = vec![0.0; rows * columns * 3];
    let mut mirrored = 0;
    for record in 0..300 {
        let mut objects = objects(&[bounds]);
        let view = apply(&steps, height, width, &mut objects, &mut stream(4, 0, record));
        mirrored += u32::from(view.mirrored);
        Resizer::new(rows, columns)
            .resize_into(&image, view, &mut pixels)
            .unwrap();
        let Some(&[ymin, xmin, ymax, xmax]) = objects.boxes.first() else {
            continue;
        };
        for row in 0..rows {
            for column in 0..columns {
                let (y, x) = (row as f32 / rows as f32, column as f32 / columns as f32);
                // Interpolation smears the border over a pixel or two of the input.
                let (high, wide) = (2.0 / view.height as f32, 2.0 / view.width as f32);
                let inside = y >= ymin + high && y < ymax - high && x >= xmin + wide && x < xmax - wide;
                let outside = y < ymin - high || y > ymax + high || x < xmin - wide || x > xmax + wide;
                let value = pixels[(row * columns + column) * 3];
                assert!(
                    !inside || value == 255.0,
                    "record {record}: {value} at {row}, {column} in {view:?}"
                );
                assert!(
                    !outside || value == 0.0,
                    "record {record}: {value} at {row}, {column} in {view:?}"
                );
            }
        }
    }
    assert!((100..200).contains(&mirrored));
}

#[test]
fn half_of_the_images_are_flipped() {
    let step = [RandomHorizontalFlip::new(0.5).into()];
    let flips = (0..4000)
        .filter(|&record| apply(&step, 10, 10, &mut Groundtruth::default(), &mut stream(9, 0, record)).mirrored);
    // Standard deviation 32.
    assert!((1880..2120).contains(&flips.count()));
}

#[test]
fn ssd_crops_are_spread_as_in_the_reference() {
    // Measured from the reference on 480 x 640 with these boxes; see the comment at REFERENCE.
    let boxes = [[0.1, 0.1, 0.4, 0.3], [0.3, 0.5, 0.9, 0.8], [0.6, 0.05, 0.7, 0.15]];
    let steps = [SsdRandomCrop(ssd_operations()).into()];
    let n = 20_000;
    let (mut unchanged, mut height, mut width, mut top, mut kept) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for record in 0..n {
        let mut objects = objects(&boxes);
        let view = apply(&steps, 480, 640, &mut objects, &mut stream(3, 0, record));
        unchanged += f64::from(view == View::whole(480, 640));
        height += view.height as f64;
        width += view.width as f64;
        top += view.top as f64;
        kept += objects.len() as f64;
    }
    let found = [unchanged, height, width, top, kept].map(|sum| sum / n as f64);
    for (name, (found, (expected, tolerance))) in ["unchanged", "height", "width", "top", "kept"]
        .iter()
        .zip(found.iter().zip(REFERENCE))
    {
        assert!(
            (found - expected).abs() < tolerance,
            "{name}: {found}, the reference has {expected}"
        );
    }
}

/// Means of share left alone, height, width, top and boxes kept over 20 000 runs of `ssd_random_crop`, and
/// four standard deviations of the difference of two such means.
const REFERENCE: [(f64, f64); 5] = [
    (0.1517, 0.0144),
    (351.7, 3.9),
    (437.2, 6.0),
    (65.2, 2.7),
    (1.855, 0.036),
];

#[test]
fn an_image_without_objects_is_cropped_too() {
    let operation = CropOperation {
        constraints: Constraints {
            min_object_covered: 0.3,
            ..CropOperation::default().constraints
        },
        ..CropOperation::default()
    };
    let cropped = (0..50).filter(|&record| {
        let view = apply(
            &[operation.into()],
            100,
            100,
            &mut Groundtruth::default(),
            &mut stream(0, 0, record),
        );
        view != View::whole(100, 100)
    });
    assert!(cropped.count() > 40);
}
