//! What goes on around the training loop in the master's process: telling observers, curves, evaluation.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coati_common::invariants;
use coati_detection::model::Ssd;

use crate::best::{self, Keeper, Verdict};
use crate::book;
use crate::growth::Growth;
use crate::input::{self, Input, Which};
use crate::observe::{Observer, Started, StepRecord, Summary, Tally};
use crate::train::{Error, Options};
use crate::{evaluate, model, tensorboard};

/// A complete checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub prefix: PathBuf,
    pub step: u64,
}

/// See the module.
pub(crate) struct Session<'a> {
    options: &'a Options,
    observer: &'a mut dyn Observer,
    curves: Option<tensorboard::Curves>,
    tally: Tally,
    begun: Instant,
    eval_input: Option<Input>,
    evaluated: Instant,
    evaluations: u32,
    keeper: Option<Keeper>,
    first_step: Option<f64>,
    growth: Growth,
}

impl<'a> Session<'a> {
    /// Opens what evaluation needs, so that a mistake there is found before anything starts.
    pub(crate) fn new(options: &'a Options, observer: &'a mut dyn Observer) -> Result<Self, Error> {
        let wanted = options.eval && !options.config.eval_input_readers().is_empty();
        let eval_input = wanted
            .then(|| input::open_for_job(&options.config, Which::Eval, &options.model_dir))
            .transpose()
            .map_err(Error::user)?;
        let keeper = match (&options.keep_best, &eval_input) {
            (Some(wanted), Some(input)) => {
                let categories = input::categories(&input.labels);
                wanted.check(&options.config, &categories).map_err(Error::user)?;
                Some(Keeper::new(wanted.clone(), &options.model_dir))
            }
            _ => None,
        };
        let now = Instant::now();
        Ok(Self {
            options,
            observer,
            curves: None,
            tally: Tally::default(),
            begun: now,
            eval_input,
            evaluated: now,
            evaluations: 0,
            keeper,
            first_step: None,
            growth: Growth::default(),
        })
    }

    /// In the job's folder, which is there by now.
    pub(crate) fn keep_index(&self) {
        if let Some(input) = &self.eval_input {
            input.keep_index(&self.options.model_dir);
        }
    }

    pub(crate) fn observer(&mut self) -> &mut dyn Observer {
        self.observer
    }

    /// The job's folder holds a checkpoint of the last step.
    pub(crate) fn nothing_to_do(&mut self, summary: &Summary, num_steps: u64) {
        let folder = self.options.model_dir.display();
        self.observer.warning(&format!(
            "{folder} is at step {} already: nothing to train up to {num_steps}",
            summary.step
        ));
    }

    pub(crate) fn start(&mut self, started: &Started) -> Result<(), Error> {
        self.curves = Some(tensorboard::Curves::create(&self.options.model_dir).map_err(Error::job)?);
        invariants::training_begins();
        self.observer.started(started);
        self.begun = Instant::now();
        self.evaluated = self.begun;
        Ok(())
    }

    pub(crate) fn step(&mut self, record: &StepRecord) {
        self.tally.add(record, self.begun.elapsed());
        self.first_step.get_or_insert_with(|| {
            self.options
                .started_at
                .elapsed()
                .map_or(0.0, |since| since.as_secs_f64())
        });
        if let Some(curves) = &mut self.curves {
            curves.step(record);
        }
        self.observer.step(record);
        if let Some(text) = self.growth.look(record.step, record.total_loss(), record.learning_rate) {
            self.observer.warning(&text);
        }
    }

    pub(crate) fn saved(&mut self, prefix: PathBuf, step: u64) -> Checkpoint {
        self.tally.saved(step);
        self.observer.saved(&prefix.display().to_string(), step);
        Checkpoint { prefix, step }
    }

    pub(crate) fn warn(&mut self, text: &str) {
        self.observer.warning(text);
    }

    /// Passes on what a job without servers tells of itself; returns a checkpoint that it tells of.
    pub(crate) fn entry(&mut self, event: book::Event) -> Option<Checkpoint> {
        match event {
            book::Event::Step(record) => self.step(&record),
            book::Event::Saved { prefix, step } => return Some(self.saved(prefix, step)),
            book::Event::Skipped(text) => self.warn(&text),
            book::Event::SaveFailed(error) => self.warn(&format!(
                "a checkpoint could not be written; the previous one stays: {error}"
            )),
        }
        None
    }

    /// Evaluates a checkpoint if the last evaluation is `eval_config.eval_interval_secs` ago.
    pub(crate) fn evaluate_if_due(&mut self, ssd: &mut Ssd, checkpoint: &Checkpoint) {
        let every = Duration::from_secs(u64::from(self.options.config.eval_config().eval_interval_secs()));
        if self.evaluated.elapsed() >= every {
            self.evaluate(ssd, checkpoint);
        }
    }

    /// Evaluates a checkpoint. A failure is said and does not end the training.
    pub(crate) fn evaluate(&mut self, ssd: &mut Ssd, checkpoint: &Checkpoint) {
        let Some(input) = &self.eval_input else { return };
        let config = &self.options.config;
        let most = config.eval_config().max_evals();
        if most > 0 && self.evaluations >= most {
            return;
        }
        self.evaluations += 1;
        if let Some(keeper) = &mut self.keeper {
            keeper.hold(&checkpoint.prefix);
        }
        let outcome = model::read_variables(ssd, &checkpoint.prefix, config.eval_config().use_moving_averages())
            .map_err(|error| error.to_string())
            .and_then(|variables| {
                evaluate::evaluate(
                    ssd,
                    &variables,
                    checkpoint.step,
                    config,
                    input,
                    &evaluate::Options::default(),
                    &mut |_, _| {},
                )
                .map_err(|error| error.to_string())
            });
        match outcome {
            Ok(outcome) => {
                if let Err(error) = tensorboard::write_evaluation(&self.options.model_dir.join("eval"), &outcome.report)
                {
                    self.observer
                        .warning(&format!("the evaluation's curves could not be written: {error}"));
                }
                self.observer.evaluated(&outcome.report);
                match self.keeper.as_mut().map(|keeper| keeper.judge(&outcome.report)) {
                    Some(Ok(Verdict::Kept(text))) => self.observer.note(&text),
                    Some(Ok(Verdict::NoFigure)) => self.observer.warning(&best::no_figure(checkpoint.step)),
                    Some(Err(error)) => self.observer.warning(&error),
                    Some(Ok(Verdict::NotBetter)) | None => {}
                }
            }
            Err(error) => self
                .observer
                .warning(&format!("evaluation at step {} failed: {error}", checkpoint.step)),
        }
        self.evaluated = Instant::now();
        self.tally.interrupted();
    }

    /// The end, for observers and for scripts (`summary.json`).
    pub(crate) fn finish(mut self) -> Summary {
        let mut summary = self.tally.summary();
        summary.invariants_broken = invariants::all_broken();
        if summary.invariants_broken > 0 {
            let broken = summary.invariants_broken;
            self.observer.warning(&format!(
                "{broken} broken invariant(s): the log names them\nhint: please report this, with the log"
            ));
        }
        summary.seconds_to_first_step = self.first_step.unwrap_or(0.0);
        if let Some(curves) = &mut self.curves {
            curves.finished(&summary);
        }
        self.observer.finished(&summary);
        let path = self.options.model_dir.join("summary.json");
        let written = serde_json::to_vec_pretty(&summary)
            .map_err(std::io::Error::other)
            .and_then(|text| coati_storage::put(&path, &text));
        if let Err(error) = written {
            self.observer.warning(&format!("{}: {error}", path.display()));
        }
        summary
    }
}
