//! Counts what a job lost: a pure function over what its log said while it ran.

use std::collections::{BTreeMap, VecDeque};

use coati_checkpoint::manifest::DataPosition;
use coati_dataset::order::Order;

use super::log::{Entry, Share};

/// A step that was made, with the shares that it was made of; its place in the history is its version.
pub type Step = Vec<Share>;

/// A job as its log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The steps that are in the weights.
    pub steps: Vec<Step>,
    /// Committed steps that the job went back behind, and made again.
    pub undone: u64,
    /// How often it did so.
    pub went_back: u64,
    /// New beginnings of the coordinator.
    pub incarnations: u64,
    /// What cannot be.
    pub contradictions: Vec<String>,
}

/// Puts the steps together.
///
/// A step is decided, committed on the servers, and then followed by the next one. So of those that the job goes back behind,
/// all but the newest were committed for certain; the newest one may have been, and counts as well if the job had said so:
/// `announced` holds the steps that it said it was at, each with the number of entries that there were then.
pub fn history(entries: &[Entry], announced: &[(usize, u64)]) -> History {
    let mut history = History::default();
    let mut newest_incarnation = None;
    let mut newest_step = 0;
    let mut behind = Behind::default();
    for (index, entry) in entries.iter().enumerate() {
        let length = history.steps.len() as u64;
        match entry {
            Entry::Begin { incarnation, version } => {
                if newest_incarnation != Some(*incarnation) {
                    history.incarnations += 1;
                    if newest_incarnation.is_some_and(|newest| newest > *incarnation) {
                        let what = format!("incarnation {incarnation} begins after a later one");
                        history.contradictions.push(what);
                    }
                }
                newest_incarnation = Some(*incarnation);
                behind.count(&mut history);
                if *version > length {
                    let what =
                        format!("the log goes on at step {version}, after step {length}: steps were not written");
                    history.contradictions.push(what);
                    history.steps.resize(*version as usize, Vec::new());
                }
                if *version < length {
                    let said = |&(at, step): &(usize, u64)| step == length && (newest_step..=index).contains(&at);
                    behind = Behind {
                        steps: history.steps.split_off(*version as usize).into(),
                        newest: announced.iter().any(said),
                    };
                }
            }
            Entry::Step { version, shares } if *version == length => {
                newest_step = index;
                if behind.steps.front() == Some(shares) {
                    // The same decision, by the numbers of its contributions: written once more.
                    behind.steps.pop_front();
                } else {
                    behind.count(&mut history);
                }
                history.steps.push(shares.clone());
            }
            Entry::Step { version, .. } => {
                let what = format!("step {version} was decided at step {length}");
                history.contradictions.push(what);
            }
        }
    }
    behind.count(&mut history);
    history
}

/// Steps that a log that begins anew leaves out, until it is known whether they come again.
#[derive(Default)]
struct Behind {
    steps: VecDeque<Step>,
    /// Whether the newest one was committed for certain.
    newest: bool,
}

impl Behind {
    /// They do not come again.
    fn count(&mut self, history: &mut History) {
        let steps = std::mem::take(&mut self.steps).len() as u64;
        let certain = steps.saturating_sub(u64::from(!self.newest));
        history.undone += certain;
        history.went_back += u64::from(certain > 0);
    }
}

/// What became of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Uses by steps that are in the weights.
    pub used: u64,
    /// Records that an epoch of the job left out: epoch and record of each.
    pub lost: Vec<(u64, u64)>,
    /// Records that an epoch used more than once.
    pub doubled: Vec<(u64, u64)>,
    /// Positions that are not used and that the last checkpoint hands out again.
    pub outstanding: u64,
    /// What the checkpoint says and the steps do not.
    pub contradictions: Vec<String>,
}

/// Compares the records that the steps used with what each epoch has, and with the ledger in the last checkpoint.
///
/// What is outstanding at the end is not lost, unless it is of an epoch before the last `slack` positions: whatever comes
/// back is handed out before anything new, so nothing stays behind for long.
pub fn records(steps: &[Step], order: &mut Order, ledger: &DataPosition, slack: u64) -> Records {
    let mut found = Records::default();
    let mut uses: BTreeMap<u64, u64> = BTreeMap::new();
    for share in steps.iter().flatten() {
        for position in share.first..share.first + share.count {
            *uses.entry(position).or_default() += 1;
            found.used += 1;
        }
    }
    let mut name = |position: u64| {
        let place = order.place(position);
        place.map_or((0, position), |place| (place.epoch, place.record))
    };
    let doubled = uses.iter().filter(|(_, count)| **count > 1);
    found.doubled = doubled.map(|(&position, _)| name(position)).collect();
    let end = uses.last_key_value().map_or(0, |(&position, _)| position + 1);
    let open = |position: u64| {
        let mut ranges = ledger.open.iter();
        ranges.any(|range| (range.start..range.start + range.count).contains(&position))
    };
    for position in 0..end {
        let used = uses.contains_key(&position);
        match (used, open(position)) {
            (true, false) => {}
            (true, true) => found.contradictions.push(format!(
                "position {position} was used, and the checkpoint hands it out again"
            )),
            (false, true) if position + slack >= end => found.outstanding += 1,
            (false, _) => found.lost.push(name(position)),
        }
    }
    if ledger.position != end {
        let what = format!(
            "the steps used positions up to {end}, the checkpoint says {}",
            ledger.position
        );
        found.contradictions.push(what);
    }
    found
}

#[cfg(test)]
mod tests {
    use coati_checkpoint::manifest::OpenRange;

    use super::*;

    fn begin(incarnation: u64, version: u64) -> Entry {
        Entry::Begin { incarnation, version }
    }

    fn share(replica: u32, first: u64) -> Share {
        Share {
            replica,
            sequence: 0,
            first,
            count: 4,
        }
    }

    fn step(version: u64, first: u64) -> Entry {
        Entry::Step {
            version,
            shares: vec![share(0, first), share(1, first + 4)],
        }
    }

    /// With the same records; contributions of a later incarnation have other numbers.
    fn made_again(version: u64, first: u64) -> Entry {
        let sequence = 2 << 44;
        let shares = [share(0, first), share(1, first + 4)].map(|share| Share { sequence, ..share });
        Entry::Step {
            version,
            shares: shares.to_vec(),
        }
    }

    fn position(position: u64, open: &[(u64, u64)]) -> DataPosition {
        let range = |&(start, count): &(u64, u64)| OpenRange { start, count };
        DataPosition {
            position,
            open: open.iter().map(range).collect(),
        }
    }

    fn judged(steps: &[Step], ledger: &DataPosition) -> Records {
        records(steps, &mut Order::new(1, 16, false), ledger, 16)
    }

    #[test]
    fn a_job_without_losses_is_its_steps() {
        let entries = [
            begin(1, 0),
            step(0, 0),
            step(1, 8),
            begin(1, 2),
            step(2, 16),
            begin(2, 3),
        ];
        let history = history(&entries, &[]);
        assert_eq!((history.steps.len(), history.undone, history.went_back), (3, 0, 0));
        assert_eq!(history.incarnations, 2);
        assert!(history.contradictions.is_empty(), "{history:?}");
        let records = judged(&history.steps, &position(24, &[]));
        assert_eq!(
            records,
            Records {
                used: 24,
                ..Records::default()
            }
        );
    }

    #[test]
    fn steps_that_the_job_goes_back_behind_are_counted_if_they_were_committed() {
        let entries = [
            begin(1, 0),
            step(0, 0),
            step(1, 8),
            step(2, 16),
            begin(2, 1),
            made_again(1, 8),
        ];
        let told = |announced: &[(usize, u64)]| {
            let history = history(&entries, announced);
            (history.undone, history.went_back, history.steps.len())
        };
        // Nobody acted on the newest one …
        assert_eq!(told(&[(3, 2)]), (1, 1, 2));
        // … unless the job said that it was at step 3, after that was decided.
        assert_eq!(told(&[(4, 3)]), (2, 1, 2));
        assert_eq!(told(&[(2, 3)]), (1, 1, 2));
        // A decision that nobody acted on is made anew: nothing is lost.
        let entries = [begin(1, 0), step(0, 0), step(1, 8), begin(2, 1), step(1, 16)];
        let history = history(&entries, &[]);
        assert_eq!((history.undone, history.went_back), (0, 0));
        assert_eq!(history.steps[1][0].first, 16);
    }

    #[test]
    fn a_log_that_is_written_once_more_undoes_nothing() {
        let again = [
            begin(1, 0),
            step(0, 0),
            step(1, 8),
            begin(2, 0),
            step(0, 0),
            step(1, 8),
            begin(2, 2),
            step(2, 16),
        ];
        let told = history(&again, &[]);
        assert_eq!((told.undone, told.went_back, told.steps.len()), (0, 0, 3));
        // Only the first of three comes again: of the others, one was committed for certain.
        let other = [
            begin(1, 0),
            step(0, 0),
            step(1, 8),
            step(2, 16),
            begin(2, 0),
            step(0, 0),
            step(1, 24),
        ];
        let told = history(&other, &[]);
        assert_eq!((told.undone, told.went_back, told.steps.len()), (1, 1, 2));
    }

    #[test]
    fn what_cannot_be_is_said() {
        for entries in [
            [begin(1, 0), step(0, 0), begin(1, 2)],
            [begin(2, 0), step(0, 0), begin(1, 1)],
            [begin(1, 0), step(0, 0), step(0, 0)],
        ] {
            assert_eq!(history(&entries, &[]).contradictions.len(), 1, "{entries:?}");
        }
    }

    #[test]
    fn records_that_are_left_out_or_used_twice_are_named() {
        // Position 16 is record 0 of epoch 1.
        let steps = [vec![share(0, 0), share(1, 4)], vec![share(0, 16), share(1, 16)]];
        let found = judged(&steps, &position(20, &[(8, 4)]));
        assert_eq!(found.doubled, [(1, 0), (1, 1), (1, 2), (1, 3)]);
        assert_eq!(found.outstanding, 4);
        assert_eq!(found.lost, [(0, 12), (0, 13), (0, 14), (0, 15)]);
        assert!(found.contradictions.is_empty(), "{found:?}");
        // Outstanding for ever is lost.
        let steps = [vec![share(0, 4)], vec![share(0, 40)]];
        let found = judged(&steps, &position(44, &[(0, 4), (8, 32)]));
        assert_eq!((found.lost.len(), found.outstanding), (24, 12));
    }

    #[test]
    fn a_ledger_that_differs_from_the_steps_is_noticed() {
        let steps = [vec![share(0, 0)]];
        assert_eq!(judged(&steps, &position(4, &[])).contradictions.len(), 0);
        assert_eq!(judged(&steps, &position(8, &[])).contradictions.len(), 1);
        assert_eq!(judged(&steps, &position(4, &[(0, 1)])).contradictions.len(), 1);
    }
}
