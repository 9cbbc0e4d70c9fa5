//! Checkpoints: each server writes its data file, then come index, manifest and state.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use coati_checkpoint::manifest::{self, DataPosition, Manifest};
use coati_checkpoint::{keep, saver};
use coati_param_server::{PsGroup, Strategy};
use coati_proto::coati::v1;

use super::{Event, Init, Run};

impl Run {
    /// Writes a checkpoint of the newest version, unless it has one. No commit is under way meanwhile, so that it is one
    /// instant.
    pub(super) async fn save(&self, servers: &PsGroup) -> Result<(), String> {
        let (version, data, last) = {
            let inner = self.state.lock();
            (inner.clock.version(), inner.ledger.position(), inner.last_checkpoint)
        };
        let new_job = matches!(self.options.init, Init::Values(_));
        if version == last && !(new_job && version == 0) {
            return Ok(());
        }
        let prefix = saver::prefix(&self.options.model_dir, version);
        saver::begin(&prefix).map_err(|error| error.to_string())?;
        let saved = servers
            .save(&prefix.display().to_string(), version, self.options.limits.save)
            .await
            .map_err(|error| {
                // What was written of it must not be mistaken for a checkpoint.
                let _ = keep::delete(&prefix);
                error.to_string()
            })?;
        let manifest = self.manifest(version, data.clone());
        let (folder, keeping, shards) = (
            self.options.model_dir.clone(),
            self.options.keep,
            self.options.ps_addresses.len() as u32,
        );
        let done = prefix.clone();
        tokio::task::spawn_blocking(move || publish(&folder, &done, shards, &saved.tensors, manifest, keeping))
            .await
            .map_err(|error| error.to_string())??;
        let job = {
            let mut inner = self.state.lock();
            inner.last_checkpoint = version;
            inner.job.clone()
        };
        self.begin_log(&job, version, &data);
        self.state.tell(Event::Saved { prefix, step: version });
        Ok(())
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
