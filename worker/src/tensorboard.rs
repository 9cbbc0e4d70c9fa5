//! Steps and evaluations as TensorBoard events, under the reference's names.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use coati_common::events::{self, EventWriter};

use crate::observe::{EvalReport, Observer, StepRecord, Summary};

/// Steps between two points of a curve, as the reference's `save_summary_steps`.
const EVERY_STEPS: u64 = 10;

/// Writes a run's curves into `model_dir`.
#[derive(Debug)]
pub struct Curves {
    writer: EventWriter,
    since: Option<(Instant, u64)>,
    /// By rank: versions that the gradients applied since the last point were behind.
    staleness: BTreeMap<u32, Vec<f64>>,
    failed: bool,
}

impl Curves {
    /// Opens a new event file.
    pub fn create(model_dir: &Path) -> Result<Self, events::Error> {
        Ok(Self {
            writer: EventWriter::create(model_dir, "")?,
            since: None,
            staleness: BTreeMap::new(),
            failed: false,
        })
    }

    fn write(&mut self, step: u64, scalars: &[(&str, f32)]) {
        let mut done = self.writer.scalars(step, scalars);
        for (rank, versions) in std::mem::take(&mut self.staleness) {
            let tag = format!("staleness/{}", task_of(rank));
            done = done.and_then(|()| self.writer.histogram(&tag, step, &versions));
        }
        if let Err(error) = done.and_then(|()| self.writer.flush())
            && !self.failed
        {
            // Training is worth more than its curves: said once, then silent.
            self.failed = true;
            tracing::warn!(%error, "curves cannot be written any more");
        }
    }
}

/// What a rank is called in a cluster.
fn task_of(rank: u32) -> String {
    rank.checked_sub(1)
        .map_or_else(|| "master".to_owned(), |index| format!("worker-{index}"))
}

impl Observer for Curves {
    fn finished(&mut self, summary: &Summary) {
        // The gradients since the last point: each one that was applied is in a histogram.
        if !self.staleness.is_empty() {
            self.write(summary.step, &[]);
        }
        if let Err(error) = self.writer.finish()
            && !self.failed
        {
            tracing::warn!(%error, "the last points of the curves cannot be written");
        }
    }

    fn step(&mut self, record: &StepRecord) {
        for &(rank, versions) in &record.staleness {
            self.staleness.entry(rank).or_default().push(versions as f64);
        }
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
        scalars.push(("staleness", record.largest_staleness() as f32));
        scalars.push(("epoch", record.epoch as f32));
        let seconds = (now - then).as_secs_f64();
        if seconds > 0.0 && record.step > before {
            scalars.push(("global_step/sec", ((record.step - before) as f64 / seconds) as f32));
        }
        self.since = Some((now, record.step));
        self.write(record.step, &scalars);
    }
}

/// Writes an evaluation's metrics and pictures into `folder` (the reference's `eval_0`).
pub fn write_evaluation(folder: &Path, report: &EvalReport) -> Result<(), events::Error> {
    let mut writer = EventWriter::create(folder, "")?;
    let scalars: Vec<(&str, f32)> = report
        .metrics
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()? as f32)))
        .collect();
    writer.scalars(report.global_step, &scalars)?;
    for shown in &report.shown {
        let (tag, png) = (&shown.tag, shown.png.clone());
        writer.image_png(tag, report.global_step, shown.width, shown.height, png)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use coati_common::tfrecord::Reader;
    use coati_proto::tensorflow::{Event, HistogramProto, event, summary};
    use prost::Message as _;

    use super::*;

    fn histograms(folder: &Path) -> Vec<(String, i64, HistogramProto)> {
        let file = folder.read_dir().unwrap().next().unwrap().unwrap().path();
        let mut found = Vec::new();
        for record in Reader::open(&file).unwrap() {
            let event = Event::decode(record.unwrap().as_slice()).unwrap();
            let Some(event::What::Summary(summary)) = event.what else {
                continue;
            };
            for value in summary.value {
                if let Some(summary::value::Value::Histo(histogram)) = value.value {
                    found.push((value.tag, event.step, histogram));
                }
            }
        }
        found
    }

    #[test]
    fn each_applied_gradient_is_in_one_histogram_of_its_worker() {
        let folder = tempfile::tempdir().unwrap();
        let mut curves = Curves::create(folder.path()).unwrap();
        for step in 1..=13 {
            curves.step(&StepRecord {
                step,
                staleness: vec![((step % 2) as u32, step % 4)],
                ..StepRecord::default()
            });
        }
        curves.finished(&Summary {
            step: 13,
            ..Summary::default()
        });
        let found = histograms(folder.path());
        let summary: Vec<_> = found
            .iter()
            .map(|(tag, step, histogram)| (tag.as_str(), *step, histogram.num, histogram.max, histogram.sum))
            .collect();
        assert_eq!(
            summary,
            [
                ("staleness/master", 10, 5.0, 2.0, 2.0 + 2.0 + 2.0),
                ("staleness/worker-0", 10, 5.0, 3.0, 1.0 + 3.0 + 1.0 + 3.0 + 1.0),
                ("staleness/master", 13, 1.0, 0.0, 0.0),
                ("staleness/worker-0", 13, 2.0, 3.0, 3.0 + 1.0),
            ]
        );
    }

    #[test]
    fn a_job_in_one_process_has_no_staleness() {
        let folder = tempfile::tempdir().unwrap();
        let mut curves = Curves::create(folder.path()).unwrap();
        for step in 1..=10 {
            curves.step(&StepRecord {
                step,
                ..StepRecord::default()
            });
        }
        curves.finished(&Summary::default());
        assert_eq!(histograms(folder.path()), []);
    }
}
