//! Writes detections into a serialized `tf.Example` without touching what else it holds.

use coati_proto::tensorflow as tf;
use coati_proto::tensorflow::feature::Kind;
use prost::Message as _;

use super::wire::{Error, Fields, Value};

/// The feature with the image file's bytes.
const IMAGE: &str = "image/encoded";
/// All features of detections begin so.
const DETECTION: &str = "image/detection/";

/// Detections of one image, as the reference's `infer_detections_and_add_to_example` stores them; all lists are equally long.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detections {
    /// `[ymin, xmin, ymax, xmax]`, fractions of the image.
    pub boxes: Vec<[f32; 4]>,
    /// The label map's ids, from 1.
    pub labels: Vec<i64>,
    /// Best first.
    pub scores: Vec<f32>,
}

/// The record with these detections in place of any that it held, and without the image's bytes if they are to be discarded. All other features keep
/// their bytes and their order.
pub fn with_detections(record: &[u8], detections: &Detections, discard_image: bool) -> Result<Vec<u8>, Error> {
    let mut features = Vec::with_capacity(record.len() + 256);
    let mut others = Vec::new();
    let mut example = Fields(record);
    while let Some((raw, field)) = next_raw(&mut example)? {
        let (1, Value::Bytes(inner)) = field else {
            others.extend_from_slice(raw);
            continue;
        };
        let mut inner = Fields(inner);
        while let Some((raw, field)) = next_raw(&mut inner)? {
            let dropped = match field {
                (1, Value::Bytes(entry)) => is_dropped(key(entry)?, discard_image),
                _ => false,
            };
            if !dropped {
                features.extend_from_slice(raw);
            }
        }
    }
    features.extend_from_slice(&encoded(detections));
    let mut whole = Vec::with_capacity(features.len() + others.len() + 8);
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut whole);
    prost::encoding::encode_varint(features.len() as u64, &mut whole);
    whole.extend_from_slice(&features);
    whole.extend_from_slice(&others);
    Ok(whole)
}

type Field<'a> = (u32, Value<'a>);

/// A field and all of its bytes.
fn next_raw<'a>(fields: &mut Fields<'a>) -> Result<Option<(&'a [u8], Field<'a>)>, Error> {
    let before = fields.0;
    let field = fields.next()?;
    Ok(field.map(|field| (&before[..before.len() - fields.0.len()], field)))
}

fn key(entry: &[u8]) -> Result<&[u8], Error> {
    let mut fields = Fields(entry);
    let mut key: &[u8] = &[];
    while let Some(field) = fields.next()? {
        if let (1, Value::Bytes(bytes)) = field {
            key = bytes;
        }
    }
    Ok(key)
}

fn is_dropped(key: &[u8], discard_image: bool) -> bool {
    key.starts_with(DETECTION.as_bytes()) || (discard_image && key == IMAGE.as_bytes())
}

/// The entries of the map of features.
fn encoded(detections: &Detections) -> Vec<u8> {
    let side = |side: usize| {
        let value = detections.boxes.iter().map(|corners| corners[side]).collect();
        Kind::FloatList(tf::FloatList { value })
    };
    let entries = [
        ("bbox/ymin", side(0)),
        ("bbox/xmin", side(1)),
        ("bbox/ymax", side(2)),
        ("bbox/xmax", side(3)),
        (
            "label",
            Kind::Int64List(tf::Int64List {
                value: detections.labels.clone(),
            }),
        ),
        (
            "score",
            Kind::FloatList(tf::FloatList {
                value: detections.scores.clone(),
            }),
        ),
    ];
    let mut bytes = Vec::new();
    for (name, kind) in entries {
        let one = tf::Features {
            feature: [(format!("{DETECTION}{name}"), tf::Feature { kind: Some(kind) })].into(),
        };
        bytes.extend_from_slice(&one.encode_to_vec());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::wire::Features;

    fn entry(name: &str, value: &[u8]) -> Vec<u8> {
        let value = vec![value.to_vec()];
        let feature = tf::Feature {
            kind: Some(Kind::BytesList(tf::BytesList { value })),
        };
        let feature = [(name.to_owned(), feature)].into();
        tf::Features { feature }.encode_to_vec()
    }

    fn record(entries: &[Vec<u8>]) -> Vec<u8> {
        let features = entries.concat();
        [&[0x0A, features.len() as u8][..], &features].concat()
    }

    fn two() -> Detections {
        Detections {
            boxes: vec![[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]],
            labels: vec![3, 1],
            scores: vec![0.9, 0.25],
        }
    }

    #[test]
    fn every_other_feature_keeps_its_bytes_and_its_place() {
        let entries = [
            entry("z", b"last first"),
            entry("image/encoded", b"JPEG"),
            entry("a", b""),
        ];
        let made = with_detections(&record(&entries), &two(), false).unwrap();
        let kept = entries.concat();
        let at = made.windows(kept.len()).position(|window| window == kept);
        assert!(
            at.is_some_and(|at| at <= 4),
            "the entries stand at the front as they were"
        );
        let features = Features::parse(&made).unwrap();
        assert_eq!(features.floats("image/detection/bbox/ymin").unwrap(), [0.1, 0.5]);
        assert_eq!(features.floats("image/detection/bbox/xmin").unwrap(), [0.2, 0.6]);
        assert_eq!(features.floats("image/detection/bbox/ymax").unwrap(), [0.3, 0.7]);
        assert_eq!(features.floats("image/detection/bbox/xmax").unwrap(), [0.4, 0.8]);
        assert_eq!(features.ints("image/detection/label").unwrap(), [3, 1]);
        assert_eq!(features.floats("image/detection/score").unwrap(), [0.9, 0.25]);
    }

    #[test]
    fn pixels_go_when_asked_for_and_older_detections_always() {
        let record = record(&[entry("image/encoded", b"JPEG"), entry("image/filename", b"a.jpg")]);
        let once = with_detections(&record, &Detections::default(), false).unwrap();
        let twice = with_detections(&once, &two(), true).unwrap();
        let features = Features::parse(&twice).unwrap();
        assert_eq!(features.first_bytes("image/encoded").unwrap(), None);
        assert_eq!(features.first_bytes("image/filename").unwrap(), Some(&b"a.jpg"[..]));
        let names: Vec<_> = features.names().collect();
        assert_eq!(names.len(), 7, "{names:?}");
        let example = tf::Example::decode(twice.as_slice()).unwrap();
        assert_eq!(example.features.unwrap().feature.len(), 7);
    }

    #[test]
    fn what_is_no_example_is_refused() {
        assert!(with_detections(&[0x0A, 200], &two(), false).is_err());
    }

    #[test]
    fn fields_that_nobody_knows_stay() {
        let mut record = record(&[entry("a", b"1")]);
        record.extend([0x12, 2, 7, 7]);
        let made = with_detections(&record, &two(), false).unwrap();
        assert!(made.ends_with(&[0x12, 2, 7, 7]));
    }
}
