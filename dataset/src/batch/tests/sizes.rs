//! Images of many sizes.

use image::ImageEncoder as _;
use image::codecs::png::PngEncoder;

use super::*;
use crate::resize::Limits;

#[test]
fn images_of_many_sizes_come_one_at_a_time() {
    let of = |id: usize, name: &str| record(id, image(name), &[[0.0, 0.0, 0.5, 1.0]]);
    let mut tiny = Vec::new();
    PngEncoder::new(&mut tiny)
        .write_image(&[9, 8, 7], 1, 1, image::ExtendedColorType::Rgb8)
        .unwrap();
    // 21 x 34, 21 x 34 and 1 x 1 pixels.
    let tiny = record(2, tiny, &[[0.0, 0.0, 0.5, 1.0]]);
    let (_folder, source) = source(&[of(0, "rgb420.jpg"), of(1, "rgb.png"), tiny]);
    let resizer = |multiple| ImageResizer::PadToMultiple {
        multiple,
        grayscale: false,
    };
    let many = |multiple, limits| Options {
        resizer: Some(resizer(multiple)),
        limits,
        augmentations: Vec::new(),
        shuffle: false,
        max_bad_records: Some(1),
        ..options()
    };
    let all = Limits::default;
    let leases = [lease(0, 0, 1), lease(1, 1, 1), lease(2, 2, 1)];
    let found = batches(&source, many(8, all()), &leases);
    let sizes: Vec<_> = found
        .iter()
        .map(|batch| (batch.height, batch.width, batch.images.len()))
        .collect();
    assert_eq!(sizes, [(24, 40, 24 * 40 * 3), (24, 40, 24 * 40 * 3), (8, 8, 8 * 8 * 3)]);
    assert_eq!(found[0].true_image_shapes, [[21, 34, 3]]);
    let expected = [0.0, 0.0, 0.5 * 21.0 / 24.0, 34.0 / 40.0];
    let off = found[0].groundtruth[0].boxes[0].iter().zip(expected);
    assert!(off.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-6);
    // What is too small for the model is a bad record like others.
    let limited = batches(&source, many(8, Limits::new(9..=100)), &leases);
    assert_eq!(limited[2].records, [0]);
    assert!(
        limited[2].bad_records[0].contains("8 x 8 pixels, and the model takes sides of at least 9"),
        "{:?}",
        limited[2].bad_records
    );
    // More than one at a time is fine as long as they are equal.
    let two = batches(&source, many(8, all()), &[lease(0, 0, 2)]).remove(0);
    assert_eq!((two.len(), two.images.len()), (2, 2 * 24 * 40 * 3));
    assert_eq!(two.images[24 * 40 * 3..], found[1].images);
    let loader = Loader::new(source, many(8, all())).unwrap();
    loader.request(lease(7, 1, 2));
    let error = loader.next(soon()).unwrap_err().to_string();
    assert!(
        error.starts_with("lease 7: 1.jpg is 24 x 40 pixels and 2.jpg is 8 x 8, so they cannot be one batch\nhint: train_config { batch_size: 1 }"),
        "{error}"
    );
}
