//! Making steps, asked for by a call each or one after the other on a stream.

use std::sync::Arc;

use coati_common::rpc::ServiceError;
use coati_proto::coati::v1;

use super::handlers::{blocking, job};
use super::life::Life;
use super::shards::Shards;
use crate::store::{Contributor, Store, lock};

/// Makes the steps of one server's variables, wherever this process holds them by then.
pub(super) struct Steps {
    pub(super) index: u32,
    pub(super) shards: Arc<Shards>,
    pub(super) life: Arc<Life>,
    /// Whose, as the request says.
    pub(super) key: Option<Vec<u8>>,
}

impl Steps {
    /// Comes when the server leaves.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let life = Arc::clone(&self.life);
        async move { drop(life.left().await) }
    }

    pub(super) async fn prepare(&self, request: v1::PrepareRequest) -> Result<v1::PrepareReply, ServiceError> {
        let _contact = self.life.enter(self.index)?;
        let (_, shard) = self.shards.of(self.key.as_deref())?;
        let job = job(request.job)?;
        let follower = lock(&shard.follower).clone().filter(|f| *f.job() == job);
        let contributors = named(&request.contributors);
        let (store, count) = (Arc::clone(&shard.store), contributors.len());
        let own = job.clone();
        let prepare = move |store: &Store| store.prepare(&own, request.version, &contributors);
        let update = blocking_unless_light(store, &job, count, prepare).await?;
        let copied = match (update, follower) {
            (Some(update), Some(follower)) => follower.hand(update).await,
            // Of what was applied before, the copy has heard.
            (None, follower) => follower.is_some(),
            (Some(_), None) => false,
        };
        Ok(v1::PrepareReply { copied })
    }

    pub(super) async fn commit(&self, request: v1::CommitRequest) -> Result<v1::CommitReply, ServiceError> {
        let _contact = self.life.enter(self.index)?;
        let (_, shard) = self.shards.of(self.key.as_deref())?;
        let job = job(request.job)?;
        let contributors = named(&request.contributors);
        let (store, count) = (Arc::clone(&shard.store), contributors.len());
        let own = job.clone();
        let commit = move |store: &Store| store.commit(&own, request.version, &contributors, request.drop_others);
        let committed = blocking_unless_light(store, &job, count, commit).await?;
        Ok(v1::CommitReply {
            version: committed.version,
            learning_rate: committed.learning_rate,
        })
    }
}

fn named(contributors: &[v1::Contributor]) -> Vec<Contributor> {
    contributors.iter().map(Contributor::from).collect()
}

/// As [`blocking`], but where it is: for steps of so few elements that handing them to another thread would take longer.
async fn blocking_unless_light<T: Send + 'static>(
    store: Arc<Store>,
    job: &v1::JobRef,
    contributions: usize,
    task: impl FnOnce(&Store) -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    if store.is_light(job, contributions)? {
        return task(&store);
    }
    blocking(store, task).await
}
