//! Builds a `tf.Example` with the Object Detection API's field names.

use coati_proto::tensorflow::{BytesList, Example, Feature, Features, FloatList, Int64List, feature::Kind};

/// A record under construction.
#[derive(Debug, Default)]
pub struct Record {
    features: Features,
}

impl Record {
    /// Sets a list of byte strings.
    pub fn bytes(&mut self, name: &str, value: Vec<Vec<u8>>) {
        self.set(name, Kind::BytesList(BytesList { value }));
    }

    /// Sets one string.
    pub fn text(&mut self, name: &str, value: &str) {
        self.bytes(name, vec![value.as_bytes().to_vec()]);
    }

    /// Sets a list of integers.
    pub fn ints(&mut self, name: &str, value: Vec<i64>) {
        self.set(name, Kind::Int64List(Int64List { value }));
    }

    /// Sets a list of numbers.
    pub fn floats(&mut self, name: &str, value: Vec<f32>) {
        self.set(name, Kind::FloatList(FloatList { value }));
    }

    /// The finished message.
    pub fn finish(self) -> Example {
        Example {
            features: Some(self.features),
        }
    }

    fn set(&mut self, name: &str, kind: Kind) {
        self.features
            .feature
            .insert(name.to_owned(), Feature { kind: Some(kind) });
    }
}

/// The serialised form, with features in the order of their names, so that equal input gives equal files.
///
/// A protobuf map has no order of its own, and a hash map's changes from run to run.
pub fn serialise(example: &Example) -> Vec<u8> {
    use prost::Message as _;
    let mut names: Vec<(&String, &Feature)> = example
        .features
        .iter()
        .flat_map(|features| features.feature.iter())
        .collect();
    names.sort_by_key(|(name, _)| name.as_str());
    let mut entries = Vec::new();
    for (name, feature) in names {
        let entry = Features {
            feature: std::iter::once((name.clone(), feature.clone())).collect(),
        };
        entries.extend_from_slice(&entry.encode_to_vec());
    }
    let mut out = Vec::with_capacity(entries.len() + 8);
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(entries.len() as u64, &mut out);
    out.extend_from_slice(&entries);
    out
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn serialised_is_the_same_message() {
        let mut record = Record::default();
        record.text("image/filename", "a.jpg");
        record.ints("image/height", vec![3]);
        record.floats("image/object/bbox/xmin", vec![0.5, 0.25]);
        let example = record.finish();
        assert_eq!(Example::decode(serialise(&example).as_slice()).unwrap(), example);
    }
}
