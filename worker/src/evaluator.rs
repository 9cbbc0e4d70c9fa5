//! Evaluates the checkpoints of a folder as they appear: `coati eval`, and the evaluator of a cluster.

mod decide;
mod journal;
mod master;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use coati_checkpoint::bundle;
use coati_checkpoint::state::{self, Latest};
use coati_common::config::PipelineConfig;
use coati_detection::model::Ssd;

pub use decide::{Decision, Rules, Seen, decide};

use crate::best::{self, KeepBest, Keeper, Verdict};
use crate::evaluate::{self, Outcome};
use crate::input::{self, Input, Which};
use crate::observe::Observer;
use crate::stop::{STOPPED, StopFlag};
use crate::train::Error;
use crate::{model, tensorboard};
use journal::Journal;
use master::Master;

/// How often a folder is looked at for a new checkpoint.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the stop flag is looked at.
const STOP_EVERY: Duration = Duration::from_millis(100);

/// What to evaluate and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration, overrides applied.
    pub config: PipelineConfig,
    /// Folder with checkpoints, or a checkpoint's prefix.
    pub checkpoint_dir: PathBuf,
    /// Where TensorBoard's events go.
    pub events: PathBuf,
    /// Evaluate what is there and leave.
    pub run_once: bool,
    /// Leave when nothing new has come, and no master has answered, for so long.
    pub patience: Duration,
    /// `host:port` of the job's master, which is asked whether it is there.
    pub master: Option<String>,
    /// Go on where an earlier process left off: what was evaluated is not evaluated again.
    pub journal: bool,
    /// Keep the best checkpoint.
    pub keep_best: Option<KeepBest>,
    /// Besides the metrics.
    pub evaluate: evaluate::Options,
    /// Ctrl-C.
    pub stop: StopFlag,
}

/// Why it ended, where nothing failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There is nothing more to evaluate.
    Finished(String),
    /// Somebody asked to stop.
    Stopped,
}

/// Who hears of evaluations.
pub trait Watcher {
    /// So many of an evaluation's images are done.
    fn progress(&mut self, _done: u64, _total: u64) {}
    /// A checkpoint was evaluated.
    fn evaluated(&mut self, checkpoint: &Latest, outcome: &Outcome) -> Result<(), Error>;
    /// Something worth a line: what is waited for, what was kept.
    fn note(&mut self, text: &str);
    /// Something that the user should know.
    fn warning(&mut self, text: &str);
}

/// Evaluates until [`decide`] says that it is enough.
pub fn follow(options: &Options, input: &Input, model: &mut Ssd, watcher: &mut dyn Watcher) -> Result<Ended, Error> {
    let folder = folder_of(&options.checkpoint_dir);
    let mut journal = if options.journal {
        Journal::open(&options.events)
    } else {
        Journal::default()
    };
    let mut keeper = options.keep_best.clone().map(|wanted| Keeper::new(wanted, &folder));
    let mut master = options.master.clone().map(Master::new);
    let settings = options.config.eval_config();
    let rules = Rules {
        interval: Duration::from_secs(settings.eval_interval_secs().into()),
        max_evals: settings.max_evals().into(),
        last_step: Some(options.config.train_config().num_steps().into()).filter(|&steps: &u64| steps > 0),
        run_once: options.run_once,
        patience: options.patience,
    };
    let mut seen = Seen::new(Instant::now());
    let mut said = String::new();
    loop {
        if options.stop.raised() {
            return Ok(Ended::Stopped);
        }
        let latest = match newest(&options.checkpoint_dir) {
            // The folder may change while it is looked at; what stays wrong ends in the usual way.
            Err(error) if !options.run_once => {
                let text = error.to_string();
                if text != said {
                    watcher.warning(&text);
                    said = text;
                }
                None
            }
            found => found?,
        };
        if let Some(latest) = &latest {
            journal.belongs_to(latest.manifest.as_ref().map(|manifest| manifest.job_id.as_str()));
        }
        let now = Instant::now();
        seen.look(
            now,
            latest.as_ref().map(|latest| latest.step),
            journal.last(),
            journal.count(),
        );
        if let Some(master) = &mut master
            && master.answers(now)
        {
            seen.alive = now;
        }
        match decide(now, &seen, &rules) {
            Decision::Evaluate => {
                let Some(latest) = latest else { continue };
                seen.begun = Some(now);
                if options.journal {
                    input.keep_index(&folder);
                }
                one(options, &latest, input, model, keeper.as_mut(), &mut journal, watcher)?;
                seen.alive = Instant::now();
            }
            Decision::Finished(why) => return Ok(Ended::Finished(why)),
            Decision::GiveUp => return Err(gave_up(options, seen.newest)),
            Decision::Wait(why) => {
                if why != said {
                    watcher.note(&format!("{why} in {}", options.checkpoint_dir.display()));
                    said = why;
                }
                pause(&options.stop);
            }
        }
    }
}

/// Evaluates a checkpoint. What goes wrong with one is said, and the next one is waited for.
fn one(
    options: &Options,
    latest: &Latest,
    input: &Input,
    model: &mut Ssd,
    mut keeper: Option<&mut Keeper>,
    journal: &mut Journal,
    watcher: &mut dyn Watcher,
) -> Result<(), Error> {
    if let Some(keeper) = keeper.as_deref_mut() {
        keeper.hold(&latest.prefix);
    }
    let averages = options.config.eval_config().use_moving_averages();
    let variables = match model::read_variables(model, &latest.prefix, averages) {
        Ok(variables) => variables,
        // Deleted since it was found: there is a newer one.
        Err(_) if !coati_storage::is_file(&bundle::index_path(&latest.prefix)) => return Ok(()),
        Err(error) if options.run_once => return Err(Error::user(error)),
        Err(error) => {
            watcher.warning(&format!("evaluation at step {} failed: {error}", latest.step));
            return journal.skip(latest.step).map_err(Error::job);
        }
    };
    let outcome = evaluate::evaluate(
        model,
        &variables,
        latest.step,
        &options.config,
        input,
        &evaluate::Options {
            stop: options.stop.clone(),
            ..options.evaluate.clone()
        },
        &mut |done, total| watcher.progress(done, total),
    );
    drop(variables);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(evaluate::Error::Stopped) => return Ok(()),
        Err(error) if options.run_once => return Err(Error::user(error)),
        Err(error) => {
            watcher.warning(&format!("evaluation at step {} failed: {error}", latest.step));
            return journal.skip(latest.step).map_err(Error::job);
        }
    };
    tensorboard::write_evaluation(&options.events, &outcome.report).map_err(Error::job)?;
    watcher.evaluated(latest, &outcome)?;
    if let Some(keeper) = keeper {
        match keeper.judge(&outcome.report) {
            Ok(Verdict::Kept(text)) => watcher.note(&text),
            Ok(Verdict::NotBetter) => {}
            Ok(Verdict::NoFigure) => watcher.warning(&best::no_figure(latest.step)),
            Err(error) => watcher.warning(&error),
        }
    }
    journal.add(&outcome.report).map_err(Error::job)
}

fn gave_up(options: &Options, newest: Option<u64>) -> Error {
    let folder = options.checkpoint_dir.display();
    if options.run_once && newest.is_none() {
        return Error::User(format!(
            "{folder}: no complete checkpoint\nhint: --checkpoint_dir is the --model_dir of a job that has saved, or a prefix such as …/model.ckpt-2000"
        ));
    }
    let seconds = options.patience.as_secs();
    Error::Job(match &options.master {
        Some(master) => format!(
            "{folder}: no new checkpoint for {seconds} s, and the master ({master}) has not answered since\nhint: the job is gone; `coati eval --run_once` evaluates what is there"
        ),
        None => format!(
            "{folder}: no new checkpoint for {seconds} s\nhint: is the job still running? --run_once evaluates what is there"
        ),
    })
}

fn folder_of(path: &Path) -> PathBuf {
    if coati_storage::is_dir(path) || !coati_storage::is_file(&bundle::index_path(path)) {
        path.to_owned()
    } else {
        path.parent().unwrap_or(Path::new(".")).to_owned()
    }
}

/// A folder's newest checkpoint, or the one with this prefix.
fn newest(path: &Path) -> Result<Option<Latest>, Error> {
    if coati_storage::is_dir(path) || !coati_storage::is_file(&bundle::index_path(path)) {
        return state::latest(path).map_err(Error::user);
    }
    let step = model::step_of(path).map_err(Error::user)?;
    Ok(Some(Latest {
        prefix: path.to_owned(),
        step,
        manifest: None,
    }))
}

fn pause(stop: &StopFlag) {
    let until = Instant::now() + LOOK_EVERY;
    while !stop.raised() && Instant::now() < until {
        thread::sleep(STOP_EVERY);
    }
}

/// Runs the evaluator of a cluster until the last checkpoint is evaluated. `master` is the master's `host:port`.
pub fn run_evaluator(
    job: &crate::train::Options,
    master: String,
    patience: Duration,
    observer: &mut dyn Observer,
) -> Result<Ended, Error> {
    let input = input::open_for_job(&job.config, Which::Eval, &job.model_dir).map_err(Error::user)?;
    if let Some(wanted) = &job.keep_best {
        wanted
            .check(&job.config, &input::categories(&input.labels))
            .map_err(Error::user)?;
    }
    let mut model = model::build(&job.config, job.threads).map_err(Error::user)?;
    let options = Options {
        config: job.config.clone(),
        checkpoint_dir: job.model_dir.clone(),
        events: job.model_dir.join("eval"),
        run_once: false,
        patience,
        master: Some(master),
        journal: true,
        keep_best: job.keep_best.clone(),
        evaluate: evaluate::Options::default(),
        stop: job.stop.clone(),
    };
    let ended = follow(&options, &input, &mut model, &mut Told(observer))?;
    match &ended {
        Ended::Finished(why) => observer.note(why),
        Ended::Stopped => observer.note(STOPPED),
    }
    Ok(ended)
}

/// What an observer hears of an evaluator.
struct Told<'a>(&'a mut dyn Observer);

impl Watcher for Told<'_> {
    fn evaluated(&mut self, _: &Latest, outcome: &Outcome) -> Result<(), Error> {
        self.0.evaluated(&outcome.report);
        Ok(())
    }

    fn note(&mut self, text: &str) {
        self.0.note(text);
    }

    fn warning(&mut self, text: &str) {
        self.0.warning(text);
    }
}
