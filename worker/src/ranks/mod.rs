//! Training without parameter servers: the processes of a job (*ranks*) sum their gradients among themselves, and each makes the same step
//! out of the same sum. Rank 0 is the master: it writes checkpoints and curves, and evaluates.
//!
//! All ranks keep the same [`crate::book`]. So what one rank holds is what any of them holds: when some are lost, the others meet again as
//! soon as new processes have taken their places, everybody takes the newest state that is left, and no step is lost. Only when none is left
//! does the job go back to its checkpoint.

mod buckets;
mod device;
mod hosts;
mod meeting;
mod notes;
mod reduce;
mod statistics;
mod sums;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
pub(crate) mod testing;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coati_collective::{Communicator as _, Error as Trouble, Member, Wire};
use coati_common::cluster::{ClusterSpec, TaskId, Transport};
use coati_coordinator::launcher::control::{self, Request};
use coati_coordinator::run::Limits;
use coati_detection::accelerator::resident::Summing;
use coati_proto::coati::v1::JobRef;
use sha2::{Digest as _, Sha256};

use crate::book::{self, Book, Start, State};
use crate::exchange::{self, Exchange as _};
use crate::model::Trainer;
use crate::observe::Observer;
use crate::replica::{self, End};
use crate::session::{Checkpoint, Session};
use crate::stop::{STOPPED, StopFlag};
use crate::train::{Error, Options, Outcome, Setup, already_done, open_job, resume_point};
pub(crate) use hosts::Grouped;
use meeting::{Joined, OPERATION, Purpose};
use notes::{Hello, Plan};
pub(crate) use reduce::AllReduce;
use statistics::{Statistics, Watcher};
use sums::Form;

/// A job's settings beside [`Options`], and who this process is.
#[derive(Clone, Debug)]
pub struct Ranks {
    /// Everybody: the master is rank 0, workers follow.
    pub spec: ClusterSpec,
    /// This task.
    pub task: TaskId,
    /// The job's folder.
    pub model_dir: PathBuf,
    /// Bytes of gradients that are summed at a time, while the backward pass goes on.
    pub bucket_bytes: usize,
    /// In which form gradients travel.
    pub wire: Wire,
    /// What joins the ranks.
    pub transport: Transport,
    /// Longest waits.
    pub limits: Limits,
}

/// At least so long one waits for all ranks when a job starts.
pub(crate) const FORMATION: Duration = Duration::from_secs(120);

/// From one note of the progress to the next.
const PROGRESS: Duration = Duration::from_secs(1);

/// Before meeting again.
const PAUSE: Duration = Duration::from_millis(200);

impl Ranks {
    /// This process among them.
    pub fn rank(&self) -> usize {
        self.task.replica().unwrap_or(0) as usize
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.spec.replicas() as usize
    }

    /// The replicas of this task's host, as ranks of their own.
    pub(crate) fn of_host(&self) -> Self {
        let training = |task: &TaskId| task.replica().is_some();
        let all: Vec<_> = self.spec.tasks().filter(|(task, _)| training(task)).collect();
        let host = self.spec.address(self.task).map(|address| address.host.clone());
        let here: Vec<_> = all
            .into_iter()
            .filter(|(_, address)| Some(&address.host) == host.as_ref())
            .collect();
        let rank = here.iter().position(|(task, _)| *task == self.task).unwrap_or(0);
        let mut addresses = here.into_iter().map(|(_, address)| address.clone());
        let master = addresses.next().unwrap_or_else(|| self.spec.master.clone());
        Self {
            spec: ClusterSpec {
                master,
                workers: addresses.collect(),
                ps: Vec::new(),
                evaluators: Vec::new(),
            },
            task: Self::task_of(rank),
            ..self.clone()
        }
    }

    /// How many replicas each host has, in the order of their first ones; and this task's host among them.
    pub(crate) fn hosts(&self) -> (Vec<usize>, usize) {
        let mut hosts: Vec<(&str, usize)> = Vec::new();
        let mut own = 0;
        for (task, address) in self.spec.tasks().filter(|(task, _)| task.replica().is_some()) {
            let known = hosts.iter().position(|(host, _)| *host == address.host);
            let place = known.unwrap_or_else(|| {
                hosts.push((&address.host, 0));
                hosts.len() - 1
            });
            hosts[place].1 += 1;
            if task == self.task {
                own = place;
            }
        }
        (hosts.into_iter().map(|(_, count)| count).collect(), own)
    }

    /// Meets the other replicas of this host; the first one brings the exchange with the servers.
    pub(crate) fn meet_on_host<E: exchange::Exchange>(
        &self,
        lead: Option<E>,
        setup: &mut Setup,
        limit: Duration,
        stop: &StopFlag,
    ) -> Result<Grouped<E>, Trouble> {
        let identity = &setup.identity;
        let text = format!(
            "{} {} buckets {} {:?}",
            identity.config_digest, identity.dataset_digest, self.bucket_bytes, self.wire
        );
        let device = setup.trainer.ssd().device();
        let host = self.meet(Purpose::Gradients, Sha256::digest(text).into(), limit, stop)?;
        let communicator = meeting::on_device(host, device)?.boxed();
        let timeout = OPERATION + Duration::from_secs(60);
        Grouped::of_host(
            lead,
            communicator,
            setup.trainer.ssd().variables(),
            self.form(),
            timeout,
        )
    }

    fn form(&self) -> Form {
        Form {
            bucket_bytes: self.bucket_bytes,
            wire: self.wire,
        }
    }

    /// Of all that must be the same on all ranks.
    fn digest(&self, options: &Options, setup: &Setup) -> [u8; 32] {
        let identity = &setup.identity;
        let text = format!(
            "{} {} {} seed {} steps {} batch {} buckets {} {:?} on_nan {:?} {:?}",
            identity.config_digest,
            identity.dataset_digest,
            identity.record_count,
            options.seed,
            setup.num_steps,
            setup.batch_size,
            self.bucket_bytes,
            self.wire,
            options.on_nan,
            options.numerics,
        );
        Sha256::digest(text).into()
    }
}

/// What a rank brings to a meeting.
#[derive(Default)]
struct Held {
    /// The job whose variables it holds.
    job_id: Option<String>,
    state: Option<State>,
    /// Of rank 0.
    incarnation: u64,
    /// Of rank 0: there is nothing to do.
    ended: Option<String>,
}

/// The ranks have met.
struct Met {
    exchange: AllReduce,
    watcher: Option<Watcher>,
}

/// How a rank came to its end.
enum Ended {
    /// In order, at this step.
    At(u64),
    /// Without training: the reason.
    Left(String),
}

/// What a role does on its way; rank 0 has more to do than others.
trait Role {
    /// The ranks have met.
    fn met(&mut self, setup: &mut Setup, plan: &Plan, world: usize) -> Result<(), Error>;
    /// After each step.
    fn between(&mut self, trainer: &mut Trainer, exchange: &mut AllReduce);
    /// After the last one, before anybody leaves.
    fn last(&mut self, exchange: &mut AllReduce) -> Result<(), exchange::Error>;
    /// Others were lost.
    fn lost(&mut self, why: &str);
    /// Asked to stop while others are away: what is held is saved.
    fn saves(&mut self, options: book::Options, state: State) -> Result<(), Error>;
}

struct Member0<'a, 'b> {
    session: &'b mut Session<'a>,
    resumed: Option<coati_checkpoint::state::Latest>,
    begun: bool,
    last: Option<Checkpoint>,
    /// Where `coati status` looks, and when it was last written.
    job_dir: PathBuf,
    told: Option<Instant>,
}

impl Member0<'_, '_> {
    fn tell(&mut self, exchange: &mut AllReduce) -> Option<Checkpoint> {
        let events = exchange.take_events().into_iter();
        let newest = events.filter_map(|event| self.session.entry(event)).last();
        if newest.is_some() {
            self.last.clone_from(&newest);
        }
        newest
    }

    /// Writes down how far the job is, from time to time.
    fn note_progress(&mut self, exchange: &AllReduce) {
        if self.told.is_some_and(|told| told.elapsed() < PROGRESS) {
            return;
        }
        self.told = Some(Instant::now());
        if let Err(error) = exchange.progress().write(&self.job_dir) {
            tracing::debug!(%error, "the job's progress was not written");
        }
    }
}

impl Role for Member0<'_, '_> {
    fn met(&mut self, setup: &mut Setup, plan: &Plan, world: usize) -> Result<(), Error> {
        if std::mem::replace(&mut self.begun, true) {
            let text = format!(
                "all {world} ranks are here again: training goes on from step {}, which rank {} held; no step is lost",
                plan.version, plan.source
            );
            self.session.observer().note(&text);
            return Ok(());
        }
        if plan.survivors > 0 {
            let who = match plan.source {
                0 => "no rank held a newer one".to_owned(),
                source => format!("which rank {source} held"),
            };
            let text = format!("training goes on from step {}, {who}; no step is lost", plan.version);
            self.session.observer().note(&text);
        }
        let resumed = self.resumed.as_ref().filter(|_| plan.source == 0);
        let started = setup.started(plan.version, resumed, world as u32, 0);
        self.session.start(&started)
    }

    fn between(&mut self, trainer: &mut Trainer, exchange: &mut AllReduce) {
        if let Some(checkpoint) = self.tell(exchange) {
            self.session.evaluate_if_due(trainer.ssd(), &checkpoint);
        }
        self.note_progress(exchange);
    }

    fn last(&mut self, exchange: &mut AllReduce) -> Result<(), exchange::Error> {
        let saved = exchange.save();
        self.tell(exchange);
        saved
    }

    fn lost(&mut self, why: &str) {
        self.session.warn(why);
    }

    fn saves(&mut self, options: book::Options, state: State) -> Result<(), Error> {
        let mut book = Book::new(options, Start::State(state)).map_err(Error::job)?;
        let saved = book.save();
        for event in book.take_events() {
            self.session.entry(event);
        }
        saved.map_err(Error::job)
    }
}

struct Other;

impl Role for Other {
    fn met(&mut self, _: &mut Setup, plan: &Plan, _: usize) -> Result<(), Error> {
        tracing::info!(step = plan.version, "training");
        Ok(())
    }

    fn between(&mut self, _: &mut Trainer, exchange: &mut AllReduce) {
        exchange.take_events();
    }

    fn last(&mut self, _: &mut AllReduce) -> Result<(), exchange::Error> {
        Ok(())
    }

    fn lost(&mut self, why: &str) {
        tracing::warn!("{why}");
    }

    fn saves(&mut self, _: book::Options, _: State) -> Result<(), Error> {
        Ok(())
    }
}

impl Ranks {
    /// Meets the others and begins with what the newest of them holds.
    fn begin(
        &self,
        options: &Options,
        setup: &mut Setup,
        held: &mut Held,
        limit: Duration,
    ) -> Result<(Plan, Option<Met>), Trouble> {
        let digest = self.digest(options, setup);
        let device = setup.trainer.ssd().device();
        let mut host = self.meet(Purpose::Gradients, digest, limit, &options.stop)?;
        let hello = Hello {
            job_id: held.job_id.clone(),
            version: held.state.as_ref().map_or(0, |state| state.store.version),
            data: held.state.as_ref().map(|state| state.data.clone()).unwrap_or_default(),
            incarnation: held.incarnation,
            ended: held.ended.clone(),
            device: device.to_string(),
            precision: setup.trainer.ssd().arithmetic().precision().to_string(),
        };
        let hellos: Vec<Hello> = notes::decode(&host.all_gather(&notes::encode(&hello))?)?;
        let plan = notes::decide(&hellos)?;
        if plan.ended.is_some() {
            host.close()?;
            return Ok((plan, None));
        }
        let store = meeting::share(host.as_mut(), plan.source, held.state.as_ref())?;
        let saved = held.state.as_ref().and_then(|state| state.saved);
        let state = State {
            saved: saved.filter(|saved| *saved == store.version),
            data: plan.data.clone(),
            store,
        };
        let joined = meeting::on_device(host, device)?;
        let watcher = self.synchronise(setup, digest, limit, &options.stop)?;
        let job = JobRef {
            job_id: plan.job_id.clone(),
            incarnation: plan.incarnation,
        };
        let book = Book::new(
            setup.book_options(options, job, self.world() as u32),
            Start::State(state),
        );
        let mut book = book.map_err(|error| Trouble::Refused(error.to_string()))?;
        held.job_id = Some(plan.job_id.clone());
        let stop = options.stop.clone();
        let exchange = match joined {
            Joined::Host(communicator) => {
                // Longer than the communicator's own wait, which knows who is missing.
                let timeout = OPERATION + Duration::from_secs(60);
                AllReduce::new(book, communicator, self.form(), timeout, stop)?
            }
            Joined::Gpus(mut gpus) => {
                let summing = Summing {
                    bucket_bytes: self.bucket_bytes,
                    bf16: self.wire == Wire::Bf16,
                };
                let there = setup.trainer.reside(&mut book, Some(summing));
                let there = there.and_then(|there| there.ok_or_else(|| exchange::Error::new("no accelerator")));
                let resident = there.map_err(|error| {
                    gpus.abort(&Trouble::final_reason(&error.to_string()));
                    Trouble::Gpu(error.to_string())
                })?;
                AllReduce::on_device(book, gpus, resident, stop)?
            }
        };
        Ok((plan, Some(Met { exchange, watcher })))
    }

    /// Where batch norm wants everybody's statistics, the ranks meet a second time.
    fn synchronise(
        &self,
        setup: &mut Setup,
        digest: [u8; 32],
        limit: Duration,
        stop: &StopFlag,
    ) -> Result<Option<Watcher>, Trouble> {
        let ssd = setup.trainer.ssd();
        if !ssd.is_synchronised() {
            return Ok(None);
        }
        let (statistics, watcher) = Statistics::new(self.meet(Purpose::Statistics, digest, limit, stop)?);
        if ssd.set_together(Some(Box::new(statistics))) {
            return Ok(Some(watcher));
        }
        Err(Trouble::Setting {
            what: "sync_batch_norm does not go with precision fp16".to_owned(),
            hint: "choose --precision bf16 or float32, or write batch_norm",
        })
    }

    /// Trains until the job ends; meets again when others were lost.
    fn take_part(
        &self,
        options: &Options,
        setup: &mut Setup,
        held: &mut Held,
        role: &mut impl Role,
    ) -> Result<Ended, Error> {
        let mut away: Option<Instant> = None;
        loop {
            let limit = match away {
                None => self.limits.formation.max(FORMATION),
                Some(since) => self.limits.rejoin.saturating_sub(since.elapsed()),
            };
            let cut_off = match self.begin(options, setup, held, limit.max(PAUSE)) {
                Err(Trouble::Stopped) => String::new(),
                Err(error) if error.is_refusal() => return Err(Error::User(error.for_people())),
                Err(error) if error.is_final() => return Err(Error::Job(error.for_people())),
                Err(error @ Trouble::NeverCame { .. }) => return Err(Error::Job(error.to_string())),
                Err(error) => error.to_string(),
                Ok((plan, None)) => return Ok(Ended::Left(plan.ended.unwrap_or_default())),
                Ok((plan, Some(Met { mut exchange, watcher }))) => {
                    role.met(setup, &plan, self.world())?;
                    let first = exchange.version();
                    let ended = self.train(options, setup, &mut exchange, first, role);
                    let trouble = watcher.as_ref().and_then(|watcher| watcher.trouble.take());
                    let ended = match trouble {
                        Some(error) if ended.is_err() => Err(exchange.trouble(&error).into()),
                        _ => ended,
                    };
                    match ended {
                        Ok(()) => {
                            setup.trainer.ssd().set_together(None);
                            return Ok(Ended::At(exchange.version()));
                        }
                        Err(replica::Error::Exchange(exchange::Error::CutOff(reason))) => {
                            if exchange.version() > first {
                                away = None;
                            }
                            setup.trainer.ssd().set_together(None);
                            let (state, hanging) = exchange.into_state().map_err(Error::job)?;
                            held.state = Some(state);
                            if !options.stop.raised() {
                                self.replace(&hanging);
                            }
                            reason
                        }
                        Err(error) => {
                            // Another start of this rank would fail in the same way: all ranks end.
                            exchange.abort_for_good(&error.to_string());
                            if let Some(watcher) = &watcher {
                                watcher.aborter.abort(&Trouble::final_reason(&error.to_string()));
                            }
                            return Err(Error::job(error));
                        }
                    }
                }
            };
            if options.stop.raised() {
                return self.stopped(options, setup, held, role);
            }
            let since = *away.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.limits.rejoin {
                return Err(Error::Job(format!(
                    "{cut_off}\nhint: the ranks could not meet again for {:.0} s; look into their logs",
                    since.elapsed().as_secs_f64()
                )));
            }
            let what = cut_off.split("\nhint: ").next().unwrap_or_default();
            role.lost(&format!("{what}\nwaiting for all ranks to come again"));
            std::thread::sleep(PAUSE);
        }
    }

    /// From one meeting to the end of the job.
    fn train(
        &self,
        options: &Options,
        setup: &mut Setup,
        exchange: &mut AllReduce,
        first: u64,
        role: &mut impl Role,
    ) -> Result<(), replica::Error> {
        let loader = setup
            .loader()
            .map_err(|error| exchange::Error::Failed(error.to_string()))?;
        let ended = replica::train(
            &mut setup.trainer,
            &loader,
            exchange,
            first,
            &options.stop,
            &mut |trainer, exchange| {
                role.between(trainer, exchange);
                Ok(())
            },
        )?;
        match ended {
            End::Finished => exchange.activity("leaving"),
            End::Left(reason) => tracing::info!(reason, rank = self.rank(), "leaving"),
        }
        role.last(exchange)?;
        Ok(exchange.close()?)
    }

    /// Nobody comes any more: what is held is written down.
    fn stopped(
        &self,
        options: &Options,
        setup: &mut Setup,
        held: &mut Held,
        role: &mut impl Role,
    ) -> Result<Ended, Error> {
        let Some(state) = held.state.take() else {
            return Ok(Ended::Left(STOPPED.to_owned()));
        };
        let version = state.store.version;
        let job = JobRef {
            job_id: held.job_id.clone().unwrap_or_default(),
            incarnation: held.incarnation,
        };
        let book = setup.book_options(options, job, self.world() as u32);
        if version > 0 {
            role.saves(book, state)?;
        }
        Ok(Ended::At(version))
    }

    /// Asks the launcher, if there is one, for other processes in place of those that hang.
    fn replace(&self, hanging: &[Member]) {
        for member in hanging {
            let request = Request::Restart {
                task: Self::task_of(member.rank).to_string(),
                pid: i32::try_from(member.pid).ok(),
                older_than_ms: None,
                reason: "it shows no sign of life".to_owned(),
            };
            match control::request(&self.model_dir, &request) {
                Ok(reply) => tracing::info!(?reply, "the launcher was asked for another process"),
                Err(error) => tracing::info!(%error, "no launcher replaces the process"),
            }
        }
    }
}

/// Runs rank 0: the master.
pub fn run_first(options: &Options, ranks: &Ranks, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let mut setup = Setup::open(options)?;
    let mut session = Session::new(options, observer)?;
    let first = setup.first_values_early(options)?;
    let job = open_job(options, session.observer())?;
    setup.input.keep_index(&options.model_dir);
    session.keep_index();
    let done = already_done(job.latest.as_ref(), setup.num_steps);
    let mut held = Held {
        job_id: Some(job.job.job_id.clone()),
        incarnation: job.job.incarnation,
        ended: done
            .as_ref()
            .map(|summary| format!("the job is at step {} already", summary.step)),
        state: None,
    };
    if done.is_none() {
        let values;
        let start = if let Some(latest) = &job.latest {
            Start::Checkpoint {
                prefix: &latest.prefix,
                step: latest.step,
                data: resume_point(latest)?,
            }
        } else {
            let first = first.map_or_else(|| setup.first_values(options), Ok)?;
            first.tell(options, session.observer());
            values = first.values;
            Start::Values(&values)
        };
        let book = setup.book_options(options, job.job.clone(), ranks.world() as u32);
        let mut state = Book::new(book, start)
            .and_then(|book| book.state())
            .map_err(Error::job)?;
        state.saved = job.latest.as_ref().map(|latest| latest.step);
        held.state = Some(state);
    }
    let mut role = Member0 {
        session: &mut session,
        resumed: job.latest.clone(),
        begun: false,
        last: None,
        job_dir: coati_storage::local_side(&options.model_dir),
        told: None,
    };
    let ended = ranks.take_part(options, &mut setup, &mut held, &mut role)?;
    let (begun, last) = (role.begun, role.last.take());
    if let Some(summary) = done {
        session.nothing_to_do(&summary, setup.num_steps);
        return Ok(Outcome::Completed(summary));
    }
    let interrupted = match ended {
        Ended::At(version) => version < setup.num_steps,
        Ended::Left(_) => true,
    };
    if !begun {
        let summary = already_done(job.latest.as_ref(), 0).unwrap_or_default();
        return Ok(Outcome::Interrupted(summary, STOPPED.to_owned()));
    }
    if let Some(last) = last.filter(|_| !interrupted) {
        session.evaluate(setup.trainer.ssd(), &last);
    }
    let summary = session.finish();
    Ok(if interrupted {
        Outcome::Interrupted(summary, STOPPED.to_owned())
    } else {
        Outcome::Completed(summary)
    })
}

/// Runs any other rank until the job ends.
pub fn run_other(options: &Options, ranks: &Ranks) -> Result<(), Error> {
    let mut setup = Setup::open(options)?;
    let mut held = Held::default();
    let ended = ranks.take_part(options, &mut setup, &mut held, &mut Other)?;
    match ended {
        Ended::At(step) => tracing::info!(step, "the job is complete"),
        Ended::Left(reason) => tracing::info!(reason, "leaving"),
    }
    Ok(())
}
