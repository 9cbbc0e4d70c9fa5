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

    /// Those that a request means by its [`SHARD_KEY`], with their index; empty ones where this process holds none yet.
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
        let mut held = lock(&self.held);
        let shard = held.get(&index).map(Arc::clone);
        let shard = shard.unwrap_or_else(|| {
            let shard = Arc::new(Shard::of(Arc::new(Store::new(self.options))));
            if held.len() < MOST {
                held.insert(index, Arc::clone(&shard));
            }
            shard
        });
        Ok((index, shard))
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
        let configured = held.into_iter().filter_map(|(ps_index, shard)| {
            let status = shard.store.status();
            let job = status.job.clone()?;
            let follower = lock(&shard.follower).clone().filter(|f| *f.job() == job);
            Some(v1::ShardStatus {
                ps_index,
                state: state(&status).to_owned(),
                job: Some(job),
                version: status.version.unwrap_or(0),
                prepared: status.prepared,
                copy_address: follower.as_ref().map(|f| f.address().to_owned()).unwrap_or_default(),
                copy_state: follower.map(|f| f.state()).unwrap_or_default(),
            })
        });
        configured.collect()
    }
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
