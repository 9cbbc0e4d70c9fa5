//! What a running job tells: steps, checkpoints, evaluations, the end. The command line prints it, TensorBoard gets it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::gallery::Shown;

/// A committed step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// `global_step` after this step.
    pub step: u64,
    /// Loss parts, means over the contributors' samples, by the reference's names.
    pub losses: Vec<(String, f64)>,
    /// Of the update.
    pub learning_rate: f64,
    /// Examples that went into the step.
    pub samples: u64,
    /// Epoch of the newest record used, from 0.
    pub epoch: u64,
    /// Where its seconds went, by the names of [`coati_coordinator::timing::StepTime`].
    pub seconds: Vec<(String, f64)>,
    /// Contributors by rank, and how many versions the gradient of each was behind; empty in one process.
    pub staleness: Vec<(u32, u64)>,
    /// Bytes of gradients that the contributors sent; 0 in one process.
    pub bytes_pushed: u64,
    /// Bytes of variables that they received; 0 in one process.
    pub bytes_pulled: u64,
}

impl StepRecord {
    /// The sum of all loss parts, or the part named total.
    pub fn total_loss(&self) -> f64 {
        self.losses
            .iter()
            .find(|(name, _)| name == "Loss/total_loss")
            .map_or(f64::NAN, |&(_, value)| value)
    }

    /// Versions that the oldest gradient in it was behind; 0 in synchronous training.
    pub fn largest_staleness(&self) -> u64 {
        self.staleness.iter().map(|&(_, versions)| versions).max().unwrap_or(0)
    }

    /// Seconds of a phase.
    pub fn seconds_of(&self, phase: &str) -> f64 {
        self.seconds
            .iter()
            .find(|(name, _)| name == phase)
            .map_or(0.0, |&(_, value)| value)
    }
}

/// Before the first step.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// The step that training goes on from.
    pub start_step: u64,
    /// The checkpoint it was read from.
    pub resumed_from: Option<PathBuf>,
    /// The step it ends at.
    pub num_steps: u64,
    /// Training replicas.
    pub replicas: u32,
    /// Parameter servers; 0 in one process.
    pub parameter_servers: u32,
    /// Examples a replica and step.
    pub batch_size: u32,
    /// Records of the training set.
    pub records: u64,
    /// Trainable parameters.
    pub parameters: u64,
}

/// An evaluation's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvalReport {
    /// Of the checkpoint.
    pub global_step: u64,
    /// Images evaluated.
    pub images: u64,
    /// Metrics under the reference's names.
    pub metrics: serde_json::Map<String, serde_json::Value>,
    /// Seconds, of which `model` spent in the network.
    pub seconds: f64,
    /// Seconds in the network.
    pub model_seconds: f64,
    /// Records that could not be used, in words.
    pub bad_records: Vec<String>,
    /// What is allowed and may still be a mistake, in words: classes without groundtruth, boxes outside of their images.
    pub notes: Vec<String>,
    /// Pictures written.
    pub pictures: Vec<PathBuf>,
    /// Pictures for TensorBoard.
    #[serde(skip)]
    pub shown: Vec<Shown>,
}

/// After the last step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Last committed step.
    pub step: u64,
    /// That of the newest checkpoint that this run wrote.
    pub checkpoint: Option<u64>,
    /// Steps of this run after its first, whose start is not known: those that `seconds` measures.
    pub steps: u64,
    /// Examples in those steps.
    pub samples: u64,
    /// From the first step to the last.
    pub seconds: f64,
    /// Shares of the time of a step, without the time that checkpoints and evaluations take: some replica computes …
    pub compute: f64,
    /// … none computes, variables and gradients are on their way …
    pub exchange: f64,
    /// … none computes, one waits for its batch.
    pub input: f64,
    /// Share of a step that a replica waits for slower ones on average; a part of the above.
    pub waiting: f64,
    /// From the user's command to the first finished step.
    pub seconds_to_first_step: f64,
    /// Bytes of gradients sent to parameter servers in a step, by all contributors together; 0 in one process.
    pub bytes_pushed_per_step: f64,
    /// Bytes of variables received from parameter servers in a step, by all contributors together; 0 in one process.
    pub bytes_pulled_per_step: f64,
    /// How often this process found something that must hold not to.
    pub invariants_broken: u64,
}

/// Who wants to know. Called from one thread.
pub trait Observer {
    /// The cluster is formed, training starts.
    fn started(&mut self, _started: &Started) {}
    /// A step was committed.
    fn step(&mut self, _record: &StepRecord) {}
    /// A checkpoint is complete.
    fn saved(&mut self, _prefix: &str, _step: u64) {}
    /// A checkpoint was evaluated.
    fn evaluated(&mut self, _report: &EvalReport) {}
    /// Something that the user should know.
    fn warning(&mut self, _text: &str) {}
    /// Something good happened that people may have waited for.
    fn note(&mut self, _text: &str) {}
    /// Training is over.
    fn finished(&mut self, _summary: &Summary) {}
}

/// Adds up steps into a [`Summary`].
#[derive(Debug, Default)]
pub struct Tally {
    summary: Summary,
    step: f64,
    compute: f64,
    input: f64,
    waiting: f64,
    pushed: u64,
    pulled: u64,
    first: Option<Duration>,
    interrupted: bool,
}

impl Tally {
    /// Counts a step that was committed at `at` (any origin).
    pub fn add(&mut self, record: &StepRecord, at: Duration) {
        self.summary.step = self.summary.step.max(record.step);
        // The first step's start is not known: rates and shares are over the steps after it.
        match self.first {
            None => self.first = Some(at),
            Some(first) => {
                self.summary.seconds = at.saturating_sub(first).as_secs_f64();
                self.summary.samples += record.samples;
                self.summary.steps += 1;
                self.pushed = self.pushed.saturating_add(record.bytes_pushed);
                self.pulled = self.pulled.saturating_add(record.bytes_pulled);
                if !std::mem::take(&mut self.interrupted) {
                    self.step += record.seconds_of("step");
                    self.compute += record.seconds_of("compute");
                    self.input += record.seconds_of("input");
                    self.waiting += record.seconds_of("waiting");
                }
            }
        }
    }

    /// Notes a checkpoint of this step.
    pub fn saved(&mut self, step: u64) {
        self.summary.checkpoint = self.summary.checkpoint.max(Some(step));
    }

    /// Leaves the next step out of the shares: something else went on in it (an evaluation).
    pub fn interrupted(&mut self) {
        self.interrupted = true;
    }

    /// Examples a second so far.
    pub fn rate(&self) -> f64 {
        if self.summary.seconds > 0.0 {
            self.summary.samples as f64 / self.summary.seconds
        } else {
            0.0
        }
    }

    /// Seconds a step so far.
    pub fn seconds_a_step(&self) -> f64 {
        if self.summary.steps > 0 {
            self.summary.seconds / self.summary.steps as f64
        } else {
            0.0
        }
    }

    /// The whole of it.
    pub fn summary(&self) -> Summary {
        let mut summary = self.summary.clone();
        let steps = self.summary.steps.max(1) as f64;
        summary.bytes_pushed_per_step = self.pushed as f64 / steps;
        summary.bytes_pulled_per_step = self.pulled as f64 / steps;
        if self.step > 0.0 {
            summary.compute = (self.compute / self.step).min(1.0);
            summary.input = (self.input / self.step).min(1.0 - summary.compute);
            summary.exchange = 1.0 - summary.compute - summary.input;
            summary.waiting = self.waiting / self.step;
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, seconds: [(&str, f64); 3]) -> StepRecord {
        StepRecord {
            step,
            samples: 24,
            bytes_pushed: 3_000,
            bytes_pulled: 2_000 + step % 2,
            seconds: seconds.map(|(name, value)| (name.to_owned(), value)).into(),
            ..Default::default()
        }
    }

    #[test]
    fn shares_add_up_to_one() {
        let mut tally = Tally::default();
        for at in 1..=5 {
            let record = step(at, [("step", 1.0), ("compute", 0.8), ("input", 0.05)]);
            tally.add(&record, Duration::from_secs(at));
        }
        let summary = tally.summary();
        assert_eq!((summary.step, summary.steps, summary.samples), (5, 4, 96));
        assert!(
            (summary.compute - 0.8).abs() < 1e-9 && (summary.input - 0.05).abs() < 1e-9,
            "{summary:?}"
        );
        assert!((summary.exchange - 0.15).abs() < 1e-9, "{summary:?}");
        assert!((tally.rate() - 24.0).abs() < 1e-9);
        assert_eq!(
            (summary.bytes_pushed_per_step, summary.bytes_pulled_per_step),
            (3000.0, 2000.5)
        );
    }

    #[test]
    fn a_step_with_an_evaluation_in_it_says_nothing_about_shares() {
        let mut tally = Tally::default();
        for at in 1..=4 {
            let evaluated = at == 3;
            if evaluated {
                tally.interrupted();
            }
            let whole = if evaluated { 60.0 } else { 1.0 };
            tally.add(
                &step(at, [("step", whole), ("compute", 0.9), ("input", 0.0)]),
                Duration::from_secs(at),
            );
        }
        let summary = tally.summary();
        assert_eq!(summary.steps, 3);
        assert!((summary.exchange - 0.1).abs() < 1e-9, "{summary:?}");
    }
}
