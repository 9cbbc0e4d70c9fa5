//! Checkpoints: all servers keep one version; while training goes on each writes its data file, then come index, manifest
//! and state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coati_checkpoint::manifest::{self, DataPosition, Manifest};
use coati_checkpoint::{keep, saver};
use coati_common::invariants::{Invariant, check};
use coati_common::work;
use coati_param_server::store::Saved;
use coati_param_server::{PsGroup, Strategy};
use coati_proto::coati::v1;

use super::{Event, Init, Run};
use crate::state::State;
use crate::task::Task;

/// A checkpoint that all servers keep the values of: what is left to do needs nobody to wait.
struct Kept {
    servers: PsGroup,
    version: u64,
    prefix: PathBuf,
    folder: PathBuf,
    manifest: Manifest,
    keeping: keep::Options,
    limit: Duration,
    state: Arc<State>,
}

impl Run {
    /// Writes a checkpoint of the newest version, unless it has one.
    pub(super) async fn save(&self, servers: &PsGroup) -> Result<(), String> {
        self.saved().await;
        match self.snapshot(servers).await? {
            Some(kept) => kept.write().await,
            None => Ok(()),
        }
    }

    /// Lets a checkpoint of the newest version be written while training goes on. A failure is said and costs nothing but the
    /// checkpoint: the next attempt comes with the next due time. False when the one before is not written yet: later.
    pub(super) async fn save_on_the_way(&self, servers: &PsGroup, version: u64) -> bool {
        // Who names steps gets these steps; who names times can wait for a slow disk without training waiting for it.
        if self.options.cadence.every_steps.is_some() {
            self.saved().await;
        } else if self.is_saving().await {
            return false;
        }
        let failed =
            move |error: String| format!("checkpoint of step {version} failed; the previous one stays: {error}");
        match self.snapshot(servers).await {
            Ok(None) => {}
            Ok(Some(kept)) => {
                let state = Arc::clone(&self.state);
                let writing = Task::spawn(async move {
                    if let Err(error) = kept.write().await {
                        state.warn(failed(error));
                    }
                });
                *self.saving.lock().await = Some(writing);
            }
            Err(error) => self.state.warn(failed(error)),
        }
        true
    }

    async fn is_saving(&self) -> bool {
        let saving = self.saving.lock().await;
        saving.as_ref().is_some_and(|writing| !writing.is_finished())
    }

    /// Waits for the checkpoint that is being written; its own limits end it, and the loss of a server.
    pub(super) async fn saved(&self) {
        let writing = self.saving.lock().await.take();
        if let Some(writing) = writing
            && let Err(error) = writing.ended().await
        {
            self.state
                .warn(format!("a checkpoint's writing ended unexpectedly: {error}"));
        }
    }

    /// Lets all servers keep the newest version. No commit is under way meanwhile, so that it is one instant.
    async fn snapshot(&self, servers: &PsGroup) -> Result<Option<Kept>, String> {
        let (version, data, last, job) = {
            let inner = self.state.lock();
            let data = inner.ledger.position();
            (inner.clock.version(), data, inner.last_checkpoint, inner.job.clone())
        };
        let new_job = matches!(self.options.init, Init::Values(_));
        if version == last && !(new_job && version == 0) {
            return Ok(None);
        }
        servers
            .snapshot(version, self.options.limits.commit)
            .await
            .map_err(|error| error.to_string())?;
        let newest = self.state.lock().clock.version();
        check(Invariant::CheckpointIsOneInstant, newest == version, || {
            format!("the servers keep step {version}, {newest} was committed meanwhile")
        });
        // It may begin here and not with the checkpoint's last file: servers are compared with its end, whatever it begins with.
        self.begin_log(&job, version, &data);
        Ok(Some(Kept {
            servers: servers.clone(),
            version,
            prefix: saver::prefix(&self.options.model_dir, version),
            folder: self.options.model_dir.clone(),
            manifest: self.manifest(version, data),
            keeping: self.options.keep,
            limit: self.options.limits.save,
            state: Arc::clone(&self.state),
        }))
    }

    fn manifest(&self, version: u64, data: DataPosition) -> Manifest {
        let options = &self.options;
        Manifest {
            version: manifest::VERSION,
            job_id: options.job.job_id.clone(),
            incarnation: self.state.lock().job.incarnation,
            global_step: version,
            config_digest: options.identity.config_digest.clone(),
            seeds: [("data".to_owned(), options.data_seed)].into(),
            data,
            record_count: options.identity.record_count,
            replicas: options.workers + 1,
            batch_size: options.batch_size,
            placement: manifest::Placement {
                strategy: strategy_name(options.strategy).to_owned(),
                version: 1,
                bytes: Vec::new(),
            },
            wall_time: now(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            files: Vec::new(),
        }
    }
}

impl Kept {
    async fn write(self) -> Result<(), String> {
        saver::begin(&self.prefix).map_err(|error| error.to_string())?;
        let saved = self.data_files().await.inspect_err(|_| {
            // What was written of it must not be mistaken for a checkpoint.
            let _ = keep::delete(&self.prefix);
        })?;
        let Self { version, prefix, .. } = self;
        let shards = self.servers.clients().len() as u32;
        let (folder, done) = (self.folder, prefix.clone());
        let (manifest, keeping) = (self.manifest, self.keeping);
        work::blocking(move || publish(&folder, &done, shards, &saved.tensors, manifest, keeping))
            .await
            .map_err(|error| error.to_string())??;
        self.state.lock().last_checkpoint = version;
        self.state.tell(Event::Saved { prefix, step: version });
        Ok(())
    }

    /// Lets the servers write; a server that is lost meanwhile is not waited for.
    async fn data_files(&self) -> Result<Saved, String> {
        let prefix = self.prefix.display().to_string();
        tokio::select! {
            // In a fixed order, so that a simulation can be repeated.
            biased;
            saved = self.servers.save(&prefix, self.version, self.limit) => saved.map_err(|error| error.to_string()),
            lost = self.lost() => Err(lost),
        }
    }

    async fn lost(&self) -> String {
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            if let Some(reason) = &self.state.lock().servers_lost {
                return reason.clone();
            }
            // The sender lives as long as the state, which is ours too.
            let _ = changes.changed().await;
        }
    }
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::RoundRobin => "round_robin",
        Strategy::Balanced => "balanced",
    }
}

fn publish(
    folder: &Path,
    prefix: &Path,
    shards: u32,
    tensors: &[v1::SavedTensor],
    manifest: Manifest,
    keeping: keep::Options,
) -> Result<(), String> {
    saver::publish(prefix, shards, tensors, manifest).map_err(|error| error.to_string())?;
    keep::update(folder, prefix, now(), keeping).map_err(|error| error.to_string())?;
    Ok(())
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
