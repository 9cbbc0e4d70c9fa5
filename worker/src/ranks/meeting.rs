//! How ranks come together: which transport joins them, and how everybody gets the same variables.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coati_collective::nccl::{Gpus, Libraries};
use coati_collective::shm::{DEFAULT_SLICE, Shared};
use coati_collective::tcp::{Mesh, Secret};
use coati_collective::{Communicator, Error, Identity, Options, Watch};
use coati_common::cluster::{TaskId, TaskType, Transport};
use coati_common::rpc::security::{Security, Token};
use coati_coordinator::launcher::JOB_ID_VARIABLE;
use coati_detection::accelerator::Device;
use coati_param_server::store;
use sha2::{Digest as _, Sha256};

use super::Ranks;
use crate::book::State;
use crate::stop::StopFlag;

/// Longest wait within an operation for a rank that is alive: one that evaluates or writes a checkpoint lets the others wait.
pub(super) const OPERATION: Duration = Duration::from_secs(3600);

/// Where a file that ranks of one host share lies best: in memory.
const MEMORY: &str = "/dev/shm";

/// What a group of ranks is for; several may meet at one place, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Gradients,
    Statistics,
}

impl Ranks {
    /// The task of a rank.
    pub(super) fn task_of(rank: usize) -> TaskId {
        match rank.checked_sub(1) {
            None => TaskId::MASTER,
            Some(index) => TaskId::new(TaskType::Worker, index as u32),
        }
    }

    /// Whether all ranks are on one host, and share its memory.
    pub fn one_host(&self) -> bool {
        if self.transport == Transport::Tcp {
            return false;
        }
        let hosts = |kind| self.spec.list(kind).iter().map(|address| address.host.as_str());
        let master = self.spec.master.host.as_str();
        hosts(TaskType::Worker).all(|host| host == master)
    }

    /// The file that the ranks of this job on this host share: its name depends on what all of them know, and nobody else.
    fn place(&self, purpose: Purpose) -> PathBuf {
        let mut digest = Sha256::new();
        digest.update(std::env::var(JOB_ID_VARIABLE).unwrap_or_default());
        digest.update(self.model_dir.as_os_str().as_encoded_bytes());
        for (task, address) in self.spec.tasks() {
            digest.update(format!("\n{task} {address}"));
        }
        let name = coati_common::hex(&digest.finalize()[..8]);
        let kind = match purpose {
            Purpose::Gradients => "gradients",
            Purpose::Statistics => "statistics",
        };
        let memory = Path::new(MEMORY);
        let folder = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        folder.join(format!("coati-{name}-{kind}"))
    }

    fn address(&self) -> Result<SocketAddr, Error> {
        let (host, port) = (self.spec.master.host.as_str(), self.spec.master.port);
        let io = |source| Error::Io {
            what: format!("cannot find the address of rank 0, {host}:{port}"),
            source,
            hint: "all ranks must be able to resolve the master's name",
        };
        let mut found = (host, port).to_socket_addrs().map_err(io)?;
        let none = || io(std::io::Error::other("the name has no address"));
        found.next().ok_or_else(none)
    }

    /// Meets the others.
    pub(super) fn meet(
        &self,
        purpose: Purpose,
        digest: [u8; 32],
        limit: Duration,
        stop: &StopFlag,
    ) -> Result<Box<dyn Communicator>, Error> {
        let identity = Identity::here(self.rank(), self.world(), env!("CARGO_PKG_VERSION"), digest);
        let mut options = Options::new(identity)?;
        options.rendezvous_timeout = limit;
        options.timeout = OPERATION;
        options.watch = Watch {
            silence: self.limits.heartbeat_timeout,
            stop: Some(stop.flag()),
            say: Some(say),
        };
        let shared = match self.transport {
            Transport::Auto => self.one_host(),
            Transport::SharedMemory => true,
            Transport::Tcp => false,
        };
        if shared {
            let place = self.place(purpose);
            return Ok(Box::new(Shared::join(&place, &options, DEFAULT_SLICE)?));
        }
        // The job's token does not travel, and neither does what it is made into.
        let security = Security::of_this_process();
        let token = security.token().map(Token::text).unwrap_or_default();
        let secret = Secret::new(Sha256::digest(format!("ranks {token}")).into());
        Ok(Box::new(Mesh::join(self.address()?, None, &secret, &options)?))
    }
}

fn say(text: &str) {
    tracing::warn!("{text}");
}

/// Ranks that have met, and where their gradients are summed.
pub(super) enum Joined {
    Host(Box<dyn Communicator>),
    /// Over NCCL, with a communicator of hosts beside it.
    Gpus(Gpus),
}

impl Joined {
    /// As a communicator of values on the host.
    pub(super) fn boxed(self) -> Box<dyn Communicator> {
        match self {
            Self::Host(host) => host,
            Self::Gpus(gpus) => Box::new(gpus),
        }
    }
}

/// Makes `Device::TorchCpu` a GPU whose CUDA and NCCL are the libraries of this folder: how tests see all but NVIDIA's own.
const STAND_IN: &str = "COATI_TEST_GPU_LIBRARIES";

/// Where the network computes on a GPU, so do the sums.
pub(super) fn on_device(host: Box<dyn Communicator>, device: Device) -> Result<Joined, Error> {
    let stand_in = std::env::var_os(STAND_IN).map(PathBuf::from);
    let (folder, index) = match (device, stand_in) {
        (Device::Cuda(index), _) => (None, index),
        (Device::TorchCpu, Some(folder)) => (Some(folder), host.rank()),
        _ => return Ok(Joined::Host(host)),
    };
    let folders: Vec<&Path> = folder.iter().map(PathBuf::as_path).collect();
    let libraries = Arc::new(Libraries::open(&folders)?);
    Ok(Joined::Gpus(Gpus::start(libraries, host, index as i32, OPERATION)?))
}

/// Brings what `source` holds to everybody. Only there is `held` looked at.
pub(super) fn share(
    communicator: &mut dyn Communicator,
    source: usize,
    held: Option<&State>,
) -> Result<store::State, Error> {
    let own = held
        .filter(|_| communicator.rank() == source)
        .map(|held| held.store.clone());
    // What is to come: the version, Adam's scalars, the lengths.
    let heading = own.as_ref().map_or(Vec::new(), |state| {
        let lengths: Vec<usize> = state.vectors.iter().map(|vector| vector.len()).collect();
        let powers: Vec<u32> = state.powers.iter().map(|power| power.to_bits()).collect();
        super::notes::encode(&(state.version, powers, lengths))
    });
    let all = communicator.all_gather(&heading)?;
    let heading: Vec<Vec<u8>> = all.into_iter().skip(source).take(1).collect();
    let headings: Vec<(u64, Vec<u32>, Vec<usize>)> = super::notes::decode(&heading)?;
    let Some((version, powers, lengths)) = headings.into_iter().next() else {
        return Err(Error::Refused(format!("rank {source} holds no variables")));
    };
    let mut vectors = Vec::with_capacity(lengths.len());
    for (index, length) in lengths.into_iter().enumerate() {
        let mut values = match own.as_ref().and_then(|state| state.vectors.get(index)) {
            Some(own) => own.to_vec(),
            None => vec![0.0; length],
        };
        communicator.broadcast(source, &mut values)?;
        vectors.push(Arc::new(values));
    }
    Ok(store::State {
        version,
        powers: powers.into_iter().map(f32::from_bits).collect(),
        vectors,
    })
}
