//! Whose variables a process holds: those of its own index, and of others as their copy or in their place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;

use super::follower::Follower;
use crate::SHARD_KEY;
use crate::store::{self, Store, lock};

/// A process keeps the copies of a neighbour or two; more are a broken message.
const MOST: usize = 16;

/// One server's part of the variables, and who keeps its copy.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) store: Arc<Store>,
    pub(super) follower: Mutex<Option<Arc<Follower>>>,
}

impl Shard {
    fn of(store: Arc<Store>) -> Self {
        Self {
            store,
            follower: Mutex::default(),
        }
    }
}

/// All of a process.
#[derive(Debug)]
pub(super) struct Shards {
    own: u32,
    options: store::Options,
    held: Mutex<BTreeMap<u32, Arc<Shard>>>,
}

impl Shards {
    pub(super) fn new(own: u32, options: store::Options) -> Self {
        Self {
            own,
            options,
            held: Mutex::default(),
        }
    }

    /// With what this store holds of its own.
    pub(super) fn with(own: u32, store: Arc<Store>) -> Self {
        let shards = Self::new(own, store::Options::default());
        lock(&shards.held).insert(own, Arc::new(Shard::of(store)));
        shards
    }

    /// Those that a request means by its [`SHARD_KEY`], with their index, as [`Shards::at`].
    pub(super) fn of(&self, key: Option<&[u8]>) -> Result<(u32, Arc<Shard>), ServiceError> {
        let index = match key {
            None => self.own,
            Some(key) => {
                let text = str::from_utf8(key).ok();
                text.and_then(|text| text.parse().ok()).ok_or_else(|| {
                    let key = String::from_utf8_lossy(key);
                    let message = format!("{SHARD_KEY} is `{key}`, not the index of a parameter server");
                    ServiceError::new(ErrorCode::InvalidRequest, message)
                })?
            }
        };
        Ok((index, self.at(index)))
    }

    /// Those of server `index`; empty ones where this process holds none yet.
    pub(super) fn at(&self, index: u32) -> Arc<Shard> {
        let mut held = lock(&self.held);
        let shard = held.get(&index).map(Arc::clone);
        shard.unwrap_or_else(|| {
            let shard = Arc::new(Shard::of(Arc::new(Store::new(self.options))));
            if held.len() < MOST {
                held.insert(index, Arc::clone(&shard));
            }
            shard
        })
    }

    /// The server leaves: whoever waits for a version hears that it will not come.
    pub(super) fn retire(&self) {
        for shard in lock(&self.held).values() {
            shard.store.retire();
            *lock(&shard.follower) = None;
        }
    }

    /// Whatever is configured, by index.
    pub(super) fn status(&self) -> Vec<v1::ShardStatus> {
        let held: Vec<(u32, Arc<Shard>)> = lock(&self.held)
            .iter()
            .map(|(index, shard)| (*index, Arc::clone(shard)))
            .collect();
        let mut all = Vec::new();
        for (ps_index, shard) in held {
            let status = shard.store.status();
            let follower = lock(&shard.follower)
                .clone()
                .filter(|follower| Some(follower.job()) == status.job.as_ref());
            let copy = follower.map(|follower| (follower.address().to_owned(), follower.state()));
            all.extend(described(ps_index, status, copy.unwrap_or_default()));
            let former = shard.store.former();
            all.extend(former.and_then(|former| described(ps_index, former, Default::default())));
        }
        all
    }

    /// Lets go of what is held of a server for nobody; see [`Store::forget`].
    pub(super) fn forget(&self, index: u32, job: &v1::JobRef) -> Result<(), ServiceError> {
        let mut held = lock(&self.held);
        let Some(shard) = held.get(&index) else { return Ok(()) };
        shard.store.forget(job)?;
        if index != self.own && shard.store.status().job.is_none() {
            held.remove(&index);
        }
        Ok(())
    }
}

/// Nothing where nothing is configured.
fn described(ps_index: u32, status: store::Status, copy: (String, String)) -> Option<v1::ShardStatus> {
    let state = state(&status).to_owned();
    Some(v1::ShardStatus {
        ps_index,
        state,
        job: Some(status.job?),
        version: status.version.unwrap_or(0),
        in_hand: status.in_hand.into_iter().map(Into::into).collect(),
        copy_address: copy.0,
        copy_state: copy.1,
    })
}

/// As status replies name it.
pub(super) fn state(status: &store::Status) -> &'static str {
    match status {
        store::Status {
            version: Some(_),
            copy: true,
            ..
        } => "copy",
        store::Status { version: Some(_), .. } => "serving",
        store::Status { job: Some(_), .. } => "loading",
        _ => "waiting",
    }
}
