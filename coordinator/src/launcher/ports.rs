//! Free ports on loopback.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Below this, ports belong to well-known services.
const LOWEST: u16 = 10_000;

/// `count` different ports that nobody listens on and that are not among `taken`, which somebody may listen on later.
///
/// They are taken from below the range from which the kernel picks ports for outgoing connections: until a task listens, its
/// port could otherwise be given to a peer that is already connecting to another task.
pub(super) fn free(count: usize, taken: &[u16]) -> io::Result<Vec<u16>> {
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
            let port = LOWEST + offset as u16;
            if taken.contains(&port) {
                continue;
            }
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                held.push(listener);
            }
        }
    }
    // Held until the end, so that the kernel does not offer them again.
    let mut unwanted = Vec::new();
    while held.len() < count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        if taken.contains(&listener.local_addr()?.port()) {
            unwanted.push(listener);
        } else {
            held.push(listener);
        }
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
        let ports = free(20, &[]).unwrap();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 20);
        let listeners: Vec<TcpListener> = ports
            .iter()
            .map(|port| TcpListener::bind(("127.0.0.1", *port)).unwrap())
            .collect();
        assert_eq!(listeners.len(), 20);
    }

    #[test]
    fn ports_that_were_given_away_are_not_given_again() {
        // All but three ports of the range are taken: the search goes on until it finds those.
        let free_ports = free(3, &[]).unwrap();
        let taken: Vec<u16> = (super::LOWEST..32_768)
            .filter(|port| !free_ports.contains(port))
            .collect();
        for port in free(3, &taken).unwrap() {
            assert!(!taken.contains(&port), "{port}");
        }
    }
}
