//! The exchange of a cluster: parameter servers and a coordinator over gRPC.

use std::time::{Duration, Instant};

use coati_coordinator::Client;
use coati_coordinator::client::Directive;
use coati_param_server::{Admit, PsGroup, Tag};
use coati_proto::coati::v1;
use coati_proto::coati::v1::report_reply::Outcome;
use tokio::runtime::Handle;

use crate::exchange::{Contribution, Error, Exchange, Fate, Lease};

/// Longest transfer of variables or gradients.
const TRANSFER: Duration = Duration::from_secs(60);

/// Waiting for others is said after this long.
const SAY_AFTER: Duration = Duration::from_secs(10);

/// One replica's connections.
pub struct Remote {
    runtime: Handle,
    coordinator: Client,
    servers: PsGroup,
    replica: u32,
    sequence: u64,
}

impl Remote {
    /// For the replica of this rank.
    pub fn new(runtime: Handle, coordinator: Client, servers: PsGroup, replica: u32) -> Self {
        Self {
            runtime,
            coordinator,
            servers,
            replica,
            sequence: 0,
        }
    }
}

fn scalars<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<v1::Scalar> {
    values
        .into_iter()
        .map(|(name, value)| v1::Scalar {
            name: name.to_owned(),
            value,
        })
        .collect()
}

impl Exchange for Remote {
    fn lease(&mut self, batches: u32) -> Result<(Vec<Lease>, bool), Error> {
        let (leases, exhausted) = self
            .runtime
            .block_on(self.coordinator.lease(self.replica, batches))
            .map_err(Error::new)?;
        let leases = leases
            .into_iter()
            .map(|lease| Lease {
                id: lease.lease,
                first_position: lease.first_position,
                count: lease.count,
            })
            .collect();
        Ok((leases, exhausted))
    }

    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        self.runtime
            .block_on(self.servers.pull(min_version, TRANSFER, variables))
            .map_err(Error::new)
    }

    fn contribute(&mut self, contribution: &Contribution<'_>) -> Result<(Fate, Duration), Error> {
        let begun = Instant::now();
        self.coordinator.set_activity("pushing");
        let tag = Tag {
            replica: self.replica,
            sequence: self.sequence,
            version: contribution.version,
        };
        let admitted = self
            .runtime
            .block_on(self.servers.push(tag, contribution.gradients, TRANSFER))
            .map_err(Error::new)?;
        let push = begun.elapsed();
        if admitted == Admit::TooOld {
            tracing::debug!(
                version = contribution.version,
                "the gradient is too old; the coordinator will drop it"
            );
        }
        let phases = &contribution.phases;
        let request = v1::ReportRequest {
            tag: Some(v1::PushTag {
                job: Some(self.coordinator.job().clone()),
                version: contribution.version,
                replica: self.replica,
                sequence: self.sequence,
            }),
            lease: contribution.lease.id,
            samples: contribution.samples,
            losses: scalars(contribution.losses.iter().copied()),
            seconds: scalars([
                ("input", phases.input.as_secs_f64()),
                ("pull", phases.pull.as_secs_f64()),
                ("compute", phases.compute.as_secs_f64()),
                ("push", push.as_secs_f64()),
            ]),
            wait_ms: 0,
            bad_records: contribution.bad_records.clone(),
        };
        self.sequence += 1;
        self.coordinator.set_activity("waiting_for_commit");
        let waiting_since = Instant::now();
        let say = |who: &str| {
            if waiting_since.elapsed() >= SAY_AFTER {
                tracing::warn!("waiting for {who} since {:.0} s", waiting_since.elapsed().as_secs_f64());
            }
        };
        let reply = self
            .runtime
            .block_on(self.coordinator.report(request, say))
            .map_err(Error::new)?;
        let fate = match reply.outcome() {
            Outcome::Committed => Fate::Committed {
                version: reply.version,
                last: reply.last,
            },
            Outcome::Dropped => Fate::Dropped { version: reply.version },
            _ => Fate::Ended,
        };
        Ok((fate, push))
    }

    fn asked_to_leave(&self) -> Option<String> {
        match self.coordinator.directive() {
            Directive::Continue => None,
            Directive::Drain(reason) | Directive::Abort(reason) => Some(reason),
        }
    }

    fn activity(&self, what: &'static str) {
        self.coordinator.set_activity(what);
    }
}
