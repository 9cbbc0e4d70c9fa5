//! When a checkpoint is due.

use std::time::Duration;

use tokio::time::Instant;

/// How often to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time between checkpoints …
    pub every: Duration,
    /// … or steps, instead.
    pub every_steps: Option<u64>,
}

/// When the last one was begun.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// The moment.
    pub at: Instant,
    /// Its version.
    pub version: u64,
}

/// Whether to save `version` now.
pub fn is_due(now: Instant, version: u64, last: Last, options: Options) -> bool {
    version > last.version
        && match options.every_steps {
            Some(steps) => version - last.version >= steps.max(1),
            None => now.saturating_duration_since(last.at) >= options.every,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_time_or_by_steps_never_twice() {
        let start = Instant::now();
        let last = Last { at: start, version: 10 };
        let time = Options {
            every: Duration::from_secs(60),
            every_steps: None,
        };
        assert!(!is_due(start + Duration::from_secs(59), 99, last, time));
        assert!(is_due(start + Duration::from_secs(60), 99, last, time));
        assert!(!is_due(start + Duration::from_secs(60), 10, last, time));
        let steps = Options {
            every_steps: Some(5),
            ..time
        };
        assert!(!is_due(start + Duration::from_secs(600), 14, last, steps));
        assert!(is_due(start, 15, last, steps));
    }
}
