use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use coati_param_server::service;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::{compression, group, tag};
use crate::args::{BenchPsArgs, BenchTaskArgs};
use crate::console::report;

/// A process of this benchmark, which reads orders and answers each with a line. Killed when dropped.
pub(super) struct Child {
    process: std::process::Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub(super) fn start(arguments: &[String]) -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "task"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process")?;
        let orders = process.stdin.take().context("no stdin")?;
        let answers = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        Ok(Self {
            process,
            orders,
            answers,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn tell(&mut self, order: &str) -> anyhow::Result<()> {
        writeln!(self.orders, "{order}").context("a process of the benchmark ended early")
    }

    pub(super) fn hear(&mut self) -> anyhow::Result<String> {
        let line = self.answers.next().context("a process of the benchmark ended early")?;
        Ok(line?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// User and system seconds of processes so far, all threads, also those that have ended.
pub(super) fn cpu_of(processes: &[u32]) -> anyhow::Result<f64> {
    let mut sum = Duration::ZERO;
    for &process in processes {
        let clock = clock_getcpuclockid(Pid::from_raw(process.cast_signed()))
            .with_context(|| format!("the CPU clock of process {process}"))?;
        sum += Duration::from(clock_gettime(clock)?);
    }
    Ok(sum.as_secs_f64())
}

pub(super) fn servers(count: u32, credentials: &[String]) -> anyhow::Result<(Vec<Child>, Vec<String>)> {
    let mut children = Vec::new();
    let mut addresses = Vec::new();
    for index in 0..count {
        let mut child = Child::start(&[&["server".to_owned(), format!("--index={index}")], credentials].concat())?;
        addresses.push(child.hear()?);
        children.push(child);
    }
    Ok((children, addresses))
}

pub(super) fn workers(
    arguments: &BenchPsArgs,
    addresses: &[String],
    credentials: &[String],
) -> anyhow::Result<Vec<Child>> {
    (0..arguments.workers)
        .map(|index| {
            let own = [
                "worker".to_owned(),
                format!("--index={index}"),
                format!("--megabytes={}", arguments.megabytes),
                format!("--gradients={}", arguments.gradients),
                format!("--weights={}", arguments.weights),
                format!("--addresses={}", addresses.join(",")),
            ];
            let mut child = Child::start(&[&own, credentials].concat())?;
            child.hear()?;
            Ok(child)
        })
        .collect()
}

/// A server as `coati train` runs it.
pub(super) fn serve(index: u32) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let handle = service::serve(service::Options::new(index, "127.0.0.1:0")).await?;
        report(&handle.address().to_string());
        handle.ended().await;
        Ok(())
    })
}

/// A worker's connections, threads and vectors, without what it computes.
pub(super) fn work(arguments: &BenchTaskArgs, limit: Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let group = runtime.block_on(group(arguments.megabytes, &arguments.addresses))?;
    let group = group.with_compression(compression(arguments));
    let mut variables = vec![0.0f32; group.layout().flat_len()];
    let gradients = (0..variables.len()).map(|i| (i % 1000) as f32 * 1e-6);
    let gradients = Arc::new(gradients.collect::<Vec<_>>());
    report("ready");
    for order in std::io::stdin().lines() {
        let order = order?;
        let Some((what, version)) = order.split_once(' ') else {
            bail!("not an order: {order}");
        };
        let version = version.parse()?;
        if what == "pull" {
            runtime.block_on(group.pull(version, limit, &mut variables))?;
        } else {
            runtime.block_on(group.push_shared(tag(arguments.index, version), &gradients, limit))?;
        }
        report("done");
    }
    Ok(())
}
