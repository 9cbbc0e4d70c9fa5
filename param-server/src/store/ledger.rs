//! Which contributions are staged, which are settled, and what a commit may do: decisions without data or clocks.

use std::collections::BTreeMap;

use coati_common::invariants::{self, Invariant};
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;

/// One replica's contribution, within an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Rank of the replica.
    pub replica: u32,
    /// Its contribution's number.
    pub sequence: u64,
    /// The version that the gradient was computed from.
    pub version: u64,
}

/// A contribution that a commit names, in its order of summation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contributor {
    /// Rank of the replica.
    pub replica: u32,
    /// Its contribution's number.
    pub sequence: u64,
    /// Examples that the gradient is a mean over.
    pub samples: u32,
}

impl From<&v1::Contributor> for Contributor {
    fn from(wire: &v1::Contributor) -> Self {
        Self {
            replica: wire.replica,
            sequence: wire.sequence,
            samples: wire.samples,
        }
    }
}

impl From<Contributor> for v1::Contributor {
    fn from(by: Contributor) -> Self {
        Self {
            replica: by.replica,
            sequence: by.sequence,
            samples: by.samples,
        }
    }
}

/// What becomes of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// New: its data is wanted.
    Fresh,
    /// Staged or settled before: acknowledged and ignored.
    Duplicate,
    /// No commit can use it any more: ignored.
    TooOld,
}

impl Admit {
    /// What becomes of a contribution to several servers: too old if it is for one of them, new if it is for one of them.
    pub(crate) fn of_all(each: &[Self]) -> Self {
        [Self::TooOld, Self::Fresh]
            .into_iter()
            .find(|admit| each.contains(admit))
            .unwrap_or(Self::Duplicate)
    }
}

/// What a commit amounts to.
#[derive(Debug)]
pub enum Prepared<B> {
    /// It was applied before; the learning rate it had.
    Repeat(f32),
    /// Apply these, in this order, then call [`Ledger::applied`].
    Apply {
        /// Data and samples.
        contributions: Vec<(B, u32)>,
        /// Versions that the oldest of them is behind.
        staleness: u64,
    },
}

/// Sequence numbers of one replica that were committed or dropped, with the versions they were computed from.
#[derive(Debug, Default)]
struct Settled {
    recent: BTreeMap<u64, u64>,
    /// Every sequence below is settled or was skipped.
    below: u64,
}

/// Remembered exactly for each replica; far more than a replica ever has under way.
const REMEMBERED: usize = 64;

/// Staged by one replica and neither committed nor dropped: a replica that waits for each contribution's fate has one, and
/// one more for each time that it was started again meanwhile. Each is as large as the arena.
const STAGED: usize = 64;

/// Ranks beyond are a broken message.
const MOST_REPLICAS: u32 = 1 << 16;

#[derive(Debug)]
struct Applied {
    version: u64,
    contributors: Vec<Contributor>,
    rate: f32,
}

/// See the module; `B` is what a contribution's data is held in.
#[derive(Debug)]
pub struct Ledger<B> {
    version: u64,
    max_staleness: u64,
    staged: BTreeMap<(u32, u64), (u64, B)>,
    settled: BTreeMap<u32, Settled>,
    last: Option<Applied>,
}

impl<B> Ledger<B> {
    /// Nothing staged; `max_staleness` 0 is synchronous training.
    pub fn new(version: u64, max_staleness: u64) -> Self {
        Self {
            version,
            max_staleness,
            staged: BTreeMap::new(),
            settled: BTreeMap::new(),
            last: None,
        }
    }

    /// The variables' version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of contributions staged.
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// What staged contributions are held in.
    pub fn staged_data(&self) -> impl Iterator<Item = &B> {
        self.staged.values().map(|(_, data)| data)
    }

    /// Whether anything was committed.
    pub fn has_committed(&self) -> bool {
        self.last.is_some()
    }

    /// Decides about a push before its data is read, and again before it is staged.
    pub fn admit(&self, tag: Tag) -> Result<Admit, ServiceError> {
        let known = self
            .staged
            .get(&(tag.replica, tag.sequence))
            .map(|(version, _)| *version)
            .or_else(|| {
                let settled = self.settled.get(&tag.replica)?;
                settled.recent.get(&tag.sequence).copied()
            });
        if let Some(version) = known {
            return if version == tag.version {
                Ok(Admit::Duplicate)
            } else {
                Err(reused(tag, version))
            };
        }
        if let Some(settled) = self.settled.get(&tag.replica)
            && tag.sequence < settled.below
        {
            let newest = settled.recent.values().max().copied().unwrap_or(0);
            return if tag.version > newest {
                Err(reused(tag, newest))
            } else {
                Ok(Admit::Duplicate)
            };
        }
        if tag.replica >= MOST_REPLICAS {
            let message = format!(
                "replica {} pushes a gradient: ranks are below {MOST_REPLICAS}",
                tag.replica
            );
            return Err(ServiceError::new(ErrorCode::InvalidRequest, message));
        }
        let staged = self.staged.range((tag.replica, 0)..=(tag.replica, u64::MAX)).count();
        if staged >= STAGED {
            let message = format!(
                "replica {} has {staged} contributions staged that no commit has named, and pushes one more",
                tag.replica
            );
            return Err(ServiceError::new(ErrorCode::InvalidRequest, message)
                .with_hint("a replica waits for the fate of each contribution before it sends the next"));
        }
        if tag.version > self.version {
            return Err(ServiceError::new(
                ErrorCode::UnknownVersion,
                format!(
                    "replica {} pushes a gradient of version {}, but the variables are at version {}",
                    tag.replica, tag.version, self.version
                ),
            ));
        }
        if self.version - tag.version > self.max_staleness {
            Ok(Admit::TooOld)
        } else {
            Ok(Admit::Fresh)
        }
    }

    /// Stages a complete contribution; gives the data back where it is not wanted (any more).
    pub fn stage(&mut self, tag: Tag, data: B) -> Result<(Admit, Option<B>), (ServiceError, B)> {
        match self.admit(tag) {
            Ok(Admit::Fresh) => {
                self.staged.insert((tag.replica, tag.sequence), (tag.version, data));
                Ok((Admit::Fresh, None))
            }
            Ok(other) => Ok((other, Some(data))),
            Err(error) => Err((error, data)),
        }
    }

    /// Decides about a commit; changes nothing when it is refused.
    pub fn prepare(&mut self, version: u64, contributors: &[Contributor]) -> Result<Prepared<B>, ServiceError> {
        if let Some(last) = self.last.as_ref().filter(|last| last.version == version) {
            return if last.contributors == contributors {
                Ok(Prepared::Repeat(last.rate))
            } else {
                Err(ServiceError::new(
                    ErrorCode::Conflict,
                    format!(
                        "version {version} was committed before with other contributors: {:?}",
                        last.contributors
                    ),
                ))
            };
        }
        if version != self.version {
            let message = format!(
                "a commit applies to version {version}, but the variables are at version {}",
                self.version
            );
            let mut error = ServiceError::new(ErrorCode::UnknownVersion, message);
            error.retryable = version > self.version;
            return Err(error);
        }
        check_contributors(version, contributors)?;
        for contributor in contributors {
            let Some((from, _)) = self.staged.get(&(contributor.replica, contributor.sequence)) else {
                let settled = self
                    .settled
                    .get(&contributor.replica)
                    .is_some_and(|s| s.recent.contains_key(&contributor.sequence));
                let why = if settled {
                    "was committed or dropped before"
                } else {
                    "is not completely staged"
                };
                return Err(ServiceError::new(
                    ErrorCode::IncompleteContribution,
                    format!(
                        "commit of version {version}: contribution {} of replica {} {why}",
                        contributor.sequence, contributor.replica
                    ),
                ));
            };
            let age = version.saturating_sub(*from);
            if age > self.max_staleness {
                return Err(ServiceError::new(
                    ErrorCode::StaleGradient,
                    format!(
                        "commit of version {version}: contribution {} of replica {} is {age} versions old, at most {} are allowed",
                        contributor.sequence, contributor.replica, self.max_staleness
                    ),
                ));
            }
        }
        let mut taken = Vec::with_capacity(contributors.len());
        let mut staleness = 0;
        for contributor in contributors {
            let key = (contributor.replica, contributor.sequence);
            if let Some((from, data)) = self.staged.remove(&key) {
                invariants::check(
                    Invariant::StalenessBounded,
                    version - from <= self.max_staleness,
                    || format!("version {version}, gradient of {from}"),
                );
                self.settle(key, from);
                staleness = staleness.max(version - from);
                taken.push((data, contributor.samples));
            }
        }
        invariants::check(Invariant::AppliedOnce, taken.len() == contributors.len(), || {
            format!("{} contributors, {} staged", contributors.len(), taken.len())
        });
        Ok(Prepared::Apply {
            contributions: taken,
            staleness,
        })
    }

    /// Records an applied commit; gives back the data of what can never be committed any more, and with `drop_others`
    /// of everything staged for this or an older version.
    pub fn applied(&mut self, version: u64, contributors: &[Contributor], rate: f32, drop_others: bool) -> Vec<B> {
        invariants::check(Invariant::OneVersionAStep, version == self.version, || {
            format!("commit of {version} at {}", self.version)
        });
        self.last = Some(Applied {
            version,
            contributors: contributors.to_vec(),
            rate,
        });
        self.version = version + 1;
        let oldest = self.version.saturating_sub(self.max_staleness);
        let dropped: Vec<_> = self
            .staged
            .iter()
            .filter(|(_, (from, _))| *from < oldest || (drop_others && *from <= version))
            .map(|(key, (from, _))| (*key, *from))
            .collect();
        let mut released = Vec::with_capacity(dropped.len());
        for (key, from) in dropped {
            released.extend(self.staged.remove(&key).map(|(_, data)| data));
            self.settle(key, from);
        }
        released
    }

    /// Drops everything staged.
    pub fn clear(&mut self) -> Vec<B> {
        std::mem::take(&mut self.staged)
            .into_values()
            .map(|(_, data)| data)
            .collect()
    }

    fn settle(&mut self, (replica, sequence): (u32, u64), version: u64) {
        let settled = self.settled.entry(replica).or_default();
        let before = settled.recent.insert(sequence, version);
        invariants::check(Invariant::AppliedOnce, before.is_none(), || {
            format!("contribution {sequence} of replica {replica} settled twice")
        });
        while settled.recent.len() > REMEMBERED {
            if let Some((oldest, _)) = settled.recent.pop_first() {
                settled.below = settled.below.max(oldest + 1);
            }
        }
    }
}

fn reused(tag: Tag, version: u64) -> ServiceError {
    ServiceError::new(
        ErrorCode::TagReused,
        format!(
            "replica {} uses sequence {} for version {} after using it for version {version}",
            tag.replica, tag.sequence, tag.version
        ),
    )
    .with_hint("a replica that joins again must go on with larger sequence numbers")
}

fn check_contributors(version: u64, contributors: &[Contributor]) -> Result<(), ServiceError> {
    let invalid = |what: &str| {
        let message = format!("commit of version {version}: {what}");
        Err(ServiceError::new(ErrorCode::InvalidRequest, message))
    };
    if contributors.is_empty() {
        return invalid("no contributors");
    }
    if contributors.iter().any(|c| c.samples == 0) {
        return invalid("a contributor has no samples");
    }
    let ordered = contributors
        .windows(2)
        .all(|w| (w[0].replica, w[0].sequence) < (w[1].replica, w[1].sequence));
    if ordered {
        Ok(())
    } else {
        invalid("contributors are not in ascending order")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(replica: u32, sequence: u64, version: u64) -> Tag {
        Tag {
            replica,
            sequence,
            version,
        }
    }

    fn by(replica: u32, sequence: u64) -> Contributor {
        Contributor {
            replica,
            sequence,
            samples: 8,
        }
    }

    fn staged(ledger: &mut Ledger<u32>, tag: Tag) -> Admit {
        ledger.stage(tag, tag.replica).unwrap().0
    }

    #[test]
    fn a_tag_counts_once_before_and_after_its_commit() {
        let mut ledger = Ledger::new(0, 0);
        assert_eq!(staged(&mut ledger, tag(0, 1, 0)), Admit::Fresh);
        assert_eq!(staged(&mut ledger, tag(0, 1, 0)), Admit::Duplicate);
        let prepared = ledger.prepare(0, &[by(0, 1)]).unwrap();
        assert!(matches!(prepared, Prepared::Apply { contributions, staleness: 0 } if contributions == [(0, 8)]));
        ledger.applied(0, &[by(0, 1)], 0.5, true);
        assert_eq!(staged(&mut ledger, tag(0, 1, 0)), Admit::Duplicate);
        assert_eq!((ledger.version(), ledger.staged()), (1, 0));
    }

    #[test]
    fn a_repeated_commit_answers_the_same_and_a_different_one_is_refused() {
        let mut ledger = Ledger::new(0, 0);
        staged(&mut ledger, tag(0, 1, 0));
        ledger.prepare(0, &[by(0, 1)]).unwrap();
        ledger.applied(0, &[by(0, 1)], 0.5, true);
        assert!(matches!(ledger.prepare(0, &[by(0, 1)]), Ok(Prepared::Repeat(0.5))));
        assert_eq!(ledger.prepare(0, &[by(1, 1)]).unwrap_err().code, ErrorCode::Conflict);
        assert_eq!(
            ledger.prepare(7, &[by(0, 2)]).unwrap_err().code,
            ErrorCode::UnknownVersion
        );
    }

    #[test]
    fn a_refused_commit_changes_nothing() {
        let mut ledger = Ledger::new(0, 0);
        staged(&mut ledger, tag(0, 1, 0));
        for contributors in [&[by(0, 1), by(1, 1)][..], &[by(0, 2)], &[], &[by(0, 1), by(0, 1)]] {
            ledger.prepare(0, contributors).unwrap_err();
        }
        assert_eq!((ledger.version(), ledger.staged()), (0, 1));
        ledger.prepare(0, &[by(0, 1)]).unwrap();
    }

    #[test]
    fn a_sequence_used_again_for_another_version_is_an_error() {
        let mut ledger = Ledger::new(0, 5);
        for version in 0..100 {
            staged(&mut ledger, tag(0, version, version));
            ledger.prepare(version, &[by(0, version)]).unwrap();
            ledger.applied(version, &[by(0, version)], 0.1, false);
        }
        assert_eq!(ledger.admit(tag(0, 99, 98)).unwrap_err().code, ErrorCode::TagReused);
        assert_eq!(ledger.admit(tag(0, 0, 100)).unwrap_err().code, ErrorCode::TagReused);
        assert_eq!(ledger.admit(tag(0, 0, 0)).unwrap(), Admit::Duplicate);
        assert_eq!(ledger.admit(tag(0, 100, 100)).unwrap(), Admit::Fresh);
    }

    #[test]
    fn staleness_is_bounded_at_push_and_commit() {
        let mut ledger = Ledger::new(10, 2);
        assert_eq!(ledger.admit(tag(0, 1, 8)).unwrap(), Admit::Fresh);
        assert_eq!(ledger.admit(tag(0, 1, 7)).unwrap(), Admit::TooOld);
        assert_eq!(ledger.admit(tag(0, 1, 11)).unwrap_err().code, ErrorCode::UnknownVersion);
        staged(&mut ledger, tag(0, 1, 8));
        staged(&mut ledger, tag(1, 1, 10));
        ledger.prepare(10, &[by(1, 1)]).unwrap();
        // Replica 0's gradient is 3 versions old from now on: no commit can use it, so it is dropped.
        assert_eq!(ledger.applied(10, &[by(1, 1)], 0.1, false), [0]);
        assert_eq!(
            ledger.prepare(11, &[by(0, 1)]).unwrap_err().code,
            ErrorCode::IncompleteContribution
        );
    }

    #[test]
    fn what_one_replica_can_stage_is_bounded_and_others_are_not_kept_out() {
        let mut ledger = Ledger::new(0, 0);
        for sequence in 0..STAGED as u64 {
            assert_eq!(staged(&mut ledger, tag(3, sequence, 0)), Admit::Fresh);
        }
        let error = ledger.admit(tag(3, STAGED as u64, 0)).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(
            error.message.starts_with("replica 3 has 64 contributions staged"),
            "{error}"
        );
        // A repetition is none.
        assert_eq!(ledger.admit(tag(3, 0, 0)).unwrap(), Admit::Duplicate);
        assert_eq!(ledger.admit(tag(2, 0, 0)).unwrap(), Admit::Fresh);
        ledger.admit(tag(u32::MAX, 0, 0)).unwrap_err();
    }

    #[test]
    fn dropping_others_spares_newer_versions() {
        let mut ledger = Ledger::new(4, 3);
        staged(&mut ledger, tag(0, 1, 4));
        staged(&mut ledger, tag(1, 1, 3));
        ledger.prepare(4, &[by(0, 1)]).unwrap();
        assert_eq!(ledger.applied(4, &[by(0, 1)], 0.1, true), [1]);
        assert_eq!(ledger.admit(tag(1, 1, 3)).unwrap(), Admit::Duplicate);
    }
}
