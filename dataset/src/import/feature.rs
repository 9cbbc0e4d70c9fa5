//! Builds a `tf.Example` with the Object Detection API's field names, as the bytes of the message.

use std::collections::BTreeMap;

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// A record under construction. Fields are written in the order of their names, so that equal input gives equal files: a
/// protobuf map has no order of its own, and a hash map's changes from run to run.
#[derive(Debug, Default)]
pub struct Record {
    features: BTreeMap<String, Values>,
}

/// The kinds of `tensorflow.Feature`.
#[derive(Debug)]
enum Values {
    Bytes(Vec<Vec<u8>>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
}

impl Record {
    /// Sets a list of byte strings.
    pub fn bytes(&mut self, name: &str, value: Vec<Vec<u8>>) {
        self.features.insert(name.to_owned(), Values::Bytes(value));
    }

    /// Sets one string.
    pub fn text(&mut self, name: &str, value: &str) {
        self.bytes(name, vec![value.as_bytes().to_vec()]);
    }

    /// Sets a list of integers.
    pub fn ints(&mut self, name: &str, value: Vec<i64>) {
        self.features.insert(name.to_owned(), Values::Ints(value));
    }

    /// Sets a list of numbers.
    pub fn floats(&mut self, name: &str, value: Vec<f32>) {
        self.features.insert(name.to_owned(), Values::Floats(value));
    }

    /// The serialised message. Lengths are counted first, so that an image's bytes are copied once.
    pub fn serialise(&self) -> Vec<u8> {
        let entry_length = |(name, values): (&String, &Values)| framed(name.len()) + framed(framed(values.length()));
        let all: usize = self.features.iter().map(|entry| framed(entry_length(entry))).sum();
        let mut out = Vec::with_capacity(framed(all));
        open(1, all, &mut out);
        for (name, values) in &self.features {
            open(1, entry_length((name, values)), &mut out);
            open(1, name.len(), &mut out);
            out.extend_from_slice(name.as_bytes());
            open(2, framed(values.length()), &mut out);
            open(values.kind(), values.length(), &mut out);
            values.write(&mut out);
        }
        out
    }
}

impl Values {
    /// The field's number in `tensorflow.Feature`.
    fn kind(&self) -> u32 {
        match self {
            Self::Bytes(_) => 1,
            Self::Floats(_) => 2,
            Self::Ints(_) => 3,
        }
    }

    /// Bytes of the list's message.
    fn length(&self) -> usize {
        match self {
            Self::Bytes(values) => values.iter().map(|value| framed(value.len())).sum(),
            Self::Floats(values) if values.is_empty() => 0,
            Self::Floats(values) => framed(values.len() * 4),
            Self::Ints(values) if values.is_empty() => 0,
            Self::Ints(values) => framed(packed(values)),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(values) => {
                for value in values {
                    open(1, value.len(), out);
                    out.extend_from_slice(value);
                }
            }
            Self::Floats(values) if !values.is_empty() => {
                open(1, values.len() * 4, out);
                for value in values {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
            Self::Ints(values) if !values.is_empty() => {
                open(1, packed(values), out);
                for &value in values {
                    encode_varint(value as u64, out);
                }
            }
            Self::Floats(_) | Self::Ints(_) => {}
        }
    }
}

/// Bytes of packed integers.
fn packed(values: &[i64]) -> usize {
    values.iter().map(|&value| encoded_len_varint(value as u64)).sum()
}

/// Bytes of a field with `length` bytes of content; all field numbers here take one byte.
fn framed(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn open(field: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

#[cfg(test)]
mod tests {
    use coati_proto::tensorflow::{BytesList, Example, Feature, FloatList, Int64List, feature::Kind};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    proptest! {
        #[test]
        fn any_protobuf_reader_reads_it(
            ints: Vec<i64>,
            floats in prop::collection::vec(-1e9_f32..1e9, 0..20),
            bytes: Vec<Vec<u8>>,
            name in "[a-z/]{0,200}",
        ) {
            let mut record = Record::default();
            record.ints("i", ints.clone());
            record.floats("f", floats.clone());
            record.bytes(&format!("b{name}"), bytes.clone());
            let serialised = record.serialise();
            prop_assert_eq!(serialised.capacity(), serialised.len());
            let found = Example::decode(serialised.as_slice()).unwrap().features.unwrap().feature;
            let kind = |kind| Feature { kind: Some(kind) };
            prop_assert_eq!(&found["i"], &kind(Kind::Int64List(Int64List { value: ints })));
            prop_assert_eq!(&found["f"], &kind(Kind::FloatList(FloatList { value: floats })));
            prop_assert_eq!(&found[&format!("b{name}")], &kind(Kind::BytesList(BytesList { value: bytes })));
            prop_assert_eq!(found.len(), 3);
        }
    }
}
