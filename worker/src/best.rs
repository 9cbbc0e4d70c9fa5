//! `coati.keep_best`: the checkpoint that a figure of its evaluation says is the best stays, whatever `keep_checkpoint_max` deletes.

use std::path::{Path, PathBuf};

use coati_checkpoint::best::{self, Candidate, Note};
use coati_checkpoint::manifest::Manifest;
use coati_common::cluster::nearest;
use coati_common::config::PipelineConfig;
use coati_evaluation::{Category, set};

use crate::evaluate;
use crate::observe::EvalReport;

/// The figure that decides, by its name in TensorBoard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepBest {
    /// `DetectionBoxes_Precision/mAP`
    pub metric: String,
}

/// The figure is none that this job's evaluations give.
#[derive(Debug, thiserror::Error)]
#[error(
    "keep_best: `{metric}` is no figure of this evaluation{near}\nhint: eval_config.metrics_set decides which there are: {known}"
)]
pub struct Unknown {
    metric: String,
    near: String,
    known: String,
}

/// Figures that a hint names; classes are too many.
const NAMED: usize = 20;

impl KeepBest {
    /// By the name of a figure.
    pub fn new(metric: impl Into<String>) -> Self {
        Self { metric: metric.into() }
    }

    /// Losses are; everything else is better when it is larger.
    pub fn lower_is_better(&self) -> bool {
        self.metric.starts_with("Loss/")
    }

    /// Whether evaluations by this configuration will have the figure.
    pub fn check(&self, config: &PipelineConfig, categories: &[Category]) -> Result<(), Unknown> {
        let settings = config.eval_config();
        let names = set::figure_names(
            &evaluate::names(settings),
            categories,
            &evaluate::metric_options(settings),
        );
        let mut known = names.unwrap_or_default();
        known.extend(evaluate::LOSSES.map(|name| format!("Loss/{name}_loss")));
        if known.contains(&self.metric) {
            return Ok(());
        }
        let near = nearest(&self.metric, known.iter().map(String::as_str));
        let of_all = known.iter().filter(|name| !name.contains("ByCategory"));
        Err(Unknown {
            metric: self.metric.clone(),
            near: near.map_or_else(String::new, |near| format!("; did you mean `{near}`?")),
            known: of_all.take(NAMED).cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether `value` is better than what was kept.
    fn is_better(&self, value: f64, than: f64) -> bool {
        if self.lower_is_better() {
            value < than
        } else {
            value > than
        }
    }
}

/// What became of a checkpoint that was evaluated.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is the best so far and is kept, in words.
    Kept(String),
    /// The one that is kept is as good or better.
    NotBetter,
    /// Its figure says nothing: NaN, or COCO's -1 where there is no groundtruth.
    NoFigure,
}

/// What is said of [`Verdict::NoFigure`].
pub(crate) fn no_figure(step: u64) -> String {
    format!(
        "step {step}: keep_best has no figure to go by (NaN or -1: no groundtruth); this checkpoint is not kept for it"
    )
}

/// Decides by the figures; `kept` is the note of the best so far.
fn decide(wanted: &KeepBest, report: &EvalReport, job_id: Option<&str>, kept: Option<&Note>) -> Option<(f64, bool)> {
    let value = report.metrics.get(&wanted.metric)?.as_f64()?;
    if !value.is_finite() || (value < 0.0 && !wanted.lower_is_better()) {
        return None;
    }
    let comparable = kept.filter(|kept| kept.metric == wanted.metric && kept.job_id.as_deref() == job_id);
    Some((value, comparable.is_none_or(|kept| wanted.is_better(value, kept.value))))
}

/// Keeps the best checkpoint of a job's folder.
#[derive(Debug)]
pub struct Keeper {
    wanted: KeepBest,
    model_dir: PathBuf,
    candidate: Option<(PathBuf, Candidate)>,
}

impl Keeper {
    /// For the job in this folder.
    pub fn new(wanted: KeepBest, model_dir: &Path) -> Self {
        best::clean(model_dir);
        Self {
            wanted,
            model_dir: model_dir.to_owned(),
            candidate: None,
        }
    }

    /// Before a checkpoint is evaluated: from here on nobody deletes it.
    pub fn hold(&mut self, prefix: &Path) {
        self.candidate = None;
        self.candidate = Some((prefix.to_owned(), Candidate::hold(&self.model_dir, prefix)));
    }

    /// After the checkpoint that is held was evaluated. Errors are in words.
    pub fn judge(&mut self, report: &EvalReport) -> Result<Verdict, String> {
        let Some((prefix, candidate)) = self.candidate.take() else {
            return Ok(Verdict::NotBetter);
        };
        let job_id = Manifest::read(&prefix).ok().flatten().map(|manifest| manifest.job_id);
        let kept = best::read(&self.model_dir);
        let metric = &self.wanted.metric;
        let Some((value, is_best)) = decide(&self.wanted, report, job_id.as_deref(), kept.as_ref()) else {
            return Ok(Verdict::NoFigure);
        };
        if !is_best {
            return Ok(Verdict::NotBetter);
        }
        let step = report.global_step;
        let note = Note::new(metric, value, step, &prefix, job_id);
        candidate.keep(&note).map_err(|error| {
            format!("the best checkpoint so far (step {step}, {metric} {value:.4}) could not be kept: {error}")
        })?;
        let before = kept
            .filter(|kept| kept.metric == *metric)
            .map_or_else(String::new, |kept| {
                format!(" (before: {:.4} at step {})", kept.value, kept.step)
            });
        Ok(Verdict::Kept(format!(
            "best so far by {metric}: {value:.4} at step {step}{before}, kept in {}",
            best::path(&self.model_dir).display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(metric: &str, value: serde_json::Value) -> EvalReport {
        EvalReport {
            metrics: [(metric.to_owned(), value)].into_iter().collect(),
            ..EvalReport::default()
        }
    }

    fn note(metric: &str, value: f64, job: &str) -> Note {
        Note::new(metric, value, 1, Path::new("model.ckpt-1"), Some(job.to_owned()))
    }

    #[test]
    fn larger_figures_are_better_and_smaller_losses() {
        let is_best = |metric: &str, value: f64, kept: f64| {
            let kept = note(metric, kept, "job");
            decide(
                &KeepBest::new(metric),
                &report(metric, json!(value)),
                Some("job"),
                Some(&kept),
            )
            .map(|(_, best)| best)
        };
        assert_eq!(is_best("mAP", 0.5, 0.4), Some(true));
        assert_eq!(is_best("mAP", 0.4, 0.4), Some(false), "the earlier one stays");
        assert_eq!(is_best("Loss/total_loss", 0.5, 0.4), Some(false));
        assert_eq!(is_best("Loss/total_loss", 0.3, 0.4), Some(true));
        assert_eq!(is_best("mAP", -1.0, 0.4), None, "COCO's figure of nothing");
    }

    #[test]
    fn what_cannot_be_compared_makes_way() {
        let wanted = KeepBest::new("mAP");
        let kept = |metric: &str, job: &str| {
            decide(
                &wanted,
                &report("mAP", json!(0.1)),
                Some("job"),
                Some(&note(metric, 0.9, job)),
            )
        };
        assert_eq!(kept("mAP", "job"), Some((0.1, false)));
        assert_eq!(kept("mAP", "another job"), Some((0.1, true)));
        assert_eq!(kept("AR", "job"), Some((0.1, true)));
        assert_eq!(decide(&wanted, &report("mAP", json!(null)), None, None), None);
        assert_eq!(decide(&wanted, &report("other", json!(1)), None, None), None);
    }

    #[test]
    fn names_are_checked_before_anything_starts() {
        let text = "eval_config { metrics_set: \"pascal_voc_detection_metrics\" }";
        let config = PipelineConfig::parse(text, "p.config").unwrap();
        let categories = [Category {
            id: 1,
            name: "cup".into(),
        }];
        let check = |metric: &str| KeepBest::new(metric).check(&config, &categories);
        for known in [
            "PascalBoxes_Precision/mAP@0.5IOU",
            "PascalBoxes_PerformanceByCategory/AP@0.5IOU/cup",
            "Loss/total_loss",
        ] {
            check(known).unwrap();
        }
        let text = check("PascalBoxes_Precision/mAP").unwrap_err().to_string();
        assert!(
            text.contains("did you mean `PascalBoxes_Precision/mAP@0.5IOU`?")
                && text.contains("hint: eval_config.metrics_set"),
            "{text}"
        );
        check("DetectionBoxes_Precision/mAP").unwrap_err();
    }
}
