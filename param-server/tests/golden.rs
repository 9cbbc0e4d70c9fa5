//! Reading the reference's recorded numbers.

use std::path::PathBuf;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(name)
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

/// One array of an `.npz` file, in C order.
pub(crate) fn array(file: &str, name: &str) -> Vec<f32> {
    let mut npz = npyz::npz::NpzArchive::open(path(file)).unwrap();
    npz.by_name(name)
        .unwrap()
        .unwrap_or_else(|| panic!("no {name} in {file}"))
        .into_vec()
        .unwrap()
}
