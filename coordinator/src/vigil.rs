//! Whether a peer is silent, or this process was away itself: stopped, suspended with its machine, starved by others.
//!
//! Whoever was away finds all deadlines over when it comes back, its peers' as well as its own, and its connections given up by
//! those that missed it. So silence is not the time since the last answer: it is added up of calls that ended without one, and of
//! the pauses between them, as long as this process was awake to hear. What took much longer than its limit says more about the caller.

use std::time::Duration;

use tokio::time::Instant;

/// Watches one peer that is called again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vigil {
    limit: Duration,
    /// So long it has been silent while this process listened.
    silent: Duration,
    /// When the last call began or ended.
    looked: Instant,
}

/// What a call without an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nothing: this process was away itself.
    Away,
    /// It may still answer.
    Short,
    /// The peer has been silent for longer than it may.
    TooLong,
}

impl Vigil {
    /// Of a peer that may be silent for so long.
    pub(crate) fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            silent: Duration::ZERO,
            looked: now,
        }
    }

    /// The limit of each call: shorter than the silence, so that no single call decides.
    pub(crate) fn patience(&self) -> Duration {
        self.limit / 2
    }

    /// A call begins.
    pub(crate) fn ask(&mut self, now: Instant) {
        // A pause counts for as much as one call: nobody knows whether it was meant to be longer.
        self.silent += now.saturating_duration_since(self.looked).min(self.patience());
        self.looked = now;
    }

    /// The peer answered.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.silent = Duration::ZERO;
        self.looked = now;
    }

    /// The call that began last ended without an answer, which was awaited for [`Self::patience`] at most.
    pub(crate) fn miss(&mut self, now: Instant) -> Silence {
        let asked = std::mem::replace(&mut self.looked, now);
        if was_away(self.patience(), asked, now) {
            return Silence::Away;
        }
        self.silent += now.saturating_duration_since(asked);
        if self.silent >= self.limit {
            Silence::TooLong
        } else {
            Silence::Short
        }
    }
}

/// Whether what should have taken `limit` took so much longer that this process cannot have been awake.
pub(crate) fn was_away(limit: Duration, begun: Instant, now: Instant) -> bool {
    now.saturating_duration_since(begun) > limit + limit / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vigil() -> (Vigil, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let vigil = Vigil::new(Duration::from_secs(4), start);
        assert_eq!(vigil.patience(), Duration::from_secs(2));
        (vigil, move |millis| start + Duration::from_millis(millis))
    }

    #[test]
    fn a_peer_that_answers_nothing_is_silent_after_its_time() {
        let (mut vigil, at) = vigil();
        vigil.ask(at(500));
        // One call without an answer is not enough …
        assert_eq!(vigil.miss(at(2_500)), Silence::Short);
        vigil.ask(at(3_000));
        // … the next one is.
        assert_eq!(vigil.miss(at(5_000)), Silence::TooLong);
        vigil.hear(at(5_100));
        vigil.ask(at(5_600));
        assert_eq!(vigil.miss(at(7_600)), Silence::Short);
    }

    /// Also where each of them fails at once.
    #[test]
    fn pauses_between_calls_count() {
        let (mut vigil, at) = vigil();
        for second in 1..4 {
            vigil.ask(at(second * 1_000));
            assert_eq!(vigil.miss(at(second * 1_000)), Silence::Short);
        }
        vigil.ask(at(4_000));
        assert_eq!(vigil.miss(at(4_000)), Silence::TooLong);
    }

    #[test]
    fn who_was_away_during_a_call_takes_nobody_for_silent() {
        let (mut vigil, at) = vigil();
        vigil.ask(at(500));
        // It took five times its limit: nobody was there to hear the answer.
        assert_eq!(vigil.miss(at(10_500)), Silence::Away);
        // The peer gave the connection up meanwhile: the next call fails at once.
        vigil.ask(at(11_000));
        assert_eq!(vigil.miss(at(11_000)), Silence::Short);
    }

    #[test]
    fn who_was_away_between_calls_takes_nobody_for_silent() {
        let (mut vigil, at) = vigil();
        vigil.hear(at(500));
        vigil.ask(at(60_000));
        assert_eq!(vigil.miss(at(60_000)), Silence::Short);
        vigil.ask(at(60_500));
        assert_eq!(vigil.miss(at(60_501)), Silence::Short);
    }
}
