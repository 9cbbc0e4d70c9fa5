//! Waits until a task accepts connections.

use std::time::Duration;

use coati_common::cluster::Address;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(1);

/// Returns when somebody listens on the address. The deadline is the caller's: the future is dropped when it is over.
pub(super) async fn accepts(address: &Address) {
    loop {
        if let Ok(Ok(_)) = timeout(PATIENCE, TcpStream::connect((address.host.as_str(), address.port))).await {
            return;
        }
        sleep(PAUSE).await;
    }
}
