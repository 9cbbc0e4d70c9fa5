//! Changes in a record's features.

use std::collections::HashMap;

use coati_proto::tensorflow::{BytesList, Example, Feature, FloatList, Int64List, feature::Kind};

use crate::import::feature::Record;

/// A record that can be changed.
pub(super) struct Edit {
    features: HashMap<String, Feature>,
    pub(super) changed: bool,
}

impl Edit {
    pub(super) fn new(example: Example) -> Self {
        Self {
            features: example.features.unwrap_or_default().feature,
            changed: false,
        }
    }

    pub(super) fn set(&mut self, name: &str, kind: Kind) {
        self.features.insert(name.to_owned(), Feature { kind: Some(kind) });
        self.changed = true;
    }

    pub(super) fn set_ints(&mut self, name: &str, value: Vec<i64>) {
        self.set(name, Kind::Int64List(Int64List { value }));
    }

    pub(super) fn set_floats(&mut self, name: &str, value: Vec<f32>) {
        self.set(name, Kind::FloatList(FloatList { value }));
    }

    pub(super) fn set_bytes(&mut self, name: &str, value: Vec<Vec<u8>>) {
        self.set(name, Kind::BytesList(BytesList { value }));
    }

    /// Takes objects out of every list of `image/object`. Lists with several values an object (keypoints, numbers of masks) lose
    /// all of them.
    pub(super) fn drop_objects(&mut self, drop: &[bool]) {
        if !drop.contains(&true) {
            return;
        }
        self.changed = true;
        for (name, feature) in &mut self.features {
            if !name.starts_with("image/object/") {
                continue;
            }
            match &mut feature.kind {
                Some(Kind::BytesList(list)) => keep(&mut list.value, drop),
                Some(Kind::FloatList(list)) => keep(&mut list.value, drop),
                Some(Kind::Int64List(list)) => keep(&mut list.value, drop),
                None => {}
            }
        }
    }

    /// The record's bytes; features in the order of their names, as importers write them.
    pub(super) fn serialise(self) -> Vec<u8> {
        let mut record = Record::default();
        for (name, feature) in self.features {
            match feature.kind {
                Some(Kind::BytesList(list)) => record.bytes(&name, list.value),
                Some(Kind::FloatList(list)) => record.floats(&name, list.value),
                Some(Kind::Int64List(list)) => record.ints(&name, list.value),
                None => {}
            }
        }
        record.serialise()
    }
}

fn keep<T>(values: &mut Vec<T>, drop: &[bool]) {
    if values.is_empty() || drop.is_empty() || !values.len().is_multiple_of(drop.len()) {
        return;
    }
    let each = values.len() / drop.len();
    let mut index = 0;
    values.retain(|_| {
        let object = index / each;
        index += 1;
        !drop[object]
    });
}
