//! Writing records.

use std::io::{self, Write};

use super::{encode_header, masked_crc32c};

/// Frames records. The caller buffers where that matters and names the file in errors.
#[derive(Debug)]
pub struct Writer<W: Write> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// Writes records to `inner`, from where it stands.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Appends one record.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.inner.write_all(&encode_header(data.len() as u64))?;
        self.inner.write_all(data)?;
        self.inner.write_all(&masked_crc32c(data).to_le_bytes())
    }

    /// Flushes what lies below.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// What lies below, for example to sync a file.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// As [`Writer::get_ref`], for writing nothing but whole records.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Gives back what lies below, unflushed.
    pub fn into_inner(self) -> W {
        self.inner
    }
}
