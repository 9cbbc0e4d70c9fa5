//! What stands under the empty key.

use coati_proto::tensorflow::VersionDef;

/// `tensorflow.BundleHeaderProto` with one field more, which TensorFlow skips as unknown.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(int32, tag = "1")]
    pub(super) num_shards: i32,
    /// 0 little, 1 big
    #[prost(int32, tag = "2")]
    pub(super) endianness: i32,
    #[prost(message, optional, tag = "3")]
    pub(super) version: Option<VersionDef>,
    /// This checkpoint counts only once its manifest is there: how one of ours that was never finished is told from
    /// one that TensorFlow wrote.
    #[prost(bool, tag = "1000")]
    pub(super) needs_manifest: bool,
}

/// `kTensorBundleVersion`
pub(super) const VERSION: i32 = 1;
/// Upper bound for the number of data files that is believed.
pub(super) const MAX_SHARDS: i32 = 100_000;

impl Header {
    pub(super) fn new(shard_count: i32, needs_manifest: bool) -> Self {
        let version = VersionDef {
            producer: VERSION,
            ..VersionDef::default()
        };
        Self {
            num_shards: shard_count,
            endianness: 0,
            version: Some(version),
            needs_manifest,
        }
    }

    /// What is wrong with it, if anything.
    pub(super) fn complaint(&self) -> Option<String> {
        let min_consumer = self.version.as_ref().map_or(0, |version| version.min_consumer);
        if self.endianness != 0 {
            Some("written on a big-endian machine, only little-endian ones are read".to_owned())
        } else if !(1..=MAX_SHARDS).contains(&self.num_shards) {
            Some(format!("{} data files, 1 to {MAX_SHARDS} expected", self.num_shards))
        } else if min_consumer > VERSION {
            Some(format!(
                "needs a reader of version {min_consumer}, this one knows {VERSION}"
            ))
        } else {
            None
        }
    }
}
