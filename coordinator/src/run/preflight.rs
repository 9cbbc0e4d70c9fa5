//! Before a cluster forms for the first time: every server is dialled, its version, clock and folder are looked at. What is
//! wrong is collected with what the replicas say of themselves, see [`crate::troubles`].

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::time::Duration;

use coati_common::rpc::{self, Peer};
use coati_common::wall_clock::{self, Offset};
use coati_param_server::client::Error;
use coati_param_server::{PsClient, PsGroup};
use coati_proto::coati::v1;
use futures::future::join_all;
use tokio::time::Instant;

use super::formation::SAY_EVERY;
use super::{Run, Trouble};

/// One attempt to reach a server; what it came to is known to the others then.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A server that accepted the connection has so long to say who it is.
const ANSWER: Duration = Duration::from_secs(10);

/// A file in the job's folder by which servers tell it from another of the same name. Removed when dropped.
struct Witness {
    path: PathBuf,
    name: String,
    content: Vec<u8>,
}

impl Witness {
    fn make(folder: &std::path::Path) -> std::io::Result<Self> {
        // The standard library's hasher is seeded by the system's randomness.
        let number = std::hash::RandomState::new().build_hasher().finish();
        let name = format!("coati-preflight-{number:016x}");
        let witness = Self {
            path: folder.join(&name),
            content: format!("{number}").into_bytes(),
            name,
        };
        coati_storage::create_dir_all(folder)?;
        coati_storage::put(&witness.path, &witness.content)?;
        Ok(witness)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = coati_storage::remove(&self.path);
    }
}

impl Run {
    /// Reaches all servers and looks at them. Where one is of no use, this waits for [`Run::given_up`] to say that together
    /// with everything else.
    pub(super) async fn look_at_servers(&self, placement: v1::Placement) -> Result<PsGroup, Trouble> {
        let folder = &self.options.model_dir;
        let witness = Witness::make(folder).map_err(|error| {
            Trouble::Final(format!(
                "{}: {error}\nhint: --model_dir must be a folder that can be written, on a disk with room",
                folder.display()
            ))
        })?;
        let deadline = Instant::now() + self.options.limits.formation;
        let looking = join_all((0..).zip(&self.options.ps_addresses).map(|(index, address)| {
            let peer = Peer::ps(index, address);
            self.state.lock().troubles.absent(&peer.task, "");
            self.look_at(index, peer, deadline, &witness)
        }));
        let clients = tokio::select! {
            clients = looking => clients,
            () = self.say_who_is_absent() => Vec::new(),
        };
        match clients.into_iter().collect::<Option<Vec<PsClient>>>() {
            Some(clients) => Ok(PsGroup::new(clients, placement)?),
            None => std::future::pending().await,
        }
    }

    async fn say_who_is_absent(&self) {
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            let waiting_for = self.state.lock().troubles.waiting_for();
            if !waiting_for.is_empty() {
                self.state.warn(format!("waiting for {waiting_for}"));
            }
        }
    }

    /// One server; none where it is of no use, which the troubles tell.
    async fn look_at(&self, index: u32, peer: Peer, deadline: Instant, witness: &Witness) -> Option<PsClient> {
        let found = match self.reach(index, &peer, deadline).await {
            Ok(client) => self.check_server(&client, witness).await.map(|()| client),
            Err(problem) => Err(problem),
        };
        let mut inner = self.state.lock();
        inner.troubles.answered(&peer.task);
        let client = found.map_err(|problem| inner.troubles.add(&peer.task, problem, Instant::now()));
        drop(inner);
        self.state.changed();
        client.ok()
    }

    /// Dials until somebody answers, it is clear that nobody will, or the deadline is over.
    async fn reach(&self, index: u32, peer: &Peer, deadline: Instant) -> Result<PsClient, String> {
        let job = self.state.lock().job.clone();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match PsClient::connect(index, &peer.address, job.clone(), left.min(ATTEMPT)).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let words = match &error {
                // How long one attempt took is of no interest.
                rpc::Error::Unreachable { reason, .. } => format!("{peer}: {reason}\nhint: {}", reason.hint()),
                _ => error.to_string(),
            };
            if left <= ATTEMPT || !error.retryable() {
                return Err(words);
            }
            self.state.lock().troubles.absent(&peer.task, words);
        }
    }

    /// Version, clock and folder of a server that answers.
    async fn check_server(&self, client: &PsClient, witness: &Witness) -> Result<(), String> {
        let peer = client.peer();
        let sent = wall_clock::now_ms();
        let status = client.status(ANSWER).await.map_err(|error| match error {
            rpc::Error::Timeout { .. } => {
                format!("{error}\nhint: somebody accepts connections there and does not answer: is it a parameter server of Coati?")
            }
            error => error.to_string(),
        })?;
        let clock = Offset::over(sent, status.clock_ms, wall_clock::now_ms());
        let own = env!("CARGO_PKG_VERSION");
        if status.software_version != own {
            return Err(format!(
                "{peer} runs Coati {}, the master runs {own}\nhint: install the same version everywhere",
                status.software_version
            ));
        }
        let task = status.task.unwrap_or_default();
        if format!("{}-{}", task.r#type, task.index) != peer.task {
            return Err(format!(
                "{peer} says that it is {}-{}\nhint: the order of addresses in the cluster differs between tasks",
                task.r#type, task.index
            ));
        }
        if let Some(warning) = clock.warning(&peer.to_string()) {
            self.state.warn(warning);
        }
        let folder = self.options.model_dir.display().to_string();
        let looked = client.check_folder(&folder, &witness.name, &witness.content, ANSWER);
        match looked.await.map_err(|error| Error::from(error).to_string())? {
            None => Ok(()),
            Some(problem) => Err(format!(
                "{peer}: {problem}\nhint: --model_dir must be one folder that all hosts share, with the same path on each"
            )),
        }
    }
}
