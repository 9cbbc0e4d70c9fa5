//! Which workers come and go when the number of workers changes. Pure.
//!
//! The highest indices leave, the lowest free ones come. An index has one process at a time: a worker that is wanted again
//! while its process is still leaving is started when that has left.

use std::time::Instant;

use coati_common::cluster::TaskType;

use super::State;

/// What to do with the workers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Indices that never had a process, lowest first.
    pub new: Vec<u32>,
    /// Tasks (places in [`State::tasks`]) that left, or are leaving, and are wanted again.
    pub back: Vec<usize>,
    /// Tasks that are not wanted any more.
    pub leave: Vec<usize>,
}

/// Compares those who are there with the number that is wanted.
pub fn change(state: &State, wanted: u32) -> Change {
    let mut change = Change::default();
    let mut known = 0;
    for (place, task) in state.tasks.iter().enumerate() {
        if task.id.kind != TaskType::Worker {
            continue;
        }
        known = known.max(task.id.index.saturating_add(1));
        let here = task.leaving.is_none() || task.returns;
        match (here, task.id.index < wanted) {
            (true, false) => change.leave.push(place),
            (false, true) => change.back.push(place),
            _ => {}
        }
    }
    change.new.extend(known..wanted.max(known));
    change
}

impl Change {
    /// Writes the change of those who are known into the facts; processes for [`Change::new`] are the caller's.
    pub fn apply(&self, state: &mut State, now: Instant) {
        for place in &self.leave {
            if let Some(task) = state.tasks.get_mut(*place) {
                // Since when it leaves does not change when it was to return in between.
                task.leaving.get_or_insert(now);
                task.returns = false;
            }
        }
        for place in &self.back {
            if let Some(task) = state.tasks.get_mut(*place) {
                task.returns = true;
            }
        }
    }
}

/// Workers that the job has, those excepted that are leaving.
pub fn workers(state: &State) -> usize {
    let here = |task: &&super::TaskState| task.id.kind == TaskType::Worker && (task.leaving.is_none() || task.returns);
    state.tasks.iter().filter(here).count()
}
