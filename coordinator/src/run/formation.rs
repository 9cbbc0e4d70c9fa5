//! The beginning: servers are loaded, replicas join.

use std::time::Instant;

use coati_param_server::{PsGroup, plan};
use coati_proto::coati::v1;

use super::{Init, Outcome, Run};
use crate::state::Phase;

impl Run {
    /// Connects and loads the servers, waits for the replicas. `servers` is filled in as soon as they are connected, for the
    /// farewell if the rest fails.
    pub(super) async fn form(&self, servers: &mut Option<PsGroup>) -> Result<(), String> {
        let formed = self.form_cluster(servers).await;
        formed.map_err(|reason| format!("the cluster could not form: {reason}"))
    }

    /// Ends when somebody asks to stop, or a task is refused: nobody should wait for a cluster that cannot form.
    pub(super) async fn given_up(&self) -> Outcome {
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            {
                let inner = self.state.lock();
                if let Some(reason) = &inner.stop {
                    return Outcome::Interrupted(reason.clone());
                }
                if let Phase::Failed(reason) = &inner.phase {
                    return Outcome::Failed(reason.clone());
                }
            }
            // The sender lives as long as the state, which is ours too.
            let _ = changes.changed().await;
        }
    }

    async fn form_cluster(&self, servers: &mut Option<PsGroup>) -> Result<(), String> {
        let options = &self.options;
        let deadline = Instant::now() + options.limits.formation;
        let placement = plan(&options.variables, options.ps_addresses.len() as u32, options.strategy)
            .map_err(|error| error.to_string())?;
        let group = PsGroup::connect(
            placement.clone(),
            &options.ps_addresses,
            &options.job,
            options.limits.formation,
        )
        .await
        .map_err(|error| error.to_string())?;
        let group = &*servers.insert(group);
        self.check_software(group).await?;
        let start_version = self.load(group).await.map_err(|error| error.to_string())?;
        self.await_members(deadline).await?;
        let mut inner = self.state.lock();
        inner.plan = Some(v1::JobPlan {
            placement: Some(placement),
            ps_addresses: options.ps_addresses.clone(),
            start_version,
            num_steps: options.num_steps,
            replica: 0,
            replicas: inner.replicas,
            synchronous: options.synchronous,
            max_staleness: options.max_staleness,
            data_seed: options.data_seed,
            batch_size: options.batch_size,
            compression: Some(options.compression),
        });
        if let Phase::Failed(reason) = &inner.phase {
            return Err(reason.clone());
        }
        inner.phase = Phase::Training;
        drop(inner);
        self.state.changed();
        Ok(())
    }

    async fn check_software(&self, servers: &PsGroup) -> Result<(), String> {
        let own = env!("CARGO_PKG_VERSION");
        for client in servers.clients() {
            let status = client
                .status(self.options.limits.commit)
                .await
                .map_err(|error| error.to_string())?;
            if status.software_version != own {
                return Err(format!(
                    "{} runs Coati {}, the master runs {own}\nhint: install the same version everywhere",
                    client.peer(),
                    status.software_version
                ));
            }
        }
        Ok(())
    }

    /// Gives the servers their variables; returns the version that training goes on from.
    async fn load(&self, servers: &PsGroup) -> Result<u64, coati_param_server::client::Error> {
        let options = &self.options;
        let limits = &options.limits;
        let bound = if options.synchronous { 0 } else { options.max_staleness };
        servers
            .configure(options.optimizer.clone(), bound, limits.formation)
            .await?;
        match &options.init {
            Init::Values(values) => {
                servers.load(values, 0, limits.formation).await?;
                Ok(0)
            }
            Init::Checkpoint { prefix, step, .. } => {
                let prefix = prefix.display().to_string();
                servers.restore(&prefix, *step, false, limits.save).await?;
                Ok(*step)
            }
        }
    }

    async fn await_members(&self, deadline: Instant) -> Result<(), String> {
        let look_every = self.options.limits.look_every();
        loop {
            let missing = {
                let mut inner = self.state.lock();
                if let Some(lost) = inner.lost(Instant::now()) {
                    return Err(format!("{lost}\nhint: look into the task's log"));
                }
                let missing = inner.membership.missing().join(", ");
                if missing.is_empty() {
                    return Ok(());
                }
                if matches!(inner.phase, Phase::Forming(_)) {
                    inner.phase = Phase::Forming(missing.clone());
                }
                missing
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "{missing} did not join within {:.0} s\nhint: look into the task's log; does it reach the master at its address?",
                    self.options.limits.formation.as_secs_f64()
                ));
            }
            // Woken by those who join; looks by itself for those who fall silent.
            let _ = tokio::time::timeout(left.min(look_every), self.state.work.notified()).await;
        }
    }
}
