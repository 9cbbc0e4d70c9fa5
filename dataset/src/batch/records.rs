//! Where a loader's records come from.

use crate::shards::Source;

/// Records that can be read at random by any number of threads.
pub trait Records: Send + Sync {
    /// How many there are.
    fn record_count(&self) -> u64;

    /// The bytes of a record; the error names file and record.
    fn read(&self, record: u64) -> Result<Vec<u8>, String>;

    /// File and number of a record, for people.
    fn location(&self, record: u64) -> String;
}

impl Records for Source {
    fn record_count(&self) -> u64 {
        Self::record_count(self)
    }

    fn read(&self, record: u64) -> Result<Vec<u8>, String> {
        Self::read(self, record).map_err(|error| error.to_string())
    }

    fn location(&self, record: u64) -> String {
        Self::location(self, record).to_string()
    }
}
