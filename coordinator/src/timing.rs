//! Where the time of a step went, over all of its contributors.
//!
//! A replica reports how long its phases took, in their order; its report's arrival dates them. So no clocks are compared,
//! and the only error is the time that a report travels. Replicas overlap: while one still receives variables another may
//! compute already. What counts is what the step as a whole had to wait for: it is *computing* while any replica computes,
//! it waits for *input* while none computes and one waits for its batch, and what is left is *exchange*.

use std::time::Duration;

use tokio::time::Instant;

/// One contributor's phases: it had its variables and waited for its batch, computed, and pushed; then its report arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// When the report arrived.
    pub arrived: Instant,
    /// Waiting for a batch.
    pub input: Duration,
    /// Forward, loss, backward.
    pub compute: Duration,
    /// Sending gradients.
    pub push: Duration,
}

/// Seconds of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// From the commit before to this one.
    pub step: f64,
    /// Some replica computed.
    pub compute: f64,
    /// None computed, one waited for its batch.
    pub input: f64,
    /// The rest: variables, gradients, reports and commits on their way.
    pub exchange: f64,
    /// A replica's mean wait from its report to the last one's: for slower replicas.
    pub waiting: f64,
}

impl StepTime {
    /// By name.
    pub fn named(&self) -> Vec<(String, f64)> {
        [
            ("step", self.step),
            ("compute", self.compute),
            ("input", self.input),
            ("exchange", self.exchange),
            ("waiting", self.waiting),
        ]
        .map(|(name, seconds)| (name.to_owned(), seconds))
        .into()
    }
}

/// Attributes the time from `begun` to `ended` (two commits, one after the other).
pub fn attribute(begun: Instant, ended: Instant, contributors: &[Spans]) -> StepTime {
    let since = |at: Instant| at.saturating_duration_since(begun).as_secs_f64();
    let step = since(ended);
    let back = |at: Instant, by: Duration| at.checked_sub(by).unwrap_or(begun);
    let mut computing = Vec::with_capacity(contributors.len());
    let mut busy = Vec::with_capacity(contributors.len());
    for spans in contributors {
        let computed = back(spans.arrived, spans.push);
        let received = back(computed, spans.compute);
        let pulled = back(received, spans.input);
        computing.push((since(received), since(computed).min(step)));
        busy.push((since(pulled), since(computed).min(step)));
    }
    let compute = covered(&mut computing);
    let input = covered(&mut busy) - compute;
    let last = contributors.iter().max_by_key(|spans| spans.arrived);
    let waiting = last.map_or(0.0, |last| {
        let all = contributors.iter();
        let sum: f64 = all
            .map(|spans| last.arrived.saturating_duration_since(spans.arrived).as_secs_f64())
            .sum();
        sum / contributors.len() as f64
    });
    StepTime {
        step,
        compute,
        input,
        exchange: (step - compute - input).max(0.0),
        waiting,
    }
}

/// Length of the union of intervals.
fn covered(intervals: &mut [(f64, f64)]) -> f64 {
    intervals.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut total, mut until) = (0.0, f64::NEG_INFINITY);
    for &(from, to) in intervals.iter() {
        let from = from.max(until);
        if to > from {
            total += to - from;
            until = to;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(begun: Instant, arrived: u64, [input, compute, push]: [u64; 3]) -> Spans {
        let millis = Duration::from_millis;
        Spans {
            arrived: begun + millis(arrived),
            input: millis(input),
            compute: millis(compute),
            push: millis(push),
        }
    }

    #[track_caller]
    fn assert_millis(found: &StepTime, compute: f64, input: f64, exchange: f64, waiting: f64) {
        for (found, expected) in [
            (found.compute, compute),
            (found.input, input),
            (found.exchange, exchange),
            (found.waiting, waiting),
        ] {
            assert!((found * 1000.0 - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn a_step_computes_while_any_replica_does() {
        let begun = Instant::now();
        let ended = begun + Duration::from_millis(100);
        // One computes from 5 to 75, the other, which got its variables late, from 20 to 90.
        let both = [spans(begun, 77, [0, 70, 2]), spans(begun, 93, [0, 70, 3])];
        assert_millis(&attribute(begun, ended, &both), 85.0, 0.0, 15.0, 8.0);
    }

    #[test]
    fn waiting_for_a_batch_counts_where_nobody_computes() {
        let begun = Instant::now();
        let ended = begun + Duration::from_millis(100);
        // From 30 to 40 both wait for their batches.
        let both = [spans(begun, 80, [30, 40, 0]), spans(begun, 90, [20, 40, 0])];
        assert_millis(&attribute(begun, ended, &both), 50.0, 40.0 - 10.0, 20.0, 5.0);
    }

    #[test]
    fn a_gradient_from_before_the_last_commit_counts_from_that_commit_on() {
        let begun = Instant::now();
        let ended = begun + Duration::from_millis(50);
        let stale = [spans(begun, 40, [0, 300, 10])];
        assert_millis(&attribute(begun, ended, &stale), 30.0, 0.0, 20.0, 0.0);
    }
}
