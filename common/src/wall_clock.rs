//! What the clocks of two hosts say at the same time.
//!
//! Nothing in a job depends on them: waits go by each host's monotonic clock. But times in logs, curves and checkpoints do not go
//! together when clocks differ, and certificates are refused before and after their time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Shifts this process's clock, in milliseconds: for tests of clocks that differ.
const SHIFT_VARIABLE: &str = "COATI_TEST_CLOCK_SHIFT_MS";

/// Differences up to this are nobody's trouble.
const TOLERATED_MS: u64 = 5_000;

/// By this host's clock, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let shift = std::env::var(SHIFT_VARIABLE).ok().and_then(|text| text.parse().ok());
    now.saturating_add_signed(shift.unwrap_or(0))
}

/// How far one clock is ahead of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// In milliseconds; negative when it is behind.
    pub ahead_ms: i64,
    /// By how much that may be wrong.
    pub error_ms: u64,
}

impl Offset {
    /// Of a peer's clock, which said `theirs` between two looks at the own one: somewhere between them, so at most half of
    /// the round trip is unknown.
    pub fn over(sent: u64, theirs: u64, received: u64) -> Self {
        let trip = received.saturating_sub(sent);
        let middle = sent.saturating_add(trip / 2);
        Self {
            ahead_ms: i64::try_from(i128::from(theirs) - i128::from(middle)).unwrap_or(i64::MAX),
            error_ms: trip.div_ceil(2),
        }
    }

    /// The same seen by the other one.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            ahead_ms: self.ahead_ms.saturating_neg(),
            ..self
        }
    }

    /// What to tell the user of `who`, whose clock this is; nothing where the clocks agree well enough.
    pub fn warning(self, who: &str) -> Option<String> {
        let sure = self.ahead_ms.unsigned_abs().saturating_sub(self.error_ms);
        (sure > TOLERATED_MS).then(|| {
            let seconds = self.ahead_ms.unsigned_abs() as f64 / 1e3;
            let way = if self.ahead_ms < 0 { "behind" } else { "ahead of" };
            format!(
                "the clock of {who} is {seconds:.0} s {way} the master's\nhint: training does not mind, but times in logs and curves do not go together, and certificates with dates may be refused; let NTP set the clocks"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_round_trip_cannot_explain_is_a_difference() {
        let offset = Offset::over(1_000_000, 4_600_040, 1_000_080);
        assert_eq!((offset.ahead_ms, offset.error_ms), (3_600_000, 40));
        let text = offset.warning("ps-1 (10.0.0.3:4000)").unwrap();
        assert!(
            text.starts_with("the clock of ps-1 (10.0.0.3:4000) is 3600 s ahead of the master's\nhint: "),
            "{text}"
        );
        let behind = offset.reversed().warning("worker-0").unwrap();
        assert!(behind.contains("3600 s behind the master's"), "{behind}");
        assert_eq!(Offset::over(0, 4_999, 0).warning("x"), None);
        assert_eq!(Offset::over(0, 25_000, 40_000).warning("x"), None, "a slow answer");
        assert_eq!(Offset::over(0, u64::MAX, 0).ahead_ms, i64::MAX);
    }
}
