use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coati_common::invariants::{self, Invariant};
use coati_proto::coati::v1;
use futures::future::{join_all, try_join_all};

use super::feedback::Feedback;
use super::transfer::{Source, Wanted};
use super::{Configuration, Error, PsClient};
use crate::placement::{Layout, ServerLayout};
use crate::pool::{CHUNK, Pool};
use crate::store::{Admit, Committed, Consistency, Contributor, Restored, Saved, Tag};
use crate::wire::{Compression, Gradients};

/// All servers of a placement. Cloning is cheap; clones share the connections.
#[derive(Clone, Debug)]
pub struct PsGroup {
    clients: Vec<PsClient>,
    layout: Arc<Layout>,
    placement: Arc<v1::Placement>,
    /// Chunks on their way out.
    pool: Arc<Pool>,
    accept_non_finite: bool,
    compression: Compression,
    feedback: Arc<Feedback>,
    pushed: Arc<AtomicU64>,
    pulled: Arc<AtomicU64>,
}

/// Bytes of tensors that went over the wire, repeated attempts included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Gradients and batch statistics, to servers.
    pub pushed: u64,
    /// Variables, from servers.
    pub pulled: u64,
}

impl PsGroup {
    /// Connects to all servers (`host:port` by index) at the same time, trying until `deadline`.
    pub async fn connect(
        placement: v1::Placement,
        addresses: &[String],
        job: &v1::JobRef,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let connecting = addresses
            .iter()
            .zip(0..)
            .map(|(address, index)| PsClient::connect(index, address, job.clone(), deadline));
        Self::new(try_join_all(connecting).await?, placement)
    }

    /// Of servers that are connected already, by index.
    pub fn new(clients: Vec<PsClient>, placement: v1::Placement) -> Result<Self, Error> {
        let layout = Layout::new(&placement)?;
        if layout.servers().len() != clients.len() {
            return Err(Error::ServerCount {
                placed: layout.servers().len(),
                addresses: clients.len(),
            });
        }
        let (layout, placement) = (Arc::new(layout), Arc::new(placement));
        Ok(Self {
            clients,
            layout,
            placement,
            pool: Pool::new(CHUNK),
            accept_non_finite: false,
            compression: Compression::default(),
            feedback: Arc::default(),
            pushed: Arc::default(),
            pulled: Arc::default(),
        })
    }

    /// The same connections, pulling as a replica that computes gradients: delay compensation goes by what it pulled last.
    #[must_use]
    pub fn for_replica(mut self, rank: u32) -> Self {
        for client in &mut self.clients {
            client.replica = Some(rank);
        }
        self
    }

    /// [`PsGroup::configure`] tells the servers whether to stage gradients with NaN or infinity like any other
    /// (`coati.on_nan: apply`) instead of refusing them.
    #[must_use]
    pub fn accepting_non_finite(self, accept_non_finite: bool) -> Self {
        Self {
            accept_non_finite,
            ..self
        }
    }

    /// The same servers with tensors in a shorter form. What top-k leaves out is kept by this group and its clones.
    #[must_use]
    pub fn with_compression(self, compression: Compression) -> Self {
        Self {
            compression,
            feedback: Arc::default(),
            ..self
        }
    }

    /// What went over the wire so far, by this group and its clones.
    pub fn moved(&self) -> Moved {
        Moved {
            pushed: self.pushed.load(Ordering::Relaxed),
            pulled: self.pulled.load(Ordering::Relaxed),
        }
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    pub(super) fn shared_layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(super) fn count_pushed(&self) -> &AtomicU64 {
        &self.pushed
    }

    /// Where variables live.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// By index.
    pub fn clients(&self) -> &[PsClient] {
        &self.clients
    }

    fn pairs(&self) -> impl Iterator<Item = (&PsClient, &ServerLayout)> {
        self.clients.iter().zip(self.layout.servers())
    }

    fn check(&self, found: usize) -> Result<(), Error> {
        let expected = self.layout.flat_len();
        if found == expected {
            Ok(())
        } else {
            Err(Error::Length { expected, found })
        }
    }

    /// Gives all servers the placement and the optimiser (a serialised `object_detection.protos.Optimizer`).
    pub async fn configure(
        &self,
        optimizer: Bytes,
        consistency: impl Into<Consistency>,
        limit: Duration,
    ) -> Result<(), Error> {
        let configuration = self.configuration(optimizer, consistency, false);
        try_join_all(
            self.clients
                .iter()
                .map(|client| client.configure(&configuration, limit)),
        )
        .await?;
        Ok(())
    }

    /// What [`PsGroup::configure`] tells each server, or what the one that keeps a copy of it is told.
    pub fn configuration(&self, optimizer: Bytes, consistency: impl Into<Consistency>, copy: bool) -> Configuration {
        Configuration {
            placement: (*self.placement).clone(),
            optimizer,
            consistency: consistency.into(),
            accept_non_finite: self.accept_non_finite,
            copy,
        }
    }

    /// Takes over what all servers hold, for a coordinator that was started again; returns at which version each one is.
    ///
    /// `reached` is as in [`crate::Store::adopt`].
    pub async fn adopt(&self, reached: u64, limit: Duration) -> Result<Vec<u64>, Error> {
        let calls = self.clients.iter().map(|client| client.adopt(reached, limit));
        Ok(try_join_all(calls).await?)
    }

    /// Sends initial values: the model's flat vector.
    pub async fn load(&self, flat: &[f32], version: u64, limit: Duration) -> Result<(), Error> {
        self.check(flat.len())?;
        let calls = self
            .pairs()
            .map(|(client, server)| client.load(server, flat, version, &self.pool, limit));
        try_join_all(calls).await?;
        Ok(())
    }

    /// Lets all servers read checkpoint `prefix`, which they must see under the same path.
    pub async fn restore(
        &self,
        prefix: &str,
        version: u64,
        slots_optional: bool,
        limit: Duration,
    ) -> Result<Restored, Error> {
        let calls = self
            .clients
            .iter()
            .map(|client| client.restore(prefix, version, slots_optional, limit));
        let mut all = Restored::default();
        for restored in try_join_all(calls).await? {
            all.tensors += restored.tensors;
            all.slots_initialised.extend(restored.slots_initialised);
        }
        all.slots_initialised.sort();
        all.slots_initialised.dedup();
        Ok(all)
    }

    /// Stages a contribution (gradients and batch statistics in the model's flat vector; constants are not sent) on all
    /// servers. Too old if it is for one of them. Leaves in the order in which a backward pass completes it.
    pub async fn push(&self, tag: Tag, flat: &[f32], limit: Duration) -> Result<Admit, Error> {
        self.push_shared(tag, &Arc::new(flat.to_vec()), limit).await
    }

    /// As [`PsGroup::push`], without a copy: the vector is sent from where it is. It is free again when this returns, unless a
    /// connection broke or was given up.
    pub async fn push_shared(&self, tag: Tag, flat: &Arc<Vec<f32>>, limit: Duration) -> Result<Admit, Error> {
        self.check(flat.len())?;
        let packed = match self.compression.gradients {
            Gradients::TopK { fraction } => Some(self.feedback.pack(tag, &self.layout, flat, fraction)),
            _ => None,
        };
        let encoding = match self.compression.gradients {
            Gradients::Bfloat16 => v1::Encoding::Bfloat16,
            _ => v1::Encoding::Float32,
        };
        let source = packed.map_or_else(|| Source::Flat(Arc::clone(flat), encoding), Source::Packed);
        let calls = self
            .clients
            .iter()
            .map(|client| client.push(&self.layout, tag, source.clone(), limit, &self.pushed));
        let admitted = try_join_all(calls).await?;
        Ok(Admit::of_all(&admitted))
    }

    /// Receives the values, at `min_version` at least, into the model's flat vector; waits for them until `limit`.
    /// Returns the oldest version among the servers: they differ only while a commit is under way.
    pub async fn pull(&self, min_version: u64, limit: Duration, into: &mut [f32]) -> Result<u64, Error> {
        self.pull_either(min_version, false, limit, into).await
    }

    /// As [`PsGroup::pull`], with moving averages in place of trainable variables.
    pub async fn pull_averages(&self, min_version: u64, limit: Duration, into: &mut [f32]) -> Result<u64, Error> {
        self.pull_either(min_version, true, limit, into).await
    }

    async fn pull_either(
        &self,
        min_version: u64,
        averages: bool,
        limit: Duration,
        into: &mut [f32],
    ) -> Result<u64, Error> {
        let found = into.len();
        let Some(mut pieces) = self.layout.split_mut(into) else {
            return Err(Error::Length {
                expected: self.layout.flat_len(),
                found,
            });
        };
        let wanted = Wanted {
            min_version,
            moving_averages: averages,
            weights: if self.compression.bf16_weights {
                v1::Encoding::Bfloat16
            } else {
                v1::Encoding::Float32
            },
        };
        let mut received = vec![0; self.clients.len()];
        let calls = self
            .pairs()
            .zip(&mut pieces)
            .zip(&mut received)
            .map(|(((client, server), pieces), received)| {
                client.pull(server.arena_len, pieces, wanted, limit, received)
            });
        let versions = try_join_all(calls).await;
        self.pulled.fetch_add(received.iter().sum(), Ordering::Relaxed);
        let versions = versions?;
        Ok(versions.into_iter().min().unwrap_or(min_version))
    }

    /// Prepares the step of these contributions (in ascending order) on all servers; afterwards it survives the loss of one of
    /// them, if true comes back: all copies have it, too. Repeat it after a failure.
    pub async fn prepare(&self, version: u64, contributors: &[Contributor], limit: Duration) -> Result<bool, Error> {
        let calls = self
            .clients
            .iter()
            .map(|client| client.prepare(version, contributors, limit));
        let copied = try_join_all(calls).await?;
        Ok(copied.into_iter().all(|copied| copied))
    }

    /// Applies exactly these contributions (in ascending order) to `version` on all servers. Repeat it after a failure:
    /// servers that have applied it answer the same.
    pub async fn commit(
        &self,
        version: u64,
        contributors: &[Contributor],
        drop_others: bool,
        limit: Duration,
    ) -> Result<Committed, Error> {
        let all = vec![true; self.clients.len()];
        self.complete(&all, version, contributors, drop_others, limit).await
    }

    /// As [`PsGroup::commit`], on servers that are `behind`, by index: others have applied it, and those that began with its
    /// outcome as a copy do not know how it was made.
    pub async fn complete(
        &self,
        behind: &[bool],
        version: u64,
        contributors: &[Contributor],
        drop_others: bool,
        limit: Duration,
    ) -> Result<Committed, Error> {
        let calls = self.clients.iter().zip(behind).filter(|(_, behind)| **behind);
        let calls = calls.map(|(client, _)| client.commit(version, contributors, drop_others, limit));
        // All of them, even if one fails: the fewer are behind, the better.
        let mut committed = Committed {
            version: version + 1,
            learning_rate: 0.0,
        };
        for result in join_all(calls).await {
            committed = result?;
            let reached = committed.version;
            invariants::check(Invariant::OneVersionAStep, reached == version + 1, || {
                format!("a server went from version {version} to {reached}")
            });
        }
        Ok(committed)
    }

    /// Lets all servers keep the current version, which must be `version`, for a [`PsGroup::save`] while commits go on.
    pub async fn snapshot(&self, version: u64, limit: Duration) -> Result<(), Error> {
        let calls = self.clients.iter().map(|client| client.snapshot(version, limit));
        // All of them, even if one fails: a request that is given up may still be heard when the server has gone on.
        for result in join_all(calls).await {
            result?;
        }
        Ok(())
    }

    /// Lets each server write its data file of checkpoint `prefix` at `version`; returns the entries of all of them, for
    /// the index.
    pub async fn save(&self, prefix: &str, version: u64, limit: Duration) -> Result<Saved, Error> {
        let count = self.clients.len() as u32;
        let calls = self
            .clients
            .iter()
            .zip(0..)
            .map(|(client, shard)| client.save(prefix, shard, count, version, limit));
        // All of them, even if one fails: afterwards nobody writes any more, and what was written can be removed.
        let mut all = Saved::default();
        for result in join_all(calls).await {
            let saved = result?;
            all.bytes += saved.bytes;
            all.tensors.extend(saved.tensors);
        }
        Ok(all)
    }

    /// Tells all servers to leave; tries all, reports the first that did not answer.
    pub async fn shutdown(&self, reason: &str, limit: Duration) -> Result<(), Error> {
        for result in join_all(self.clients.iter().map(|client| client.shutdown(reason, limit))).await {
            result?;
        }
        Ok(())
    }
}
