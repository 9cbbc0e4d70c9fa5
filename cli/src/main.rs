//! The one binary `coati`.

mod args;
mod commands;
mod console;
mod failure;
mod memory;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::console::say;
use coati_common::invariants::{self, Invariant};

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::normalised(std::env::args_os()));
    log(cli.verbose);
    memory::keep_large_blocks();
    let outcome = match cli.command {
        Command::Train(args) => commands::train::run(&args, cli.verbose),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Detect(args) => commands::detect::run(&args),
        Command::Infer(args) => commands::infer::run(&args),
        Command::Status(args) => commands::status::run(&args),
        Command::Scale(args) => commands::scale::run(&args),
        Command::Check(args) => commands::check::run(&args),
        Command::Data(command) => commands::data::run(command),
        Command::Checkpoint(command) => commands::checkpoint::run(&command),
        Command::Metrics(command) => commands::metrics::run(&command),
        Command::Bench(command) => commands::bench::run(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", chain(&error)));
            let code = failure::exit_code(&error);
            let in_time = code != coati_common::exit::ExitCode::UserError || !invariants::trains();
            invariants::check(Invariant::RefusedBeforeTraining, in_time, || error.to_string());
            code.into()
        }
    }
}

/// The error and what it came from; causes whose text the error already holds are not said twice.
fn chain(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| {
            if text.contains(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
}

/// The variable that chooses what is logged, as `tracing_subscriber::EnvFilter` reads it.
const LOG_VARIABLE: &str = "COATI_LOG";

/// What a task of a cluster logs: its file holds it, so that there is something to read when it dies.
const TASK_LOG: &str = "coati=info,warn";

fn log(verbose: u8) {
    use std::io::IsTerminal as _;
    let level = match verbose {
        0 => "warn",
        1 => TASK_LOG,
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env(LOG_VARIABLE)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
