use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use coati_common::rpc::{Lane, Peer, Security};
use tonic::Status;

use crate::store::lock;

/// A replica pushes and pulls at the same time; who asks for more at once opens more, and closes them afterwards.
const KEPT: usize = 2;

/// Lanes to one server, opened when they are needed and used again. Cloning is cheap; clones share them.
#[derive(Clone)]
pub(super) struct Lanes {
    security: Security,
    idle: Arc<Mutex<Vec<Lane>>>,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes")
            .field("idle", &lock(&self.idle).len())
            .finish_non_exhaustive()
    }
}

impl Lanes {
    pub(super) fn new(security: &Security) -> Self {
        Self {
            security: security.clone(),
            idle: Arc::default(),
        }
    }

    /// What a call shows; nothing where the job has no token.
    pub(super) fn token(&self) -> Bytes {
        let token = self.security.token();
        token.map_or_else(Bytes::new, |token| token.text().into())
    }

    /// One that is free, or else a new one, within `limit`. Who does not get to the end of a call drops it.
    pub(super) async fn take(&self, peer: &Peer, limit: Duration) -> Result<Lane, Status> {
        while let Some(lane) = self.idle() {
            if lane.is_idle() {
                return Ok(lane);
            }
        }
        Lane::dial(&self.security, peer, limit).await
    }

    fn idle(&self) -> Option<Lane> {
        lock(&self.idle).pop()
    }

    /// For the next call.
    pub(super) fn give_back(&self, lane: Lane) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT {
            idle.push(lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_lane_is_used_again_until_the_server_hangs_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer::ps(0, listener.local_addr().unwrap().to_string());
        let lanes = Lanes::new(&Security::none());
        let first = lanes.take(&peer, LIMIT).await.unwrap();
        let (held, from) = listener.accept().await.unwrap();
        lanes.give_back(first);
        let again = lanes.take(&peer, LIMIT).await.unwrap();
        let second = lanes.take(&peer, LIMIT).await.unwrap();
        let (held_too, other) = listener.accept().await.unwrap();
        assert_ne!(from, other, "who needs two has two");
        lanes.give_back(second);
        drop((held, held_too));
        // Until the end of the connection has arrived.
        again.disturbed().await;
        let _third = lanes.take(&peer, LIMIT).await.unwrap();
        let (_held, third) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        assert!(third != from && third != other);
    }

    #[tokio::test]
    async fn idle_lanes_are_few() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer::ps(0, listener.local_addr().unwrap().to_string());
        let lanes = Lanes::new(&Security::none());
        let mut open = Vec::new();
        for _ in 0..KEPT + 3 {
            open.push(lanes.take(&peer, LIMIT).await.unwrap());
        }
        open.into_iter().for_each(|lane| lanes.give_back(lane));
        assert_eq!(lock(&lanes.idle).len(), KEPT);
    }
}
