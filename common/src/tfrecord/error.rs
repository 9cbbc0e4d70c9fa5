//! What can be wrong with a file of records.

use std::fmt;
use std::io;

/// Where in a file of records something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file, as it was opened.
    pub file: String,
    /// Index of the record, counted from 0.
    pub record: u64,
    /// Byte offset of the record's header in the file.
    pub offset: u64,
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: record {} at byte {}",
            self.file, self.record, self.offset
        )
    }
}

/// A record that cannot be read, or a file that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file ends in the middle of a record.
    #[error(
        "{location}: the file ends in the record's {part}: {wanted} bytes expected, {found} left\nhint: the file was cut short; copy or write it again"
    )]
    Truncated {
        /// Where the record starts.
        location: Location,
        /// `header` or `data`.
        part: &'static str,
        /// Bytes that this part needs.
        wanted: u64,
        /// Bytes that were there.
        found: u64,
    },
    /// The CRC of the length does not agree with it.
    #[error(
        "{location}: length CRC is {stored:#010x}, expected {computed:#010x}\nhint: this is not a TFRecord file, or it is damaged here"
    )]
    LengthCrc {
        /// Where the record starts.
        location: Location,
        /// In the file.
        stored: u32,
        /// Of the length in the file.
        computed: u32,
    },
    /// The CRC of the data does not agree with them.
    #[error(
        "{location}: data CRC of {length} bytes is {stored:#010x}, expected {computed:#010x}\nhint: the record's bytes were changed after writing; copy or write the file again"
    )]
    DataCrc {
        /// Where the record starts.
        location: Location,
        /// Bytes of data.
        length: u64,
        /// In the file.
        stored: u32,
        /// Of the data in the file.
        computed: u32,
    },
    /// The length has a good CRC but reaches beyond the end of the file.
    #[error(
        "{location}: the record says {length} bytes of data, but only {left} bytes are left in the file\nhint: the file was cut short; copy or write it again"
    )]
    TooLong {
        /// Where the record starts.
        location: Location,
        /// Bytes of data that the header announces.
        length: u64,
        /// Bytes of data for which the file still has room.
        left: u64,
    },
    /// The operating system refused.
    #[error("{location}: cannot {action}: {source}")]
    Io {
        /// Where it happened.
        location: Location,
        /// `open`, `read`, …
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Where it happened.
    pub fn location(&self) -> &Location {
        match self {
            Self::Truncated { location, .. }
            | Self::LengthCrc { location, .. }
            | Self::DataCrc { location, .. }
            | Self::TooLong { location, .. }
            | Self::Io { location, .. } => location,
        }
    }

    /// True when only this record's data are damaged, so that the records after it can still be read.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::DataCrc { .. })
    }
}
