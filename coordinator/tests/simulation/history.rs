//! What must hold, whatever happens: looked at after every answer of a server, and at the end.
//!
//! The servers' contents are compared with a plain sequential model: one vector of variables and one of momenta, changed by one
//! committed step after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coati_checkpoint::manifest::DataPosition;
use coati_param_server::{Layout, Store};
use coati_proto::coati::v1;
use prost::Message as _;

use super::network::Answered;
use super::scenario::{MOMENTUM, Mode, RATE, Scenario};

/// A contribution as its replica made it.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// The oldest version among the servers that it was computed from.
    pub(crate) version: u64,
    pub(crate) gradient: Vec<f32>,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// The model after some step.
#[derive(Clone, Debug)]
struct Instant {
    /// Which life of the variables it belongs to, see [`Life`].
    life: u64,
    values: Vec<f32>,
    momenta: Vec<f32>,
    /// Positions of the record sequence that were used until here.
    used: BTreeSet<u64>,
    /// Contributions in it: rank and sequence.
    contributions: BTreeSet<(u32, u64)>,
}

/// The variables from being loaded (named by the incarnation that did it) until they are loaded anew.
struct Life {
    base: u64,
    /// By version, from `base` on.
    instants: Vec<Arc<Instant>>,
    /// By version from `base` on: who contributed, and the servers that applied it.
    steps: Vec<(Vec<v1::Contributor>, BTreeSet<usize>)>,
}

impl Life {
    fn newest(&self) -> u64 {
        self.base + self.steps.len() as u64
    }

    /// The newest version that all servers have reached.
    fn whole(&self, servers: usize) -> u64 {
        let whole = self.steps.iter().take_while(|(_, applied)| applied.len() == servers);
        self.base + whole.count() as u64
    }
}

/// A server's process as far as it was seen.
#[derive(Default)]
struct Server {
    store: Option<Arc<Store>>,
    life: Option<u64>,
    version: u64,
}

/// See the module.
pub(crate) struct History {
    scenario: Scenario,
    layout: Layout,
    initial: Vec<f32>,
    made: BTreeMap<(u32, u64), Made>,
    lives: BTreeMap<u64, Life>,
    servers: Vec<Server>,
    saved: BTreeMap<u64, Arc<Instant>>,
    newest_incarnation: u64,
    /// Fully committed steps that were made again, from a checkpoint.
    pub(crate) steps_lost: u64,
    /// What did not hold.
    pub(crate) broken: Option<String>,
}

impl History {
    pub(crate) fn new(scenario: &Scenario, layout: Layout, initial: Vec<f32>) -> Self {
        Self {
            servers: (0..scenario.servers).map(|_| Server::default()).collect(),
            scenario: scenario.clone(),
            layout,
            initial,
            made: BTreeMap::new(),
            lives: BTreeMap::new(),
            saved: BTreeMap::new(),
            newest_incarnation: 0,
            steps_lost: 0,
            broken: None,
        }
    }

    /// Notes what does not hold; the first one counts.
    pub(crate) fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// A server's process begins, holding nothing.
    pub(crate) fn server_started(&mut self, index: usize, store: Arc<Store>) {
        self.servers[index] = Server {
            store: Some(store),
            ..Server::default()
        };
    }

    /// A replica is about to push this.
    pub(crate) fn made(&mut self, replica: u32, sequence: u64, made: Made) {
        if self.made.insert((replica, sequence), made).is_some() {
            self.fail(format!("replica {replica} was given sequence {sequence} twice"));
        }
    }

    /// A replica was told what became of its contribution.
    pub(crate) fn told(&mut self, replica: u32, sequence: u64, committed: bool) {
        let servers = self.scenario.servers;
        let mut applied = self.lives.values().flat_map(|life| &life.steps).filter(|(by, _)| {
            let mut by = by.iter();
            by.any(|by| (by.replica, by.sequence) == (replica, sequence))
        });
        let found = applied.next().map(|(_, on)| on.len());
        let again = applied.next().is_some();
        let holds = if committed {
            found == Some(servers)
        } else {
            found.is_none()
        };
        if again || !holds {
            let fate = if committed { "committed" } else { "dropped" };
            self.fail(format!(
                "replica {replica} was told that contribution {sequence} is {fate}; it was applied by {} of {servers} servers{}",
                found.unwrap_or(0),
                if again { ", more than once" } else { "" }
            ));
        }
    }

    /// A server has answered.
    pub(crate) fn answered(&mut self, call: &Answered<'_>) {
        let Some(index) = call
            .to
            .strip_prefix("ps-")
            .and_then(|index| index.parse::<usize>().ok())
        else {
            return;
        };
        if !call.succeeded {
            return;
        }
        let Some(message) = call.request.get(5..) else { return };
        let checked = match call.method {
            "Commit" => v1::CommitRequest::decode(message).map(|request| self.committed(index, &request)),
            "Restore" => v1::RestoreRequest::decode(message).map(|request| {
                let base = self.saved.get(&request.version).cloned();
                let Some(base) = base else {
                    return Err(format!(
                        "ps-{index} reads a checkpoint of {} that nobody wrote",
                        request.version
                    ));
                };
                let incarnation = request.job.unwrap_or_default().incarnation;
                self.loaded(index, incarnation, request.version, base)
            }),
            // The first chunk, which names the job; the variables are few.
            "Load" => v1::LoadChunk::decode(first_message(call.request)).map(|request| {
                let base = Instant {
                    life: 0,
                    values: self.initial.clone(),
                    momenta: vec![0.0; self.initial.len()],
                    used: BTreeSet::new(),
                    contributions: BTreeSet::new(),
                };
                let incarnation = request.job.unwrap_or_default().incarnation;
                self.loaded(index, incarnation, 0, Arc::new(base))
            }),
            "Save" => v1::SaveRequest::decode(message).map(|request| {
                let server = &self.servers[index];
                let life = server.life.and_then(|life| self.lives.get(&life));
                let saved = life.and_then(|life| life.instants.get((request.version.checked_sub(life.base)?) as usize));
                match saved {
                    Some(saved) => {
                        self.saved.insert(request.version, Arc::clone(saved));
                        Ok(())
                    }
                    None => Err(format!(
                        "ps-{index} saved version {} which it does not have",
                        request.version
                    )),
                }
            }),
            _ => return,
        };
        match checked {
            Ok(Ok(())) => {}
            Ok(Err(broken)) => self.fail(broken),
            Err(error) => self.fail(format!("{} to ps-{index}: {error}", call.method)),
        }
    }

    fn loaded(&mut self, index: usize, incarnation: u64, version: u64, base: Arc<Instant>) -> Result<(), String> {
        let server = &mut self.servers[index];
        if server.life == Some(incarnation) {
            return Ok(());
        }
        (server.life, server.version) = (Some(incarnation), version);
        if !self.lives.contains_key(&incarnation) {
            let before = self.lives.values().next_back();
            let whole = before.map_or(0, |life| life.whole(self.scenario.servers));
            let lost = whole.saturating_sub(version);
            self.steps_lost += lost;
            if lost > 0 && !self.scenario.may_go_back() {
                return Err(format!(
                    "incarnation {incarnation} goes back from version {whole} to {version}, though no server was in trouble"
                ));
            }
            let base = Instant {
                life: incarnation,
                ..(*base).clone()
            };
            let life = Life {
                base: version,
                instants: vec![Arc::new(base)],
                steps: Vec::new(),
            };
            self.lives.insert(incarnation, life);
        }
        self.compare(index)
    }

    fn committed(&mut self, index: usize, request: &v1::CommitRequest) -> Result<(), String> {
        let incarnation = request.job.as_ref().map_or(0, |job| job.incarnation);
        let (version, servers) = (request.version, self.scenario.servers);
        let what = |text: &str| format!("ps-{index}, incarnation {incarnation}, commit of version {version}: {text}");
        let server = &mut self.servers[index];
        let Some(name) = server.life else {
            return Err(what("it holds no variables"));
        };
        let again = version + 1 == server.version;
        if !again && version != server.version {
            return Err(what(&format!("it is at version {}", server.version)));
        }
        if !again && incarnation < self.newest_incarnation {
            return Err(what(&format!(
                "incarnation {} has committed before",
                self.newest_incarnation
            )));
        }
        self.newest_incarnation = self.newest_incarnation.max(incarnation);
        server.version = version + 1;
        let Some(life) = self.lives.get_mut(&name) else {
            return Err(what("its variables were never loaded"));
        };
        if version < life.base || version > life.newest() {
            return Err(what(&format!("the newest version is {}", life.newest())));
        }
        let place = (version - life.base) as usize;
        if place == life.steps.len() {
            // Nobody may be further than one step behind the first.
            if let Some((_, applied)) = life.steps.last()
                && applied.len() < servers
            {
                return Err(what("the step before is not applied by all servers"));
            }
            let next = step(
                &self.scenario,
                &self.made,
                &life.instants[place],
                version,
                &request.contributors,
            );
            life.instants.push(Arc::new(next.map_err(|why| what(&why))?));
            life.steps.push((request.contributors.clone(), BTreeSet::new()));
        }
        let (contributors, applied) = &mut life.steps[place];
        if *contributors != request.contributors {
            return Err(what(&format!(
                "of {:?}, others applied {contributors:?}",
                request.contributors
            )));
        }
        applied.insert(index);
        self.compare(index)
    }

    /// A server's variables and the sequential model's, bit for bit.
    fn compare(&self, index: usize) -> Result<(), String> {
        let server = &self.servers[index];
        let life = server.life.and_then(|life| self.lives.get(&life));
        let (Some(store), Some(life)) = (&server.store, life) else {
            return Ok(());
        };
        let Some(expected) = life.instants.get((server.version - life.base) as usize) else {
            return Err(format!(
                "ps-{index} is at version {}, which nobody made",
                server.version
            ));
        };
        let job = store.status().job.unwrap_or_default();
        let snapshot = store.pull(&job, 0).map_err(|error| error.to_string())?;
        if snapshot.version() != server.version {
            return Err(format!(
                "ps-{index} says version {}, it is {}",
                snapshot.version(),
                server.version
            ));
        }
        let mut arena = Vec::new();
        self.layout.gather(index as u32, &expected.values, &mut arena);
        for (start, found) in snapshot.slices() {
            let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
            let mut pairs = found.iter().zip(&arena[start..]);
            if let Some(at) = pairs.position(differs) {
                return Err(format!(
                    "ps-{index}, version {}: element {} is {}, one step after the other gives {}",
                    server.version,
                    start + at,
                    found[at],
                    arena[start + at]
                ));
            }
        }
        Ok(())
    }

    /// A checkpoint of this step is complete and says this about the data.
    pub(crate) fn published(&mut self, step: u64, data: &DataPosition) {
        let Some(saved) = self.saved.get(&step) else {
            return self.fail(format!("checkpoint {step} was never written"));
        };
        let open = |position: u64| {
            let mut open = data.open.iter();
            open.any(|range| (range.start..range.start + range.count).contains(&position))
        };
        // What comes back goes out before anything else, so that little is ever open.
        let batches = if self.scenario.mode.is_synchronous() { 9 } else { 1 };
        let most = 2 * u64::from(self.scenario.replicas) * batches * 4;
        let waiting: u64 = data.open.iter().map(|range| range.count).sum();
        if waiting > most {
            return self.fail(format!(
                "checkpoint {step}: {waiting} records below the newest are not used, at most {most} can be under way"
            ));
        }
        let said: BTreeSet<u64> = (0..data.position).filter(|&position| !open(position)).collect();
        if said != saved.used {
            let lost: Vec<&u64> = said.difference(&saved.used).collect();
            let doubled: Vec<&u64> = saved.used.difference(&said).collect();
            self.fail(format!(
                "checkpoint {step} counts positions {lost:?} that no step used, and not {doubled:?} that one did"
            ));
        }
    }

    /// Whether any step was made.
    pub(crate) fn has_begun(&self) -> bool {
        self.newest_incarnation > 0
    }

    /// The job is complete: its last checkpoint is of this step.
    pub(crate) fn ended(&mut self, step: u64) {
        let (name, servers) = (self.saved.get(&step).map(|saved| saved.life), self.scenario.servers);
        let Some(life) = name.and_then(|name| self.lives.get(&name)) else {
            return self.fail(format!("the last checkpoint, of step {step}, was never written"));
        };
        if life.whole(servers) != step || life.newest() != step {
            let (whole, newest) = (life.whole(servers), life.newest());
            self.fail(format!(
                "the job ended at step {step}; all servers are at {whole}, some at {newest}"
            ));
        }
    }
}

/// The first message of a stream as gRPC frames it.
fn first_message(stream: &[u8]) -> &[u8] {
    let length = stream
        .get(1..5)
        .and_then(|length| length.try_into().ok())
        .map(u32::from_be_bytes);
    length
        .and_then(|length| stream.get(5..5 + length as usize))
        .unwrap_or_default()
}

/// One step of the sequential model, or what is wrong with it.
fn step(
    scenario: &Scenario,
    made: &BTreeMap<(u32, u64), Made>,
    before: &Instant,
    version: u64,
    contributors: &[v1::Contributor],
) -> Result<Instant, String> {
    let mut after = before.clone();
    let mut parts = Vec::new();
    let mut staleness = 0;
    for by in contributors {
        let key = (by.replica, by.sequence);
        let Some(made) = made.get(&key) else {
            return Err(format!("contribution {key:?} was never made"));
        };
        if !after.contributions.insert(key) {
            return Err(format!("contribution {key:?} is applied again"));
        }
        if u64::from(by.samples) != made.count {
            return Err(format!("{} samples of {key:?}, it has {}", by.samples, made.count));
        }
        for position in made.first..made.first + made.count {
            if !after.used.insert(position) {
                return Err(format!("position {position} is used again, by {key:?}"));
            }
        }
        let age = version.saturating_sub(made.version);
        if age > scenario.mode.max_staleness() {
            return Err(format!("{key:?} is {age} versions old"));
        }
        staleness = staleness.max(age);
        parts.push(made);
    }
    if !scenario.mode.is_synchronous() && parts.len() != 1 {
        return Err(format!("{} contributors", parts.len()));
    }
    if parts.len() > scenario.replicas as usize {
        return Err(format!(
            "{} contributors of {} replicas",
            parts.len(),
            scenario.replicas
        ));
    }
    let rate = match scenario.mode {
        Mode::Asynchronous { scaled: true, .. } => RATE * (1.0 / (1.0 + staleness as f32)),
        _ => RATE,
    };
    let equal = parts.iter().all(|part| part.count == parts[0].count);
    let total: u64 = parts.iter().map(|part| part.count).sum();
    for at in 0..after.values.len() {
        let mut mean = parts[0].gradient[at];
        if !equal {
            mean *= parts[0].count as f32;
        }
        for part in &parts[1..] {
            mean += if equal {
                part.gradient[at]
            } else {
                part.gradient[at] * part.count as f32
            };
        }
        if !equal {
            mean /= total as f32;
        } else if parts.len() > 1 {
            mean /= parts.len() as f32;
        }
        after.momenta[at] = after.momenta[at] * MOMENTUM + mean;
        after.values[at] -= after.momenta[at] * rate;
    }
    Ok(after)
}
