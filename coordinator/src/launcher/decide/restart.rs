//! Whether a task that ended is started again, and when.
//!
//! A crash (a signal, a panic, any foreign exit code, or a worker or server that gave up) is worth another try: the process
//! that comes instead finds the job where it is. An end that somebody decided upon is not: success, a request to stop, the
//! time limit, input that was refused, and the master's own word that the job failed.

use std::time::{Duration, Instant};

use coati_common::cluster::{Restart, TaskId, TaskType};
use coati_common::exit::ExitCode;

use super::{Exit, TaskState};

/// The second start waits this long, each further one twice as long as the one before …
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A task that gave up by itself may have done so because the job is failing: the master's end, which tells, comes first.
const AFTER_GIVING_UP: Duration = Duration::from_secs(1);

/// What follows from the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays away, and nobody minds.
    Left,
    /// It is started again.
    Again {
        /// When.
        at: Instant,
        /// Whether this start counts towards the limit. A task that had left in order is not to blame.
        counts: bool,
    },
    /// It ends the job.
    Final,
}

/// Judges a task that ended; nothing for one that runs. `master_since` is when the newest process of the master was started.
pub(super) fn verdict(task: &TaskState, policy: &Restart, master_since: Option<Instant>) -> Option<Verdict> {
    let (at, exit) = task.exit?;
    if task.leaving.is_some() {
        return Some(if task.returns {
            Verdict::Again { at, counts: false }
        } else {
            Verdict::Left
        });
    }
    if exit.meaning() == Some(ExitCode::Success) && task.id.kind == TaskType::Evaluator {
        // It has seen the last checkpoint, or as many as it was to see.
        return Some(Verdict::Left);
    }
    if exit.meaning() == Some(ExitCode::Success) && task.id != TaskId::MASTER {
        // Sent home by a master that died before it could end the job: its successor may need everybody.
        return Some(match master_since {
            Some(since) if since > at && policy.max > 0 => Verdict::Again {
                at: since,
                counts: false,
            },
            _ => Verdict::Left,
        });
    }
    let before = recent(task, at, policy);
    if !crashed(task.id, exit) || before >= to_usize(policy.max) {
        // Training does not depend on an evaluator.
        return Some(if task.id.kind == TaskType::Evaluator {
            Verdict::Left
        } else {
            Verdict::Final
        });
    }
    let gave_up = exit.meaning() == Some(ExitCode::JobFailure);
    let pause = pause(before).max(if gave_up { AFTER_GIVING_UP } else { Duration::ZERO });
    Some(Verdict::Again {
        at: at + pause,
        counts: true,
    })
}

/// Starts of this task that count at the instant `at`.
pub(in super::super) fn recent(task: &TaskState, at: Instant, policy: &Restart) -> usize {
    let counts = |start: &&Instant| at.saturating_duration_since(**start) < policy.window;
    task.restarts.iter().filter(counts).count()
}

/// The time from a crash to the next start, after `before` recent ones: none, 250 ms, 500 ms, … 5 s.
fn pause(before: usize) -> Duration {
    let doublings = match u32::try_from(before) {
        Ok(0) => return Duration::ZERO,
        Ok(before) => before - 1,
        Err(_) => u32::MAX,
    };
    let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
}

/// Whether this end was nobody's decision.
fn crashed(task: TaskId, exit: Exit) -> bool {
    match exit.meaning() {
        None => true,
        // The master says so after it has told everybody; a replica or server that cannot go on may do so in a new process.
        Some(ExitCode::JobFailure) => task != TaskId::MASTER,
        Some(_) => false,
    }
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::pause;

    #[test]
    fn the_first_new_start_is_at_once_and_later_ones_wait_longer_up_to_a_limit() {
        let millis: Vec<u128> = (0..8).map(|before| pause(before).as_millis()).collect();
        assert_eq!(millis, [0, 250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(pause(usize::MAX), Duration::from_secs(5));
        assert_eq!(pause(40), Duration::from_secs(5));
    }
}
