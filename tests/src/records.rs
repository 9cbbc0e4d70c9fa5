//! TFRecords, taken apart and spoiled.

use std::fs;
use std::path::Path;

use coati_common::tfrecord::{IndexedFile, Writer};
use coati_proto::tensorflow::{BytesList, Example, Feature, FloatList, Int64List, feature::Kind};
use prost::Message as _;

/// All examples of a file.
pub fn read(path: &Path) -> Vec<Example> {
    let file = crate::or_panic(IndexedFile::open(path), path.display());
    (0..file.len())
        .filter_map(|index| file.read(index))
        .map(|record| {
            let bytes = crate::or_panic(record, path.display());
            crate::or_panic(Example::decode(bytes.as_slice()), path.display())
        })
        .collect()
}

/// Writes examples to a file.
pub fn write(path: &Path, examples: &[Example]) {
    let mut writer = Writer::new(Vec::new());
    for example in examples {
        crate::or_panic(writer.write(&example.encode_to_vec()), path.display());
    }
    crate::or_panic(fs::write(path, writer.into_inner()), path.display());
}

/// Replaces a feature.
pub fn set(example: &mut Example, name: &str, kind: Kind) {
    let features = &mut example.features.get_or_insert_default().feature;
    features.insert(name.to_owned(), Feature { kind: Some(kind) });
}

/// Replaces the objects by ones with these boxes, `[ymin, xmin, ymax, xmax]`, and this class.
pub fn set_boxes(example: &mut Example, boxes: &[[f32; 4]], class: &str, label: i64) {
    // Further lists (`difficult`, …) would have to be as long.
    let features = &mut example.features.get_or_insert_default().feature;
    features.retain(|name, _| !name.starts_with("image/object/"));
    for (side, name) in ["ymin", "xmin", "ymax", "xmax"].into_iter().enumerate() {
        let value = boxes.iter().map(|bounds| bounds[side]).collect();
        set(
            example,
            &format!("image/object/bbox/{name}"),
            Kind::FloatList(FloatList { value }),
        );
    }
    let text = vec![class.as_bytes().to_vec(); boxes.len()];
    set(
        example,
        "image/object/class/text",
        Kind::BytesList(BytesList { value: text }),
    );
    let label = vec![label; boxes.len()];
    set(
        example,
        "image/object/class/label",
        Kind::Int64List(Int64List { value: label }),
    );
}

/// Replaces the image's bytes.
pub fn set_image(example: &mut Example, bytes: &[u8]) {
    let value = vec![bytes.to_vec()];
    set(example, "image/encoded", Kind::BytesList(BytesList { value }));
}

/// Flips one bit of the data of record `number`: its CRC is wrong from then on.
pub fn flip_a_bit(path: &Path, number: usize) {
    let span = crate::or_panic(IndexedFile::open(path), path.display()).spans()[number];
    let mut bytes = crate::or_panic(fs::read(path), path.display());
    // Behind the header: eight bytes of length, four of its CRC.
    bytes[(span.offset + 12 + span.length / 2) as usize] ^= 1;
    crate::or_panic(fs::write(path, bytes), path.display());
}

/// Leaves out the last `bytes` bytes of a file.
pub fn cut(path: &Path, bytes: u64) {
    let file = crate::or_panic(fs::OpenOptions::new().write(true).open(path), path.display());
    let length = crate::or_panic(file.metadata(), path.display()).len();
    crate::or_panic(file.set_len(length - bytes), path.display());
}
