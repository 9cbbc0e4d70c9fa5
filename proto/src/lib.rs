//! Every message that Coati reads, writes or sends.
//!
//! [`coati::v1`] is the wire between Coati's own processes, [`object_detection::protos`] the schema of
//! `pipeline.config` and label maps, [`tensorflow`] what other tools read: examples, events, tensor bundles.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// Descriptors of all messages, for reflection (protobuf text format).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Coati's own wire.
pub mod coati {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/coati.v1.rs"));
    }
}

/// The TensorFlow Object Detection API's configuration schema.
pub mod object_detection {
    /// Package `object_detection.protos`.
    pub mod protos {
        include!(concat!(env!("OUT_DIR"), "/object_detection.protos.rs"));
    }
}

/// TensorFlow's own formats.
pub mod tensorflow {
    include!(concat!(env!("OUT_DIR"), "/tensorflow.rs"));
}
