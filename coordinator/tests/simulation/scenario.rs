//! What a seed stands for: a job, and what happens to it.

use std::collections::BTreeSet;
use std::time::Duration;

use coati_common::variables::{VariableKind, VariableSpec};

use super::network::Weather;
use crate::replica::Random;

pub(crate) const RATE: f32 = 0.05;
pub(crate) const MOMENTUM: f32 = 0.9;
pub(crate) const OPTIMIZER: &str = "momentum_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.05 } } momentum_optimizer_value: 0.9 } use_moving_average: false";

/// How gradients become steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Synchronous,
    /// The slowest replicas of each step are dropped.
    Backup {
        aggregate: u32,
    },
    /// Bounded staleness or, with a large bound, asynchronous.
    Asynchronous {
        max_staleness: u64,
        scaled: bool,
    },
}

impl Mode {
    pub(crate) fn is_synchronous(self) -> bool {
        !matches!(self, Self::Asynchronous { .. })
    }

    pub(crate) fn max_staleness(self) -> u64 {
        match self {
            Self::Asynchronous { max_staleness, .. } => max_staleness,
            _ => 0,
        }
    }
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A process ends at once; the launcher starts another one after this long.
    Kill(String, Duration),
    /// A host stands still for this long.
    Stop(String, Duration),
    /// These hosts and the others do not reach each other for this long.
    Cut(BTreeSet<String>, Duration),
    /// A replica computes this many times slower from now on.
    Slow(u32, u32),
    /// The network becomes like this.
    Weather(Weather),
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) mode: Mode,
    /// The master's own counted.
    pub(crate) replicas: u32,
    pub(crate) servers: usize,
    pub(crate) num_steps: u64,
    /// Steps between checkpoints.
    pub(crate) save_every: u64,
    /// Longest time to compute a gradient, in ms.
    pub(crate) compute_ms: u64,
    pub(crate) weather: Weather,
    /// In order of time.
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// Servers are killed, stopped or cut off.
    servers_suffer: bool,
}

/// Faults come within this time from the start.
const TROUBLE_MS: u64 = 8000;

/// The master's process: coordinator and first replica.
pub(crate) const MASTER: &str = "master";

pub(crate) fn worker(rank: u32) -> String {
    format!("worker-{}", rank - 1)
}

pub(crate) fn server(index: usize) -> String {
    format!("ps-{index}")
}

pub(crate) fn variables() -> Vec<VariableSpec> {
    let spec = |name: &str, shape: &[i64], kind| VariableSpec {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    };
    vec![
        spec("a/weights", &[3, 3], VariableKind::Trainable),
        spec("a/biases", &[3], VariableKind::Trainable),
        spec("b/weights", &[2, 4], VariableKind::Trainable),
        spec("b/biases", &[4], VariableKind::Trainable),
        spec("scale", &[], VariableKind::Trainable),
    ]
}

impl Scenario {
    /// What this seed stands for.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x51);
        let replicas = 1 + random.below(4) as u32;
        let servers = 1 + random.below(3) as usize;
        let mode = match random.below(5) {
            0 | 1 => Mode::Synchronous,
            2 if replicas > 1 => Mode::Backup {
                aggregate: 1 + random.below(u64::from(replicas) - 1) as u32,
            },
            3 => Mode::Asynchronous {
                max_staleness: random.below(4),
                scaled: random.below(2) == 0,
            },
            _ => Mode::Asynchronous {
                max_staleness: u64::from(4 * replicas),
                scaled: random.below(2) == 0,
            },
        };
        // A third of the jobs has trouble with everything but the servers: those may not go back a single step.
        let servers_suffer = random.below(3) > 0;
        let bad = random.below(4);
        let weather = Weather {
            lose_request: bad * random.below(15),
            lose_reply: bad * random.below(15),
            twice: bad * random.below(30),
            slow: bad * random.below(30),
            quick: 1 + random.below(4),
            late: 20 + random.below(400),
        };
        let mut scenario = Self {
            mode,
            replicas,
            servers,
            num_steps: 10 + random.below(if mode.is_synchronous() { 25 } else { 60 }),
            save_every: 3 + random.below(15),
            compute_ms: 5 + random.below(300),
            weather,
            faults: Vec::new(),
            servers_suffer,
        };
        for _ in 0..random.below(7) {
            let at = Duration::from_millis(random.below(TROUBLE_MS));
            let fault = scenario.fault(&mut random);
            scenario.faults.push((at, fault));
        }
        scenario.faults.sort_by_key(|(at, _)| *at);
        scenario
    }

    fn fault(&self, random: &mut Random) -> Fault {
        let millis = |random: &mut Random, most| Duration::from_millis(random.below(most));
        let anybody = |random: &mut Random| {
            let others = u64::from(self.replicas) - 1;
            let servers = if self.servers_suffer { self.servers as u64 } else { 0 };
            match random.below(1 + others + servers) {
                0 => MASTER.to_owned(),
                n if n <= others => worker(n as u32),
                n => server((n - 1 - others) as usize),
            }
        };
        match random.below(12) {
            0..5 => Fault::Kill(anybody(random), millis(random, 3000)),
            5 | 6 => {
                let (name, pause) = (anybody(random), millis(random, 6000));
                // Nobody else hears whether a server is there.
                if name == MASTER && !self.servers_suffer {
                    Fault::Kill(name, pause)
                } else {
                    Fault::Stop(name, pause)
                }
            }
            7 | 8 => {
                let mut side = BTreeSet::new();
                for _ in 0..=random.below(2) {
                    side.insert(anybody(random));
                }
                // Who cuts the master off cuts the servers off from it.
                if !self.servers_suffer {
                    side.remove(MASTER);
                }
                Fault::Cut(side, millis(random, 6000))
            }
            9 => Fault::Slow(
                random.below(u64::from(self.replicas)) as u32,
                1 + random.below(8) as u32,
            ),
            _ => Fault::Weather(Weather {
                lose_request: random.below(60),
                lose_reply: random.below(60),
                twice: random.below(100),
                slow: random.below(100),
                ..self.weather
            }),
        }
    }

    /// Whether the job may have to go back to a checkpoint.
    pub(crate) fn may_go_back(&self) -> bool {
        self.servers_suffer
    }

    /// From here on nothing goes wrong any more.
    pub(crate) fn calm_after(&self) -> Duration {
        let ends = self.faults.iter().map(|(at, fault)| match fault {
            Fault::Kill(_, away) => *at + *away,
            Fault::Stop(_, pause) | Fault::Cut(_, pause) => *at + *pause,
            Fault::Slow(..) | Fault::Weather(_) => *at,
        });
        ends.max().unwrap_or_default()
    }
}
