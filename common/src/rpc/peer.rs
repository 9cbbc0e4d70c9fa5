use std::fmt;

/// The other end of a connection, as messages name it: `ps-1 (127.0.0.1:4003)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Task name, `master`, `worker-0`, `ps-1`, `evaluator`.
    pub task: String,
    /// `host:port`
    pub address: String,
}

impl Peer {
    /// The task `task` at `address` (`host:port`).
    pub fn new(task: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            task: task.into(),
            address: address.into(),
        }
    }

    /// The parameter server number `index`.
    pub fn ps(index: u32, address: impl Into<String>) -> Self {
        Self::new(format!("ps-{index}"), address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.task, self.address)
    }
}
