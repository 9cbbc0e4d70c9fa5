//! Bad records: each is reported with its file and number, and too many end the job.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// More records than allowed could not be used as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooMany {
    /// How many are allowed.
    pub limit: u64,
    /// Of how many.
    pub count: u64,
    /// The reports, in order of the records; all of them.
    pub reports: Vec<String>,
}

impl std::error::Error for TooMany {}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let Self { limit, count, reports } = self;
        write!(
            f,
            "{} bad records, more than the {limit} allowed among {count}:",
            reports.len()
        )?;
        for report in reports.iter().take(SHOWN) {
            write!(f, "\n  {}", report.lines().next().unwrap_or_default())?;
        }
        if reports.len() > SHOWN {
            write!(f, "\n  and {} more", reports.len() - SHOWN)?;
        }
        write!(
            f,
            "\nhint: `coati data inspect` lists them; `coati data validate --fix` corrects what has one right answer and leaves out what cannot be used"
        )
    }
}

/// The limit when none is set: 1 % of the records, or 100 where that is more, but never more than half of them.
pub fn default_limit(count: u64) -> u64 {
    (count / 100).max(100.min(count / 2))
}

/// The bad records seen so far. A record counts once, however often it comes.
#[derive(Debug)]
pub struct Ledger {
    limit: u64,
    count: u64,
    seen: Mutex<BTreeMap<u64, String>>,
}

impl Ledger {
    /// A ledger of a data set with `count` records; `limit` as in [`default_limit`] unless given.
    pub fn new(count: u64, limit: Option<u64>) -> Self {
        Self {
            limit: limit.unwrap_or_else(|| default_limit(count)),
            count,
            seen: Mutex::new(BTreeMap::new()),
        }
    }

    /// Enters a bad record and warns the first time; fails once there are too many.
    pub fn enter(&self, record: u64, report: &str) -> Result<(), TooMany> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::btree_map::Entry::Vacant(slot) = seen.entry(record) {
            tracing::warn!("bad record: {}", report.lines().next().unwrap_or_default());
            slot.insert(report.to_owned());
        }
        if seen.len() as u64 > self.limit {
            let reports = seen.values().cloned().collect();
            return Err(TooMany {
                limit: self.limit,
                count: self.count,
                reports,
            });
        }
        Ok(())
    }

    /// The reports so far, in order of the records.
    pub fn reports(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_once_and_the_limit_holds() {
        let ledger = Ledger::new(1000, Some(2));
        for _ in 0..5 {
            assert_eq!(ledger.enter(7, "a: record 7: bad"), Ok(()));
        }
        assert_eq!(ledger.enter(3, "a: record 3: bad\nhint: x"), Ok(()));
        let error = ledger.enter(9, "a: record 9: bad").unwrap_err();
        let expected = "3 bad records, more than the 2 allowed among 1000:\n  a: record 3: bad\n  a: record 7: bad";
        assert!(error.to_string().starts_with(expected), "{error}");
        // The limit has no setting, so the hint names what there is.
        assert!(error.to_string().contains("\nhint: `coati data inspect`"), "{error}");
        assert_eq!(ledger.reports().len(), 3);
    }

    #[test]
    fn the_default_grows_with_the_data() {
        assert_eq!([1, 10, 1000, 100_000].map(default_limit), [0, 5, 100, 1000]);
    }
}
