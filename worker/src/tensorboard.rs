//! Steps and evaluations as TensorBoard events, under the reference's names.

use std::path::Path;
use std::time::Instant;

use coati_common::events::{self, EventWriter};

use crate::observe::{EvalReport, Observer, StepRecord};

/// Steps between two points of a curve, as the reference's `save_summary_steps`.
const EVERY_STEPS: u64 = 10;

/// Writes a run's curves into `model_dir`.
#[derive(Debug)]
pub struct Curves {
    writer: EventWriter,
    since: Option<(Instant, u64)>,
    failed: bool,
}

impl Curves {
    /// Opens a new event file.
    pub fn create(model_dir: &Path) -> Result<Self, events::Error> {
        Ok(Self {
            writer: EventWriter::create(model_dir, "")?,
            since: None,
            failed: false,
        })
    }

    fn write(&mut self, step: u64, scalars: &[(&str, f32)]) {
        let done = self.writer.scalars(step, scalars).and_then(|()| self.writer.flush());
        if let Err(error) = done
            && !self.failed
        {
            // Training is worth more than its curves: said once, then silent.
            self.failed = true;
            tracing::warn!(%error, "curves cannot be written any more");
        }
    }
}

impl Observer for Curves {
    fn step(&mut self, record: &StepRecord) {
        let now = Instant::now();
        let (then, before) = *self.since.get_or_insert((now, record.step));
        if !record.step.is_multiple_of(EVERY_STEPS) {
            return;
        }
        let mut scalars: Vec<(&str, f32)> = record
            .losses
            .iter()
            .map(|(name, value)| (name.as_str(), *value as f32))
            .collect();
        scalars.push(("loss", record.total_loss() as f32));
        scalars.push(("learning_rate", record.learning_rate as f32));
        scalars.push(("staleness", record.staleness as f32));
        scalars.push(("epoch", record.epoch as f32));
        let seconds = (now - then).as_secs_f64();
        if seconds > 0.0 && record.step > before {
            scalars.push(("global_step/sec", ((record.step - before) as f64 / seconds) as f32));
        }
        self.since = Some((now, record.step));
        self.write(record.step, &scalars);
    }
}

/// Writes an evaluation's metrics into `folder` (the reference's `eval_0`).
pub fn write_evaluation(folder: &Path, report: &EvalReport) -> Result<(), events::Error> {
    let mut writer = EventWriter::create(folder, "")?;
    let scalars: Vec<(&str, f32)> = report
        .metrics
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()? as f32)))
        .collect();
    writer.scalars(report.global_step, &scalars)?;
    writer.flush()
}
