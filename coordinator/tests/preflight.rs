//! What the coordinator finds out about servers before it uses them.

use std::time::Duration;

use coati_common::rpc::{self, Security};
use coati_coordinator::{Outcome, start};
use coati_proto::coati::v1;
use coati_proto::coati::v1::parameter_server_server::{ParameterServer, ParameterServerServer};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::{options, servers};

/// A server of another version, which knows one call.
struct Other(&'static str, u32);

macro_rules! unknown {
    ($($name:ident($request:ty) -> $reply:ty;)*) => {
        #[tonic::async_trait]
        impl ParameterServer for Other {
            type PreparesStream = rpc::Answers<v1::PrepareReply>;
            type CommitsStream = rpc::Answers<v1::CommitReply>;

            async fn status(&self, _: Request<v1::PsStatusRequest>) -> Result<Response<v1::PsStatusReply>, Status> {
                Ok(Response::new(v1::PsStatusReply {
                    task: Some(v1::Task { r#type: "ps".into(), index: self.1 }),
                    software_version: self.0.into(),
                    ..v1::PsStatusReply::default()
                }))
            }

            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$reply>, Status> {
                Err(Status::unimplemented("not in this version"))
            })*
        }
    };
}

unknown! {
    check_folder(v1::CheckFolderRequest) -> v1::CheckFolderReply;
    configure(v1::ConfigureRequest) -> v1::ConfigureReply;
    adopt(v1::AdoptRequest) -> v1::AdoptReply;
    load(Streaming<v1::LoadChunk>) -> v1::LoadReply;
    restore(v1::RestoreRequest) -> v1::RestoreReply;
    prepare(v1::PrepareRequest) -> v1::PrepareReply;
    prepares(Streaming<v1::PrepareRequest>) -> Self::PreparesStream;
    snapshot(v1::SnapshotRequest) -> v1::SnapshotReply;
    replicate(v1::ReplicateRequest) -> v1::ReplicateReply;
    follow(Streaming<v1::FollowChunk>) -> v1::FollowReply;
    commit(v1::CommitRequest) -> v1::CommitReply;
    commits(Streaming<v1::CommitRequest>) -> Self::CommitsStream;
    save(v1::SaveRequest) -> v1::SaveReply;
    forget(v1::ForgetRequest) -> v1::ForgetReply;
    shutdown(v1::PsShutdownRequest) -> v1::PsShutdownReply;
}

async fn other(version: &'static str, index: u32) -> String {
    let listener = rpc::bind("127.0.0.1:0").await.unwrap();
    let mut server = rpc::server(&Security::none()).unwrap();
    let service = ParameterServerServer::new(Other(version, index));
    tokio::spawn(server.add_service(service).serve_with_incoming(listener.incoming));
    listener.address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_other_versions_and_at_each_others_address_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.workers = 0;
    let own = servers(1).await[0].address().to_string();
    let (older, swapped) = (other("0.0.9", 1).await, other(env!("CARGO_PKG_VERSION"), 7).await);
    options.ps_addresses = vec![own, older.clone(), swapped.clone()];
    let (sender, _events) = mpsc::unbounded_channel();
    let handle = start(options, sender).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), handle.finish())
        .await
        .unwrap();
    let Outcome::Failed(reason) = ended else {
        panic!("formed")
    };
    let version = env!("CARGO_PKG_VERSION");
    for part in [
        "the cluster could not form: 2 reasons:",
        &format!("ps-1 ({older}) runs Coati 0.0.9, the master runs {version}\nhint: "),
        &format!("ps-2 ({swapped}) says that it is ps-7\nhint: "),
    ] {
        assert!(reason.contains(part), "{part} is not in {reason}");
    }
    let left = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name());
    assert!(
        left.into_iter()
            .all(|name| !name.to_string_lossy().contains("preflight")),
        "the witness is left"
    );
}
