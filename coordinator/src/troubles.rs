//! What keeps a cluster from forming: collected for a moment, so that the user hears of everything at once.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// After the first thing that is wrong, others have so long to be found.
const SETTLE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Troubles {
    since: Option<Instant>,
    /// What is wrong for good, by task.
    found: BTreeMap<String, Vec<String>>,
    /// Tasks that were dialled and are not there, and why the last attempt failed; empty before its end.
    absent: BTreeMap<String, String>,
}

/// Whether to go on waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong so far.
    Fine,
    /// Something is; others have until then.
    WaitUntil(Instant),
    /// It cannot form, and why.
    Hopeless(String),
}

impl Troubles {
    /// Something that waiting does not mend.
    pub(crate) fn add(&mut self, task: &str, problem: impl Into<String>, now: Instant) {
        self.since.get_or_insert(now);
        let (problems, problem) = (self.found.entry(task.to_owned()).or_default(), problem.into());
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// A task is being dialled, and is not there for this reason.
    pub(crate) fn absent(&mut self, task: &str, why: impl Into<String>) {
        self.absent.insert(task.to_owned(), why.into());
    }

    /// A task answered.
    pub(crate) fn answered(&mut self, task: &str) {
        self.absent.remove(task);
    }

    /// Who does not answer, and why.
    pub(crate) fn waiting_for(&self) -> String {
        let known = self.absent.values().filter(|why| !why.is_empty());
        known.map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    /// What to do; `missing` are the tasks that have not joined.
    pub(crate) fn verdict(&self, now: Instant, missing: &[&str]) -> Verdict {
        let Some(since) = self.since else { return Verdict::Fine };
        let missing: Vec<&&str> = missing.iter().filter(|task| !self.found.contains_key(**task)).collect();
        if !(missing.is_empty() && self.absent.is_empty()) && now < since + SETTLE {
            return Verdict::WaitUntil(since + SETTLE);
        }
        let absent = self.absent.iter().map(|(task, why)| match why.as_str() {
            "" => format!("{task} has not answered yet"),
            why => why.to_owned(),
        });
        let problems: Vec<String> = self.found.values().flatten().cloned().chain(absent).collect();
        let missing: Vec<String> = missing.iter().map(|task| (**task).to_owned()).collect();
        let yet = if missing.is_empty() {
            String::new()
        } else {
            format!("\nnot there yet: {}", missing.join(", "))
        };
        Verdict::Hopeless(match problems.as_slice() {
            [only] => format!("{only}{yet}"),
            all => format!("{} reasons:\n- {}{yet}", all.len(), all.join("\n- ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let start = Instant::now();
        let later = start + SETTLE;
        let mut troubles = Troubles::default();
        troubles.absent("ps-0", "");
        assert_eq!(troubles.verdict(later, &["worker-0"]), Verdict::Fine);
        troubles.add("ps-1", "ps-1 runs Coati 0", start);
        troubles.add("ps-1", "ps-1 runs Coati 0", start);
        assert_eq!(troubles.verdict(start, &["worker-0"]), Verdict::WaitUntil(later));
        troubles.absent("ps-0", "ps-0 (h:1): connection refused");
        troubles.add("worker-0", "worker-0 cannot read a.record", start);
        let text = "3 reasons:\n- ps-1 runs Coati 0\n- worker-0 cannot read a.record\n- ps-0 (h:1): connection refused";
        assert_eq!(
            troubles.verdict(later, &["worker-0"]),
            Verdict::Hopeless(text.to_owned())
        );
        assert_eq!(troubles.waiting_for(), "ps-0 (h:1): connection refused");
        let text = text.to_owned() + "\nnot there yet: worker-1";
        assert_eq!(
            troubles.verdict(later, &["worker-0", "worker-1"]),
            Verdict::Hopeless(text)
        );
        troubles.answered("ps-0");
        assert_eq!(troubles.waiting_for(), "");
        let text = "2 reasons:\n- ps-1 runs Coati 0\n- worker-0 cannot read a.record".to_owned();
        assert_eq!(
            troubles.verdict(start, &["worker-0"]),
            Verdict::Hopeless(text),
            "all have spoken"
        );
    }
}
