//! What parameter servers move: no model. Each client pulls all variables and pushes a gradient for all, in a loop;
//! servers and clients are processes of their own on loopback. Every contribution is committed (momentum), either one by
//! one as it comes (`async`) or all clients' together (`sync`).
//!
//!     cargo run --release -p coati-param-server --example goodput -- [--clients 2] [--servers 3] [--megabytes 100]
//!
//! Prints MB/s pulled plus pushed over all clients (MB = 10^6 bytes), CPU seconds a GB over all processes, and what the
//! servers hold and occupy in memory. With `COATI_CREDENTIALS=FOLDER` everything goes through TLS. Compare with TensorFlow's parameter servers on the same machine.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its purpose")]

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use coati_common::rpc::security::Sources;
use coati_common::variables::{VariableKind, VariableSpec, flat_elements};
use coati_param_server::service::{Options, serve};
use coati_param_server::{Contributor, PsGroup, Strategy, Tag, plan};
use coati_proto::coati::v1::JobRef;
use coati_proto::object_detection::protos;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, stdin};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    Sync,
    Async,
}

#[derive(Clone, Debug, Parser)]
struct Arguments {
    #[arg(long, default_value_t = 2)]
    clients: u32,
    #[arg(long, default_value_t = 3)]
    servers: u32,
    #[arg(long, default_value_t = 50)]
    variables: usize,
    /// All variables together.
    #[arg(long, default_value_t = 100.0)]
    megabytes: f64,
    #[arg(long, value_enum, default_value_t = Mode::Async)]
    mode: Mode,
    /// Length of a window.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    windows: u32,
    /// Threads of each process.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Internal: be server number N.
    #[arg(long, hide = true)]
    serve: Option<u32>,
    /// Internal: be client number N of the servers at these addresses.
    #[arg(long, hide = true)]
    client: Option<u32>,
    #[arg(long, hide = true, value_delimiter = ',')]
    addresses: Vec<String>,
}

impl Arguments {
    fn specs(&self) -> Vec<VariableSpec> {
        let rows = (self.megabytes * 1e6 / 4.0 / self.variables as f64 / 100.0) as i64;
        (0..self.variables)
            .map(|i| VariableSpec {
                name: format!("v{i}"),
                shape: vec![rows, 100],
                kind: VariableKind::Trainable,
            })
            .collect()
    }

    fn job() -> JobRef {
        JobRef {
            job_id: "goodput".into(),
            incarnation: 1,
        }
    }

    async fn group(&self) -> anyhow::Result<PsGroup> {
        let placement = plan(&self.specs(), self.addresses.len() as u32, Strategy::Balanced)?;
        Ok(PsGroup::connect(placement, &self.addresses, &Self::job(), LIMIT).await?)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Children inherit it.
    if let Some(folder) = std::env::var_os("COATI_CREDENTIALS") {
        let sources = Sources::of_folder(folder.into());
        sources.make()?;
        sources.load(LIMIT)?.install();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads)
        .enable_all()
        .build()?;
    match (arguments.serve, arguments.client) {
        (Some(index), _) => runtime.block_on(server(index)),
        (_, Some(index)) => runtime.block_on(client(&arguments, index)),
        _ => runtime.block_on(measure(arguments)),
    }
}

async fn server(index: u32) -> anyhow::Result<()> {
    let handle = serve(Options::new(index, "127.0.0.1:0")).await?;
    println!("{}", handle.address());
    handle.ended().await;
    Ok(())
}

/// Says `sequence version` after each push and waits for a line before the next pull.
async fn client(arguments: &Arguments, index: u32) -> anyhow::Result<()> {
    let group = arguments.group().await?;
    let mut flat = vec![0.0f32; group.layout().flat_len()];
    let mut gradient = vec![0.0f32; flat.len()];
    let mut answers = BufReader::new(stdin()).lines();
    for sequence in 1.. {
        let Some(answer) = answers.next_line().await? else {
            break;
        };
        let version = group.pull(answer.trim().parse()?, LIMIT, &mut flat).await?;
        for (gradient, value) in gradient.iter_mut().zip(&flat) {
            *gradient = value * 1e-6;
        }
        group
            .push(
                Tag {
                    replica: index,
                    sequence,
                    version,
                },
                &gradient,
                LIMIT,
            )
            .await?;
        println!("{sequence} {version}");
    }
    Ok(())
}

fn spawn(arguments: &[String], stdin: Stdio) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    Ok(command.spawn()?)
}

/// User and system seconds of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or("");
    let ticks: f64 = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

struct Pushed {
    client: u32,
    sequence: u64,
}

async fn measure(mut arguments: Arguments) -> anyhow::Result<()> {
    let mut processes = Vec::new();
    for index in 0..arguments.servers {
        let own = [
            "--serve".into(),
            index.to_string(),
            "--threads".into(),
            arguments.threads.to_string(),
        ];
        let mut child = spawn(&own, Stdio::null())?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        arguments
            .addresses
            .push(lines.next_line().await?.context("a server ended")?);
        processes.push(child);
    }
    let group = arguments.group().await?;
    let optimizer = protos::Optimizer {
        optimizer: Some(protos::optimizer::Optimizer::MomentumOptimizer(
            protos::MomentumOptimizer {
                learning_rate: Some(protos::LearningRate {
                    learning_rate: Some(protos::learning_rate::LearningRate::ConstantLearningRate(
                        protos::ConstantLearningRate::default(),
                    )),
                }),
                momentum_optimizer_value: Some(0.9),
            },
        )),
        use_moving_average: Some(false),
        ..Default::default()
    };
    group.configure(optimizer.encode_to_vec().into(), 1000, LIMIT).await?;
    let elements = flat_elements(&arguments.specs());
    group.load(&vec![1.0; elements], 0, LIMIT).await?;

    let (pushed, mut pushes) = mpsc::channel(64);
    let mut answers: BTreeMap<u32, ChildStdin> = BTreeMap::new();
    for index in 0..arguments.clients {
        let own = [
            format!("--client={index}"),
            format!("--addresses={}", arguments.addresses.join(",")),
            format!("--threads={}", arguments.threads),
            format!("--variables={}", arguments.variables),
            format!("--megabytes={}", arguments.megabytes),
        ];
        let mut child = spawn(&own, Stdio::piped())?;
        let mut answer = child.stdin.take().context("no stdin")?;
        answer.write_all(b"0\n").await?;
        answers.insert(index, answer);
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let pushed = pushed.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Some((sequence, _)) = line.split_once(' ') else {
                    break;
                };
                let Ok(sequence) = sequence.parse() else { break };
                if pushed
                    .send(Pushed {
                        client: index,
                        sequence,
                    })
                    .await
                    .is_err()
                {
                    break;
                }
            }
        });
        processes.push(child);
    }

    let pids: Vec<u32> = processes
        .iter()
        .filter_map(Child::id)
        .chain([std::process::id()])
        .collect();
    let cpu = || pids.iter().map(|&pid| cpu_seconds(pid)).sum::<f64>();
    let gigabytes = 2.0 * elements as f64 * 4.0 / 1e9;
    let (mut version, mut waiting) = (0, BTreeMap::new());
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    // The first window is warm-up.
    for window in 0..=arguments.windows {
        let (start, cpu_before, mut done) = (Instant::now(), cpu(), 0u32);
        while start.elapsed().as_secs_f64() < arguments.seconds {
            let push = tokio::time::timeout(LIMIT, pushes.recv())
                .await?
                .context("a client ended")?;
            done += 1;
            waiting.insert(push.client, push.sequence);
            if arguments.mode == Mode::Sync && waiting.len() < arguments.clients as usize {
                continue;
            }
            let contributors: Vec<_> = waiting
                .iter()
                .map(|(&replica, &sequence)| Contributor {
                    replica,
                    sequence,
                    samples: 8,
                })
                .collect();
            let drop_others = arguments.mode == Mode::Sync;
            version = group.commit(version, &contributors, drop_others, LIMIT).await?.version;
            for client in std::mem::take(&mut waiting).into_keys() {
                let Some(answer) = answers.get_mut(&client) else {
                    bail!("unknown client {client}")
                };
                answer.write_all(format!("{version}\n").as_bytes()).await?;
            }
        }
        let moved = f64::from(done) * gigabytes;
        let (rate, cost) = (
            moved * 1000.0 / start.elapsed().as_secs_f64(),
            (cpu() - cpu_before) / moved,
        );
        eprintln!(
            "{}{rate:.0} MB/s, {cost:.2} CPU s/GB",
            if window == 0 { "warm-up: " } else { "" }
        );
        if window > 0 {
            rates.push(rate);
            costs.push(cost);
        }
    }
    rates.sort_by(f64::total_cmp);
    costs.sort_by(f64::total_cmp);
    println!("goodput {:.0} MB/s (median of {})", rates[rates.len() / 2], rates.len());
    println!("cpu {:.2} s/GB", costs[costs.len() / 2]);
    for client in group.clients() {
        let status = client.status(LIMIT).await?;
        let (held, resident) = (status.held_bytes as f64 / 1e6, status.resident_bytes as f64 / 1e6);
        println!(
            "{}: holds {held:.0} MB between steps, resident {resident:.0} MB",
            client.peer()
        );
    }
    group.shutdown("measured", LIMIT).await?;
    Ok(())
}
