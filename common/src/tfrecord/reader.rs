//! One record after the other.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Error, FOOTER_BYTES, HEADER_BYTES, Location, Plain, decode_header, masked_crc32c};

/// Reads records in the order of the file. As an iterator it ends after the first error, except after a bad data
/// CRC, which leaves the framing intact.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    file: String,
    size: Option<u64>,
    record: u64,
    offset: u64,
    failed: bool,
}

impl Reader<Plain> {
    /// Opens a local file, plain or packed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        let fail = |action| {
            let location = Location {
                file: file.clone(),
                record: 0,
                offset: 0,
            };
            move |source| Error::Io {
                location,
                action,
                source,
            }
        };
        let handle = File::open(path).map_err(fail("open"))?;
        let size = handle.metadata().map_err(fail("stat"))?.len();
        let bytes = Plain::new(handle).map_err(fail("read"))?;
        Ok(Self {
            size: Some(bytes.most(size)),
            ..Self::new(bytes, file)
        })
    }
}

impl<R: Read> Reader<R> {
    /// Reads from `inner`; `file` is the name that errors give it.
    pub fn new(inner: R, file: impl Into<String>) -> Self {
        Self {
            inner,
            file: file.into(),
            size: None,
            record: 0,
            offset: 0,
            failed: false,
        }
    }

    /// With the total number of bytes known, a length that cannot be true is refused before anything is read.
    #[must_use]
    pub fn with_size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Index of the record that is read next.
    pub fn position(&self) -> u64 {
        self.record
    }

    /// Reads the next record's data into `data`, whose old content is dropped. Returns false at the end of the file.
    pub fn read_into(&mut self, data: &mut Vec<u8>) -> Result<bool, Error> {
        let result = self.advance(data);
        if let Err(error) = &result {
            self.failed = !error.is_local();
        }
        result
    }

    fn advance(&mut self, data: &mut Vec<u8>) -> Result<bool, Error> {
        data.clear();
        let mut header = [0; HEADER_BYTES as usize];
        let found = self.fill(&mut header)?;
        if found == 0 {
            return Ok(false);
        }
        if found < header.len() {
            return Err(self.truncated("header", HEADER_BYTES, found as u64));
        }
        let length = decode_header(header, || self.location())?;
        if let Some(size) = self.size {
            let left = size
                .saturating_sub(self.offset + HEADER_BYTES)
                .saturating_sub(FOOTER_BYTES);
            if length > left {
                return Err(Error::TooLong {
                    location: self.location(),
                    length,
                    left,
                });
            }
        }

        // `take` lets the vector grow with what is really there, whatever the length says.
        let got = (&mut self.inner)
            .take(length)
            .read_to_end(data)
            .map_err(|source| self.io(source))? as u64;
        let mut footer = [0; FOOTER_BYTES as usize];
        let footer_got = if got == length {
            self.fill(&mut footer)? as u64
        } else {
            0
        };
        if footer_got < FOOTER_BYTES {
            return Err(self.truncated("data", length.saturating_add(FOOTER_BYTES), got + footer_got));
        }
        let (stored, computed) = (u32::from_le_bytes(footer), masked_crc32c(data));
        let location = (stored != computed).then(|| self.location());
        self.record += 1;
        self.offset += HEADER_BYTES + length + FOOTER_BYTES;
        match location {
            None => Ok(true),
            Some(location) => Err(Error::DataCrc {
                location,
                length,
                stored,
                computed,
            }),
        }
    }

    /// Reads until `buffer` is full or the file ends; returns how many bytes there were.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
        Ok(filled)
    }

    fn location(&self) -> Location {
        Location {
            file: self.file.clone(),
            record: self.record,
            offset: self.offset,
        }
    }

    fn truncated(&self, part: &'static str, wanted: u64, found: u64) -> Error {
        Error::Truncated {
            location: self.location(),
            part,
            wanted,
            found,
        }
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io {
            location: self.location(),
            action: "read",
            source,
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Vec<u8>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let mut data = Vec::new();
        match self.read_into(&mut data) {
            Ok(true) => Some(Ok(data)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
