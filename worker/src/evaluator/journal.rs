//! What an evaluator has evaluated, for the process that comes after it and for people: `evaluations.json` beside the events.

use std::path::{Path, PathBuf};

use coati_checkpoint::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::observe::EvalReport;

const FILE: &str = "evaluations.json";
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    step: u64,
    images: u64,
    seconds: f64,
    /// Figures of single classes are in the events alone. None where the evaluation failed.
    metrics: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// The job whose checkpoints they were.
    job_id: Option<String>,
    evaluations: Vec<Entry>,
}

/// Without a file it is kept in memory alone.
#[derive(Debug, Default)]
pub(super) struct Journal {
    path: Option<PathBuf>,
    content: Content,
}

impl Journal {
    /// Of the folder of the events. One that is not readable is begun anew: it costs an evaluation.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let content = coati_storage::read(&path).ok();
        let content: Option<Content> = content.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            path: Some(path),
            content: content.filter(|content| content.version == VERSION).unwrap_or_default(),
        }
    }

    /// The checkpoints are of this job: what is known of another one's is forgotten.
    pub(super) fn belongs_to(&mut self, job_id: Option<&str>) {
        if self.content.job_id.as_deref() != job_id {
            self.content = Content {
                job_id: job_id.map(ToOwned::to_owned),
                ..Content::default()
            };
        }
    }

    /// Step of the last entry.
    pub(super) fn last(&self) -> Option<u64> {
        self.content.evaluations.last().map(|entry| entry.step)
    }

    /// Evaluations that did not fail.
    pub(super) fn count(&self) -> u64 {
        self.content
            .evaluations
            .iter()
            .filter(|entry| entry.metrics.is_some())
            .count() as u64
    }

    pub(super) fn add(&mut self, report: &EvalReport) -> Result<(), files::Error> {
        let of_all = report.metrics.iter().filter(|(name, _)| !name.contains("ByCategory"));
        self.push(Entry {
            step: report.global_step,
            images: report.images,
            seconds: report.seconds,
            metrics: Some(of_all.map(|(name, value)| (name.clone(), value.clone())).collect()),
        })
    }

    /// The checkpoint of this step could not be evaluated.
    pub(super) fn skip(&mut self, step: u64) -> Result<(), files::Error> {
        self.push(Entry {
            step,
            images: 0,
            seconds: 0.0,
            metrics: None,
        })
    }

    fn push(&mut self, entry: Entry) -> Result<(), files::Error> {
        self.content.version = VERSION;
        self.content.evaluations.push(entry);
        let Some(path) = &self.path else { return Ok(()) };
        let text = serde_json::to_vec_pretty(&self.content).unwrap_or_default();
        files::write_atomic(path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> EvalReport {
        let metrics = [("mAP", 0.5), ("PerformanceByCategory/mAP/cup", 0.4)];
        EvalReport {
            global_step: step,
            metrics: metrics
                .map(|(name, value)| (name.to_owned(), value.into()))
                .into_iter()
                .collect(),
            ..EvalReport::default()
        }
    }

    #[test]
    fn a_later_process_knows_what_was_done() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path());
        journal.belongs_to(Some("job"));
        assert_eq!((journal.last(), journal.count()), (None, 0));
        journal.add(&report(5)).unwrap();
        journal.skip(10).unwrap();
        let mut later = Journal::open(folder.path());
        later.belongs_to(Some("job"));
        assert_eq!((later.last(), later.count()), (Some(10), 1));
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(text.contains("mAP") && !text.contains("cup"), "{text}");
        later.belongs_to(Some("another job"));
        assert_eq!(later.last(), None);
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{\"version\": 1").unwrap();
        let mut journal = Journal::open(folder.path());
        journal.add(&report(5)).unwrap();
        assert_eq!(Journal::open(folder.path()).last(), Some(5));
    }
}
