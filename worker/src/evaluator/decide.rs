//! Which checkpoint is evaluated when, as a pure function.

use std::time::{Duration, Instant};

/// What decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `eval_config.eval_interval_secs`: from the beginning of an evaluation to that of the next.
    pub interval: Duration,
    /// `eval_config.max_evals`; 0: no limit.
    pub max_evals: u64,
    /// The job's last step, where it has one.
    pub last_step: Option<u64>,
    /// Evaluate what is there and leave.
    pub run_once: bool,
    /// Silence after which nothing more is expected.
    pub patience: Duration,
}

/// What happened so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Step of the newest checkpoint.
    pub newest: Option<u64>,
    /// Step of the last one that was evaluated, by this process or one before.
    pub evaluated: Option<u64>,
    /// Evaluations so far.
    pub evaluations: u64,
    /// When the last evaluation of this process began.
    pub begun: Option<Instant>,
    /// When something last showed that the job goes on.
    pub alive: Instant,
}

impl Seen {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self {
            newest: None,
            evaluated: None,
            evaluations: 0,
            begun: None,
            alive: now,
        }
    }

    /// Notes what there is; a new checkpoint is a sign of life.
    pub fn look(&mut self, now: Instant, newest: Option<u64>, evaluated: Option<u64>, evaluations: u64) {
        if newest != self.newest {
            self.alive = now;
        }
        (self.newest, self.evaluated, self.evaluations) = (newest, evaluated, evaluations);
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Evaluate the newest checkpoint.
    Evaluate,
    /// Look again later; for what, in words that change only when there is news.
    Wait(String),
    /// Nothing more is to be evaluated, in words.
    Finished(String),
    /// Nothing came for too long.
    GiveUp,
}

/// The last checkpoint is evaluated at once; others at most every `interval`, the newest each time.
pub fn decide(now: Instant, seen: &Seen, rules: &Rules) -> Decision {
    let is_last = |step: u64| rules.last_step.is_some_and(|last| step >= last);
    if rules.max_evals > 0 && seen.evaluations >= rules.max_evals {
        return Decision::Finished(format!(
            "{} evaluations are done (eval_config.max_evals)",
            seen.evaluations
        ));
    }
    if let Some(step) = seen.evaluated {
        if rules.run_once && seen.begun.is_some() {
            return Decision::Finished(format!("step {step} is evaluated"));
        }
        if is_last(step) {
            return Decision::Finished(format!("the last checkpoint (step {step}) is evaluated"));
        }
    }
    match seen.newest {
        Some(step) if seen.evaluated != Some(step) => {
            let due = seen.begun.map(|begun| begun + rules.interval);
            if rules.run_once || is_last(step) || due.is_none_or(|due| due <= now) {
                return Decision::Evaluate;
            }
        }
        _ if rules.run_once => return Decision::GiveUp,
        _ => {}
    }
    if now.saturating_duration_since(seen.alive) >= rules.patience {
        return Decision::GiveUp;
    }
    Decision::Wait(match seen.evaluated {
        None => "waiting for the first checkpoint".to_owned(),
        Some(step) => format!("step {step} is evaluated; waiting for a newer checkpoint"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            interval: Duration::from_secs(300),
            max_evals: 0,
            last_step: Some(100),
            run_once: false,
            patience: Duration::from_secs(1000),
        }
    }

    struct Story {
        zero: Instant,
        seen: Seen,
        rules: Rules,
    }

    impl Story {
        fn new(rules: Rules) -> Self {
            let zero = Instant::now();
            Self {
                zero,
                seen: Seen::new(zero),
                rules,
            }
        }

        fn at(&self, second: u64) -> Instant {
            self.zero + Duration::from_secs(second)
        }

        /// Looks at this second; an evaluation that is decided upon is done at once.
        fn look(&mut self, second: u64, newest: Option<u64>) -> Decision {
            let now = self.at(second);
            self.seen.look(now, newest, self.seen.evaluated, self.seen.evaluations);
            let decision = decide(now, &self.seen, &self.rules);
            if decision == Decision::Evaluate {
                (self.seen.begun, self.seen.evaluated) = (Some(now), newest);
                self.seen.evaluations += 1;
            }
            decision
        }
    }

    fn waits(decision: &Decision) -> bool {
        matches!(decision, Decision::Wait(_))
    }

    #[test]
    fn each_new_checkpoint_in_turn_and_the_last_one_at_once() {
        let mut story = Story::new(rules());
        assert_eq!(
            story.look(0, None),
            Decision::Wait("waiting for the first checkpoint".to_owned())
        );
        assert_eq!(story.look(10, Some(5)), Decision::Evaluate);
        assert_eq!(
            story.look(20, Some(5)),
            Decision::Wait("step 5 is evaluated; waiting for a newer checkpoint".to_owned())
        );
        assert!(waits(&story.look(30, Some(10))), "eval_interval_secs");
        assert!(waits(&story.look(309, Some(15))));
        assert_eq!(story.look(310, Some(15)), Decision::Evaluate, "the newest one");
        assert_eq!(
            story.look(311, Some(100)),
            Decision::Evaluate,
            "the last one does not wait"
        );
        assert!(matches!(story.look(312, Some(100)), Decision::Finished(why) if why.contains("step 100")));
    }

    #[test]
    fn an_evaluator_that_comes_back_goes_on_where_it_was() {
        let mut story = Story::new(rules());
        (story.seen.evaluated, story.seen.evaluations) = (Some(10), 2);
        assert!(waits(&story.look(0, Some(10))));
        assert_eq!(story.look(2, Some(15)), Decision::Evaluate);
        let mut late = Story::new(rules());
        late.seen.evaluated = Some(100);
        assert!(matches!(late.look(0, Some(100)), Decision::Finished(_)));
    }

    #[test]
    fn max_evals_counts() {
        let mut story = Story::new(Rules {
            max_evals: 2,
            ..rules()
        });
        assert_eq!(story.look(0, Some(5)), Decision::Evaluate);
        assert_eq!(story.look(300, Some(10)), Decision::Evaluate);
        assert!(matches!(story.look(600, Some(100)), Decision::Finished(why) if why.contains("max_evals")));
    }

    #[test]
    fn once_is_once() {
        let mut story = Story::new(Rules {
            run_once: true,
            ..rules()
        });
        assert_eq!(story.look(0, None), Decision::GiveUp);
        assert_eq!(story.look(0, Some(5)), Decision::Evaluate);
        assert!(matches!(story.look(0, Some(10)), Decision::Finished(_)));
    }

    #[test]
    fn silence_ends_it_and_signs_of_life_do_not() {
        let mut story = Story::new(rules());
        story.look(0, Some(5));
        assert!(waits(&story.look(999, Some(5))));
        assert_eq!(story.look(1000, Some(5)), Decision::GiveUp);
        story.seen.alive = story.at(900);
        assert!(waits(&story.look(1000, Some(5))), "the master answered");
    }
}
