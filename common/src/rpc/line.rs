//! What carries calls: a connection, or a network that exists within this process only.
//!
//! A simulation runs the tasks of a job on one thread and wants to decide which message arrives, when, and how often. It puts
//! a [`Network`] of its own in place of the system's with [`dial_over`]; everything above that is what real jobs run.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, StdError};
use tonic::transport::Channel;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

use super::Unreachable;

/// A service in this process, or the way to one.
#[derive(Clone)]
pub struct InProcess(BoxCloneSyncService<Request<Body>, Response<Body>, StdError>);

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl InProcess {
    /// Of a service as tonic generates it.
    pub fn serving<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service.map_err(|never| match never {})))
    }

    /// Of what takes a call and returns its answer, or an error as a broken connection would.
    pub fn through<F, A>(carry: F) -> Self
    where
        F: Fn(Request<Body>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Response<Body>, StdError>> + Send + 'static,
    {
        Self(BoxCloneSyncService::new(tower::service_fn(carry)))
    }

    /// One call.
    pub fn call(&self, request: Request<Body>) -> BoxFuture<Response<Body>, StdError> {
        Box::pin(self.0.clone().oneshot(request))
    }
}

/// Where [`connect`](super::connect) finds peers instead of on the system's network.
pub trait Network {
    /// The way to `address` (`host:port`), or why there is none now.
    fn dial(&self, address: &str) -> Result<InProcess, Unreachable>;
}

thread_local! {
    static NETWORK: RefCell<Option<Arc<dyn Network>>> = const { RefCell::new(None) };
}

/// Takes the network away again when it is dropped.
#[must_use]
pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        NETWORK.set(None);
    }
}

/// Whatever is dialled on this thread goes over `network`, until the guard is dropped.
pub fn dial_over(network: Arc<dyn Network>) -> Guard {
    NETWORK.set(Some(network));
    Guard(())
}

/// Whether a connection carries messages in both directions at once. One over a [`Network`] carries whole calls: a message, and its answer.
pub fn carries_streams() -> bool {
    network().is_none()
}

pub(super) fn network() -> Option<Arc<dyn Network>> {
    NETWORK.with_borrow(Clone::clone)
}

/// Carries calls to one peer.
#[derive(Clone, Debug)]
pub enum Line {
    /// Over the system's network.
    Socket(Channel),
    /// Over one that was put in its place.
    InProcess(InProcess),
}

/// An answer on its way.
pub enum Answer {
    /// See [`Line::Socket`].
    Socket(<Channel as Service<Request<Body>>>::Future),
    /// See [`Line::InProcess`].
    InProcess(BoxFuture<Response<Body>, StdError>),
}

impl Future for Answer {
    type Output = Result<Response<Body>, StdError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Socket(answer) => Pin::new(answer).poll(context).map_err(Into::into),
            Self::InProcess(answer) => answer.as_mut().poll(context),
        }
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        match self {
            Self::Socket(channel) => channel.poll_ready(context).map_err(Into::into),
            Self::InProcess(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        match self {
            Self::Socket(channel) => Answer::Socket(channel.call(request)),
            Self::InProcess(service) => Answer::InProcess(service.call(request)),
        }
    }
}
