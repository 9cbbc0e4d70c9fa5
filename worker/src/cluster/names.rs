//! Hosts of a cluster that nobody dials, by name: workers come by themselves, and one whose name is misspelt may never have been started.

use std::time::Duration;

use coati_common::rpc::{self, Unreachable};
use futures::future::join_all;

/// A name server that does not answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Warns of workers (`host:port` by index) whose names have no address. No more than that, because a scheduler may give a host its name
/// when its task starts; who has not come in the end is the coordinator's to say.
pub(super) async fn look_up(workers: Vec<String>) {
    let found = join_all(workers.iter().map(|address| found(address))).await;
    for ((index, address), found) in workers.iter().enumerate().zip(found) {
        if let Err(reason) = found {
            tracing::warn!("worker-{index} ({address}): {reason}\nhint: {}", reason.hint());
        }
    }
}

async fn found(address: &str) -> Result<(), Unreachable> {
    let silent = |_| Unreachable::Dns("the name server does not answer".to_owned());
    tokio::time::timeout(LIMIT, rpc::resolve(address))
        .await
        .map_err(silent)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_without_an_address_is_told_from_one_that_has_one() {
        assert_eq!(found("127.0.0.1:1").await, Ok(()));
        let wrong = found("no-such-host.invalid:2223").await.unwrap_err();
        assert!(matches!(wrong, Unreachable::Dns(_)), "{wrong}");
        assert!(wrong.hint().contains("cluster file or TF_CONFIG"));
    }
}
