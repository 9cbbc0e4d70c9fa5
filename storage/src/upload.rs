//! Large objects, written part by part.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStore as _, PutPayload};

use crate::bucket::Object;
use crate::runtime::{Pending, block, start, wait};
use crate::settings::{PART_BYTES, PARTS_IN_FLIGHT};
use crate::store::Writer;

/// Parts are numbered to 10,000; they grow so that an object of terabytes has fewer.
const PARTS_OF_A_SIZE: usize = 1000;

/// An object in the making: sent whole when it is small, in parts otherwise. Nothing appears before it is finished.
#[derive(Debug)]
pub(crate) struct Upload {
    object: Object,
    buffer: Vec<u8>,
    parts: usize,
    /// Once there is more than one part.
    multipart: Option<Box<dyn MultipartUpload>>,
    in_flight: VecDeque<Pending<object_store::Result<()>>>,
    bytes: u64,
    failed: bool,
}

impl Upload {
    pub(crate) fn new(object: Object) -> Self {
        Self {
            object,
            buffer: Vec::new(),
            parts: 0,
            multipart: None,
            in_flight: VecDeque::new(),
            bytes: 0,
            failed: false,
        }
    }

    fn part_bytes(&self) -> usize {
        PART_BYTES << (self.parts / PARTS_OF_A_SIZE).min(6)
    }

    fn send_part(&mut self) -> io::Result<()> {
        let mut upload = if let Some(upload) = self.multipart.take() {
            upload
        } else {
            let object = self.object.clone();
            let begun = block(async move { object.bucket.store.put_multipart(&object.key).await })?;
            begun.map_err(self.object.error("begin to write"))?
        };
        let part = Bytes::from(std::mem::take(&mut self.buffer));
        let sending = upload.put_part(PutPayload::from_bytes(part));
        self.multipart = Some(upload);
        self.parts += 1;
        self.in_flight.push_back(start(sending)?);
        while self.in_flight.len() >= PARTS_IN_FLIGHT {
            self.await_part()?;
        }
        Ok(())
    }

    fn await_part(&mut self) -> io::Result<()> {
        match self.in_flight.pop_front() {
            Some(part) => wait(&part)?.map_err(self.object.error("write")),
            None => Ok(()),
        }
    }

    fn complete(&mut self) -> io::Result<()> {
        if self.multipart.is_none() {
            let (object, bytes) = (self.object.clone(), Bytes::from(std::mem::take(&mut self.buffer)));
            let put = block(async move { object.bucket.store.put(&object.key, bytes.into()).await })?;
            return put.map(drop).map_err(self.object.error("write"));
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        while !self.in_flight.is_empty() {
            self.await_part()?;
        }
        let Some(mut upload) = self.multipart.take() else {
            return Ok(());
        };
        let (upload, done) = block(async move {
            let done = upload.complete().await;
            (upload, done)
        })?;
        let Err(error) = done else { return Ok(()) };
        // A completion that succeeded and whose answer was lost is not found the second time.
        let (object, bytes) = (self.object.clone(), self.bytes);
        let there = matches!(error, object_store::Error::NotFound { .. })
            && block(async move { object.stat().await })?.is_ok_and(|found| found.bytes == bytes);
        if there {
            return Ok(());
        }
        self.multipart = Some(upload);
        Err(self.object.error("finish to write")(error))
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("this upload failed before"));
        }
        let part = self.part_bytes();
        if self.buffer.len() == part {
            self.send_part().inspect_err(|_| self.failed = true)?;
        }
        let count = bytes.len().min(part - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    /// A part has its size; there is nothing to flush before the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer for Upload {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("this upload failed before"));
        }
        self.complete()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut upload) = self.multipart.take() {
            // Parts of an upload that was given up cost money until somebody removes them.
            let _ = start(async move { upload.abort().await });
        }
    }
}
