//! A replica on the simulated network: the client's code is the real one, gradients are made up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coati_coordinator::Client;
use coati_coordinator::client::{Directive, Error, calls_for_rejoining};
use coati_param_server::{PsGroup, Tag};
use coati_proto::coati::v1;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::time::Instant;

use super::history::{History, Made};
use super::job::{Shared, limits};
use super::network::address;
use super::scenario::{MASTER, Scenario, server};
use crate::cluster::identity;
use crate::replica::{Random, gradient, task};

/// Longest transfer.
const TRANSFER: Duration = Duration::from_secs(6);

/// Before joining again.
const PAUSE: Duration = Duration::from_millis(200);

/// Batches leased ahead in synchronous training, as real replicas do.
const RESERVE: u32 = 8;

/// How a replica's process ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The job is over.
    Done,
    /// It cannot go on; the launcher starts another one.
    Failed(String),
}

enum Stop {
    Done,
    CutOff(String),
    Failed(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error.job_ended() {
            Some(_) => Self::Done,
            None if error.calls_for_rejoining() => Self::CutOff(error.to_string()),
            None => Self::Failed(error.to_string()),
        }
    }
}

impl From<coati_param_server::client::Error> for Stop {
    fn from(error: coati_param_server::client::Error) -> Self {
        if error.rpc().is_some_and(calls_for_rejoining) {
            Self::CutOff(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

/// One process of a replica.
pub(crate) struct Replica {
    pub(crate) rank: u32,
    /// Its host's name on the network.
    pub(crate) host: String,
    /// How often the task was started before.
    pub(crate) start: u64,
    pub(crate) scenario: Scenario,
    /// How many times slower than it could be.
    pub(crate) slowness: Arc<AtomicU32>,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) random: Random,
}

impl Replica {
    /// Trains until the job ends, as often as it must join again; `worker::cluster` does the same.
    pub(crate) async fn run(mut self) -> End {
        let mut away: Option<Instant> = None;
        loop {
            let mut reached = false;
            let cut_off = match self.life(away.is_some(), &mut reached).await {
                Stop::Done => return End::Done,
                Stop::Failed(why) => return End::Failed(why),
                Stop::CutOff(why) => why,
            };
            if reached {
                away = None;
            }
            let since = *away.get_or_insert_with(Instant::now);
            if since.elapsed() >= limits().rejoin {
                return End::Failed(cut_off);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn life(&mut self, again: bool, reached: &mut bool) -> Stop {
        let limits = limits();
        let limit = if again { limits.rejoin } else { limits.formation };
        // At the first attempt, this is a failure; the launcher sees to the next one.
        let found = |stop| match stop {
            Stop::CutOff(why) if !again => Stop::Failed(why),
            stop => stop,
        };
        let joined = async {
            let master = address(&self.host, MASTER);
            let mut client = Client::join(
                &master,
                task(self.rank),
                // Processes of a task differ in their ids, which are the same for all in a simulation.
                &format!("{}-{}", self.host, self.start),
                &identity(),
                limit,
                limits.heartbeat_timeout,
            )
            .await
            .map_err(|error| found(error.into()))?;
            let plan = client.plan(limit * 2, |_| ()).await?;
            let servers: Vec<String> = (0..self.scenario.servers)
                .map(|index| address(&self.host, &server(index)))
                .collect();
            let placement = plan.placement.clone().unwrap_or_default();
            let servers = PsGroup::connect(placement, &servers, client.job(), limits.formation)
                .await
                .map_err(|error| found(error.into()))?
                .for_replica(plan.replica);
            Ok::<_, Stop>((client, plan, servers))
        };
        let (mut client, plan, servers) = match joined.await {
            Ok(joined) => joined,
            Err(stop) => return stop,
        };
        match self.steps(&mut client, &plan, &servers, reached).await {
            Ok(()) => Stop::Done,
            Err(Stop::Failed(why)) => {
                let _ = client.leave(true, &why).await;
                Stop::Failed(why)
            }
            Err(stop) => stop,
        }
    }

    async fn steps(
        &mut self,
        client: &mut Client,
        plan: &v1::JobPlan,
        servers: &PsGroup,
        reached: &mut bool,
    ) -> Result<(), Stop> {
        let mut flat = vec![0.0; servers.layout().flat_len()];
        let mut ahead: VecDeque<v1::BatchLease> = VecDeque::new();
        let (mut version, mut exhausted, mut sequence) = (plan.start_version, false, plan.first_sequence);
        loop {
            match client.directive() {
                Directive::Continue => {}
                Directive::Drain(_) => return Ok(()),
                Directive::Abort(why) => return Err(Stop::Failed(why)),
                Directive::Rejoin(why) => return Err(Stop::CutOff(why)),
            }
            if ahead.is_empty() && !exhausted {
                let wanted = if plan.synchronous { 1 + RESERVE } else { 1 };
                let (leases, no_more) = client.lease(self.rank, wanted).await?;
                ahead.extend(leases);
                exhausted = no_more;
            }
            let Some(lease) = ahead.pop_front() else { return Ok(()) };
            version = servers.pull(version, TRANSFER, &mut flat).await?;
            let gradient = gradient(&flat, &lease, self.rank);
            let slowness = u64::from(self.slowness.load(Ordering::Relaxed));
            let compute = 1 + self.random.below(self.scenario.compute_ms) * slowness;
            tokio::time::sleep(Duration::from_millis(compute)).await;
            let tag = Tag {
                replica: self.rank,
                sequence,
                version,
            };
            let made = Made {
                version,
                gradient: gradient.clone(),
                first: lease.first_position,
                count: u64::from(lease.count),
            };
            self.history.held().made(self.rank, sequence, made);
            servers.push(tag, &gradient, TRANSFER).await?;
            let reply = client.report(report(client, tag, &lease), |_| ()).await?;
            match reply.outcome() {
                Fate::Committed => {
                    *reached = true;
                    self.history.held().told(self.rank, sequence, true);
                }
                Fate::Dropped => {
                    exhausted = false;
                    self.history.held().told(self.rank, sequence, false);
                }
                _ => return Ok(()),
            }
            if reply.last {
                return Ok(());
            }
            sequence += 1;
            version = reply.version;
        }
    }
}

fn report(client: &Client, tag: Tag, lease: &v1::BatchLease) -> v1::ReportRequest {
    v1::ReportRequest {
        tag: Some(v1::PushTag {
            job: Some(client.job().clone()),
            version: tag.version,
            replica: tag.replica,
            sequence: tag.sequence,
        }),
        lease: lease.lease,
        samples: lease.count,
        ..v1::ReportRequest::default()
    }
}
