//! What is done to whom: a pure function of a seeded generator.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom as _;

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL; and so many times more for the successor, as soon as it is there.
    Kill {
        /// How often.
        again: u32,
    },
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Duration),
    /// SIGSTOP, until somebody finds out.
    Hang,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { again: 0 } => f.write_str("killed"),
            Self::Kill { again } => write!(f, "killed {} times", again + 1),
            Self::Pause(time) => write!(f, "stopped for {:.1} s", time.as_secs_f64()),
            Self::Hang => f.write_str("stopped for good"),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The task.
    pub victim: String,
    /// What happens to its process.
    pub kind: Kind,
    /// Steps that the whole cluster makes before.
    pub steps: u64,
    /// From the last of these steps on: faults hit every phase of a step.
    pub delay: Duration,
}

/// The next fault. `silence` is how long a task may be silent; pauses are shorter and longer than that.
pub fn next(random: &mut impl Rng, victims: &[String], silence: Duration) -> Option<Fault> {
    let kind = match random.random_range(0..4) {
        0 => Kind::Pause(silence.mul_f64(random.random_range(0.05..1.5))),
        1 => Kind::Hang,
        _ => Kind::Kill {
            again: random.random_range(0_u32..8).saturating_sub(5),
        },
    };
    // Every draw is made, whatever comes of it: faults depend on the seed alone.
    let steps = random.random_range(1..8);
    let delay = Duration::from_millis(random.random_range(0..80));
    let victim = victims.choose(random)?.clone();
    Some(Fault {
        victim,
        kind,
        steps,
        delay,
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn some(seed: u64) -> Vec<Fault> {
        let victims = ["master", "worker-0", "ps-0"].map(str::to_owned);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let silence = Duration::from_secs(3);
        (0..400).filter_map(|_| next(&mut random, &victims, silence)).collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_each_kind_for_everybody() {
        assert_eq!(some(1), some(1));
        assert_ne!(some(1), some(2));
        let faults = some(3);
        for victim in ["master", "worker-0", "ps-0"] {
            for kind in ["killed", "killed 2 times", "stopped for good", "stopped for 1"] {
                let done = |fault: &&Fault| fault.victim == victim && fault.kind.to_string().starts_with(kind);
                assert!(faults.iter().any(|fault| done(&fault)), "no {victim} is {kind}");
            }
        }
        let none = next(&mut ChaCha8Rng::seed_from_u64(1), &[], Duration::from_secs(1));
        assert_eq!(none, None);
    }
}
