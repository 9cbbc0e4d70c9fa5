//! Replicas of one host that sum their gradients among themselves, and of which one talks to the parameter servers (`coati.local_reduce`).
//!
//! For the servers a host is one replica with a large batch: its leader leases the batch of all and shares it out, pulls the variables and
//! hands them on, and pushes the mean over everybody's samples. Whatever becomes of that, all hear it, errors too.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use coati_collective::{Communicator, Error as Trouble, Part};
use coati_common::variables::{VariableSpec, flat_elements};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::notes::{self, Note};
use super::reduce::mean_losses;
use super::sums::{Counts, Form, Sums, divisor, weight};
use crate::exchange::{Contribution, Error, Exchange, Fate, Lease, Phases};

/// See the module. A replica without others on its host passes everything on.
pub(crate) struct Grouped<E> {
    /// Of the one that talks to the servers.
    lead: Option<E>,
    group: Option<Group>,
}

/// The replicas of this host.
struct Group {
    sums: Sums,
    /// The steps to come: the host's batch, and what each replica has of it.
    planned: VecDeque<(Lease, Counts)>,
    /// To hand variables on.
    variables: Option<Part>,
    /// The mean of a step.
    mean: Arc<Vec<f32>>,
    /// Why the leader is asked to leave.
    leaving: Option<String>,
}

/// Leases as they travel: id, first position, number.
type Plain = (Vec<(u64, u64, u32)>, bool);

/// What an error is, for those who hear of it.
#[derive(Serialize, Deserialize)]
enum Told<T> {
    Well(T),
    Failed(String),
    CutOff(String),
    Ended(String),
    /// From those that have nothing to tell.
    Nothing,
}

impl<T> From<Result<T, Error>> for Told<T> {
    fn from(result: Result<T, Error>) -> Self {
        match result {
            Ok(value) => Self::Well(value),
            Err(Error::Failed(why)) => Self::Failed(why),
            Err(Error::CutOff(why)) => Self::CutOff(why),
            Err(Error::Ended(why)) => Self::Ended(why),
        }
    }
}

/// What became of a step.
#[derive(Serialize, Deserialize)]
struct Verdict {
    /// None: the job ended.
    version: Option<u64>,
    committed: bool,
    last: bool,
    leaving: Option<String>,
}

/// Shares `count` records out: nearly equal parts, the first ones larger. Returns first record and number of each.
fn parts(count: u32, replicas: usize) -> Vec<(u64, u32)> {
    let replicas = u32::try_from(replicas.max(1)).unwrap_or(u32::MAX);
    let (each, more) = (count / replicas, count % replicas);
    let mut first = 0;
    (0..replicas)
        .map(|rank| {
            let own = each + u32::from(rank < more);
            first += u64::from(own);
            (first - u64::from(own), own)
        })
        .collect()
}

impl Group {
    /// What the leader has to tell, or the error that it met.
    fn tell<T: Serialize + DeserializeOwned>(&mut self, own: Option<Result<T, Error>>) -> Result<T, Error> {
        let own = own.map_or(Told::Nothing, Told::from);
        let mut all = self.sums.gather(notes::encode(&own))?;
        all.truncate(1);
        let told: Vec<Told<T>> = notes::decode(&all).map_err(|error| self.sums.trouble(&error))?;
        match told.into_iter().next() {
            Some(Told::Well(value)) => Ok(value),
            Some(Told::Failed(why)) => Err(Error::Failed(why)),
            Some(Told::CutOff(why)) => Err(Error::CutOff(why)),
            Some(Told::Ended(why)) => Err(Error::Ended(why)),
            Some(Told::Nothing) | None => Err(Error::Failed("the host's first replica says nothing".to_owned())),
        }
    }

    /// The own part of a batch of the host. Who has none of it computes something that counts for nothing.
    fn own(&self, lease: Lease) -> (Lease, Counts) {
        let parts = parts(lease.count, self.sums.world());
        let (first, count) = parts.get(self.sums.rank).copied().unwrap_or_default();
        let own = Lease {
            id: lease.id,
            first_position: lease.first_position + if count == 0 { 0 } else { first },
            count: count.max(1),
        };
        let counts = parts.iter().map(|&(_, count)| (count > 0).then_some(count)).collect();
        (own, counts)
    }

    fn counts(&self) -> Counts {
        self.planned
            .front()
            .map(|(_, counts)| counts.clone())
            .unwrap_or_default()
    }
}

impl<E: Exchange> Grouped<E> {
    /// Without others.
    pub(crate) fn alone(lead: E) -> Self {
        Self {
            lead: Some(lead),
            group: None,
        }
    }

    /// Of a host's replicas that have met; rank 0 brings the exchange with the servers.
    pub(crate) fn of_host(
        lead: Option<E>,
        communicator: Box<dyn Communicator>,
        variables: &[VariableSpec],
        form: Form,
        timeout: Duration,
    ) -> Result<Self, Trouble> {
        let elements = flat_elements(variables);
        Ok(Self {
            lead,
            group: Some(Group {
                sums: Sums::new(communicator, variables, form, timeout)?,
                planned: VecDeque::new(),
                variables: Some(vec![0.0; elements].into()),
                mean: Arc::new(vec![0.0; elements]),
                leaving: None,
            }),
        })
    }

    /// The exchange with the servers, if this replica has it.
    pub(crate) fn lead(&mut self) -> Option<&mut E> {
        self.lead.as_mut()
    }

    /// The step that the host begins with, as its leader knows.
    pub(crate) fn first(&mut self, own: u64) -> Result<u64, Error> {
        let leads = self.lead.is_some();
        match &mut self.group {
            Some(group) => group.tell(leads.then_some(Ok(own))),
            None => Ok(own),
        }
    }

    /// Tells the others of the host that this replica cannot go on.
    pub(crate) fn abort(&self, for_good: bool, why: &str) {
        if let Some(group) = &self.group {
            let reason = if for_good {
                Trouble::final_reason(why)
            } else {
                why.to_owned()
            };
            group.sums.abort(&reason);
        }
    }

    /// Leaves together with the others of the host.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        self.group.as_mut().map_or(Ok(()), |group| group.sums.close())
    }
}

impl<E: Exchange> Exchange for Grouped<E> {
    fn lease(&mut self, batches: u32) -> Result<(Vec<Lease>, bool), Error> {
        let leased = self.lead.as_mut().map(|lead| lead.lease(batches));
        let Some(group) = &mut self.group else {
            return leased.unwrap_or_else(|| Ok((Vec::new(), true)));
        };
        let plain = |(leases, exhausted): (Vec<Lease>, bool)| -> Plain {
            let all = leases
                .into_iter()
                .map(|lease| (lease.id, lease.first_position, lease.count));
            (all.collect(), exhausted)
        };
        let (leases, exhausted) = group.tell(leased.map(|leased| leased.map(plain)))?;
        let mut own = Vec::with_capacity(leases.len());
        for (id, first_position, count) in leases {
            let host = Lease {
                id,
                first_position,
                count,
            };
            let (part, counts) = group.own(host);
            own.push(part);
            group.planned.push_back((host, counts));
        }
        Ok((own, exhausted))
    }

    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        let pulled = self.lead.as_mut().map(|lead| lead.pull(min_version, variables));
        let Some(group) = &mut self.group else {
            return pulled.unwrap_or_else(|| Err(Error::Failed("nobody to pull from".to_owned())));
        };
        let leads = pulled.is_some();
        let version = group.tell(pulled)?;
        let mut part = group
            .variables
            .take()
            .unwrap_or_else(|| vec![0.0; variables.len()].into());
        if leads {
            part.copy_from_slice(variables);
        }
        let part = group.sums.broadcast(part)?;
        if !leads {
            variables.copy_from_slice(&part);
        }
        group.variables = Some(part);
        Ok(version)
    }

    fn ready(&mut self, version: u64, elements: Range<usize>, values: &[f32]) {
        match (&mut self.group, &mut self.lead) {
            (Some(group), _) => {
                let own = weight(&group.counts(), group.sums.rank);
                group.sums.put(&elements, values, own);
            }
            (None, Some(lead)) => lead.ready(version, elements, values),
            (None, None) => {}
        }
    }

    fn contribute(&mut self, contribution: &Contribution<'_>, variables: &mut [f32]) -> Result<Fate, Error> {
        let Some(group) = &mut self.group else {
            let nobody = || Error::Failed("nobody to contribute to".to_owned());
            return self
                .lead
                .as_mut()
                .ok_or_else(nobody)?
                .contribute(contribution, variables);
        };
        let unplanned = || Error::Failed("a contribution without a batch that was leased for it".to_owned());
        let note = Note::of(contribution, false);
        let counts = group.counts();
        let own = weight(&counts, group.sums.rank);
        let all = group.sums.sum(contribution.gradients, own, notes::encode(&note))?;
        let (host, _) = group.planned.pop_front().ok_or_else(unplanned)?;
        let notes: Vec<Note> = notes::decode(&all).map_err(|error| group.sums.trouble(&error))?;
        let verdict = self.lead.as_mut().map(|lead| -> Result<Verdict, Error> {
            let by = divisor(&counts);
            let mean = Arc::<Vec<f32>>::make_mut(&mut group.mean);
            let elements = 0..mean.len();
            group.sums.mean(&elements, by, mean);
            let samples: Vec<u32> = counts.iter().map(|count| count.unwrap_or(0)).collect();
            let contributed: Vec<bool> = counts.iter().map(Option::is_some).collect();
            let losses = mean_losses(&notes, &samples, &contributed);
            let named = |name: &str| {
                contribution
                    .losses
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|&(known, _)| known)
            };
            let longest = |of: fn(&Note) -> f64| {
                let longest = notes.iter().map(of).fold(0.0, f64::max);
                Duration::from_secs_f64(longest.clamp(0.0, 1e6))
            };
            let whole = Contribution {
                version: contribution.version,
                lease: host,
                samples: samples.iter().sum(),
                gradients: &group.mean,
                losses: losses
                    .iter()
                    .filter_map(|(name, value)| Some((named(name)?, *value)))
                    .collect(),
                phases: Phases {
                    input: longest(|note| note.input),
                    compute: longest(|note| note.compute),
                },
                bad_records: contribution.bad_records.clone(),
            };
            let fate = lead.contribute(&whole, variables)?;
            let leaving = lead.asked_to_leave()?;
            let (version, committed, last) = match fate {
                Fate::Committed { version, last } => (Some(version), true, last),
                Fate::Dropped { version } => (Some(version), false, false),
                Fate::Ended => (None, false, false),
            };
            Ok(Verdict {
                version,
                committed,
                last,
                leaving,
            })
        });
        let verdict = group.tell(verdict)?;
        group.leaving = verdict.leaving;
        Ok(match (verdict.version, verdict.committed) {
            (Some(version), true) => Fate::Committed {
                version,
                last: verdict.last,
            },
            (Some(version), false) => Fate::Dropped { version },
            (None, _) => Fate::Ended,
        })
    }

    fn asked_to_leave(&self) -> Result<Option<String>, Error> {
        match (&self.group, &self.lead) {
            // What the leader was asked was told with the last step, so that all of the host leave at the same one.
            (Some(group), _) => Ok(group.leaving.clone()),
            (None, Some(lead)) => lead.asked_to_leave(),
            (None, None) => Ok(None),
        }
    }

    fn activity(&self, what: &'static str) {
        if let Some(lead) = &self.lead {
            lead.activity(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_shared_out_nearly_equally() {
        assert_eq!(parts(8, 2), [(0, 4), (4, 4)]);
        assert_eq!(parts(5, 3), [(0, 2), (2, 2), (4, 1)]);
        assert_eq!(parts(1, 3), [(0, 1), (1, 0), (1, 0)]);
        assert_eq!(parts(0, 2), [(0, 0), (0, 0)]);
    }
}
