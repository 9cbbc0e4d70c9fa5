//! Sums over ranks on this machine, beside what memory or a TCP stream allows for as many bytes.
//!
//! Ranks are processes. A round is: every rank moves the bytes that a ring's all-reduce would make it move, `2 (n - 1) / n` of the
//! bucket, from memory to memory (`shm`) or to the next rank through a plain stream (`tcp`), all at the same time; then all reduce. A
//! round counts from the barrier before it to the barrier after it, and CPU seconds are those of all ranks.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use coati_collective::shm::{DEFAULT_SLICE, Shared};
use coati_collective::tcp::{Mesh, Secret};
use coati_collective::{Communicator, Identity, Options, Part, Wire};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::spread;
use crate::console::report;

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(60);

/// Rounds before those that count: memory is touched, connections have their windows.
const WARM_UP: usize = 2;

#[derive(Clone, Debug, clap::Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub ranks: u32,
    /// Of float32 that are summed.
    #[arg(long, default_value_t = 100.0, value_parser = clap::builder::ValueParser::new(megabytes))]
    pub megabytes: f64,
    #[arg(long, default_value = "shm", value_parser = ["shm", "tcp"])]
    pub transport: String,
    /// Form in which elements travel.
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    pub wire: String,
    /// Over TCP's connections although all ranks are on one host, which otherwise exchange through Unix sockets.
    #[arg(long)]
    pub connections: bool,
    /// Sums memory of the process's own, which shared memory needs copies for.
    #[arg(long)]
    pub copied: bool,
    /// Measured for so long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Elements that a rank adds up at a time (shm).
    #[arg(long, default_value_t = DEFAULT_SLICE)]
    pub slice: usize,
    /// Internal: a process of this benchmark.
    #[arg(long, hide = true)]
    pub rank: Option<u32>,
    /// Internal: where ranks meet.
    #[arg(long, hide = true)]
    pub meet: Option<String>,
}

fn megabytes(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if (0.001..=8000.0).contains(&value) {
        Ok(value)
    } else {
        Err("0.001 to 8000 megabytes".to_owned())
    }
}

/// Killed when dropped.
struct Rank(Child);

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let (Some(rank), Some(meet)) = (arguments.rank, &arguments.meet) {
        return work(arguments, rank as usize, meet);
    }
    let meet = if arguments.transport == "shm" {
        let folder = ["/dev/shm", "/tmp"]
            .into_iter()
            .map(PathBuf::from)
            .find(|folder| folder.is_dir());
        let folder = folder.context("neither /dev/shm nor /tmp is there")?;
        folder
            .join(format!("coati-bench-{}", std::process::id()))
            .display()
            .to_string()
    } else {
        // Free a moment ago; rank 0 takes it.
        TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string()
    };
    let mut ranks = Vec::new();
    for rank in (0..arguments.ranks).rev() {
        let child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .args(["--rank", &rank.to_string(), "--meet", &meet])
            .stdout(if rank == 0 { Stdio::piped() } else { Stdio::null() })
            .spawn()
            .context("cannot start a rank")?;
        ranks.push(Rank(child));
    }
    let mut told = String::new();
    if let Some(out) = ranks.last_mut().and_then(|first| first.0.stdout.as_mut()) {
        out.read_to_string(&mut told)?;
    }
    for rank in &mut ranks {
        if !rank.0.wait()?.success() {
            bail!("a rank failed");
        }
    }
    report(told.trim());
    Ok(())
}

/// What a ring's bytes take without any sum.
enum Plain {
    Memory {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Stream {
        to: TcpStream,
        from: TcpStream,
        bytes: Vec<u8>,
        into: Vec<u8>,
    },
}

impl Plain {
    fn new(transport: &str, bytes: usize, ranks: &mut dyn Communicator) -> anyhow::Result<Self> {
        if transport == "shm" {
            return Ok(Self::Memory {
                from: vec![1; bytes],
                to: vec![2; bytes],
            });
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let all = ranks.all_gather(listener.local_addr()?.to_string().as_bytes())?;
        let next = &all[(ranks.rank() + 1) % ranks.world_size()];
        let to = TcpStream::connect(std::str::from_utf8(next)?.parse::<SocketAddr>()?)?;
        let from = listener.accept()?.0;
        from.set_read_timeout(Some(LIMIT))?;
        to.set_write_timeout(Some(LIMIT))?;
        let (bytes, into) = (vec![1; bytes], vec![2; bytes]);
        Ok(Self::Stream { to, from, bytes, into })
    }

    fn go(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Memory { from, to } => {
                to.copy_from_slice(from);
                std::hint::black_box(to);
                Ok(())
            }
            Self::Stream { to, from, bytes, into } => std::thread::scope(|scope| {
                let sent = scope.spawn(|| to.write_all(bytes));
                from.read_exact(into)?;
                sent.join().map_err(|_| anyhow::anyhow!("the sender died"))??;
                Ok(())
            }),
        }
    }
}

fn cpu() -> anyhow::Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?).as_secs_f64())
}

/// Seconds that passed for all ranks and CPU seconds of this one.
fn timed(
    ranks: &mut dyn Communicator,
    work: impl FnOnce(&mut dyn Communicator) -> anyhow::Result<()>,
) -> anyhow::Result<(f64, f64)> {
    ranks.barrier()?;
    let (begun, cpu_before) = (Instant::now(), cpu()?);
    work(ranks)?;
    let used = cpu()? - cpu_before;
    ranks.barrier()?;
    Ok((begun.elapsed().as_secs_f64(), used))
}

fn work(arguments: &Arguments, rank: usize, meet: &str) -> anyhow::Result<()> {
    let world = arguments.ranks as usize;
    let mut options = Options::new(Identity::here(rank, world, env!("CARGO_PKG_VERSION"), [0; 32]))?;
    (options.rendezvous_timeout, options.timeout) = (LIMIT, LIMIT);
    options.local_sockets = !arguments.connections;
    let mut ranks: Box<dyn Communicator> = if arguments.transport == "shm" {
        Box::new(Shared::join(meet.as_ref(), &options, arguments.slice)?)
    } else {
        // Between processes of one benchmark on one host there is nothing to keep secret.
        Box::new(Mesh::join(meet.parse()?, None, &Secret::new([0; 32]), &options)?)
    };
    let ranks = ranks.as_mut();
    let wire = if arguments.wire == "f32" { Wire::F32 } else { Wire::Bf16 };
    let count = (arguments.megabytes * 1e6 / 4.0) as usize;
    let moved = 2 * (world - 1) * count * 4 / world;
    let mut plain = Plain::new(&arguments.transport, moved, ranks)?;
    // Zeros stay zeros, however often they are summed. They lie where the transport sums fastest, as gradients do in training.
    let mut values: Part = if arguments.copied {
        vec![0.0_f32; count].into()
    } else {
        ranks.parts(&[count])?.swap_remove(0)
    };
    values.fill(0.0);
    let mut rounds = Vec::new();
    let begun = Instant::now();
    loop {
        let limit = timed(ranks, |_| plain.go())?;
        let ours = timed(ranks, |ranks| Ok(ranks.all_reduce(&mut values, wire)?))?;
        rounds.push((limit, ours));
        // Rank 0 decides for all.
        let over = begun.elapsed().as_secs_f64() >= arguments.seconds && rounds.len() >= WARM_UP + 5;
        let mut over = [f32::from(u8::from(over))];
        ranks.broadcast(0, &mut over)?;
        if over[0] != 0.0 {
            break;
        }
    }
    rounds.drain(..WARM_UP);
    let sum = |of: &dyn Fn(&((f64, f64), (f64, f64))) -> f64| rounds.iter().map(of).sum::<f64>();
    let mut used = [sum(&|round| round.0.1) as f32, sum(&|round| round.1.1) as f32];
    ranks.all_reduce_sum(&mut used, Wire::F32)?;
    ranks.close()?;
    if rank == 0 {
        let all = |of: &dyn Fn(&((f64, f64), (f64, f64))) -> f64| spread(&rounds.iter().map(of).collect::<Vec<_>>());
        let per_round = |used: f32| f64::from(used) / rounds.len() as f64;
        report(&serde_json::to_string(&json!({
            "bench": "allreduce", "ranks": world, "transport": arguments.transport, "wire": arguments.wire,
            "megabytes": count as f64 * 4.0 / 1e6, "rounds": rounds.len(), "slice": arguments.slice, "copied": arguments.copied, "connections": arguments.connections,
            "ring_mb_per_rank": moved as f64 / 1e6,
            "seconds": all(&|round| round.1.0),
            "plain_seconds": all(&|round| round.0.0),
            "of_plain": all(&|round| round.0.0 / round.1.0),
            "cpu_s": per_round(used[1]),
            "plain_cpu_s": per_round(used[0]),
        }))?);
    }
    Ok(())
}
