use std::collections::HashMap;

use coati_proto::tensorflow::{self as tf, feature::Kind};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

struct Record(HashMap<String, tf::Feature>);

impl Record {
    /// A record with two good objects of classes 1 and 2.
    fn good() -> Self {
        Self(HashMap::new())
            .bytes("image/encoded", &[b"jpeg bytes"])
            .bytes("image/source_id", &[b"17"])
            .bytes("image/filename", &[b"17.jpg"])
            .ints("image/height", &[100])
            .ints("image/width", &[200])
            .floats("image/object/bbox/ymin", &[0.1, 0.0])
            .floats("image/object/bbox/xmin", &[0.2, 0.0])
            .floats("image/object/bbox/ymax", &[0.5, 1.0])
            .floats("image/object/bbox/xmax", &[0.7, 1.0])
            .ints("image/object/class/label", &[1, 2])
    }

    fn set(mut self, name: &str, kind: Kind) -> Self {
        self.0.insert(name.to_owned(), tf::Feature { kind: Some(kind) });
        self
    }

    fn bytes(self, name: &str, value: &[&[u8]]) -> Self {
        let value = value.iter().map(|bytes| bytes.to_vec()).collect();
        self.set(name, Kind::BytesList(tf::BytesList { value }))
    }

    fn floats(self, name: &str, value: &[f32]) -> Self {
        self.set(name, Kind::FloatList(tf::FloatList { value: value.to_vec() }))
    }

    fn ints(self, name: &str, value: &[i64]) -> Self {
        self.set(name, Kind::Int64List(tf::Int64List { value: value.to_vec() }))
    }

    fn encode(self) -> Vec<u8> {
        tf::Example {
            features: Some(tf::Features { feature: self.0 }),
        }
        .encode_to_vec()
    }
}

fn options() -> Options {
    Options {
        classes: Classes::new([(1, "cat", ""), (2, "dog", "hound")]),
        strict: false,
    }
}

fn bad(record: Record) -> (Vec<i64>, String) {
    let record = record.encode();
    let decoded = decode(&record, &options()).unwrap();
    let strict = decode(
        &record,
        &Options {
            strict: true,
            ..options()
        },
    )
    .unwrap_err()
    .to_string();
    assert_eq!(decoded.bad_objects.len(), 1);
    assert_eq!(strict, decoded.bad_objects[0].to_string());
    (decoded.objects.classes, strict)
}

#[test]
fn a_good_record_is_read_whole() {
    let record = Record::good()
        .ints("image/object/difficult", &[0, 1])
        .ints("image/object/is_crowd", &[1, 0])
        .floats("image/object/area", &[50.0, 60.0])
        .floats("image/object/weight", &[0.5, 1.0])
        .encode();
    let decoded = decode(&record, &options()).unwrap();
    assert_eq!(decoded.image, b"jpeg bytes");
    assert!(
        record.as_ptr_range().contains(&decoded.image.as_ptr()),
        "the image is borrowed"
    );
    assert_eq!((decoded.height, decoded.width), (100, 200));
    assert_eq!(
        (decoded.source_id.as_str(), decoded.filename.as_str()),
        ("17", "17.jpg")
    );
    let objects = decoded.objects;
    assert_eq!(objects.boxes, [[0.1, 0.2, 0.5, 0.7], [0.0, 0.0, 1.0, 1.0]]);
    assert_eq!((objects.classes, objects.weights), (vec![0, 1], vec![0.5, 1.0]));
    assert_eq!(
        (objects.difficult, objects.is_crowd),
        (vec![false, true], vec![true, false])
    );
    assert_eq!(objects.area, [50.0, 60.0]);
}

#[test]
fn what_is_absent_gets_its_default() {
    let objects = decode(&Record::good().encode(), &options()).unwrap().objects;
    assert_eq!(objects.weights, [1.0, 1.0]);
    assert!((objects.area[0] - 0.4 * 0.5 * 20000.0).abs() < 0.1 && objects.area[1] == 20000.0);
    let empty = HashMap::new();
    let record = Record(empty).bytes("image/encoded", &[b"x"]).encode();
    assert!(
        decode(&record, &options()).unwrap().objects.is_empty(),
        "an image without objects is good"
    );
}

#[test]
fn class_text_goes_before_the_label() {
    let texts = |texts: &[&[u8]]| Record::good().bytes("image/object/class/text", texts).encode();
    let classes = |record: &[u8], options: &Options| decode(record, options).unwrap().objects.classes;
    assert_eq!(classes(&texts(&[b"dog", b"cat"]), &options()), [1, 0]);
    assert_eq!(
        classes(&texts(&[b"hound", b""]), &options()),
        [1, 1],
        "display name; an empty text leaves the label"
    );
    let numbered = Options {
        classes: Classes::numbered(2),
        strict: false,
    };
    assert_eq!(
        classes(&texts(&[b"dog", b"cat"]), &numbered),
        [0, 1],
        "without a label map texts mean nothing"
    );
}

#[test]
fn bad_labels_are_left_out_and_named() {
    let (kept, message) = bad(Record::good().ints("image/object/class/label", &[1, 3]));
    assert_eq!(kept, [0]);
    assert_eq!(
        message,
        "object 1: feature image/object/class/label: label 3 is not in the label map, which holds 1, 2"
    );
    let (kept, message) = bad(Record::good().ints("image/object/class/label", &[0, 2]));
    assert_eq!(kept, [1]);
    assert!(message.contains("label 0 is not allowed: ids start at 1"), "{message}");
    let (_, message) = bad(Record::good().bytes("image/object/class/text", &[b"cow", b"dog"]));
    assert_eq!(
        message,
        "object 0: feature image/object/class/text: class \"cow\" is not in the label map, which holds cat, hound"
    );
}

#[test]
fn bad_boxes_are_left_out_and_named() {
    let with = |field: &str, value: f32| Record::good().floats(&format!("image/object/bbox/{field}"), &[value, 1.0]);
    let (kept, message) = bad(with("ymax", 0.05));
    assert_eq!(kept, [1]);
    assert!(message.contains("ymin 0.1 must be less than ymax 0.05"), "{message}");
    assert!(bad(with("ymax", 0.1)).1.contains("no area"));
    assert!(bad(with("xmax", 120.0)).1.contains("xmax: 120 lies outside the image"));
    assert!(bad(with("ymax", f32::NAN)).1.contains("ymax: NaN is not a number"));
    let negative = Record::good().floats("image/object/bbox/xmin", &[-0.2, 0.0]);
    assert!(bad(negative).1.contains("xmin: -0.2 lies outside"));
}

#[test]
fn rounding_beyond_the_border_is_clipped() {
    // One pixel of 100 rows; 1e-3 of unknown sizes.
    let record = Record::good().floats("image/object/bbox/ymax", &[1.01, 1.0]);
    assert_eq!(
        decode(&record.encode(), &options()).unwrap().objects.boxes[0],
        [0.1, 0.2, 1.0, 0.7]
    );
    let record = Record::good()
        .floats("image/object/bbox/ymin", &[-0.0009, 0.0])
        .ints("image/height", &[]);
    assert_eq!(decode(&record.encode(), &options()).unwrap().objects.boxes[0][0], 0.0);
    let record = Record::good()
        .floats("image/object/bbox/ymax", &[1.005, 1.0])
        .ints("image/height", &[]);
    assert_eq!(decode(&record.encode(), &options()).unwrap().bad_objects.len(), 1);
}

#[test]
fn unequal_lists_make_the_record_bad() {
    let record = Record::good().floats("image/object/bbox/xmax", &[0.7]).encode();
    let error = decode(&record, &options()).unwrap_err().to_string();
    assert!(
        error.contains("image/object/bbox/xmax: holds 1 values where image/object/bbox/ymin holds 2"),
        "{error}"
    );
    for name in ["image/object/class/label", "image/object/difficult"] {
        let record = Record::good().ints(name, &[1, 2, 1]).encode();
        assert!(decode(&record, &options()).unwrap_err().to_string().contains(name));
    }
    let record = Record::good().ints("image/object/class/label", &[]).encode();
    assert!(decode(&record, &options()).is_err(), "neither text nor label");
}

#[test]
fn a_record_without_an_image_is_bad() {
    let record = Record::good().bytes("image/encoded", &[b""]).encode();
    assert_eq!(decode(&record, &options()), Err(Error::NoImage));
    assert!(
        decode(b"\x0a\xff", &options())
            .unwrap_err()
            .to_string()
            .contains("not a tf.Example")
    );
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes: Vec<u8>) {
        let _ = decode(&bytes, &options());
    }

    #[test]
    fn damaged_records_never_panic(at: prop::sample::Index, value: u8) {
        let mut record = Record::good().encode();
        let at = at.index(record.len());
        record[at] = value;
        let _ = decode(&record, &options());
    }

    #[test]
    fn kept_boxes_lie_in_the_image(ymin: f32, xmin: f32, ymax: f32, xmax: f32) {
        if let Ok([y0, x0, y1, x1]) = check_box([ymin, xmin, ymax, xmax], 10, 10) {
            prop_assert!(0.0 <= y0 && y0 < y1 && y1 <= 1.0 && 0.0 <= x0 && x0 < x1 && x1 <= 1.0);
        }
    }
}
