//! What each replica computes from: the values that it pulled last, for delay compensation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Values of a version, shared with the model for as long as it is at that version.
pub(crate) type Values = (u64, Arc<Vec<f32>>);

/// By rank: version and values of the last pull. Holds at most `max_staleness + 1` versions, as older ones are of no use.
#[derive(Debug, Default)]
pub(crate) struct Backups {
    pulled: BTreeMap<u32, Values>,
}

impl Backups {
    /// `replica` pulled `values` of `version`.
    pub(crate) fn pulled(&mut self, replica: u32, version: u64, values: &Arc<Vec<f32>>) {
        self.pulled.insert(replica, (version, Arc::clone(values)));
    }

    /// What a gradient of `version` by `replica` was computed from. Nothing when the replica did not pull from this server
    /// since then: a server that was started again does not know. (A pull while a commit is under way may find this server
    /// one version ahead of another; the tag has the older one's version.)
    pub(crate) fn of(&self, replica: u32, version: u64) -> Option<Values> {
        let pulled = self.pulled.get(&replica)?;
        (pulled.0 >= version).then(|| pulled.clone())
    }

    /// Forgets what only gradients older than `oldest` could be computed from.
    pub(crate) fn forget(&mut self, oldest: u64) {
        self.pulled.retain(|_, (version, _)| *version >= oldest);
    }

    /// The versions of which values are held.
    pub(crate) fn versions(&self) -> BTreeSet<u64> {
        self.pulled.values().map(|(version, _)| *version).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pull_counts_and_memory_is_bounded() {
        let mut backups = Backups::default();
        let (old, new) = (Arc::new(vec![1.0]), Arc::new(vec![2.0]));
        backups.pulled(0, 5, &old);
        backups.pulled(1, 5, &old);
        backups.pulled(1, 6, &new);
        assert_eq!(backups.versions(), [5, 6].into());
        assert_eq!(backups.of(0, 5), Some((5, old)));
        // Pulled while a commit was under way: the tag has the version of the server that was behind.
        assert_eq!(backups.of(1, 5), Some((6, new)));
        assert_eq!(backups.of(1, 7), None, "not from here");
        assert_eq!(backups.of(2, 5), None);
        backups.forget(6);
        assert_eq!((backups.of(0, 5), backups.versions()), (None, [6].into()));
    }
}
