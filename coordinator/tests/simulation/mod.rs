//! Whole jobs on one thread with a clock and a network that a seed makes up: thousands of them in a minute.
//!
//! Everything but the network, the clock and the gradients is what real jobs run: the coordinator with its log and its
//! checkpoints, the servers with their stores, the clients with their retries. Hosts are killed, stopped, slowed down and cut
//! off; messages are lost, delayed, reordered and repeated. [`history`] says what must hold nevertheless. After the last
//! fault the job must come to its end.
//!
//! A seed that fails is printed with the end of what happened. `COATI_SIM_SEED=N` repeats one and prints everything,
//! `COATI_SIM_SEEDS=N` sets how many are tried, `COATI_SIM_FROM=N` the first one.

mod history;
mod job;
mod network;
mod replica;
mod scenario;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use job::{Report, Shared as _};
use scenario::Scenario;

/// So much of what happened is printed of a seed that failed.
const LAST: usize = 120;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// In memory, where there is such a folder: forcing files onto a disk would take most of the time.
fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("coati-simulation-");
    builder.tempdir_in(memory).or_else(|_| builder.tempdir()).unwrap()
}

fn simulate(seed: u64, tracing: bool) -> (Report, Vec<String>) {
    let (scenario, folder) = (Scenario::draw(seed), folder());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(job::run(seed, &scenario, folder.path(), tracing))
}

/// What is printed of a seed that failed.
fn story(seed: u64, last: usize) -> String {
    let (report, trace) = simulate(seed, true);
    let from = trace.len().saturating_sub(last);
    format!(
        "seed {seed}: {}\n{:#?}\n{}\nCOATI_SIM_SEED={seed} prints all of it",
        report.broken.unwrap_or_else(|| "everything holds".to_owned()),
        Scenario::draw(seed),
        trace[from..].join("\n")
    )
}

#[test]
fn whatever_goes_wrong_promises_hold_and_the_job_ends() {
    if let Some(seed) = setting("COATI_SIM_SEED") {
        println!("{}", story(seed, usize::MAX));
        assert_eq!(simulate(seed, false).0.broken, None);
        return;
    }
    let from = setting("COATI_SIM_FROM").unwrap_or(0);
    let count = setting("COATI_SIM_SEEDS").unwrap_or(if cfg!(debug_assertions) { 200 } else { 2000 });
    let (begun, next) = (Instant::now(), AtomicU64::new(from));
    let (calls, lost, coordinators) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || failed.held().len() >= 20 {
                        return;
                    }
                    let (report, _) = simulate(seed, false);
                    calls.fetch_add(report.calls, Ordering::Relaxed);
                    lost.fetch_add(report.steps_lost, Ordering::Relaxed);
                    coordinators.fetch_add(report.coordinators, Ordering::Relaxed);
                    if let Some(broken) = report.broken {
                        failed.held().push((seed, broken));
                    }
                }
            });
        }
    });
    println!(
        "{count} seeds in {:.1} s: {} calls, {} coordinators, {} steps made again after losing a server",
        begun.elapsed().as_secs_f64(),
        calls.into_inner(),
        coordinators.into_inner(),
        lost.into_inner()
    );
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    if let Some((seed, _)) = failed.first() {
        let others: Vec<String> = failed
            .iter()
            .map(|(seed, broken)| format!("seed {seed}: {broken}"))
            .collect();
        panic!("{}\n\n{}", story(*seed, LAST), others.join("\n"));
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in 0..30 {
        assert_eq!(simulate(seed, false), simulate(seed, false), "seed {seed}");
    }
}
