//! A job whose tasks run on different hosts of a made-up network, started one by one as a scheduler starts them.

use std::collections::BTreeMap;

use coati_common::cluster::{Address, ClusterSpec, TaskId, TaskType, TfConfig, tf_config};

use crate::network::{Host, Network};
use crate::{Coati, Finished, Process};

/// Every task listens here, on its own host.
const PORT: u16 = 4000;

/// Tasks and their hosts: the master on the first, then the workers, then the parameter servers.
#[derive(Debug)]
pub struct Spread {
    /// The hosts' network.
    pub network: Network,
    spec: ClusterSpec,
    places: BTreeMap<TaskId, Host>,
    running: BTreeMap<TaskId, Process>,
}

fn id(task: &str) -> TaskId {
    crate::or_panic(task.parse(), task)
}

impl Spread {
    /// Hosts for a master, workers and servers, and for one task more; `None`, with a message, where there are no namespaces.
    pub fn new(workers: u32, servers: u32) -> Option<Self> {
        let network = Network::new((workers + servers + 2) as u8)?;
        let mut hosts = network.hosts().into_iter();
        let mut places = BTreeMap::new();
        let mut take = |kind, count| -> Vec<Address> {
            let hosts = hosts.by_ref().take(count as usize).zip(0..);
            let placed = hosts.map(|(host, index)| {
                places.insert(TaskId::new(kind, index), host);
                Address {
                    host: host.address(),
                    port: PORT,
                }
            });
            placed.collect()
        };
        let spec = ClusterSpec {
            master: take(TaskType::Master, 1).remove(0),
            workers: take(TaskType::Worker, workers),
            ps: take(TaskType::Ps, servers),
            evaluators: Vec::new(),
        };
        Some(Self {
            network,
            spec,
            places,
            running: BTreeMap::new(),
        })
    }

    /// The host of a task: `worker-1`.
    pub fn host(&self, task: &str) -> Host {
        self.places[&id(task)]
    }

    /// The host that has no task.
    pub fn spare(&self) -> Host {
        self.network.hosts()[self.places.len()]
    }

    /// Its address with port.
    pub fn address(&self, task: &str) -> String {
        format!("{}:{PORT}", self.host(task).address())
    }

    /// The cluster as it is written to `TF_CONFIG`; for tests that change it for some tasks.
    pub fn spec(&self) -> ClusterSpec {
        self.spec.clone()
    }

    /// A command as this task of the cluster, on this host.
    pub fn command(&self, coati: Coati, spec: &ClusterSpec, task: &str, host: Host) -> Coati {
        let config = TfConfig::new(spec.clone(), id(task));
        coati
            .on(&self.network, host)
            .env(tf_config::VARIABLE, &config.to_json())
            // Many tasks share the cores of one machine.
            .env("COATI_THREADS", "1")
            .env("COATI_LOG", "coati=info,warn")
    }

    /// Starts a task on its host.
    pub fn start(&mut self, coati: &Coati, task: &str) {
        let command = self.command(coati.clone(), &self.spec, task, self.host(task));
        self.running.insert(id(task), command.start());
    }

    /// Starts all tasks, each on its host.
    pub fn start_all(&mut self, coati: &Coati) {
        for task in self.tasks() {
            self.start(coati, &task);
        }
    }

    /// Names of all tasks.
    pub fn tasks(&self) -> Vec<String> {
        self.places.keys().map(ToString::to_string).collect()
    }

    /// A task that was started.
    pub fn task(&self, task: &str) -> &Process {
        &self.running[&id(task)]
    }

    /// Waits for the end of a task.
    pub fn finish(&mut self, task: &str) -> Finished {
        match self.running.remove(&id(task)) {
            Some(process) => process.finish(),
            None => panic!("{task} was not started"),
        }
    }

    /// Waits for the end of all tasks, which must be in order; by name.
    pub fn finish_all(&mut self) -> BTreeMap<String, Finished> {
        let tasks: Vec<String> = self.running.keys().map(ToString::to_string).collect();
        let ended = tasks.into_iter().map(|task| {
            let finished = self.finish(&task).exits(0);
            (task, finished)
        });
        ended.collect()
    }
}
