//! Whether the job's master is there.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long it has to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The master's address, and when it was asked last.
#[derive(Debug)]
pub(super) struct Master {
    address: String,
    asked: Option<Instant>,
}

impl Master {
    pub(super) fn new(address: String) -> Self {
        Self { address, asked: None }
    }

    /// Whether it accepts a connection now. Asked too soon after the last time it is not known, and the answer is no.
    pub(super) fn answers(&mut self, now: Instant) -> bool {
        if self
            .asked
            .is_some_and(|asked| now.saturating_duration_since(asked) < ASK_EVERY)
        {
            return false;
        }
        self.asked = Some(now);
        let Ok(mut addresses) = self.address.to_socket_addrs() else {
            return false;
        };
        addresses.any(|address| TcpStream::connect_timeout(&address, ANSWERS_WITHIN).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_listens_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let now = Instant::now();
        let mut master = Master::new(listener.local_addr().unwrap().to_string());
        assert!(master.answers(now));
        assert!(!master.answers(now + Duration::from_secs(1)), "not asked again");
        drop(listener);
        assert!(!master.answers(now + ASK_EVERY));
        assert!(!Master::new("no host:0".to_owned()).answers(now));
    }
}
