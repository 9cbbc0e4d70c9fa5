use coati_proto::object_detection::protos as config;

use super::*;

/// An array of `tests/fixtures/golden/components/NAME.npz`: shape and values.
fn golden(archive: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    crate::testing::golden(archive, name)
}

fn image(which: &str) -> Pixels {
    let (shape, values) = golden("resizers", &format!("image_{which}"));
    Pixels {
        height: shape[0],
        width: shape[1],
        channels: 3,
        values,
    }
}

fn fixed(height: usize, width: usize, method: Method, grayscale: bool) -> ImageResizer {
    ImageResizer::FixedShape {
        height,
        width,
        method,
        grayscale,
    }
}

fn keep(min: usize, max: usize, method: Method, pad_value: Option<&[f32]>) -> ImageResizer {
    ImageResizer::KeepAspectRatio {
        min,
        max,
        method,
        pad: pad_value.is_some(),
        pad_value: pad_value.unwrap_or_default().to_vec(),
        grayscale: false,
    }
}

fn conditional(condition: Condition, threshold: usize) -> ImageResizer {
    ImageResizer::Conditional {
        condition,
        threshold,
        method: Method::Bilinear,
        grayscale: false,
    }
}

#[test]
fn every_resizer_agrees_with_the_reference() {
    use Method::{Area, Bicubic, Bilinear, NearestNeighbor};
    let mean = [123.68, 116.779, 103.939];
    let cases = [
        ("fixed_bilinear", fixed(30, 41, Bilinear, false)),
        ("fixed_nearest_neighbor", fixed(30, 41, NearestNeighbor, false)),
        ("fixed_bicubic", fixed(30, 41, Bicubic, false)),
        ("fixed_area", fixed(30, 41, Area, false)),
        ("fixed_up2", fixed(74, 106, Bilinear, false)),
        ("fixed_gray", fixed(30, 41, Bilinear, true)),
        ("keep_bilinear", keep(40, 64, Bilinear, None)),
        ("keep_nearest_neighbor", keep(40, 64, NearestNeighbor, None)),
        ("keep_bicubic", keep(40, 64, Bicubic, None)),
        ("keep_area", keep(40, 64, Area, None)),
        ("keep_pad", keep(40, 64, Bilinear, Some(&[]))),
        ("keep_pad_value", keep(30, 48, Bilinear, Some(&mean))),
        ("conditional_greater", conditional(Condition::Greater, 40)),
        ("conditional_greater_noop", conditional(Condition::Greater, 90)),
        ("conditional_smaller", conditional(Condition::Smaller, 50)),
        (
            "pad_to_multiple",
            ImageResizer::PadToMultiple {
                multiple: 32,
                grayscale: false,
            },
        ),
        ("identity", ImageResizer::Identity),
    ];
    for (name, resizer) in cases {
        for which in ["a", "b"] {
            let (shape, expected) = golden("resizers", &format!("{name}__{which}"));
            let found = resizer.apply(&image(which), &[]).image;
            assert_eq!(
                [found.height, found.width, found.channels],
                shape[..],
                "{name}__{which}"
            );
            let worst = found
                .values
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name}__{which}: {worst}");
        }
    }
}

#[test]
fn masks_follow_by_their_nearest_pixels() {
    let (shape, values) = golden("resizers", "masks_a");
    let size = shape[1] * shape[2];
    let masks: Vec<_> = values
        .chunks(size)
        .map(|mask| Pixels::plane(shape[1], shape[2], mask.to_vec()).unwrap())
        .collect();
    let resized = fixed(30, 41, Method::Bilinear, false).apply(&image("a"), &masks);
    let (_, expected) = golden("resizers", "fixed_bilinear__masks_a");
    let found: Vec<f32> = resized.masks.into_iter().flat_map(|mask| mask.values).collect();
    assert_eq!(found, expected);
    let padded = keep(40, 64, Method::Bilinear, Some(&[9.0])).apply(&image("a"), &masks);
    assert_eq!(padded.true_shape, [40, 57, 3]);
    assert_eq!((padded.masks[0].height, padded.masks[0].width), (64, 64));
    assert!(padded.masks[0].values[57..64].iter().all(|&value| value == 0.0));
    assert_eq!(padded.image.values[57 * 3], 9.0);
}

#[test]
fn the_fast_path_is_the_same_resizer() {
    let pixels = image("a");
    let stored = pixels.to_image();
    let mut fast = super::super::Resizer::new(30, 41);
    let mut output = vec![0.0; fast.output_len()];
    let whole = super::super::View::whole(stored.height, stored.width);
    fast.resize_into(&stored, whole, &mut output).unwrap();
    let general = ImageResizer::fixed(30, 41).apply(&pixels, &[]).image.values;
    // One weighs rows first, the other columns.
    let off = general.iter().zip(&output).map(|(a, b)| (a - b).abs());
    assert!(general.len() == output.len() && off.fold(0.0, f32::max) < 1e-4);
}

#[test]
fn defaults_are_the_references_and_nonsense_is_named() {
    let convert = |one| {
        ImageResizer::from_config(&config::ImageResizer {
            image_resizer_oneof: Some(one),
        })
    };
    assert_eq!(
        convert(ImageResizerOneof::KeepAspectRatioResizer(
            config::KeepAspectRatioResizer::default()
        )),
        Ok(keep(600, 1024, Method::Bilinear, None))
    );
    assert_eq!(
        convert(ImageResizerOneof::ConditionalShapeResizer(
            config::ConditionalShapeResizer::default()
        )),
        Ok(conditional(Condition::Greater, 300))
    );
    let inverted = config::KeepAspectRatioResizer {
        min_dimension: Some(2000),
        ..Default::default()
    };
    let error = convert(ImageResizerOneof::KeepAspectRatioResizer(inverted)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image_resizer.keep_aspect_ratio_resizer.min_dimension: 2000 must be at most max_dimension"
    );
    let zero = config::PadToMultipleResizer {
        multiple: Some(0),
        ..Default::default()
    };
    assert!(convert(ImageResizerOneof::PadToMultipleResizer(zero)).is_err());
    assert!(ImageResizer::from_config(&config::ImageResizer::default()).is_err());
}
