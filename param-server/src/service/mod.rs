//! The parameter server's service: a [`Store`] behind gRPC.

mod background;
mod folder;
mod follower;
mod handlers;
mod lanes;
mod life;
mod shards;
mod steps;
mod transfer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::{self, InProcess, MESSAGE_LIMIT_BYTES, Security};
use coati_proto::coati::v1::parameter_server_server::ParameterServerServer;
use tokio::sync::watch;
use tonic::server::NamedService as _;

pub use life::Ended;

use crate::store::{self, Store};
use handlers::Service;
use life::Life;
use shards::Shards;
use transfer::Transfer;

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`; port 0 picks a free one.
    pub listen: String,
    /// This server's number within the cluster.
    pub index: u32,
    /// The server ends by itself when nobody calls it for so long, so that it never outlives its job.
    pub orphan_timeout: Duration,
    /// Who may call.
    pub security: Security,
    /// Of the engine.
    pub store: store::Options,
}

impl Options {
    /// Server number `index`, listening on `listen`, with the credentials of this process.
    pub fn new(index: u32, listen: impl Into<String>) -> Self {
        Self {
            listen: listen.into(),
            index,
            orphan_timeout: Duration::from_secs(120),
            security: Security::of_this_process(),
            store: store::Options::default(),
        }
    }
}

/// Requests under way may end for so long after the server was told to leave.
const GRACE: Duration = Duration::from_secs(5);

/// A running server. Dropping all handles does not end it.
#[derive(Clone, Debug)]
pub struct Handle {
    address: SocketAddr,
    life: Arc<Life>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks it to leave; returns at once.
    pub fn shutdown(&self) {
        self.life.leave(Ended::Stopped);
    }

    /// Waits until it has left: told by [`Handle::shutdown`], by the rpc, or orphaned.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Stopped),
            Err(_) => Ended::Failed("the server's task is gone".to_owned()),
        }
    }
}

/// Short calls, and bulk transfers.
fn answering(
    index: u32,
    shards: Shards,
    security: Security,
    life: Arc<Life>,
) -> (Arc<Service>, ParameterServerServer<Service>, Transfer) {
    let service = Arc::new(Service::new(index, Arc::new(shards), security, life));
    let transfer = Transfer(Arc::clone(&service));
    let short = ParameterServerServer::from_arc(Arc::clone(&service))
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    (service, short, transfer)
}

/// Server number `index` with what `store` holds, for callers in this process: listens nowhere, and lives as long as it is held.
pub fn in_process(index: u32, store: Arc<Store>) -> InProcess {
    let shards = Shards::with(index, store);
    let (_, service, transfer) = answering(index, shards, Security::of_this_process(), Arc::new(Life::new()));
    let services = [InProcess::serving(service), InProcess::serving(transfer)];
    InProcess::through(move |request| {
        let bulk = request.uri().path().trim_start_matches('/').starts_with(Transfer::NAME);
        services[usize::from(bulk)].call(request)
    })
}

/// Listens and serves until told to leave. Returns as soon as the port is bound.
pub async fn serve(options: Options) -> Result<Handle, rpc::Error> {
    let mut server = rpc::server(&options.security)?;
    let mut listener = rpc::bind(&options.listen).await?;
    let life = Arc::new(Life::new());
    let shards = Shards::new(options.index, options.store);
    let (service, short, transfer) = answering(options.index, shards, options.security.clone(), Arc::clone(&life));
    let (done, ended) = watch::channel(None);
    let address = listener.address;
    tracing::info!(%address, ps = options.index, "parameter server listens");
    let bulk = lanes::serve(Arc::clone(&service), listener.incoming.lanes(), options.security);
    let mut bulk = tokio::spawn(bulk);
    let leaving = Arc::clone(&life);
    let mut serving = tokio::spawn(
        server
            .add_service(short)
            .add_service(transfer)
            .serve_with_incoming_shutdown(listener.incoming, async move {
                leaving.left().await;
            }),
    );
    let watched = Arc::clone(&life);
    tokio::spawn(async move {
        let reason = tokio::select! {
            // The listener closes because the server was told to leave: that reason counts.
            biased;
            reason = watched.left() => reason,
            reason = watched.orphaned(options.orphan_timeout) => reason,
            failed = &mut serving => Ended::Failed(match failed {
                Ok(Ok(())) => "the listener closed".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            }),
        };
        // The first reason counts, even if its effects were seen before it.
        watched.leave(reason);
        let reason = watched.left().await;
        service.retire();
        let ending = async {
            if !serving.is_finished() {
                let _ = (&mut serving).await;
            }
            let _ = (&mut bulk).await;
        };
        if tokio::time::timeout(GRACE, ending).await.is_err() {
            tracing::warn!("requests were still under way when the server left");
            serving.abort();
            bulk.abort();
        }
        tracing::info!(%address, ?reason, "parameter server left");
        done.send_replace(Some(reason));
    });
    Ok(Handle { address, life, ended })
}
