//! A network made up by a seed: it delays, reorders, loses and repeats messages, and hosts can be cut off, stopped or killed.
//!
//! What becomes of a message is a function of the seed, its sender, its receiver and its number between the two, and messages
//! that arrive at the same instant do so in a fixed order. So a run can be repeated, whatever order tasks happen to run in.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coati_common::rpc::line::Network;
use coati_common::rpc::{InProcess, Unreachable};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::{HeaderMap, Request, Response, request, response};

use crate::replica::Random;

/// How bad the network is. Probabilities in a thousand, times in ms.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// A request is lost with its connection: the caller hears of it later.
    pub(crate) lose_request: u64,
    /// The same of an answer.
    pub(crate) lose_reply: u64,
    /// A request arrives once more, up to `late` later.
    pub(crate) twice: u64,
    /// A message takes up to `late` instead of up to `quick`.
    pub(crate) slow: u64,
    pub(crate) quick: u64,
    pub(crate) late: u64,
}

/// Calls that no client repeats, so that a network of connections never delivers them twice.
const ONCE: [&str; 2] = ["Register", "Lease"];

/// A broken connection is noticed within this time.
const NOTICED_MS: u64 = 400;

/// A connection of which nothing comes back is given up after this time.
const SILENCE_MS: u64 = 3000;

/// A call that was answered, for those who look on.
pub(crate) struct Answered<'a> {
    pub(crate) to: &'a str,
    pub(crate) method: &'a str,
    /// The request as it was framed.
    pub(crate) request: &'a Bytes,
    pub(crate) succeeded: bool,
}

type Witness = Arc<dyn Fn(&Answered<'_>) + Send + Sync>;

/// One process.
struct Host {
    service: InProcess,
    /// What it has under way for its callers.
    handling: Vec<AbortHandle>,
}

/// Sender, receiver and method: two tasks of one process that call another one use methods of their own.
type Link = (String, String, String);

/// Comes about at an instant, in the order of these fields.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    at: Instant,
    link: Link,
    number: u64,
    leg: u8,
}

struct Waiting {
    moment: Moment,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.moment == other.moment
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.moment.cmp(&self.moment)
    }
}

#[derive(Default)]
struct Inner {
    weather: Weather,
    hosts: BTreeMap<String, Host>,
    /// Messages of the hosts on this side do not reach the others, nor the other way round.
    cut: BTreeSet<String>,
    /// Stopped hosts, and who waits for them to go on.
    stopped: BTreeMap<String, Vec<oneshot::Sender<()>>>,
    numbers: BTreeMap<Link, u64>,
    queue: BinaryHeap<Waiting>,
    digest: DefaultHasher,
    trace: Option<Vec<String>>,
    calls: u64,
}

/// See the module. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct SimNet {
    seed: u64,
    begun: Instant,
    inner: Arc<Mutex<Inner>>,
    earlier: Arc<Notify>,
    witness: Witness,
}

/// A whole message.
struct Answer {
    parts: response::Parts,
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn succeeded(&self) -> bool {
        let status = |headers: &HeaderMap| headers.get("grpc-status").map(|status| status == "0");
        status(&self.parts.headers)
            .or_else(|| status(self.trailers.as_ref()?))
            .unwrap_or(true)
    }

    fn into_response(self) -> Response<Body> {
        let trailers = self.trailers;
        let body = Full::new(self.data).with_trailers(async move { trailers.map(Ok) });
        Response::from_parts(self.parts, Body::new(body))
    }
}

fn broken(why: &str) -> StdError {
    // As tonic has it of a connection that broke.
    tonic::Status::unavailable(why).into()
}

impl SimNet {
    /// `witness` sees each answer as it leaves the host that gave it.
    pub(crate) fn new(seed: u64, tracing: bool, witness: Witness) -> Self {
        let inner = Inner {
            trace: tracing.then(Vec::new),
            ..Inner::default()
        };
        Self {
            seed,
            begun: Instant::now(),
            inner: Arc::new(Mutex::new(inner)),
            earlier: Arc::new(Notify::new()),
            witness,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Notes something for the trace, and for the digest of the run.
    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        let at = self.begun.elapsed().as_millis();
        let mut inner = self.lock();
        let text = what.to_string();
        (at, &text).hash(&mut inner.digest);
        if let Some(trace) = &mut inner.trace {
            trace.push(format!("{:>8.3} {text}", at as f64 / 1000.0));
        }
    }

    /// Equal for equal runs.
    pub(crate) fn digest(&self) -> u64 {
        self.lock().digest.finish()
    }

    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.lock().trace.clone().unwrap_or_default()
    }

    /// A process begins to answer.
    pub(crate) fn start(&self, name: &str, service: InProcess) {
        let host = Host {
            service,
            handling: Vec::new(),
        };
        self.lock().hosts.insert(name.to_owned(), host);
    }

    /// A process is gone with all that it had under way.
    pub(crate) fn kill(&self, name: &str) {
        let mut inner = self.lock();
        let host = inner.hosts.remove(name);
        let released = inner.stopped.remove(name);
        drop(inner);
        for handling in host.into_iter().flat_map(|host| host.handling) {
            handling.abort();
        }
        drop(released);
    }

    /// A host neither takes messages nor sends any until it goes on.
    pub(crate) fn stop(&self, name: &str) {
        self.lock().stopped.entry(name.to_owned()).or_default();
    }

    pub(crate) fn go_on(&self, name: &str) {
        let waiting = self.lock().stopped.remove(name);
        for waiting in waiting.into_iter().flatten() {
            let _ = waiting.send(());
        }
    }

    pub(crate) fn is_stopped(&self, name: &str) -> bool {
        self.lock().stopped.contains_key(name)
    }

    /// Divides the network: these on one side, all others on the other.
    pub(crate) fn cut(&self, side: BTreeSet<String>) {
        self.lock().cut = side;
    }

    /// Wakes what is due, for as long as the network exists.
    pub(crate) async fn run(self) {
        loop {
            let next = self.lock().queue.peek().map(|waiting| waiting.moment.at);
            match next {
                None => self.earlier.notified().await,
                Some(at) if at > Instant::now() => {
                    let _ = tokio::time::timeout_at(at, self.earlier.notified()).await;
                }
                Some(_) => {
                    let due = self.lock().queue.pop();
                    if let Some(due) = due {
                        let _ = due.wake.send(());
                        // What it sets off comes before the next one.
                        for _ in 0..3 {
                            tokio::task::yield_now().await;
                        }
                    }
                }
            }
        }
    }

    async fn wait(&self, link: &Link, number: u64, leg: u8, millis: u64) {
        let (wake, woken) = oneshot::channel();
        let moment = Moment {
            at: Instant::now() + Duration::from_millis(millis.max(1)),
            link: link.clone(),
            number,
            leg,
        };
        self.lock().queue.push(Waiting { moment, wake });
        self.earlier.notify_one();
        let _ = woken.await;
    }

    /// Whether a message gets from the one to the other now; waits for hosts that are stopped.
    async fn passes(&self, from: &str, to: &str) -> bool {
        for name in [from, to] {
            let held = {
                let mut inner = self.lock();
                inner.stopped.get_mut(name).map(|waiting| {
                    let (wake, woken) = oneshot::channel();
                    waiting.push(wake);
                    woken
                })
            };
            if let Some(held) = held {
                let _ = held.await;
            }
        }
        let inner = self.lock();
        inner.cut.contains(from) == inner.cut.contains(to)
    }

    /// Lets `to` answer, unless there is no such host; no answer comes if it dies meanwhile.
    fn handle(&self, to: &str, head: &request::Parts, data: &Bytes) -> Option<oneshot::Receiver<Answer>> {
        let (done, answer) = oneshot::channel();
        let request = Request::from_parts(head.clone(), Body::new(Full::new(data.clone())));
        let method = method(head.uri.path()).to_owned();
        let (network, data) = (self.clone(), data.clone());
        let name = to.to_owned();
        let mut inner = self.lock();
        let host = inner.hosts.get_mut(to)?;
        let call = host.service.call(request);
        let task = tokio::spawn(async move {
            let Ok(response) = call.await else { return };
            let (parts, body) = response.into_parts();
            let Ok(body) = body.collect().await else { return };
            let trailers = body.trailers().cloned();
            let answer = Answer {
                parts,
                data: body.to_bytes(),
                trailers,
            };
            (network.witness)(&Answered {
                to: &name,
                method: &method,
                request: &data,
                succeeded: answer.succeeded(),
            });
            let _ = done.send(answer);
        });
        host.handling.retain(|handling| !handling.is_finished());
        host.handling.push(task.abort_handle());
        Some(answer)
    }

    async fn carry(self, link: Link, request: Request<Body>) -> Result<Response<Body>, StdError> {
        let (head, body) = request.into_parts();
        let data = body.collect().await?.to_bytes();
        let (from, to) = (link.0.as_str(), link.1.as_str());
        let (number, weather) = {
            let mut inner = self.lock();
            inner.calls += 1;
            let number = inner.numbers.entry(link.clone()).or_default();
            *number += 1;
            // Within a host, messages are in good hands.
            let fair = Weather {
                quick: 1,
                ..Weather::default()
            };
            (*number, if from == to { fair } else { inner.weather })
        };
        let mut hasher = DefaultHasher::new();
        (self.seed, &link, number).hash(&mut hasher);
        let mut random = Random(hasher.finish());
        let mut chance = |of: u64| random.below(1000) < of;
        let (lost, unanswered, twice) = (
            chance(weather.lose_request),
            chance(weather.lose_reply),
            chance(weather.twice),
        );
        let slow = [chance(weather.slow), chance(weather.slow)];
        let mut takes = |slow: bool| {
            1 + random.below(if slow {
                weather.late.max(1)
            } else {
                weather.quick.max(1)
            })
        };
        let (there, back, again) = (takes(slow[0]), takes(slow[1]), takes(true));
        let (noticed, given_up) = (random.below(NOTICED_MS), random.below(SILENCE_MS));
        let method = link.2.clone();
        let name = |what: &str| format!("{from} > {to} {method} #{number} {what}");

        self.wait(&link, number, 0, there).await;
        if !self.passes(from, to).await {
            self.note(name("is cut off"));
            self.wait(&link, number, 1, given_up).await;
            return Err(broken("nothing comes back"));
        }
        if lost {
            self.note(name("is lost"));
            self.wait(&link, number, 1, noticed).await;
            return Err(broken("connection reset"));
        }
        self.note(name("arrives"));
        if twice && !ONCE.contains(&method.as_str()) {
            let (network, link, head, data) = (self.clone(), link.clone(), head.clone(), data.clone());
            let arrives = name("arrives once more");
            tokio::spawn(async move {
                network.wait(&link, number, 2, again).await;
                if network.passes(&link.0, &link.1).await {
                    network.note(arrives);
                    network.handle(&link.1, &head, &data);
                }
            });
        }
        let answering = self.handle(to, &head, &data);
        let answer = match answering {
            Some(answering) => answering.await.ok(),
            None => None,
        };
        let Some(answer) = answer else {
            self.note(name("finds nobody"));
            self.wait(&link, number, 3, noticed).await;
            return Err(broken("connection refused"));
        };
        let succeeded = answer.succeeded();
        self.wait(&link, number, 4, back).await;
        if !self.passes(to, from).await {
            self.note(name("gets no answer"));
            self.wait(&link, number, 5, given_up).await;
            return Err(broken("nothing comes back"));
        }
        if unanswered {
            self.note(name("loses its answer"));
            self.wait(&link, number, 5, noticed).await;
            return Err(broken("connection reset"));
        }
        self.note(name(if succeeded { "is answered" } else { "is refused" }));
        Ok(answer.into_response())
    }
}

fn method(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The address under which `from` finds `to`.
pub(crate) fn address(from: &str, to: &str) -> String {
    format!("{from}.{to}:1")
}

impl Network for SimNet {
    fn dial(&self, address: &str) -> Result<InProcess, Unreachable> {
        let host = address.split(':').next().unwrap_or(address);
        let Some((from, to)) = host.split_once('.') else {
            return Err(Unreachable::Address(address.to_owned()));
        };
        let inner = self.lock();
        if inner.cut.contains(from) != inner.cut.contains(to) || inner.stopped.contains_key(to) {
            return Err(Unreachable::TimedOut);
        }
        if !inner.hosts.contains_key(to) {
            return Err(Unreachable::Refused);
        }
        drop(inner);
        let (network, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        Ok(InProcess::through(move |request: Request<Body>| {
            let method = method(request.uri().path()).to_owned();
            network.clone().carry((from.clone(), to.clone(), method), request)
        }))
    }
}
