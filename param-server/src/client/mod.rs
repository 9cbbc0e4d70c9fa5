//! The callers' side: one server ([`PsClient`]), or all servers of a placement ([`PsGroup`]).
//!
//! Every call takes a limit and names the server that did not keep it. Broken connections are tried again within the
//! limit, for a few seconds: every call may be repeated without harm.

mod early;
mod feedback;
mod group;
mod lanes;
mod single;
mod transfer;

use coati_common::rpc;

use crate::placement;

pub use early::Pushing;
pub use group::{Moved, PsGroup};
pub use single::{Configuration, PsClient};

/// Why a call on the servers failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A server did not answer, or refused.
    #[error(transparent)]
    Rpc(Box<rpc::Error>),
    /// The placement cannot be used.
    #[error(transparent)]
    Placement(#[from] placement::Error),
    /// The placement is for another number of servers.
    #[error("the placement is for {placed} parameter servers, {addresses} addresses are given")]
    ServerCount {
        /// Of the placement.
        placed: usize,
        /// Of the cluster.
        addresses: usize,
    },
    /// A vector that is not the model's flat vector.
    #[error("the model has {expected} elements, the vector {found}")]
    Length {
        /// Of the model.
        expected: usize,
        /// What was given.
        found: usize,
    },
}

impl From<rpc::Error> for Error {
    fn from(error: rpc::Error) -> Self {
        Self::Rpc(Box::new(error))
    }
}

impl Error {
    /// The call's own error, unless it was refused on this side.
    pub fn rpc(&self) -> Option<&rpc::Error> {
        match self {
            Self::Rpc(error) => Some(error),
            _ => None,
        }
    }

    /// The service's own code, where one answered.
    pub fn code(&self) -> Option<rpc::ErrorCode> {
        self.rpc().and_then(rpc::Error::code)
    }
}
