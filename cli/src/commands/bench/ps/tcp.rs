//! The bound: one TCP stream between two processes, from a vector as large as the variables into another, nothing else.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::Context as _;

use super::children::Child;
use super::timed;
use crate::args::BenchTaskArgs;
use crate::console::report;

/// Of one `write` or `read`.
const PIECE: usize = 1 << 20;

pub(super) struct Stream {
    source: Child,
    sink: Child,
}

impl Stream {
    /// Each order moves `bytes`, out of and into vectors of so many megabytes.
    pub(super) fn start(bytes: u64, megabytes: f64) -> anyhow::Result<Self> {
        let sizes = [format!("--bytes={bytes}"), format!("--megabytes={megabytes}")];
        let mut sink = Child::start(&[&["sink".to_owned()], &sizes[..]].concat())?;
        let address = sink.hear()?;
        let source = Child::start(&[&["source".to_owned(), format!("--addresses={address}")], &sizes[..]].concat())?;
        sink.hear()?;
        Ok(Self { source, sink })
    }

    /// Seconds and CPU seconds of both ends.
    pub(super) fn send(&mut self) -> anyhow::Result<(f64, f64)> {
        let both = [self.source.id(), self.sink.id()];
        timed(&both, || {
            self.source.tell("go")?;
            self.sink.hear().map(|_| ())
        })
    }
}

fn vector(megabytes: f64) -> Vec<u8> {
    // Not zero: pages must be there.
    vec![1; ((megabytes * 1e6) as usize).max(PIECE)]
}

pub(super) fn source(arguments: &BenchTaskArgs) -> anyhow::Result<()> {
    let address = arguments.addresses.first().context("no address")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let from = vector(arguments.megabytes);
    for order in std::io::stdin().lines() {
        order?;
        let mut left = arguments.bytes as usize;
        while left > 0 {
            for piece in from.chunks(PIECE) {
                let piece = &piece[..piece.len().min(left)];
                stream.write_all(piece)?;
                left -= piece.len();
            }
        }
    }
    Ok(())
}

pub(super) fn sink(arguments: &BenchTaskArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    report(&listener.local_addr()?.to_string());
    let (mut stream, _) = listener.accept()?;
    let mut into = vector(arguments.megabytes);
    report("ready");
    loop {
        let (mut left, mut at) = (arguments.bytes as usize, 0);
        while left > 0 {
            let end = into.len().min(at + PIECE.min(left));
            let count = stream.read(&mut into[at..end])?;
            if count == 0 {
                return Ok(());
            }
            left -= count;
            at = (at + count) % into.len();
        }
        report("done");
    }
}
