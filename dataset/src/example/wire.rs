//! Reads a serialized `tf.Example` in place: the image's bytes are borrowed from the record, never copied.

use std::borrow::Cow;

/// What is wrong with the bytes of a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not a protocol buffer message of this shape.
    #[error(
        "not a tf.Example: {0}\nhint: the records must be serialized tf.Example messages (tf.SequenceExample and others are not read)"
    )]
    Malformed(&'static str),
    /// A feature has another kind than the schema's.
    #[error(
        "feature {name}: holds {}, must hold {}",
        with_article(found),
        with_article(expected)
    )]
    WrongKind {
        /// The feature.
        name: String,
        /// The kind in the record.
        found: &'static str,
        /// The kind in the schema.
        expected: &'static str,
    },
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// The features of one `tf.Example`, by name, still encoded.
#[derive(Debug, Clone, Default)]
pub struct Features<'a> {
    entries: Vec<(&'a str, &'a [u8])>,
}

/// The values of a feature.
#[derive(Debug, Clone, PartialEq)]
pub enum Values<'a> {
    /// Byte strings.
    Bytes(Vec<&'a [u8]>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
}

impl Values<'_> {
    /// `bytes`, `float` or `int64`, as TensorFlow says.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bytes(_) => "bytes",
            Self::Floats(_) => "float",
            Self::Ints(_) => "int64",
        }
    }

    /// How many values.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(list) => list.len(),
            Self::Floats(list) => list.len(),
            Self::Ints(list) => list.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const BYTES_LIST: u32 = 1;
const FLOAT_LIST: u32 = 2;
const INT64_LIST: u32 = 3;

impl<'a> Features<'a> {
    /// Reads the outer structure of a record.
    pub fn parse(record: &'a [u8]) -> Result<Self, Error> {
        let mut entries: Vec<(&str, &[u8])> = Vec::with_capacity(16);
        let mut example = Fields(record);
        while let Some(field) = example.next()? {
            let (1, Value::Bytes(features)) = field else { continue };
            let mut features = Fields(features);
            while let Some(field) = features.next()? {
                let (1, Value::Bytes(entry)) = field else { continue };
                let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
                let mut entry = Fields(entry);
                while let Some(field) = entry.next()? {
                    match field {
                        (1, Value::Bytes(bytes)) => key = bytes,
                        (2, Value::Bytes(bytes)) => value = bytes,
                        _ => {}
                    }
                }
                let key = std::str::from_utf8(key).map_err(|_| Error::Malformed("a feature's name is not UTF-8"))?;
                // As in any protobuf map, the last entry of a name counts.
                match entries.iter_mut().find(|(name, _)| *name == key) {
                    Some(entry) => entry.1 = value,
                    None => entries.push((key, value)),
                }
            }
        }
        Ok(Self { entries })
    }

    /// The names present.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.iter().map(|&(name, _)| name)
    }

    /// All features in order of their names, each as the kind that it holds. Ones that cannot be read are empty lists of bytes.
    pub fn all(&self) -> Vec<(&'a str, Values<'a>)> {
        let mut names: Vec<&'a str> = self.names().collect();
        names.sort_unstable();
        let values = |name: &str| match (self.bytes(name), self.floats(name), self.ints(name)) {
            (_, _, Ok(ints)) if !ints.is_empty() => Values::Ints(ints),
            (_, Ok(floats), _) if !floats.is_empty() => Values::Floats(floats),
            (bytes, _, _) => Values::Bytes(bytes.unwrap_or_default()),
        };
        names.into_iter().map(|name| (name, values(name))).collect()
    }

    /// The byte strings of a feature; empty when it is absent.
    pub fn bytes(&self, name: &str) -> Result<Vec<&'a [u8]>, Error> {
        let mut values = Vec::new();
        let mut list = Fields(self.list(name, BYTES_LIST)?);
        while let Some(field) = list.next()? {
            if let (1, Value::Bytes(bytes)) = field {
                values.push(bytes);
            }
        }
        Ok(values)
    }

    /// The first byte string of a feature; `None` when there is none.
    pub fn first_bytes(&self, name: &str) -> Result<Option<&'a [u8]>, Error> {
        let mut list = Fields(self.list(name, BYTES_LIST)?);
        while let Some(field) = list.next()? {
            if let (1, Value::Bytes(bytes)) = field {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The first byte string as text, for names and ids.
    pub fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Error> {
        Ok(self.first_bytes(name)?.map(String::from_utf8_lossy))
    }

    /// The floats of a feature, packed or not; empty when it is absent.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, Error> {
        let mut values = Vec::new();
        let mut list = Fields(self.list(name, FLOAT_LIST)?);
        while let Some(field) = list.next()? {
            match field {
                (1, Value::Fixed32(bits)) => values.push(f32::from_bits(bits)),
                (1, Value::Bytes(packed)) => {
                    let (chunks, rest) = packed.as_chunks::<4>();
                    if !rest.is_empty() {
                        return Err(Error::Malformed("a list of floats ends within a float"));
                    }
                    values.extend(chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)));
                }
                _ => {}
            }
        }
        Ok(values)
    }

    /// The integers of a feature, packed or not; empty when it is absent.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, Error> {
        let mut values = Vec::new();
        let mut list = Fields(self.list(name, INT64_LIST)?);
        while let Some(field) = list.next()? {
            match field {
                (1, Value::Varint(value)) => values.push(value as i64),
                (1, Value::Bytes(packed)) => {
                    let mut packed = Fields(packed);
                    while !packed.0.is_empty() {
                        values.push(packed.varint()? as i64);
                    }
                }
                _ => {}
            }
        }
        Ok(values)
    }

    /// The encoded list of a feature if it is of `kind` or empty.
    fn list(&self, name: &str, kind: u32) -> Result<&'a [u8], Error> {
        let Some(&(_, feature)) = self.entries.iter().find(|(key, _)| *key == name) else {
            return Ok(&[]);
        };
        let mut found: (u32, &[u8]) = (kind, &[]);
        let mut feature = Fields(feature);
        while let Some(field) = feature.next()? {
            if let (number @ BYTES_LIST..=INT64_LIST, Value::Bytes(list)) = field {
                found = (number, list);
            }
        }
        // Writers that lack values leave an empty list of any kind.
        if found.0 != kind && !found.1.is_empty() {
            return Err(Error::WrongKind {
                name: name.to_owned(),
                found: kind_name(found.0),
                expected: kind_name(kind),
            });
        }
        Ok(if found.0 == kind { found.1 } else { &[] })
    }
}

fn kind_name(kind: u32) -> &'static str {
    match kind {
        BYTES_LIST => "bytes_list",
        FLOAT_LIST => "float_list",
        _ => "int64_list",
    }
}

pub(super) enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Skipped,
}

/// The fields of one message, from the front.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Malformed("a field number is too large"))?;
        if number == 0 {
            return Err(Error::Malformed("field number 0"));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Skipped
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Malformed("a length is too large"))?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(bytes.try_into().map_or(0, u32::from_le_bytes))
            }
            _ => return Err(Error::Malformed("unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Error::Malformed("it ends within a field"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for (index, &byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7F) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(Error::Malformed("it ends within a number"))
    }
}

#[cfg(test)]
mod tests {
    use coati_proto::tensorflow::{self as tf, feature::Kind};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn encode(features: &[(&str, Kind)]) -> Vec<u8> {
        let feature = features
            .iter()
            .map(|(name, kind)| {
                (
                    (*name).to_owned(),
                    tf::Feature {
                        kind: Some(kind.clone()),
                    },
                )
            })
            .collect();
        tf::Example {
            features: Some(tf::Features { feature }),
        }
        .encode_to_vec()
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            if let Ok(features) = Features::parse(&bytes) {
                for name in features.names() {
                    let _ = (features.bytes(name), features.floats(name), features.ints(name), features.text(name));
                }
            }
        }

        #[test]
        fn agrees_with_prost(ints: Vec<i64>, floats: Vec<f32>, bytes: Vec<Vec<u8>>) {
            let record = encode(&[
                ("i", Kind::Int64List(tf::Int64List { value: ints.clone() })),
                ("f", Kind::FloatList(tf::FloatList { value: floats.clone() })),
                ("b", Kind::BytesList(tf::BytesList { value: bytes.clone() })),
            ]);
            let features = Features::parse(&record).unwrap();
            prop_assert_eq!(features.ints("i").unwrap(), ints);
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(features.floats("f").unwrap()), bits(floats));
            prop_assert_eq!(features.bytes("b").unwrap(), bytes.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn cut_records_are_refused_or_read_short(cut in 0_usize..60) {
            let record = encode(&[("image/encoded", Kind::BytesList(tf::BytesList { value: vec![vec![7; 40]] }))]);
            let cut = cut.min(record.len());
            // Only the whole record (or none of it) is a message.
            prop_assert_eq!(Features::parse(&record[..cut]).is_ok(), cut == 0 || cut == record.len());
        }
    }

    #[test]
    fn unpacked_numbers_are_read_too() {
        // map entry: key "x"; value: int64_list of two unpacked varints 5 and -1.
        let list = [&[0x08, 5, 0x08][..], &[0xFF; 9], &[1]].concat();
        let feature = [&[0x1A, list.len() as u8][..], &list].concat();
        let entry = [&[0x0A, 1, b'x', 0x12, feature.len() as u8][..], &feature].concat();
        let features = [&[0x0A, entry.len() as u8][..], &entry].concat();
        let record = [&[0x0A, features.len() as u8][..], &features].concat();
        assert_eq!(Features::parse(&record).unwrap().ints("x").unwrap(), [5, -1]);
    }

    #[test]
    fn a_wrong_kind_is_named_and_an_empty_list_passes() {
        let record = encode(&[
            ("label", Kind::FloatList(tf::FloatList { value: vec![1.0] })),
            ("none", Kind::FloatList(tf::FloatList { value: vec![] })),
        ]);
        let features = Features::parse(&record).unwrap();
        let error = features.ints("label").unwrap_err().to_string();
        assert_eq!(error, "feature label: holds a float_list, must hold an int64_list");
        assert_eq!(features.ints("none").unwrap(), [0_i64; 0]);
        assert_eq!(features.ints("absent").unwrap(), [0_i64; 0]);
    }
}
