use coati_proto::tensorflow::{self as tf, feature::Kind};
use prost::Message as _;

use super::*;
use crate::example::{Classes, decode_with};

fn floats(value: &[f32]) -> Kind {
    Kind::FloatList(tf::FloatList { value: value.to_vec() })
}

fn ints(value: &[i64]) -> Kind {
    Kind::Int64List(tf::Int64List { value: value.to_vec() })
}

fn bytes(value: &[&[u8]]) -> Kind {
    Kind::BytesList(tf::BytesList {
        value: value.iter().map(|bytes| bytes.to_vec()).collect(),
    })
}

/// Three objects on an image of 2 x 3 pixels; the second is no box.
fn record(more: &[(&str, Kind)]) -> Vec<u8> {
    let own = [
        ("image/encoded", bytes(&[b"picture"])),
        ("image/height", ints(&[2])),
        ("image/width", ints(&[3])),
        ("image/object/bbox/ymin", floats(&[0.0, 0.5, 0.0])),
        ("image/object/bbox/xmin", floats(&[0.0; 3])),
        ("image/object/bbox/ymax", floats(&[1.0, 0.5, 0.5])),
        ("image/object/bbox/xmax", floats(&[1.0; 3])),
        ("image/object/class/label", ints(&[1; 3])),
    ];
    let feature = own.iter().chain(more).map(|(name, kind)| {
        let kind = Some(kind.clone());
        ((*name).to_owned(), tf::Feature { kind })
    });
    tf::Example {
        features: Some(tf::Features {
            feature: feature.collect(),
        }),
    }
    .encode_to_vec()
}

fn read(extras: &Extras, more: &[(&str, Kind)]) -> Result<Groundtruth, String> {
    let options = crate::example::Options {
        classes: Classes::numbered(3),
        strict: false,
    };
    decode_with(&record(more), &options, extras)
        .map(|annotated| annotated.objects)
        .map_err(|error| error.to_string())
}

#[test]
fn numbers_are_masks_of_their_objects() {
    let extras = Extras {
        masks: Some(MaskType::Numerical),
        ..Extras::default()
    };
    let mut values = vec![0.0; 18];
    values[0] = 0.3;
    values[17] = 1.0;
    let found = read(&extras, &[("image/object/mask", floats(&values))]).unwrap();
    assert_eq!(
        found.masks.len(),
        2,
        "the object without a box has gone, and its mask with it"
    );
    assert_eq!((found.masks[0].height, found.masks[0].width), (2, 3));
    assert_eq!(found.masks[0].values, [1., 0., 0., 0., 0., 0.]);
    assert_eq!(found.masks[1].values, [0., 0., 0., 0., 0., 1.]);
    let error = read(&extras, &[("image/object/mask", floats(&values[1..]))]).unwrap_err();
    assert!(
        error.starts_with("feature image/object/mask: holds 17 values; 3 masks of 2 x 3"),
        "{error}"
    );
}

#[test]
fn files_are_masks_too() {
    let extras = Extras {
        masks: Some(MaskType::Png),
        ..Extras::default()
    };
    let png = crate::testing::image("one_bit.png");
    let found = read(&extras, &[("image/object/mask", bytes(&[&png, &png, &png]))]).unwrap();
    let values = &found.masks[0].values;
    assert!(values.iter().all(|value| [0.0, 1.0].contains(value)));
    assert!(values.contains(&0.0) && values.contains(&1.0));
    let error = read(&extras, &[("image/object/mask", bytes(&[&png, b"", &png]))]).unwrap_err();
    assert!(
        error.starts_with("feature image/object/mask: mask 1: the image is empty"),
        "{error}"
    );
    let error = read(&extras, &[("image/object/mask", bytes(&[&png]))]).unwrap_err();
    assert!(error.ends_with("holds 1 masks for 3 objects"), "{error}");
}

#[test]
fn scores_and_keypoints_are_shared_out() {
    let extras = Extras {
        multiclass_scores: true,
        num_keypoints: 2,
        ..Extras::default()
    };
    let more = [
        (
            "image/object/class/multiclass_scores",
            floats(&[0.1, 0.9, 0.2, 0.8, 0.3, 0.7]),
        ),
        ("image/object/keypoint/y", floats(&[0.0, 0.1, 0.2, 0.3, 0.4, 0.5])),
        ("image/object/keypoint/x", floats(&[1.0, 0.9, 0.8, 0.7, 0.6, f32::NAN])),
    ];
    let found = read(&extras, &more).unwrap();
    assert_eq!(found.multiclass_scores, [[0.1, 0.9], [0.3, 0.7]]);
    assert_eq!(found.keypoints[0], [[0.0, 1.0], [0.1, 0.9]]);
    assert_eq!(found.keypoint_visibilities, [[true, true], [true, false]]);
    let error = read(&extras, &more[..2]).unwrap_err();
    assert!(
        error.contains("feature image/object/keypoint/x: holds 0 values"),
        "{error}"
    );
    let odd = [
        ("image/object/class/multiclass_scores", floats(&[0.1; 4])),
        more[1].clone(),
        more[2].clone(),
    ];
    assert!(
        read(&extras, &odd)
            .unwrap_err()
            .contains("4 scores cannot be shared out among 3 objects")
    );
}

#[test]
fn without_being_asked_for_nothing_is_read() {
    let found = read(&Extras::default(), &[("image/object/mask", floats(&[1.0]))]).unwrap();
    assert!(found.masks.is_empty() && found.keypoints.is_empty());
    let extras = Extras {
        additional_channels: 2,
        ..Extras::default()
    };
    let error = read(&extras, &[]).unwrap_err();
    assert!(
        error.contains("image/additional_channels/encoded: holds 0 images; num_additional_channels is 2"),
        "{error}"
    );
}
