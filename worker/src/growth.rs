//! A loss that grows a thousandfold: training has diverged, whatever the numbers do next.

/// So much more than the least loss so far is not chance.
const FACTOR: f64 = 1000.0;

/// What is remembered of the steps so far.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// Step and loss.
    least: Option<(u64, f64)>,
    said: bool,
}

impl Growth {
    /// After a step; what there is to say, once.
    pub(crate) fn look(&mut self, step: u64, loss: f64, learning_rate: f64) -> Option<String> {
        if !loss.is_finite() {
            return None;
        }
        let (first, least) = *self.least.get_or_insert((step, loss));
        if loss <= least {
            self.least = Some((step, loss));
            return None;
        }
        if self.said || least <= 0.0 || loss < FACTOR * least {
            return None;
        }
        self.said = true;
        Some(format!(
            "Loss/total_loss is {loss:.4e} at step {step}, {:.0} times the {least:.4} of step {first}\nhint: lower the learning rate (now {learning_rate}), let it warm up for longer, or set gradient_clipping_by_norm: 10",
            loss / least
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousandfold_is_said_once() {
        let mut growth = Growth::default();
        for (step, loss) in [(1, 20.0), (2, 10.0), (3, 9000.0), (4, f64::NAN)] {
            assert_eq!(growth.look(step, loss, 0.1), None, "{step}");
        }
        let text = growth.look(5, 20_000.0, 0.1).unwrap();
        assert!(
            text.contains("at step 5, 2000 times the 10.0000 of step 2\nhint: lower the learning rate (now 0.1)"),
            "{text}"
        );
        assert_eq!(growth.look(6, 1e9, 0.1), None);
    }
}
