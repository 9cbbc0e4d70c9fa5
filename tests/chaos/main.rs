//! Kills and stops the processes of a real local cluster again and again, and counts what that costs: see `scripts/chaos`.

use std::panic;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coati_tests::chaos::{self, Mode, Options};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Consistency {
    /// Each step is of all replicas that are there.
    Synchronous,
    /// Each step is of all replicas but the slowest.
    Backup,
    /// Each step is of one replica.
    Asynchronous,
}

/// Kills (SIGKILL) or stops (SIGSTOP) random processes of a local cluster that trains a small model, and prints what was lost.
///
/// Exits with 0 if no committed step and no record was lost, no record was used twice, and nothing else was found amiss.
#[derive(Debug, Parser)]
#[command(name = "coati-chaos", rename_all = "snake_case")]
struct Args {
    /// How many processes to kill or stop, one after the other.
    #[arg(long, value_name = "N", default_value_t = 100)]
    kills: u64,
    /// Of the faults, the weights and the data.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How replicas work together.
    #[arg(long, value_enum, default_value_t = Consistency::Synchronous)]
    consistency: Consistency,
    /// Workers beside the master.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=16))]
    workers: u32,
    /// Parameter servers; an odd number.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    servers: u32,
    /// `coati.replication`: 0 lets the job go back to its last checkpoint when it loses a parameter server.
    #[arg(long, value_name = "N", default_value_t = Options::default().replication)]
    replication: u32,
    /// Whom to hit.
    #[arg(long, value_name = "KINDS", value_delimiter = ',', default_values = ["master", "worker", "ps"], value_parser = ["master", "worker", "ps"])]
    victims: Vec<String>,
    /// Seconds of silence after which a process is taken for dead.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    silence: f64,
    /// Steps between checkpoints.
    #[arg(long, value_name = "N", default_value_t = Options::default().save_every, value_parser = clap::value_parser!(u64).range(1..))]
    save_checkpoints_steps: u64,
    /// Keep the job's folder.
    #[arg(long)]
    keep: bool,
    /// Of the result on standard output.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[allow(clippy::print_stderr, reason = "progress goes to stderr")]
fn say(text: &str) {
    eprintln!("chaos: {text}");
}

#[allow(clippy::print_stdout, reason = "the result goes to stdout")]
fn main() -> ExitCode {
    let args = Args::parse();
    if !(0.5..=600.0).contains(&args.silence) {
        say(&format!(
            "error: --silence {} is not from 0.5 to 600 seconds",
            args.silence
        ));
        return ExitCode::from(2);
    }
    let options = Options {
        mode: match args.consistency {
            Consistency::Synchronous => Mode::Synchronous,
            Consistency::Backup => Mode::Backup,
            Consistency::Asynchronous => Mode::Asynchronous,
        },
        kills: args.kills,
        seed: args.seed,
        workers: args.workers,
        servers: args.servers,
        replication: args.replication,
        victims: args.victims,
        silence: Duration::from_secs_f64(args.silence),
        save_every: args.save_checkpoints_steps,
        keep: args.keep,
    };
    // The library that starts jobs panics when it cannot go on; its words are for people.
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let words = payload.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| payload.downcast_ref().copied());
        let words = words.unwrap_or("something went wrong");
        say(&format!("error: {words}"));
    }));
    let Ok(report) = panic::catch_unwind(|| chaos::run(&options, &mut say)) else {
        return ExitCode::FAILURE;
    };
    match args.format {
        Format::Text => println!("{report}"),
        Format::Json => println!("{}", report.json()),
    }
    if report.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
