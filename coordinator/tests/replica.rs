//! A replica without a model: it speaks to coordinator and servers as a real one does, and makes up its gradients.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use coati_common::rpc::ErrorCode;
use coati_coordinator::Client;
use coati_coordinator::client::{Directive, Error, calls_for_rejoining};
use coati_coordinator::membership::Identity;
use coati_param_server::{PsGroup, Tag};
use coati_proto::coati::v1;
use coati_proto::coati::v1::report_reply::Outcome as Fate;

use crate::cluster::{LIMIT, identity};

/// Positions of the record sequence that a contribution used.
pub(crate) type Range = (u64, u32);

/// What a replica saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) committed: Vec<Range>,
    pub(crate) dropped: Vec<Range>,
    /// Contributions.
    pub(crate) pushed: u64,
    /// How often it joined again.
    pub(crate) cut_off: u32,
    /// Why it left.
    pub(crate) end: String,
}

/// What the replica does beside training.
#[derive(Clone, Debug, Default)]
pub(crate) struct Habits {
    /// Pushes come late by a random time up to this, in ms.
    pub(crate) jitter: u64,
    pub(crate) seed: u64,
    /// Before its first push it waits until the job is at this version.
    pub(crate) hold_until: Option<u64>,
    /// Before the push of this contribution it vanishes: no heartbeat, no report.
    pub(crate) vanish_at: Option<u64>,
    /// Its gradient of this contribution holds NaN.
    pub(crate) broken_at: Option<u64>,
    /// Pushes and reports everything twice, at the same time.
    pub(crate) twice: bool,
    /// Leaves as soon as it is cut off, instead of joining again.
    pub(crate) once: bool,
}

/// Why a replica stopped.
#[derive(Debug)]
pub(crate) struct Stop {
    why: String,
    /// Whether to join again.
    again: bool,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self {
            again: error.calls_for_rejoining(),
            why: error.to_string(),
        }
    }
}

impl From<coati_param_server::client::Error> for Stop {
    fn from(error: coati_param_server::client::Error) -> Self {
        Self {
            again: error.rpc().is_some_and(calls_for_rejoining),
            why: error.to_string(),
        }
    }
}

/// Trains until the job ends, as often as it must join again.
pub(crate) async fn take_part(address: &str, rank: u32, habits: Habits) -> Seen {
    let mut seen = Seen::default();
    loop {
        let stop = match Replica::join(address, rank, &identity()).await {
            Ok(mut replica) => {
                let cut_off = replica.client.cut_off();
                // As a worker's: who is cut off waits no longer for servers that may never answer.
                let steps = tokio::select! {
                    biased;
                    end = replica.steps(&habits, &mut seen) => end,
                    error = cut_off => Err(error.into()),
                };
                match steps {
                    Ok(end) => {
                        seen.end = end;
                        return seen;
                    }
                    Err(stop) => stop,
                }
            }
            // The coordinator is gone for good.
            Err(Stop { why, .. }) if why.contains("did not answer within") => Stop { why, again: false },
            Err(stop) => stop,
        };
        seen.end = stop.why;
        if habits.once || !stop.again {
            return seen;
        }
        seen.cut_off += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn task(rank: u32) -> v1::Task {
    v1::Task {
        r#type: if rank == 0 { "master" } else { "worker" }.into(),
        index: rank.saturating_sub(1),
    }
}

pub(crate) struct Replica {
    pub(crate) client: Client,
    pub(crate) servers: PsGroup,
    pub(crate) plan: v1::JobPlan,
}

pub(crate) async fn join(address: &str, rank: u32, identity: &Identity) -> Result<Client, Error> {
    Client::join(address, task(rank), "", identity, LIMIT / 4, LIMIT).await
}

impl Replica {
    pub(crate) async fn join(address: &str, rank: u32, identity: &Identity) -> Result<Self, Stop> {
        let mut client = join(address, rank, identity).await?;
        let plan = client.plan(LIMIT, |_| ()).await?;
        let placement = plan.placement.clone().unwrap();
        let servers = tokio::select! {
            servers = PsGroup::connect(placement, &plan.ps_addresses, client.job(), LIMIT) => servers?,
            error = client.cut_off() => return Err(error.into()),
        };
        let servers = servers.for_replica(plan.replica);
        Ok(Self { client, servers, plan })
    }

    pub(crate) fn report(&self, tag: Tag, lease: &v1::BatchLease) -> v1::ReportRequest {
        v1::ReportRequest {
            tag: Some(v1::PushTag {
                job: Some(self.client.job().clone()),
                version: tag.version,
                replica: tag.replica,
                sequence: tag.sequence,
            }),
            lease: lease.lease,
            samples: lease.count,
            losses: vec![v1::Scalar {
                name: "Loss/total_loss".into(),
                value: 1.5,
            }],
            seconds: Vec::new(),
            wait_ms: 0,
            bad_records: Vec::new(),
            ..Default::default()
        }
    }

    async fn steps(&mut self, habits: &Habits, seen: &mut Seen) -> Result<String, Stop> {
        let rank = self.plan.replica;
        let mut random = Random(habits.seed ^ u64::from(rank) << 32);
        let mut flat = vec![0.0; self.servers.layout().flat_len()];
        let mut ahead: VecDeque<v1::BatchLease> = VecDeque::new();
        let (mut version, mut exhausted) = (self.plan.start_version, false);
        let mut sequence = self.plan.first_sequence;
        loop {
            match self.client.directive() {
                Directive::Continue => {}
                Directive::Drain(reason) | Directive::Abort(reason) => return Ok(reason),
                Directive::Rejoin(why) => return Err(Stop { why, again: true }),
            }
            if !exhausted && ahead.len() < 3 {
                let wanted = 3 - ahead.len() as u32;
                let (leases, no_more) = self.client.lease(rank, wanted).await?;
                ahead.extend(leases);
                exhausted = no_more;
            }
            let Some(lease) = ahead.pop_front() else {
                return Ok("no more records".into());
            };
            version = self.servers.pull(version, LIMIT, &mut flat).await?;
            let mut gradient = gradient(&flat, &lease, rank);
            if habits.broken_at == Some(seen.pushed) {
                gradient[7] = f32::NAN;
            }
            if seen.pushed == 0
                && let Some(until) = habits.hold_until
            {
                let mut newest = vec![0.0; flat.len()];
                self.servers.pull(until, LIMIT, &mut newest).await?;
            }
            if habits.vanish_at == Some(seen.pushed) {
                return Ok("vanished".into());
            }
            tokio::time::sleep(Duration::from_millis(random.below(habits.jitter + 1))).await;
            let tag = Tag {
                replica: rank,
                sequence,
                version,
            };
            let mut report = self.report(tag, &lease);
            if habits.twice {
                let (a, b) = futures::join!(
                    self.servers.push(tag, &gradient, LIMIT),
                    self.servers.push(tag, &gradient, LIMIT)
                );
                a.and(b)?;
            } else {
                match self.servers.push(tag, &gradient, LIMIT).await {
                    Err(error) if self.plan.skip_non_finite && error.code() == Some(ErrorCode::NonFiniteGradient) => {
                        report.non_finite = error.to_string();
                    }
                    pushed => drop(pushed?),
                }
            }
            let reply = self.client.report(report.clone(), |_| ()).await?;
            if habits.twice && !reply.last {
                let again = self.client.report(report, |_| ()).await?;
                assert_eq!(again, reply, "the same report gets the same answer");
            }
            sequence += 1;
            seen.pushed += 1;
            version = reply.version;
            let range = (lease.first_position, lease.count);
            match reply.outcome() {
                Fate::Committed => seen.committed.push(range),
                Fate::Dropped => {
                    exhausted = false;
                    seen.dropped.push(range);
                }
                _ => return Ok(reply.waiting_for),
            }
            if reply.last {
                return Ok("last step".into());
            }
        }
    }
}

/// The code of a refusal.
pub(crate) fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::Rpc(error) => error.code(),
        _ => None,
    }
}

/// Depends on the variables, on each record, and on who computes: any mistake in one of them changes bits.
pub(crate) fn gradient(flat: &[f32], lease: &v1::BatchLease, rank: u32) -> Vec<f32> {
    let mut gradient: Vec<f32> = flat.iter().map(|value| 0.05 * value).collect();
    for position in lease.first_position..lease.first_position + u64::from(lease.count) {
        let mut random = Random(position << 8 | u64::from(rank));
        for value in &mut gradient {
            *value += (random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        }
    }
    for value in &mut gradient {
        *value /= lease.count as f32;
    }
    gradient
}

/// Every position of the ranges, and how often it was used.
pub(crate) fn uses<'a>(ranges: impl IntoIterator<Item = &'a Range>) -> BTreeMap<u64, u32> {
    let mut uses = BTreeMap::new();
    for &(first, count) in ranges {
        for position in first..first + u64::from(count) {
            *uses.entry(position).or_default() += 1;
        }
    }
    uses
}

/// splitmix64
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
