//! Reading the reference's recorded numbers.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use coati_common::config::PipelineConfig;
use coati_detection::Corners;
use coati_proto::object_detection::protos::DetectionModel;
use npyz::npz::NpzArchive;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(name)
}

/// A large golden file that lies beside the checkout; `None`, with a message, where it does not.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden")).join(name);
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

/// Protobuf text to a message of `object_detection.protos`.
pub(crate) fn parse<M: Message + Default>(message: &str, text: &str) -> M {
    let pool = DescriptorPool::decode(coati_proto::FILE_DESCRIPTOR_SET).unwrap();
    let descriptor = pool
        .get_message_by_name(&format!("object_detection.protos.{message}"))
        .unwrap();
    let dynamic = DynamicMessage::parse_text_format(descriptor, text).unwrap();
    M::decode(dynamic.encode_to_vec().as_slice()).unwrap()
}

/// `model` of a golden pipeline.config.
pub(crate) fn model(file: &str) -> DetectionModel {
    PipelineConfig::load(&fixture(file)).unwrap().proto.model.unwrap()
}

/// An `.npz` file.
pub(crate) struct Npz(NpzArchive<BufReader<File>>);

impl Npz {
    pub(crate) fn open(path: &Path) -> Self {
        Self(NpzArchive::open(path).unwrap())
    }

    pub(crate) fn component(name: &str) -> Self {
        Self::open(&fixture(&format!("components/{name}.npz")))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.array_names().map(str::to_owned).collect()
    }

    pub(crate) fn array<T: npyz::Deserialize>(&mut self, name: &str) -> Vec<T> {
        self.0
            .by_name(name)
            .unwrap()
            .unwrap_or_else(|| panic!("no array {name}"))
            .into_vec()
            .unwrap()
    }

    pub(crate) fn floats(&mut self, name: &str) -> Vec<f32> {
        self.array(name)
    }

    pub(crate) fn ints(&mut self, name: &str) -> Vec<i64> {
        self.array::<i32>(name).into_iter().map(i64::from).collect()
    }

    pub(crate) fn rows(&mut self, name: &str) -> Vec<[f32; 4]> {
        rows(&self.floats(name))
    }
}

pub(crate) fn rows(flat: &[f32]) -> Vec<Corners> {
    let (rows, rest) = flat.as_chunks();
    assert!(rest.is_empty());
    rows.to_vec()
}

/// Each value within `relative` of the expected one, or within `absolute`. NaN equals NaN.
#[track_caller]
pub(crate) fn close(what: &str, found: &[f32], expected: &[f32], relative: f32, absolute: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let near = (a - b).abs() <= absolute + relative * b.abs() || a == b || a.is_nan() && b.is_nan();
        assert!(near, "{what}[{i}]: {a}, expected {b}");
    }
}
