//! Signs of life: a thread that says a byte to every peer now and then, on the control connections.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::control::PULSE;
use crate::Error;

/// The control connections to all peers, for words that are not torn by others'.
#[derive(Clone)]
pub(super) struct Speaker {
    streams: Arc<Vec<TcpStream>>,
    quiet: Arc<Mutex<()>>,
}

impl Speaker {
    /// Nobody speaks for as long as this lives.
    pub(super) fn quiet(&self) -> MutexGuard<'_, ()> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To everybody. One that is full or gone need not hear it.
    pub(super) fn say(&self, bytes: &[u8]) {
        let _quiet = self.quiet();
        for mut stream in self.streams.iter() {
            let _ = stream.write(bytes);
        }
    }
}

/// Speaks until it is dropped.
pub(super) struct Pulse {
    speaker: Speaker,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    pub(super) fn start(streams: Vec<TcpStream>, every: Duration) -> Result<Self, Error> {
        let over = Arc::new(AtomicBool::new(false));
        let speaker = Speaker {
            streams: Arc::new(streams),
            quiet: Arc::default(),
        };
        let (stop, speaking) = (Arc::clone(&over), speaker.clone());
        let speak = move || {
            while !stop.load(Ordering::Acquire) {
                speaking.say(&[PULSE]);
                std::thread::park_timeout(every);
            }
        };
        let thread = std::thread::Builder::new().name("pulse".to_owned()).spawn(speak);
        let thread = thread.map_err(Error::io("cannot start a thread", "see the limit on processes"))?;
        Ok(Self {
            speaker,
            over,
            thread: Some(thread),
        })
    }

    pub(super) fn speaker(&self) -> Speaker {
        self.speaker.clone()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It sleeps or writes without blocking.
            let _ = thread.join();
        }
    }
}
