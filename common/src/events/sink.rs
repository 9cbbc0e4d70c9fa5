//! Where events go: the end of a file on a disk, or whole objects in a bucket, which knows no appending.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An object is written again at most so often; larger ones more rarely, so that the whole of it costs no more than this many bytes a
/// second.
const CADENCE: Duration = Duration::from_secs(15);
const BYTES_A_SECOND: f64 = (1 << 20) as f64;
/// A larger object is closed, and the next one begun: TensorBoard reads them one after the other.
const FULL_BYTES: usize = 16 << 20;

/// Takes bytes.
#[derive(Debug)]
pub(super) enum Sink {
    File(BufWriter<File>),
    Object(Object),
}

/// An event file in a bucket: all of it is kept here, and sent now and then by a thread of its own.
#[derive(Debug)]
pub(super) struct Object {
    path: PathBuf,
    bytes: Vec<u8>,
    /// How many of them were sent, and when.
    sent: usize,
    when: Option<Instant>,
    sending: Option<JoinHandle<io::Result<()>>>,
}

/// Whether it is time to send an object of `bytes` bytes again, `since` the last time.
fn is_due(bytes: usize, since: Option<Duration>) -> bool {
    let pause = CADENCE.max(Duration::from_secs_f64(bytes as f64 / BYTES_A_SECOND));
    since.is_none_or(|since| since >= pause)
}

impl Sink {
    /// Makes a file that begins with `start`; `AlreadyExists` if there is one.
    pub(super) fn create(path: &Path, start: &[u8]) -> io::Result<Self> {
        if !coati_storage::is_remote(path) {
            let mut file = BufWriter::new(OpenOptions::new().write(true).create_new(true).open(path)?);
            file.write_all(start)?;
            file.flush()?;
            return Ok(Self::File(file));
        }
        if !coati_storage::put_new(path, start)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(Self::Object(Object {
            path: path.to_owned(),
            bytes: start.to_vec(),
            sent: start.len(),
            when: None,
            sending: None,
        }))
    }

    /// Whether another file should follow.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Object(object) if object.bytes.len() >= FULL_BYTES)
    }

    /// Makes everything visible now.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Object(object) => object.finish(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Object(object) => object.bytes.write(bytes),
        }
    }

    /// On a disk at once, in a bucket when it is time.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Object(object) if is_due(object.bytes.len(), object.when.map(|when| when.elapsed())) => object.send(),
            Self::Object(_) => Ok(()),
        }
    }
}

impl Object {
    /// Sends what there is, unless that is on its way already; errors are those of the time before.
    fn send(&mut self) -> io::Result<()> {
        if self.sending.as_ref().is_some_and(|sending| !sending.is_finished()) {
            return Ok(());
        }
        self.await_sent()?;
        if self.sent == self.bytes.len() {
            return Ok(());
        }
        self.sent = self.bytes.len();
        self.when = Some(Instant::now());
        let (path, bytes) = (self.path.clone(), self.bytes.clone());
        let send = move || coati_storage::put(&path, &bytes);
        self.sending = Some(std::thread::Builder::new().name("events".to_owned()).spawn(send)?);
        Ok(())
    }

    fn await_sent(&mut self) -> io::Result<()> {
        let Some(sending) = self.sending.take() else {
            return Ok(());
        };
        let sent = sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sending thread panicked")));
        // What was not sent is sent the next time, with what follows.
        sent.inspect_err(|_| self.sent = 0)
    }

    fn finish(&mut self) -> io::Result<()> {
        // The object that is sent now holds what the one before was to hold.
        let _ = self.await_sent();
        if self.sent == self.bytes.len() {
            return Ok(());
        }
        coati_storage::put(&self.path, &self.bytes)?;
        self.sent = self.bytes.len();
        Ok(())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "the last events were not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_sent_at_once_then_at_a_cadence_that_their_size_slows() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert!(is_due(100, None));
        assert!(!is_due(100, seconds(14)) && is_due(100, seconds(15)));
        assert!(!is_due(60 << 20, seconds(59)) && is_due(60 << 20, seconds(60)));
    }
}
