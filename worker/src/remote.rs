//! The exchange of a cluster: parameter servers and a coordinator over gRPC.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use coati_common::rpc::ErrorCode;
use coati_coordinator::Client;
use coati_coordinator::client::{Directive, calls_for_rejoining};
use coati_param_server::client::{Moved, Pushing};
use coati_param_server::{Admit, Compression, PsGroup, Tag};
use coati_proto::coati::v1;
use coati_proto::coati::v1::report_reply::Outcome;
use tokio::runtime::Handle;

use crate::exchange::{Contribution, Error, Exchange, Fate, Lease};
use crate::stop::StopFlag;

/// Longest transfer of variables or gradients.
const TRANSFER: Duration = Duration::from_secs(60);

/// Longest backward pass of which parts leave early; the rest of a longer one is sent again as a whole.
const BACKWARD: Duration = Duration::from_secs(600);

/// Waiting for others is said after this long.
const SAY_AFTER: Duration = Duration::from_secs(10);

/// Batches leased beyond those that are wanted now, in synchronous training: who gets which is settled anyway, and a step
/// should not wait for a lease.
const RESERVE: u32 = 8;

impl From<coati_coordinator::client::Error> for Error {
    fn from(error: coati_coordinator::client::Error) -> Self {
        let message = error.to_string();
        match error.job_ended() {
            Some(reason) => Self::Ended(reason),
            None if error.calls_for_rejoining() => Self::CutOff(message),
            None => Self::Failed(message),
        }
    }
}

impl From<coati_param_server::client::Error> for Error {
    fn from(error: coati_param_server::client::Error) -> Self {
        let message = error.to_string();
        if error.rpc().is_some_and(calls_for_rejoining) {
            Self::CutOff(message)
        } else {
            Self::Failed(message)
        }
    }
}

/// Waits for an answer, but no longer than the job goes on with this replica: one that is cut off stops, and one whose job
/// failed does not wait for the servers.
fn wait<T, E: Into<Error>>(
    runtime: &Handle,
    cut_off: impl Future<Output = coati_coordinator::client::Error>,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    runtime.block_on(async {
        tokio::select! {
            biased;
            answer = answer => answer.map_err(Into::into),
            error = cut_off => Err(error.into()),
        }
    })
}

/// One replica's connections.
pub(crate) struct Remote {
    runtime: Handle,
    coordinator: Client,
    servers: PsGroup,
    replica: u32,
    synchronous: bool,
    skip_non_finite: bool,
    sequence: u64,
    /// The process is asked to leave, and the job is not.
    leave: StopFlag,
    reserve: VecDeque<Lease>,
    exhausted: bool,
    /// The version that is in the replica's vector already.
    ahead: Option<u64>,
    /// Bytes that were reported.
    moved: Moved,
    /// The next contribution, of which parts are on their way.
    early: Option<(Tag, Pushing)>,
}

impl Remote {
    /// For the replica that the plan is for.
    pub(crate) fn new(
        runtime: Handle,
        coordinator: Client,
        servers: PsGroup,
        plan: &v1::JobPlan,
        leave: StopFlag,
    ) -> Self {
        let compression = plan.compression.as_ref().map(Compression::from).unwrap_or_default();
        Self {
            runtime,
            coordinator,
            servers: servers.with_compression(compression),
            replica: plan.replica,
            synchronous: plan.synchronous,
            skip_non_finite: plan.skip_non_finite,
            sequence: plan.first_sequence,
            leave,
            reserve: VecDeque::new(),
            exhausted: false,
            ahead: None,
            moved: Moved::default(),
            early: None,
        }
    }

    /// For a contribution from `version`. No two have the same.
    fn next_tag(&mut self, version: u64) -> Tag {
        let sequence = self.sequence;
        self.sequence += 1;
        Tag {
            replica: self.replica,
            sequence,
            version,
        }
    }

    /// Takes leave of the coordinator.
    pub(crate) fn leave(&mut self, failed: bool, reason: &str) {
        // Whoever is not heard leaves all the same.
        if let Err(error) = self.runtime.block_on(self.coordinator.leave(failed, reason)) {
            tracing::warn!(%error, "left without being heard");
        }
    }

    fn report_request(&self, contribution: &Contribution<'_>, tag: Tag, push: Duration) -> v1::ReportRequest {
        let phases = &contribution.phases;
        let moved = self.servers.moved();
        v1::ReportRequest {
            tag: Some(v1::PushTag {
                job: Some(self.coordinator.job().clone()),
                version: tag.version,
                replica: tag.replica,
                sequence: tag.sequence,
            }),
            lease: contribution.lease.id,
            samples: contribution.samples,
            losses: scalars(contribution.losses.iter().copied()),
            seconds: scalars([
                ("input", phases.input.as_secs_f64()),
                ("compute", phases.compute.as_secs_f64()),
                ("push", push.as_secs_f64()),
            ]),
            wait_ms: 0,
            generation: 0,
            bad_records: contribution.bad_records.clone(),
            non_finite: String::new(),
            bytes_pushed: moved.pushed - self.moved.pushed,
            bytes_pulled: moved.pulled - self.moved.pulled,
        }
    }
}

/// Tells whom this replica waits for, once it is worth telling.
fn say_who() -> impl FnMut(&str) {
    let since = Instant::now();
    move |who| {
        if since.elapsed() >= SAY_AFTER {
            tracing::warn!("waiting for {who} since {:.0} s", since.elapsed().as_secs_f64());
        }
    }
}

/// Receives a version that does not exist yet, however long it takes to come about.
async fn receive(servers: &PsGroup, version: u64, variables: &mut [f32]) -> Result<u64, Error> {
    loop {
        match servers.pull(version, TRANSFER, variables).await {
            Err(error) if error.code() == Some(ErrorCode::UnknownVersion) => {}
            received => return Ok(received?),
        }
    }
}

/// Reports a contribution; meanwhile waits for the version that it becomes part of, so that its values arrive as soon as
/// each server has them. Returns that version, if it came.
async fn report_and_receive(
    coordinator: &mut Client,
    servers: &PsGroup,
    request: v1::ReportRequest,
    next: u64,
    variables: &mut [f32],
) -> Result<(v1::ReportReply, Option<u64>), Error> {
    let reporting = coordinator.report(request, say_who());
    let receiving = receive(servers, next, variables);
    tokio::pin!(reporting, receiving);
    tokio::select! {
        reply = &mut reporting => {
            let reply = reply?;
            let wanted = !reply.last && matches!(reply.outcome(), Outcome::Committed | Outcome::Dropped);
            let ahead = if wanted { Some(receiving.await?) } else { None };
            Ok((reply, ahead))
        }
        received = &mut receiving => {
            let version = received?;
            let reply = reporting.await?;
            Ok((reply, Some(version)))
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
        if self.reserve.len() < batches as usize && !self.exhausted {
            let wanted = if self.synchronous { batches + RESERVE } else { batches };
            let cut_off = self.coordinator.cut_off();
            let leasing = self.coordinator.lease(self.replica, wanted);
            let (leases, exhausted) = wait(&self.runtime, cut_off, leasing)?;
            self.reserve.extend(leases.into_iter().map(|lease| Lease {
                id: lease.lease,
                first_position: lease.first_position,
                count: lease.count,
            }));
            self.exhausted = exhausted;
        }
        let count = self.reserve.len().min(batches as usize);
        let leases = self.reserve.drain(..count).collect();
        Ok((leases, self.exhausted && self.reserve.is_empty()))
    }

    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        if let Some(version) = self.ahead.take().filter(|version| *version >= min_version) {
            return Ok(version);
        }
        let pulling = self.servers.pull(min_version, TRANSFER, variables);
        wait(&self.runtime, self.coordinator.cut_off(), pulling)
    }

    fn ready(&mut self, version: u64, elements: Range<usize>, values: &[f32]) {
        // In asynchronous training a gradient that is too old by the time it is complete should not have been sent; and what
        // is complete all at once need not be copied.
        if !self.synchronous || elements.len() == self.servers.layout().flat_len() {
            return;
        }
        if self.early.is_none() {
            let tag = self.next_tag(version);
            self.early = Some((tag, self.servers.begin_push(tag, self.runtime.clone(), BACKWARD)));
        }
        if let Some((_, pushing)) = &mut self.early {
            pushing.ready(elements, values);
        }
    }

    fn contribute(&mut self, contribution: &Contribution<'_>, variables: &mut [f32]) -> Result<Fate, Error> {
        self.coordinator.set_activity("pushing");
        self.ahead = None;
        let begun = Instant::now();
        let early = self.early.take().filter(|(tag, _)| tag.version == contribution.version);
        let (tag, early) = match early {
            Some((tag, pushing)) => (tag, Some(pushing)),
            None => (self.next_tag(contribution.version), None),
        };
        let (servers, skip_non_finite) = (&self.servers, self.skip_non_finite);
        let pushing = async {
            let pushed = match early {
                Some(pushing) => pushing.finish(contribution.gradients, TRANSFER).await,
                None => servers.push_shared(tag, contribution.gradients, TRANSFER).await,
            };
            match pushed {
                Err(error) if skip_non_finite && error.code() == Some(ErrorCode::NonFiniteGradient) => {
                    Ok((Admit::Duplicate, error.to_string()))
                }
                pushed => Ok::<_, Error>((pushed?, String::new())),
            }
        };
        let (admitted, non_finite) = wait(&self.runtime, self.coordinator.cut_off(), pushing)?;
        if admitted == Admit::TooOld {
            let version = contribution.version;
            tracing::debug!(version, "the gradient is too old; the coordinator will drop it");
        }
        let request = v1::ReportRequest {
            non_finite,
            ..self.report_request(contribution, tag, begun.elapsed())
        };
        self.moved = self.servers.moved();
        self.coordinator.set_activity("waiting_for_commit");
        let cut_off = self.coordinator.cut_off();
        let reply = if self.synchronous {
            let next = contribution.version + 1;
            let waiting = report_and_receive(&mut self.coordinator, &self.servers, request, next, variables);
            let (reply, ahead) = wait(&self.runtime, cut_off, waiting)?;
            self.ahead = ahead;
            reply
        } else {
            let waiting = self.coordinator.report(request, say_who());
            wait(&self.runtime, cut_off, waiting)?
        };
        Ok(match reply.outcome() {
            Outcome::Committed => Fate::Committed {
                version: reply.version,
                last: reply.last,
            },
            Outcome::Dropped => {
                // Its records went back: there may be more to come than was said.
                self.exhausted = false;
                Fate::Dropped { version: reply.version }
            }
            _ => Fate::Ended,
        })
    }

    fn asked_to_leave(&self) -> Result<Option<String>, Error> {
        match self.coordinator.directive() {
            Directive::Continue => Ok(self.leave.raised().then(|| "asked to leave".to_owned())),
            Directive::Drain(reason) => Ok(Some(reason)),
            Directive::Abort(reason) => Err(Error::Failed(reason)),
            Directive::Rejoin(reason) => Err(Error::CutOff(reason)),
        }
    }

    fn activity(&self, what: &'static str) {
        self.coordinator.set_activity(what);
    }
}
