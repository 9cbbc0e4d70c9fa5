//! Free ports on loopback.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Below this, ports belong to well-known services.
const LOWEST: u16 = 10_000;

/// `count` different ports that nobody listens on.
///
/// They are taken from below the range from which the kernel picks ports for outgoing connections: until a task listens, its
/// port could otherwise be given to a peer that is already connecting to another task.
pub(super) fn free(count: usize) -> io::Result<Vec<u16>> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ephemeral = range
        .split_whitespace()
        .next()
        .and_then(|low| low.parse().ok())
        .unwrap_or(32_768);
    let mut held: Vec<TcpListener> = Vec::with_capacity(count);
    if ephemeral > LOWEST {
        let span = ephemeral - LOWEST;
        // Where the search begins differs from launch to launch, so that two launches at a time rarely meet.
        let start = (RandomState::new().hash_one(std::process::id()) % u64::from(span)) as u16;
        for step in 0..span {
            if held.len() == count {
                break;
            }
            let offset = (u32::from(start) + u32::from(step)) % u32::from(span);
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, LOWEST + offset as u16)) {
                held.push(listener);
            }
        }
    }
    while held.len() < count {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::TcpListener;

    use super::free;

    #[test]
    fn ports_differ_and_can_be_listened_on_at_once() {
        let ports = free(20).unwrap();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 20);
        let listeners: Vec<TcpListener> = ports
            .iter()
            .map(|port| TcpListener::bind(("127.0.0.1", *port)).unwrap())
            .collect();
        assert_eq!(listeners.len(), 20);
    }
}
