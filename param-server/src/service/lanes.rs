//! Bulk transfers on lanes: as `coati.v1.Transfer` over HTTP/2, one call after the other on each.

use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::security::Check;
use coati_common::rpc::{self, ErrorCode, Knock, Lanes, Security, ServiceError};
use coati_proto::coati::v1;
use coati_proto::coati::v1::lane_call::Method;
use futures::stream;
use prost::Message;
use tokio::task::JoinSet;
use tonic::Status;

use super::handlers::{Service, missing, wait_within};
use crate::wire::{self, Chunks};

/// Who has a lane says what for within this time.
const FIRST_CALL: Duration = Duration::from_secs(10);

/// Who has nothing more to say for so long opens another one when there is something.
const IDLE: Duration = Duration::from_secs(600);

/// From the first byte of a call to what it is about.
const CALL: Duration = Duration::from_secs(10);

/// Serves a port's lanes until the server is told to leave; calls under way then go on to their end.
pub(super) async fn serve(service: Arc<Service>, mut lanes: Lanes, security: Security) {
    let mut open = JoinSet::new();
    let check = security.check();
    loop {
        let knock = tokio::select! {
            biased;
            () = service.left() => break,
            knock = lanes.next() => knock,
            Some(_) = open.join_next() => continue,
        };
        // A port that is closed leaves its lanes open.
        let Some(knock) = knock else { break };
        let (service, security, check) = (Arc::clone(&service), security.clone(), check.clone());
        open.spawn(async move {
            if let Err(error) = one(&service, knock, &security, &check).await {
                tracing::debug!(%error, "a lane ended");
            }
        });
    }
    // Nobody serves those who still wait.
    drop(lanes);
    while open.join_next().await.is_some() {}
}

/// Until the other side hangs up or breaks the rules, or the server is told to leave.
async fn one(service: &Arc<Service>, knock: Knock, security: &Security, check: &Check) -> Result<(), Status> {
    let lane = tokio::select! {
        biased;
        () = service.left() => return Ok(()),
        lane = knock.open(security) => lane?,
    };
    let mut calls = Chunks::<v1::LaneCall>::of_lane(lane);
    let mut limit = FIRST_CALL;
    while let Some(call) = next(service, &mut calls, limit).await? {
        let Some(lane) = answered(service, call, calls, check).await? else {
            break;
        };
        calls = Chunks::of_lane(lane);
        limit = IDLE;
    }
    Ok(())
}

/// Waits so long for the next call; nothing when there will be none.
async fn next(
    service: &Arc<Service>,
    calls: &mut Chunks<v1::LaneCall>,
    limit: Duration,
) -> Result<Option<v1::LaneCall>, Status> {
    let coming = async {
        if !tokio::time::timeout(limit, calls.awaken()).await.unwrap_or(false) {
            return Ok(None);
        }
        let late = |_| Status::deadline_exceeded("a call whose beginning does not come to an end");
        let call = tokio::time::timeout(CALL, calls.head()).await.map_err(late)??;
        Ok(call.map(|(call, _)| call))
    };
    tokio::select! {
        biased;
        () = service.left() => Ok(None),
        call = coming => call,
    }
}

/// Answers one call; returns the lane if it can go on.
async fn answered(
    service: &Arc<Service>,
    call: v1::LaneCall,
    mut calls: Chunks<v1::LaneCall>,
    check: &Check,
) -> Result<Option<rpc::Lane>, Status> {
    let from = calls.lane().map(|lane| lane.peer());
    let shown = Some(call.token.as_ref()).filter(|token| !token.is_empty());
    if let Err(error) = check.admit(shown, from) {
        // Nothing of a stranger is read, not even to its end.
        return refused(calls, error.into()).await;
    }
    let limit = Duration::from_millis(call.limit_ms).saturating_add(rpc::call_headroom());
    let answering = async {
        match call.method() {
            Method::Push => push(service, &call, calls.followed_by()).await,
            Method::Pull => pull(service, &call, calls.followed_by()).await,
            Method::Unspecified => {
                let message = format!("method {} of a lane is not known here", call.method);
                refused(calls, ServiceError::new(ErrorCode::InvalidRequest, message).into()).await
            }
        }
    };
    // Nobody waits for it any more.
    let answered = tokio::time::timeout(limit, answering).await;
    answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("the caller waits no longer")))
}

/// Says why a call is not answered, for as long as the other side listens; the lane ends here.
async fn refused<M: Message + Default>(mut chunks: Chunks<M>, why: Status) -> Result<Option<rpc::Lane>, Status> {
    if let Some(lane) = chunks.lane() {
        lane.send(&mut [wire::end(Err(&why))]).await?;
    }
    Err(why)
}

async fn push(
    service: &Arc<Service>,
    call: &v1::LaneCall,
    mut chunks: Chunks<v1::PushChunk>,
) -> Result<Option<rpc::Lane>, Status> {
    let reply = service.push(Ok(service.store_at(call.ps_index)), &mut chunks).await;
    let mut answer = match reply {
        Ok(reply) => vec![wire::head(&reply, 0), wire::end(Ok(()))],
        Err(status) if chunks.is_whole() => vec![wire::end(Err(&status))],
        Err(status) => return refused(chunks, status).await,
    };
    let Some(mut lane) = chunks.into_lane() else {
        return Ok(None);
    };
    lane.send(&mut answer).await?;
    Ok(Some(lane))
}

async fn pull(
    service: &Arc<Service>,
    call: &v1::LaneCall,
    mut chunks: Chunks<v1::PullRequest>,
) -> Result<Option<rpc::Lane>, Status> {
    let request = match chunks.head().await? {
        Some((request, 0)) => request,
        _ => return refused(chunks, missing("message").into()).await,
    };
    if chunks.head().await?.is_some() || !chunks.is_whole() {
        let why = ServiceError::new(ErrorCode::InvalidRequest, "a pull is one message, and its end");
        return refused(chunks, why.into()).await;
    }
    let Some(mut lane) = chunks.into_lane() else {
        return Ok(None);
    };
    let wait = wait_within(Duration::from_millis(call.limit_ms));
    let store = service.store_at(call.ps_index);
    let quiet = lane.sign_every();
    let pulled = {
        let mut pulling = std::pin::pin!(service.pull(store, request, wait));
        loop {
            let said = tokio::select! {
                biased;
                pulled = &mut pulling => break pulled,
                // Who asks hangs up, or does not wait for the answer.
                () = lane.disturbed() => return Ok(None),
                () = tokio::time::sleep(quiet) => lane.send(&mut [wire::alive()]).await,
            };
            said?;
        }
    };
    match pulled {
        Ok(messages) => {
            let end = vec![wire::end(Ok(()))];
            wire::send(&mut lane, stream::iter(messages.chain([end]))).await?;
        }
        Err(status) => lane.send(&mut [wire::end(Err(&status))]).await?,
    }
    Ok(Some(lane))
}
