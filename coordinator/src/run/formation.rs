//! The beginning: servers are loaded, replicas join.

use std::time::Duration;

use coati_checkpoint::manifest::DataPosition;
use coati_common::cluster::OnNan;
use coati_param_server::{Consistency, PsGroup, plan};
use coati_proto::coati::v1;
use tokio::time::Instant;

use super::recovery::{self, Source};
use super::{Init, Outcome, Run, Trouble};
use crate::state::Phase;
use crate::step_log::FILE;
use crate::troubles::Verdict;

/// While lost servers are waited for, that is said so often.
pub(super) const SAY_EVERY: Duration = Duration::from_secs(10);

impl Run {
    /// Connects and loads the servers, waits for the replicas. `servers` is filled in as soon as they are connected, for the
    /// farewell if the rest fails.
    pub(super) async fn form(&self, source: &Source, servers: &mut Option<PsGroup>) -> Result<(), Trouble> {
        let options = &self.options;
        let begun = Instant::now();
        let placement = plan(&options.variables, options.ps_addresses.len() as u32, options.strategy)
            .map_err(|error| Trouble::Final(error.to_string()))?;
        let ps_addresses = self.hosts(source).await;
        let group = self.connect(source, placement.clone(), &ps_addresses).await?;
        let group = &*servers.insert(group.accepting_non_finite(options.on_nan == OnNan::Apply));
        self.check_software(group).await?;
        let adopted = match &source.log {
            Some(log) => self.adopt(group, log, source.lost.as_ref()).await?,
            None => false,
        };
        if !adopted {
            if let (Some(log), None) = (&source.log, &source.lost) {
                let why = "the parameter servers do not hold the newest step";
                self.went_back(why, log.end(), source.init.position().0);
            }
            self.load(group, &source.init).await?;
        }
        self.await_members(source, begun).await?;
        let mut inner = self.state.lock();
        inner.plan = Some(v1::JobPlan {
            placement: Some(placement),
            ps_addresses,
            num_steps: options.num_steps,
            synchronous: options.synchronous,
            max_staleness: options.consistency.max_staleness,
            data_seed: options.data_seed,
            batch_size: options.batch_size,
            skip_non_finite: options.on_nan == OnNan::Skip,
            compression: Some(options.compression),
            // Each replica is told the rest when it asks.
            ..v1::JobPlan::default()
        });
        if let Phase::Failed(reason) = &inner.phase {
            return Err(Trouble::Final(reason.clone()));
        }
        if !adopted {
            let (version, data) = source.init.position();
            self.begin_log(&inner.job, version, &data);
        }
        inner.phase = Phase::Training;
        drop(inner);
        self.state.changed();
        Ok(())
    }

    /// A lost server may take its time to come back; who is waited for is said.
    async fn connect(
        &self,
        source: &Source,
        placement: v1::Placement,
        addresses: &[String],
    ) -> Result<PsGroup, Trouble> {
        let (job, limits) = (self.state.lock().job.clone(), &self.options.limits);
        let connect = |limit| PsGroup::connect(placement.clone(), addresses, &job, limit);
        if source.needs_all() {
            return self.look_at_servers(placement).await;
        }
        if source.is_first() {
            // Nothing has been there that could have been lost.
            return connect(limits.formation)
                .await
                .map_err(|error| Trouble::Final(error.to_string()));
        }
        let deadline = Instant::now() + limits.rejoin;
        loop {
            match connect(SAY_EVERY).await {
                Ok(group) => return Ok(group),
                Err(error) if Instant::now() >= deadline => return Err(Trouble::Final(error.to_string())),
                Err(error) => self.state.warn(format!("waiting for the parameter servers: {error}")),
            }
        }
    }

    /// Ends when somebody asks to stop, or a task is refused: nobody should wait for a cluster that cannot form. Servers that
    /// hold more than a checkpoint does are taken over first, unless that takes long.
    pub(super) async fn given_up(&self, source: &Source) -> Outcome {
        let mut changes = self.state.watch();
        let patience = source.log.as_ref().map(|_| self.options.limits.heartbeat_timeout);
        let mut stop_at = None;
        loop {
            changes.mark_unchanged();
            let verdict = {
                let inner = self.state.lock();
                if let Some(reason) = &inner.stop {
                    let now = Instant::now();
                    if *stop_at.get_or_insert(now + patience.unwrap_or_default()) <= now {
                        return Outcome::Interrupted(reason.clone());
                    }
                }
                if let Phase::Failed(reason) = &inner.phase {
                    return Outcome::Failed(reason.clone());
                }
                inner.troubles.verdict(Instant::now(), &inner.membership.missing())
            };
            let verdict = match (verdict, stop_at) {
                (Verdict::Fine, Some(at)) => Verdict::WaitUntil(at),
                (Verdict::WaitUntil(until), Some(at)) => Verdict::WaitUntil(until.min(at)),
                (verdict, _) => verdict,
            };
            // The sender lives as long as the state, which is ours too.
            match verdict {
                Verdict::Fine => drop(changes.changed().await),
                Verdict::WaitUntil(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let _ = tokio::time::timeout(left, changes.changed()).await;
                }
                Verdict::Hopeless(reason) => {
                    return Outcome::Failed(format!("the cluster could not form: {reason}"));
                }
            }
        }
    }

    async fn check_software(&self, servers: &PsGroup) -> Result<(), Trouble> {
        let own = env!("CARGO_PKG_VERSION");
        for client in servers.clients() {
            let status = client
                .status(self.options.limits.commit)
                .await
                .map_err(coati_param_server::client::Error::from)?;
            self.state.heard_server(&status);
            if status.software_version != own {
                return Err(Trouble::Final(format!(
                    "{} runs Coati {}, the master runs {own}\nhint: install the same version everywhere",
                    client.peer(),
                    status.software_version
                )));
            }
        }
        Ok(())
    }

    /// Gives the servers their variables.
    async fn load(&self, servers: &PsGroup, init: &Init) -> Result<(), Trouble> {
        let options = &self.options;
        let limits = &options.limits;
        servers
            .configure(options.optimizer.clone(), self.consistency(), limits.formation)
            .await?;
        match init {
            Init::Values(values) => {
                servers.load(values, 0, limits.formation).await?;
            }
            Init::Checkpoint { prefix, step, .. } => {
                let prefix = prefix.display().to_string();
                servers.restore(&prefix, *step, false, limits.save).await?;
            }
        }
        Ok(())
    }

    /// Synchronous gradients are never stale: nothing to make up for.
    pub(super) fn consistency(&self) -> Consistency {
        if self.options.synchronous {
            Consistency::default()
        } else {
            self.options.consistency
        }
    }

    /// Waits for the replicas: the first time for all of them, later on for those that were there before, and not for long.
    async fn await_members(&self, source: &Source, begun: Instant) -> Result<(), Trouble> {
        let limits = &self.options.limits;
        let deadline = match source.awaited {
            None => begun + limits.formation,
            Some(_) => Instant::now() + limits.heartbeat_timeout,
        };
        loop {
            let missing: Vec<String> = {
                let mut inner = self.state.lock();
                if let Some((_, lost)) = inner.lost(Instant::now()).first()
                    && source.needs_all()
                {
                    return Err(Trouble::Final(format!("{lost}\nhint: look into the task's log")));
                }
                let missing = inner.membership.missing().into_iter();
                let missing: Vec<String> = missing
                    .filter(|task| {
                        let awaited = source.awaited.as_ref();
                        awaited.is_none_or(|awaited| awaited.contains_key(*task))
                    })
                    .map(str::to_owned)
                    .collect();
                if matches!(inner.phase, Phase::Forming(_)) {
                    inner.phase = Phase::Forming(missing.join(", "));
                }
                // Who stops now makes no further step.
                let late = Instant::now() >= deadline || inner.stop.is_some();
                // The master's own replica is there as long as this process is.
                let has_master = inner.stop.is_some() || !missing.iter().any(|task| task == "master");
                let without = late && !source.needs_all() && has_master;
                if missing.is_empty() || without {
                    for rank in 0..=self.options.workers {
                        if !inner.is_there(rank) {
                            inner.remove(rank);
                        }
                    }
                    if inner.stop.is_some() {
                        return Ok(());
                    }
                    if !missing.is_empty() {
                        self.state.warn(format!(
                            "training goes on without {}; it may come back",
                            missing.join(", ")
                        ));
                    }
                    // One that hangs does not end by itself.
                    for task in missing {
                        let pid = source.awaited.as_ref().and_then(|awaited| awaited.get(&task));
                        recovery::ask_for_restart(&self.options.model_dir, task, pid.copied().unwrap_or(0));
                    }
                    return Ok(());
                }
                missing
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && source.needs_all() {
                return Err(Trouble::Final(format!(
                    "{} did not join within {:.0} s\nhint: look into the task's log; does it reach the master at its address?",
                    missing.join(", "),
                    limits.formation.as_secs_f64()
                )));
            }
            // Woken by those who join; looks by itself for those who fall silent.
            let pause = if left.is_zero() {
                limits.look_every()
            } else {
                left.min(limits.look_every())
            };
            let _ = tokio::time::timeout(pause, self.state.work.notified()).await;
        }
    }

    /// From here on the log tells what was decided. Without it, a restarted coordinator goes back to the last checkpoint.
    pub(super) fn begin_log(&self, job: &v1::JobRef, version: u64, data: &DataPosition) {
        if let Err(error) = self.steps().begin(job, version, data) {
            self.state.warn(format!(
                "{} cannot be written: {error}; if the master dies, the job goes back to its last checkpoint",
                self.options.model_dir.join(FILE).display()
            ));
        }
    }
}
