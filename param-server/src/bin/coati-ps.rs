//! `coati-ps`: one parameter server, for hosts without libtorch.

#![allow(clippy::doc_markdown, reason = "the texts of --help are read without Markdown")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use coati_common::rpc::security::Sources;
use coati_param_server::service::{self, Ended};

/// Serves one parameter server of a Coati job until the job's coordinator tells it to leave.
#[derive(Debug, Parser)]
#[command(name = "coati-ps", version)]
struct Arguments {
    /// Address to listen on, host:port; port 0 picks a free one. Default: this task's address in TF_CONFIG.
    #[arg(long)]
    listen: Option<String>,
    /// Number of this parameter server within the cluster. Default: from TF_CONFIG, else 0.
    #[arg(long)]
    index: Option<u32>,
    /// Folder with the job's certificates and token: `<model_dir>/tls` of the job, or a copy of it.
    #[arg(long, env = "COATI_CREDENTIALS", value_name = "FOLDER")]
    credentials: Option<PathBuf>,
    /// `off` where the cluster file has `coati: security: {tls: off}`.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    tls: Switch,
    /// Leave after so many seconds without a call.
    #[arg(long, default_value_t = 120)]
    orphan_timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// The job's first task makes the folder, which may be later than this.
const CREDENTIALS: Duration = Duration::from_secs(60);

/// The part of TF_CONFIG that a parameter server needs.
#[derive(serde::Deserialize)]
struct TfConfig {
    #[serde(default)]
    cluster: std::collections::HashMap<String, Vec<String>>,
    task: TfTask,
}

#[derive(serde::Deserialize)]
struct TfTask {
    r#type: String,
    #[serde(default)]
    index: u32,
}

fn from_environment() -> anyhow::Result<Option<(u32, Option<String>)>> {
    let Ok(text) = std::env::var("TF_CONFIG") else {
        return Ok(None);
    };
    let config: TfConfig = serde_json::from_str(&text).context("TF_CONFIG is not what it should be")?;
    anyhow::ensure!(
        config.task.r#type == "ps",
        "TF_CONFIG gives this process the role {}, coati-ps is a parameter server (ps)\nhint: use `coati train` here",
        config.task.r#type
    );
    let addresses = config.cluster.get("ps").map_or(&[][..], Vec::as_slice);
    Ok(Some((
        config.task.index,
        addresses.get(config.task.index as usize).cloned(),
    )))
}

fn options(arguments: Arguments) -> anyhow::Result<service::Options> {
    let environment = if arguments.listen.is_some() {
        None
    } else {
        from_environment()?
    };
    let (index, address) = environment.unwrap_or((0, None));
    let listen = arguments
        .listen
        .or(address)
        .context("no address to listen on\nhint: give --listen host:port, or TF_CONFIG with this task's address")?;
    let folder = arguments.credentials.context(
        "no credentials of the job\nhint: give --credentials <model_dir>/tls, the folder that the job's first task makes",
    )?;
    let sources = Sources {
        tls: arguments.tls == Switch::On,
        ..Sources::of_folder(folder)
    };
    sources.load(CREDENTIALS)?.install();
    let mut options = service::Options::new(arguments.index.unwrap_or(index), listen);
    options.orphan_timeout = Duration::from_secs(arguments.orphan_timeout.max(1));
    Ok(options)
}

async fn run(options: service::Options) -> anyhow::Result<Ended> {
    let handle = service::serve(options).await?;
    let signalled = handle.clone();
    tokio::spawn(async move {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminate.recv() => {}
        }
        signalled.shutdown();
        std::io::Result::Ok(())
    });
    Ok(handle.ended().await)
}

#[allow(clippy::print_stderr, reason = "the last word before the exit code")]
fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    let ended = options(Arguments::parse()).and_then(|options| {
        let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
        runtime.block_on(run(options))
    });
    match ended {
        Ok(Ended::Told(_) | Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::Orphaned(silence)) => {
            eprintln!("error: no call for {} s: the job is gone", silence.as_secs());
            ExitCode::FAILURE
        }
        Ok(Ended::Failed(why)) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
