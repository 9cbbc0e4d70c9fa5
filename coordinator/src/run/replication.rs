//! `coati.replication`: every server's variables have a copy in another process, and come home when that was lost.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc;
use coati_param_server::client::Configuration;
use coati_param_server::{PsClient, PsGroup};
use coati_proto::coati::v1::{JobRef, PsStatusReply};
use futures::future::join_all;
use tokio::time::Instant;

use super::recovery::{self, Source};
use super::shards::{self, Wanted};
use super::{Event, Run};
use crate::state::State;
use crate::step_log::Log;
use crate::task::Task;
use crate::vigil::{Silence, Vigil};

/// All parameter server processes, whoever's variables lie in them. Connections are made when they are needed, since a process
/// may come back.
#[derive(Clone)]
pub(super) struct Processes {
    addresses: Vec<String>,
    job: JobRef,
    clients: Vec<Option<PsClient>>,
}

impl Processes {
    pub(super) fn new(addresses: &[String], job: JobRef) -> Self {
        Self {
            addresses: addresses.to_vec(),
            job,
            clients: vec![None; addresses.len()],
        }
    }

    /// What each of them says, within the limit; nothing where one does not answer.
    pub(super) async fn ask(&mut self, limit: Duration) -> Vec<Result<PsStatusReply, rpc::Error>> {
        let job = &self.job;
        let asking = self.addresses.iter().zip(0..).zip(&mut self.clients);
        let asking = asking.map(|((address, index), client)| async move {
            let asked = match client.take() {
                Some(known) => known,
                None => PsClient::connect_once(index, address, job.clone(), limit).await?,
            };
            let answer = asked.status_once(limit).await?;
            *client = Some(asked);
            Ok(answer)
        });
        join_all(asking).await
    }

    /// Tells all processes to leave, also those that hold nobody's variables.
    pub(super) async fn dismiss(&self, reason: &str, limit: Duration) {
        let leaving = self.addresses.iter().zip(0..).map(|(address, index)| async move {
            let client = PsClient::connect(index, address, self.job.clone(), limit.min(Duration::from_secs(1))).await?;
            client.shutdown(reason, limit).await
        });
        for (left, address) in join_all(leaving).await.into_iter().zip(&self.addresses) {
            if let Err(error) = left {
                tracing::info!(%error, address, "a parameter server process did not take leave; it ends by itself");
            }
        }
    }
}

impl Run {
    /// `host:port` of the process in which each server's variables lie, or will.
    pub(super) async fn hosts(&self, source: &Source) -> Vec<String> {
        let home = &self.options.ps_addresses;
        if !self.options.replication {
            return home.clone();
        }
        let Some(log) = &source.log else {
            return home.clone();
        };
        match self.find(log).await {
            Some(hosts) => hosts.into_iter().filter_map(|host| home.get(host).cloned()).collect(),
            None => home.clone(),
        }
    }

    /// Begins to look after the copies.
    pub(super) fn tend(&self, group: &PsGroup, job: &JobRef) -> Task {
        let (options, limits) = (&self.options, &self.options.limits);
        let tending = Tending {
            state: Arc::clone(&self.state),
            group: group.clone(),
            configuration: group.configuration(options.optimizer.clone(), self.consistency(), true),
            addresses: options.ps_addresses.clone(),
            job: job.clone(),
            model_dir: options.model_dir.clone(),
            every: limits.heartbeat_interval,
            patience: limits.heartbeat_timeout,
        };
        tending.start()
    }

    /// In which processes the variables lie where the log ends. Those that do not answer are asked again for a while: a lost
    /// server costs steps only when its copy is lost, too.
    pub(super) async fn find(&self, log: &Log) -> Option<Vec<usize>> {
        let limits = &self.options.limits;
        let mut processes = Processes::new(&self.options.ps_addresses, log.job.clone());
        let deadline = Instant::now() + limits.heartbeat_timeout;
        loop {
            let answers = processes.ask(patience(limits.heartbeat_timeout)).await;
            let silent = answers.iter().filter_map(|answer| answer.as_ref().err());
            let all = !silent.into_iter().any(rpc::Error::is_silence);
            let answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
            if let Some(hosts) = shards::place(log, &answers) {
                return Some(hosts);
            }
            if all || Instant::now() >= deadline {
                tracing::warn!(?answers, "the variables of a server are nowhere");
                return None;
            }
            tokio::time::sleep(limits.heartbeat_interval.min(Duration::from_millis(200))).await;
        }
    }
}

/// For one look: a process that hangs must not keep the others waiting for as long as it may be silent.
fn patience(silence: Duration) -> Duration {
    (silence / 4).min(Duration::from_secs(2))
}

/// Where the servers' variables lie, and what a copy is configured with.
pub(super) struct Tending {
    pub(super) state: Arc<State>,
    pub(super) group: PsGroup,
    pub(super) configuration: Configuration,
    /// Of all processes, by index.
    pub(super) addresses: Vec<String>,
    pub(super) job: JobRef,
    pub(super) model_dir: PathBuf,
    /// Between two looks.
    pub(super) every: Duration,
    /// A process that does not answer for so long is lost.
    pub(super) patience: Duration,
}

impl Tending {
    /// Sees to it that every server has a copy, until it is aborted.
    pub(super) fn start(self) -> Task {
        Task::spawn(self.run())
    }

    async fn run(self) {
        let hosts: Vec<usize> = self.group.clients().iter().map(|client| self.host_of(client)).collect();
        let mut processes = Processes::new(&self.addresses, self.job.clone());
        let mut vigils = vec![Vigil::new(self.patience, Instant::now()); self.addresses.len()];
        loop {
            let asked = Instant::now();
            for vigil in &mut vigils {
                vigil.ask(asked);
            }
            let answers = processes.ask(patience(self.patience)).await;
            let answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
            let now = Instant::now();
            for (process, (answer, vigil)) in answers.iter().zip(&mut vigils).enumerate() {
                if let Some(answer) = answer {
                    vigil.hear(now);
                    self.state.heard_server(answer);
                } else if vigil.miss(now) == Silence::TooLong && !hosts.contains(&process) {
                    // Whoever watches the servers sees to those that hold variables; others may hang, too. Asked again after as long.
                    vigil.hear(now);
                    let pid = self.state.server_pid(process as u32);
                    let task = format!("ps-{process}");
                    recovery::ask_for_restart_of_silent(&self.model_dir, task, pid, self.patience);
                }
            }
            let wanted = shards::wanted(&self.job, &hosts, &self.addresses, &answers);
            self.tell(&hosts, &wanted);
            if !wanted.copies.is_empty() {
                // A step that is under way goes to the copies of before; the next one waits for the new ones.
                drop(self.state.deciding.lock().await);
            }
            for (index, to) in &wanted.copies {
                if let Err(error) = self.copy(*index, *to).await {
                    tracing::warn!(%error, "no copy of ps-{index} could be begun");
                }
            }
            for (process, index) in &wanted.strays {
                if let Err(error) = self.forget(*process, *index).await {
                    tracing::info!(%error, "what is left of ps-{index} stays in process {process} for now");
                }
            }
            // Steps may be waiting for a copy that is on its way.
            let pause = if wanted.under_way { self.every / 20 } else { self.every };
            tokio::time::sleep(pause.max(Duration::from_millis(10))).await;
        }
    }

    fn host_of(&self, client: &PsClient) -> usize {
        let address = &client.peer().address;
        self.addresses.iter().position(|other| other == address).unwrap_or(0)
    }

    /// Lets process `to` keep the copy of server `index`.
    async fn copy(&self, index: usize, to: usize) -> Result<(), rpc::Error> {
        let (Some(original), Some(address)) = (self.group.clients().get(index), self.addresses.get(to)) else {
            return Ok(());
        };
        let copy = PsClient::connect(index as u32, address, self.job.clone(), self.patience).await?;
        copy.configure(&self.configuration, self.patience).await?;
        original.replicate(address, self.patience, self.patience).await
    }

    /// Lets a process go of what it holds of server `index` for nobody.
    async fn forget(&self, process: usize, index: usize) -> Result<(), rpc::Error> {
        let Some(address) = self.addresses.get(process) else {
            return Ok(());
        };
        let stray = PsClient::connect(index as u32, address, self.job.clone(), self.patience).await?;
        stray.forget(self.patience).await
    }

    fn tell(&self, hosts: &[usize], wanted: &Wanted) {
        let mut inner = self.state.lock();
        if inner.job.incarnation != self.job.incarnation {
            return;
        }
        inner.copies_under_way = wanted.under_way;
        if inner.without_copy.as_ref() != Some(&wanted.without) {
            if wanted.without.is_empty() {
                let guests = hosts.iter().enumerate().filter(|(index, host)| index != *host).count();
                tracing::info!(guests, "every parameter server has a copy");
            }
            inner.without_copy = Some(wanted.without.clone());
            let without = wanted.without.iter().map(|&index| index as u32).collect();
            self.state.tell(Event::Copies { without });
        }
        if wanted.without.is_empty() && !wanted.guests.is_empty() && !inner.is_over() {
            let names: Vec<String> = wanted.guests.iter().map(|index| format!("ps-{index}")).collect();
            inner.moving_home = Some(names.join(", "));
        }
        drop(inner);
        self.state.wake();
    }
}
