use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Largest piece of a tensor in one message.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Largest message accepted; a chunk with its frame, or the placement of a large model.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 20;

/// Largest message accepted where no tensors and placements come: a report of a step with its losses.
pub const SMALL_MESSAGE_LIMIT_BYTES: usize = 1 << 20;

/// Largest list of headers accepted; ours have some hundred bytes.
pub const HEADER_LIMIT_BYTES: u32 = 16 << 10;

/// Calls under way on one connection; a replica has a handful.
pub const STREAM_LIMIT: u32 = 256;

/// Files that a process asks to be allowed: with the usual 1024, a server's connections would be few for a large job.
const FILES: u64 = 16 << 10;

/// Most connections that a server holds at a time. Far more than a job has tasks and each of them lanes.
const MOST_CONNECTIONS: u64 = 4096;

/// Connections that a server of this process holds at a time: no more than half of the files that it may open, so that whoever
/// opens connection after connection cannot take those that the server itself needs.
pub(super) fn connection_limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let (mut soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let wanted = FILES.min(hard);
        if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
            soft = wanted;
        }
        connections_of(soft)
    })
}

fn connections_of(files: u64) -> usize {
    (files / 2).clamp(16, MOST_CONNECTIONS) as usize
}

/// HTTP/2 frame size that a receiver allows its sender. The default of 16 KiB costs a wake-up for each 16 KiB.
pub const FRAME_BYTES: u32 = 1 << 20;

/// Flow control: bytes in flight on one stream.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Flow control: bytes in flight on one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// How long a peer may be silent, unless [`tolerate_silence`] says otherwise. Generous, because training hosts are busy on all
/// cores.
const SILENCE: Duration = Duration::from_secs(30);

/// The tolerated silence in milliseconds.
static TOLERATED: AtomicU64 = AtomicU64::new(SILENCE.as_millis() as u64);

/// A peer that vanishes without a word (its packets are dropped, its host is gone) is noticed after twice this time on all
/// connections that this process makes or takes from now on: calls that wait for it end with `unavailable`. Twice, because
/// heartbeats know more of why a peer is silent, and judge first. A process is one task of one job, so the limit,
/// `coati.heartbeat_timeout`, is the process's as its credentials are.
pub fn tolerate_silence(limit: Duration) {
    let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    TOLERATED.store(millis.max(1), Ordering::Relaxed);
}

/// Of the system's own, on a connection that is idle: so many unanswered ones end it.
const PROBES: u32 = 4;

/// When a connection is pinged, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeepAlive {
    /// Without traffic for so long, it is pinged.
    pub(super) interval: Duration,
    /// A ping unanswered for this long ends it.
    pub(super) timeout: Duration,
}

impl KeepAlive {
    fn within(silence: Duration) -> Self {
        let interval = silence * 2 / 3;
        Self {
            interval,
            timeout: (silence * 2).saturating_sub(interval),
        }
    }

    /// As this process wants it now.
    pub(super) fn of_this_process() -> Self {
        Self::within(Duration::from_millis(TOLERATED.load(Ordering::Relaxed)))
    }
}

/// After so long without a byte of a peer of whom some are expected, it is given up, as [`tolerate_silence`] has it.
pub(super) fn patience() -> Duration {
    let keep_alive = KeepAlive::of_this_process();
    keep_alive.interval + keep_alive.timeout
}

/// What both ends set on a connection.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keep_alive = KeepAlive::of_this_process();
    let second = |duration: Duration| duration.max(Duration::from_secs(1));
    SockRef::from(stream).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(second(keep_alive.interval))
            .with_interval(second(keep_alive.timeout / PROBES))
            .with_retries(PROBES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        assert_eq!(connections_of(1024), 512);
        assert_eq!(connections_of(1 << 20), 4096);
        assert_eq!(connections_of(0), 16);
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(connection_limit() as u64 <= soft.max(1024));
    }

    #[test]
    fn a_ping_goes_out_early_enough_to_be_missed_in_time() {
        let keep = KeepAlive::within(SILENCE);
        assert_eq!(
            (keep.interval, keep.timeout),
            (Duration::from_secs(20), Duration::from_secs(40))
        );
        for millis in [1, 2, 100, 4000, 3_600_000] {
            let silence = Duration::from_millis(millis);
            let keep = KeepAlive::within(silence);
            assert_eq!(keep.interval + keep.timeout, silence * 2);
            assert!(keep.timeout > keep.interval);
        }
    }
}
