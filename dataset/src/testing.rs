//! Small data sets for tests.

use std::fs;
use std::path::PathBuf;

use coati_common::tfrecord::Writer;
use coati_proto::tensorflow::{self as tf, feature::Kind};
use prost::Message as _;

/// A JPEG or PNG of 21 x 34 pixels.
pub(crate) fn image(name: &str) -> Vec<u8> {
    fs::read(format!(
        "{}/../tests/fixtures/images/{name}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

/// A record with the given image and one box of class 1 for each element of `boxes`.
pub(crate) fn record(id: usize, image: Vec<u8>, boxes: &[[f32; 4]]) -> Vec<u8> {
    let bytes = |value: Vec<u8>| Kind::BytesList(tf::BytesList { value: vec![value] });
    let side = |side: usize| {
        Kind::FloatList(tf::FloatList {
            value: boxes.iter().map(|object| object[side]).collect(),
        })
    };
    let features = [
        ("image/encoded", bytes(image)),
        ("image/source_id", bytes(id.to_string().into_bytes())),
        ("image/filename", bytes(format!("{id}.jpg").into_bytes())),
        ("image/object/bbox/ymin", side(0)),
        ("image/object/bbox/xmin", side(1)),
        ("image/object/bbox/ymax", side(2)),
        ("image/object/bbox/xmax", side(3)),
        (
            "image/object/class/label",
            Kind::Int64List(tf::Int64List {
                value: vec![1; boxes.len()],
            }),
        ),
    ];
    let feature = features
        .into_iter()
        .map(|(name, kind)| (name.to_owned(), tf::Feature { kind: Some(kind) }));
    tf::Example {
        features: Some(tf::Features {
            feature: feature.collect(),
        }),
    }
    .encode_to_vec()
}

/// A good record.
pub(crate) fn good(id: usize) -> Vec<u8> {
    let name = ["rgb420.jpg", "rgb.png", "grey.jpg", "progressive.jpg"][id % 4];
    record(id, image(name), &[[0.1, 0.2, 0.6, 0.7], [0.3, 0.3, 0.9, 0.8]])
}

/// A file that holds these records.
pub(crate) fn file(records: &[Vec<u8>]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.record");
    let mut writer = Writer::new(Vec::new());
    for record in records {
        writer.write(record).unwrap();
    }
    fs::write(&path, writer.into_inner()).unwrap();
    (folder, path)
}

/// An array of `tests/fixtures/golden/components/ARCHIVE.npz`: shape and values, as floats.
pub(crate) fn golden(archive: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let path = format!(
        "{}/../tests/fixtures/golden/components/{archive}.npz",
        env!("CARGO_MANIFEST_DIR")
    );
    let mut archive = npyz::npz::NpzArchive::open(path).unwrap();
    let found = archive.by_name(name).unwrap().unwrap_or_else(|| panic!("no {name}"));
    let shape = found.shape().iter().map(|&side| side as usize).collect();
    let values = match found.dtype() {
        npyz::DType::Plain(kind) if kind.type_char() == npyz::TypeChar::Uint => {
            let bytes: Vec<u8> = found.into_vec().unwrap();
            bytes.into_iter().map(f32::from).collect()
        }
        npyz::DType::Plain(kind) if kind.type_char() == npyz::TypeChar::Int => {
            let numbers: Vec<i32> = found.into_vec().unwrap();
            numbers.into_iter().map(|value| value as f32).collect()
        }
        _ => found.into_vec().unwrap(),
    };
    (shape, values)
}
