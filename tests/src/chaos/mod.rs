//! A real local cluster whose processes are killed and stopped again and again; at the end, what that cost.
//!
//! What is counted does not come from the job's own counters. The steps are those of its write-ahead log, read while it is
//! written; the records are those of these steps, put in order by the pure function of seed and epoch; and the final weights
//! are compared bit for bit with those that come out when exactly these steps are made again in one process, without
//! servers, network or coordinator.

pub mod audit;
pub mod fault;
pub mod log;
pub mod report;

mod cluster;
mod judge;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use coati_common::invariants;
use nix::sys::signal::Signal;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::{Cluster, Job, Process};
use audit::History;
use cluster::{Watch, send};
use fault::{Fault, Kind};
pub use judge::prove;
use log::{Entry, Follower};
pub use report::Report;

/// Folders in the job's own.
pub(crate) const MODEL: &str = "model";
pub(crate) const CALM: &str = "calm";

/// Everything must be whole again after so long, on a machine that is busy with other things, too.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);

/// Steps without a fault at the end: whatever came back from the dead is used by then.
const CALM_STEPS: u64 = 12;

/// How replicas work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each step is of all replicas that are there.
    Synchronous,
    /// Each step is of all replicas but the slowest.
    Backup,
    /// Each step is of one replica.
    Asynchronous,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// `sync_replicas` and `replicas_to_aggregate`
    pub mode: Mode,
    /// Faults.
    pub kills: u64,
    /// Of faults, weights and data.
    pub seed: u64,
    /// Workers beside the master.
    pub workers: u32,
    /// Parameter servers.
    pub servers: u32,
    /// `coati.replication`
    pub replication: u32,
    /// Kinds of tasks that faults hit: `master`, `worker`, `ps`.
    pub victims: Vec<String>,
    /// `coati.heartbeat_timeout`: silence after which a process is taken for dead.
    pub silence: Duration,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Whether the job's folder stays, whatever comes out. It stays if a promise is broken.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Synchronous,
            kills: 100,
            seed: 1,
            workers: 2,
            servers: 3,
            replication: 1,
            victims: ["master", "worker", "ps"].map(str::to_owned).to_vec(),
            silence: Duration::from_secs(3),
            save_every: 25,
            keep: false,
        }
    }
}

impl Options {
    fn tasks(&self) -> Vec<String> {
        let of = |kind: &str, count: u32| (0..count).map(|index| format!("{kind}-{index}")).collect::<Vec<_>>();
        let tasks = [
            vec!["master".to_owned()],
            of("worker", self.workers),
            of("ps", self.servers),
        ]
        .concat();
        let is_victim = |task: &String| {
            let kind = task.split('-').next().unwrap_or(task);
            self.victims.iter().any(|victim| victim == kind)
        };
        tasks.into_iter().filter(is_victim).collect()
    }

    fn cluster(&self) -> Cluster {
        let cluster = Cluster::new()
            .workers(self.workers)
            .servers(self.servers)
            .coati(&format!("heartbeat_timeout: {}ms", self.silence.as_millis()))
            .coati(&format!("heartbeat_interval: {}ms", self.silence.as_millis() / 6))
            // However often: what is looked for is not this limit.
            .coati("restart: {max: 1000000, window: 4s}");
        if self.replication == 0 {
            return cluster;
        }
        cluster.coati(&format!("replication: {}", self.replication))
    }
}

/// Disturbs a job; `say` hears what happens.
pub fn run(options: &Options, say: &mut dyn FnMut(&str)) -> Report {
    let begun = Instant::now();
    let mut job = Job::new();
    let aggregate = match options.mode {
        Mode::Backup => options.workers.max(1),
        Mode::Synchronous | Mode::Asynchronous => options.workers + 1,
    };
    configure(&job, options.mode, aggregate);
    job.cluster("cluster.yaml", &options.cluster());

    let mut report = Report {
        seed: options.seed,
        replication: options.replication,
        ..Report::default()
    };
    let follower = Follower::start(&job.path(MODEL));
    let running = train(&job, options, MODEL, u64::from(u32::MAX));
    let mut watch = Watch {
        job: &job,
        model: MODEL,
        follower: &follower,
        replicas: options.workers + 1,
        copies: options.replication > 0,
        announced: Vec::new(),
    };
    let disturbed = disturb(options, &mut watch, &mut report, say);
    let announced = std::mem::take(&mut watch.announced);
    let finished = disturbed.and_then(|()| end(&job, options, running, &follower));
    match finished {
        Ok(said) => {
            let entries = follower.finish();
            let history = audit::history(&entries, &announced);
            count(options, &history, &said, &mut report);
            say(&format!(
                "the job ended at step {}; the same without faults, and the proof",
                report.steps
            ));
            judge::judge(&job, options, &history, &mut report);
        }
        Err(problem) => report.findings.push(problem),
    }
    report.findings.extend(broken_invariants(&job.path(MODEL).join("logs")));
    report.seconds = begun.elapsed().as_secs_f64();
    if options.keep || !report.holds() {
        job.keep();
        say(&format!("everything is in {}", job.path("").display()));
    }
    report
}

/// A configuration for [`prove`], which reads the records in another folder than the job's, and for jobs whose length nobody
/// knows beforehand.
pub fn configure(job: &Job, mode: Mode, aggregate: u32) {
    let records = format!("\"{}/train", job.path("").display());
    let labels = format!("\"{}", job.path("shapes/label_map.pbtxt").display());
    let schedule = "cosine_decay_learning_rate { learning_rate_base: 0.04 total_steps: 100 warmup_learning_rate: 0.01 warmup_steps: 20 }";
    let synchronous = format!("sync_replicas: {}", mode != Mode::Asynchronous);
    let aggregate = format!("replicas_to_aggregate: {aggregate}");
    let changes = [
        ("sync_replicas: true", synchronous.as_str()),
        ("replicas_to_aggregate: 3", aggregate.as_str()),
        ("\"train", records.as_str()),
        ("\"shapes/label_map.pbtxt", labels.as_str()),
        (schedule, "constant_learning_rate { learning_rate: 0.01 }"),
    ];
    job.configure("pipeline.config", &changes);
}

fn train(job: &Job, options: &Options, model: &str, steps: u64) -> Process {
    let limit = WHOLE_LIMIT * u32::try_from(options.kills + 5).unwrap_or(u32::MAX);
    job.train(model, steps)
        .with(&format!(
            "--save_checkpoints_steps {} --seed {}",
            options.save_every, options.seed
        ))
        .cluster("cluster.yaml")
        .limit(limit)
        .start()
}

/// One fault after the other, each on a cluster that is whole.
fn disturb(
    options: &Options,
    watch: &mut Watch<'_>,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let tasks = options.tasks();
    let mut victims: BTreeMap<String, u64> = BTreeMap::new();
    // The coordinator, the servers and the replicas have to start.
    let first = |entries: &[Entry]| {
        entries
            .iter()
            .any(|entry| matches!(entry, Entry::Step { .. }))
            .then_some(())
    };
    if watch.follower.find(0, Instant::now() + WHOLE_LIMIT, first).is_none() {
        return Err(format!("no step within {:.0} s", WHOLE_LIMIT.as_secs_f64()));
    }
    watch.until_whole(None, WHOLE_LIMIT)?;
    for number in 1..=options.kills {
        let Some(fault) = fault::next(&mut random, &tasks, options.silence) else {
            break;
        };
        watch.steps(fault.steps, WHOLE_LIMIT)?;
        let name = format!("{number}/{}: {} {}", options.kills, fault.victim, fault.kind);
        let took = inflict(&fault, watch).map_err(|problem| format!("after {name}: {problem}"))?;
        say(&format!("{name}; whole again after {:.1} s", took.as_secs_f64()));
        *victims.entry(fault.victim).or_default() += 1;
        report.faults[match fault.kind {
            Kind::Kill { .. } => 0,
            Kind::Pause(_) => 1,
            Kind::Hang => 2,
        }] += 1;
        report.recovery.push(took.as_secs_f64());
    }
    report.recovery.sort_by(f64::total_cmp);
    report.victims = victims.into_iter().collect();
    watch.steps(CALM_STEPS, WHOLE_LIMIT)
}

/// Does it, and waits until nothing is to be seen of it any more; how long that took.
fn inflict(fault: &Fault, watch: &mut Watch<'_>) -> Result<Duration, String> {
    let name = fault.victim.as_str();
    let mut victim = watch.process(name).ok_or_else(|| format!("{name} has no process"))?;
    std::thread::sleep(fault.delay);
    let begun = Instant::now();
    let (signal, replaced) = match fault.kind {
        Kind::Kill { .. } => (Signal::SIGKILL, true),
        Kind::Hang => (Signal::SIGSTOP, true),
        Kind::Pause(_) => (Signal::SIGSTOP, false),
    };
    if !send(victim, signal) {
        return Err(format!("process {} ended by itself", victim.pid));
    }
    if let Kind::Pause(time) = fault.kind {
        std::thread::sleep(time);
        // It may have been found and replaced by now.
        let _ = send(victim, Signal::SIGCONT);
    }
    if let Kind::Kill { again } = fault.kind {
        for _ in 0..again {
            victim = watch.successor(name, victim, WHOLE_LIMIT)?;
            // It may be anywhere between its first instruction and its first step.
            std::thread::sleep(fault.delay);
            send(victim, Signal::SIGKILL);
        }
    }
    let replaced = replaced.then_some((name, victim));
    watch.until_whole(replaced, WHOLE_LIMIT)?;
    Ok(begun.elapsed())
}

/// Stops the job in order, lets the same command go on for an epoch to the end of its steps; everything that was said.
fn end(job: &Job, options: &Options, running: Process, follower: &Follower) -> Result<String, String> {
    running.signal(Signal::SIGTERM);
    // Panics if anybody is left behind.
    let stopped = running.finish();
    if stopped.code() != Some(130) {
        return Err(format!("it did not stop in order: {stopped}"));
    }
    let made = audit::history(&follower.entries(), &[]).steps.len() as u64;
    let ended = train(job, options, MODEL, made + CALM_STEPS).finish();
    if ended.code() != Some(0) {
        return Err(format!("it did not go on to its end: {ended}"));
    }
    Ok(stopped.stderr + "\n" + &ended.stderr)
}

/// Lines of the tasks' logs that tell of something that must hold and did not.
fn broken_invariants(logs: &Path) -> Vec<String> {
    let files = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let logs = files.filter_map(|file| Some((file.file_name(), std::fs::read_to_string(file.path()).ok()?)));
    logs.flat_map(|(name, text)| {
        let lines = text.lines().filter(|line| line.contains(invariants::WORDS));
        let named = lines.map(|line| format!("{}: {line}", name.display()));
        named.collect::<Vec<_>>()
    })
    .collect()
}

/// What the log says, beside what the job said.
fn count(options: &Options, history: &History, said: &str, report: &mut Report) {
    report.steps = history.steps.len() as u64;
    report.findings.extend(history.contradictions.iter().cloned());
    let told: u64 = said.lines().filter_map(told_to_be_lost).sum();
    if options.replication > 0 {
        report.steps_lost = history.undone;
        return;
    }
    report.steps_made_again = history.undone;
    // Of each time that it went back, the job may count a step that was decided and not committed, or not count it.
    let differ = told.abs_diff(history.undone);
    if differ > history.went_back {
        report.steps_lost = history.undone.saturating_sub(told);
        report.findings.push(format!(
            "the job said that {told} steps were lost and made again; its log says {}",
            history.undone
        ));
    }
}

/// `…: going back from step 57 to step 50; 7 step(s) are lost and made again`
fn told_to_be_lost(line: &str) -> Option<u64> {
    let (_, told) = line.split_once("going back from step ")?;
    let (_, told) = told.split_once("; ")?;
    told.split(' ').next()?.parse().ok()
}
