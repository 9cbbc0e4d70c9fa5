//! Reading from the first byte to the last.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};

use crate::bucket::Object;
use crate::runtime::{Pending, start, wait};
use crate::settings::PART_BYTES;
use crate::store::Stat;

/// Bytes asked of a local file at once.
const BUFFER_BYTES: usize = 1 << 18;
/// The first request; each one is twice as large as the one before, so that a small file costs little and a large one few requests.
const FIRST_BYTES: u64 = 1 << 18;
/// Requests on their way while one is used.
const AHEAD: usize = 6;

/// A file's bytes in their order.
#[derive(Debug)]
pub struct Sequential(Inner);

#[derive(Debug)]
enum Inner {
    Local(BufReader<fs::File>),
    Object(Stream),
}

#[derive(Debug)]
struct Stream {
    object: Arc<Object>,
    tag: Option<String>,
    size: u64,
    /// Where the next request begins, and how large it is.
    next: u64,
    request: u64,
    current: Bytes,
    pending: VecDeque<(Range<u64>, Pending<io::Result<Bytes>>)>,
    failed: bool,
}

impl Sequential {
    pub(crate) fn local(file: fs::File) -> Self {
        Self(Inner::Local(BufReader::with_capacity(BUFFER_BYTES, file)))
    }

    pub(crate) fn object(object: Arc<Object>, stat: &Stat) -> Self {
        Self(Inner::Object(Stream {
            object,
            tag: stat.tag.clone(),
            size: stat.bytes,
            next: 0,
            request: FIRST_BYTES,
            current: Bytes::new(),
            pending: VecDeque::new(),
            failed: false,
        }))
    }

    /// Leaves out so many bytes, or those that are left.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.0 {
            Inner::Local(file) => match i64::try_from(bytes) {
                Ok(bytes) => file.seek_relative(bytes),
                Err(_) => Err(io::Error::from(io::ErrorKind::InvalidInput)),
            },
            Inner::Object(stream) => stream.skip(bytes),
        }
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Local(file) => file.read(buffer),
            Inner::Object(stream) => stream.read(buffer),
        }
    }
}

impl Stream {
    fn fill(&mut self) -> io::Result<()> {
        while self.pending.len() < AHEAD && self.next < self.size {
            let range = self.next..(self.next + self.request).min(self.size);
            self.next = range.end;
            self.request = (self.request * 2).min(PART_BYTES as u64);
            let (object, tag, wanted) = (Arc::clone(&self.object), self.tag.clone(), range.clone());
            self.pending
                .push_back((range, start(async move { object.get(wanted, tag).await })?));
        }
        Ok(())
    }

    /// False at the end.
    fn advance(&mut self) -> io::Result<bool> {
        if self.failed {
            return Err(io::Error::other("reading failed before"));
        }
        self.fill()?;
        let Some((_, pending)) = self.pending.pop_front() else {
            return Ok(false);
        };
        self.current = wait(&pending)
            .and_then(|read| read)
            .inspect_err(|_| self.failed = true)?;
        self.fill()?;
        Ok(true)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || (self.current.is_empty() && !self.advance()?) {
            return Ok(0);
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }

    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        loop {
            let here = (self.current.len() as u64).min(bytes);
            self.current.advance(here as usize);
            bytes -= here;
            if bytes == 0 {
                return Ok(());
            }
            match self.pending.front() {
                Some((range, _)) if range.end - range.start <= bytes => {
                    bytes -= range.end - range.start;
                    self.pending.pop_front();
                }
                Some(_) => {
                    self.advance()?;
                }
                None => {
                    self.next = self.next.saturating_add(bytes).min(self.size);
                    return Ok(());
                }
            }
        }
    }
}
