//! The way from a server to the one that keeps its copy.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coati_common::rpc::Security;
use coati_proto::coati::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::client::PsClient;
use crate::store::{Store, Update, lock};

/// Steps that may be ahead of the copy while it is seeded; then they wait for it, so that it can catch up.
const AHEAD: usize = 4;

/// Longest for all that is held to arrive.
const SEED_LIMIT: Duration = Duration::from_secs(300);

/// How far the copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// It is sent what is held; steps do not wait for it.
    Seeding,
    /// It has everything: each step waits until it has that one, too.
    Following,
    /// There is no copy any more, for this reason.
    Broken(String),
}

#[derive(Debug)]
struct Item {
    update: Arc<Update>,
    done: oneshot::Sender<()>,
}

/// Sends one server's steps to its copy. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Follower {
    job: v1::JobRef,
    address: String,
    limit: Duration,
    queue: mpsc::Sender<Item>,
    progress: Arc<Mutex<Progress>>,
    sending: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

impl Follower {
    /// Begins to send what `store` holds for `job` to the server at `address`, which keeps the copy of server `index`.
    pub(super) fn start(
        store: Arc<Store>,
        security: Security,
        index: u32,
        job: v1::JobRef,
        address: String,
        limit: Duration,
    ) -> Self {
        let (queue, items) = mpsc::channel(AHEAD);
        let progress = Arc::new(Mutex::new(Progress::Seeding));
        let send = Sending {
            store,
            index,
            job: job.clone(),
            address: address.clone(),
            limit,
            progress: Arc::clone(&progress),
        };
        let sending = tokio::spawn(async move {
            let progress = Arc::clone(&send.progress);
            let Err(error) = send.run(&security, items).await;
            tracing::warn!(%error, index, "there is no copy of these variables any more");
            *lock(&progress) = Progress::Broken(error);
        });
        Self {
            job,
            address,
            limit,
            queue,
            progress,
            sending,
        }
    }

    pub(super) fn job(&self) -> &v1::JobRef {
        &self.job
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// In words, for a status.
    pub(super) fn state(&self) -> String {
        match &*lock(&self.progress) {
            Progress::Seeding => "seeding".to_owned(),
            Progress::Following => "following".to_owned(),
            Progress::Broken(why) => why.clone(),
        }
    }

    /// Whether it goes on to send to this address for this job.
    pub(super) fn serves(&self, job: &v1::JobRef, address: &str) -> bool {
        self.job == *job && self.address == address && !matches!(*lock(&self.progress), Progress::Broken(_))
    }

    /// Hands a step to the copy; true when it has it, false when there is no whole copy (yet, or any more).
    pub(super) async fn hand(&self, update: Arc<Update>) -> bool {
        let Ok(Ok(place)) = tokio::time::timeout(self.limit, self.queue.reserve()).await else {
            return false;
        };
        let (done, handed) = oneshot::channel();
        {
            // Under the lock, so that a copy counts as whole only when nothing is on its way that nobody waits for.
            let progress = lock(&self.progress);
            place.send(Item { update, done });
            if *progress != Progress::Following {
                return false;
            }
        }
        // The sender keeps to the limit.
        handed.await.is_ok()
    }
}

struct Sending {
    store: Arc<Store>,
    index: u32,
    job: v1::JobRef,
    address: String,
    limit: Duration,
    progress: Arc<Mutex<Progress>>,
}

enum Never {}

impl Sending {
    async fn run(&self, security: &Security, mut items: mpsc::Receiver<Item>) -> Result<Never, String> {
        let copy = PsClient::connect_as(security, self.index, &self.address, self.job.clone(), self.limit)
            .await
            .map_err(|error| error.to_string())?;
        // Steps that are prepared from here on are in the queue, those before in what is held now.
        let (store, job) = (Arc::clone(&self.store), self.job.clone());
        let held = tokio::task::spawn_blocking(move || store.all(&job)).await;
        let held = held.map_err(|error| error.to_string())?;
        let (seed, prepared) = held.map_err(|error| error.to_string())?;
        copy.follow(seed.begin(self.job.clone()), seed.chunks(), SEED_LIMIT)
            .await
            .map_err(|error| error.to_string())?;
        let version = seed.version;
        drop(seed);
        if let Some(update) = prepared {
            self.send(&copy, update).await?;
        }
        loop {
            let item = {
                let mut progress = lock(&self.progress);
                match items.try_recv() {
                    Ok(item) => Some(item),
                    Err(_) if *progress == Progress::Seeding => {
                        tracing::info!(index = self.index, version, copy = %copy.peer(), "the copy is whole");
                        *progress = Progress::Following;
                        None
                    }
                    Err(_) => None,
                }
            };
            let item = match item {
                Some(item) => item,
                // Its sender is dropped with what holds this task.
                None => match items.recv().await {
                    Some(item) => item,
                    None => std::future::pending().await,
                },
            };
            self.send(&copy, item.update).await?;
            // Whoever prepared the step may not wait any more.
            let _ = item.done.send(());
        }
    }

    async fn send(&self, copy: &PsClient, update: Arc<Update>) -> Result<(), String> {
        let chunks = update.chunks();
        let begin = update.begin(self.job.clone());
        // Not held longer than necessary: it is applied in place when nobody else holds it.
        drop(update);
        let sent = copy.follow(begin, chunks, self.limit).await;
        sent.map_err(|error| error.to_string())
    }
}
