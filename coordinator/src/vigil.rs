//! Whether a peer is silent, or this process was away itself: stopped, suspended with its machine, starved by others.
//!
//! Whoever was away finds all deadlines over when it comes back, its peers' as well as its own. So silence counts only while
//! this process was awake to hear: a call that took much longer than its limit says more about the caller.

use std::time::Duration;

use tokio::time::Instant;

/// Watches one peer that is called again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vigil {
    silence: Duration,
    heard: Instant,
}

impl Vigil {
    /// Of a peer that may be silent for so long.
    pub(crate) fn new(silence: Duration, now: Instant) -> Self {
        Self { silence, heard: now }
    }

    /// The limit of each call: shorter than the silence, so that no single call decides.
    pub(crate) fn patience(&self) -> Duration {
        self.silence / 2
    }

    /// The peer answered.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether the last answer is too long ago.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= self.silence
    }

    /// Whether a call that was begun at `asked` and got no answer within its limit means that the peer is silent.
    pub(crate) fn is_silent(&self, asked: Instant, now: Instant) -> bool {
        self.is_overdue(now) && !was_away(self.patience(), asked, now)
    }
}

/// Whether what should have taken `limit` took so much longer that this process cannot have been awake.
pub(crate) fn was_away(limit: Duration, begun: Instant, now: Instant) -> bool {
    now.saturating_duration_since(begun) > limit + limit / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_silent_only_to_those_who_were_awake() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut vigil = Vigil::new(Duration::from_secs(4), start);
        assert_eq!(vigil.patience(), Duration::from_secs(2));
        // One call without an answer is not enough …
        assert!(!vigil.is_silent(at(1_000), at(3_000)));
        // … the next one is.
        assert!(vigil.is_silent(at(3_000), at(5_000)));
        // It took five times its limit: nobody was there to hear the answer.
        assert!(!vigil.is_silent(at(3_000), at(13_000)));
        assert!(vigil.is_overdue(at(13_000)));
        vigil.hear(at(13_100));
        assert!(!vigil.is_silent(at(14_000), at(16_000)));
    }
}
