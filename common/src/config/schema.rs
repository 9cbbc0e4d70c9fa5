//! Reflection over the generated messages.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor};

use super::Error;

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(coati_proto::FILE_DESCRIPTOR_SET).map_err(|error| error.to_string()));

/// Descriptor of a message of the package `object_detection.protos`.
pub(crate) fn message(name: &str) -> Result<MessageDescriptor, Error> {
    let pool = POOL.as_ref().map_err(|error| Error::Schema(error.clone()))?;
    pool.get_message_by_name(&format!("object_detection.protos.{name}"))
        .ok_or_else(|| Error::Schema(format!("no message {name}")))
}

/// The generated type as a message that can be walked.
pub(crate) fn dynamic(message: &impl Message, descriptor: MessageDescriptor) -> Result<DynamicMessage, Error> {
    DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| Error::Schema(error.to_string()))
}

/// The other way round.
pub(crate) fn generated<M: Message + Default>(message: &DynamicMessage) -> Result<M, Error> {
    message.transcode_to().map_err(|error| Error::Schema(error.to_string()))
}

/// Whether the schema names a default for this field. Where it names none, absence has a meaning of its own.
pub(crate) fn has_default(field: &FieldDescriptor) -> bool {
    field.field_descriptor_proto().default_value.is_some()
}
