//! Variables on an accelerator: what a book keeps there, and how it gets there and back.

use std::cell::Cell;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_detection::accelerator::abi::Update;
use coati_detection::accelerator::resident::{Resident, Vectors};
use coati_param_server::optimizer::AdamPowers;
use coati_param_server::store::{Committed, State};
use coati_param_server::{Layout, OptimizerConfig, schedule};

use crate::exchange::Error;

/// The variables of a book, on an accelerator: its store has an older version until it is asked for a newer one.
#[derive(Debug)]
pub(crate) struct Residence {
    resident: Resident,
    optimizer: OptimizerConfig,
    powers: Option<AdamPowers>,
    /// What the store holds.
    archived: Cell<u64>,
}

/// The vectors of a store's arena in the order of the flat vector. What has no slots has zeros there.
pub(crate) fn vectors_of(state: &State, layout: &Layout, optimizer: &OptimizerConfig) -> Vectors {
    let elements = layout.flat_len();
    let mut flat = state.vectors.iter().map(|arena| {
        let mut whole = arena.to_vec();
        whole.resize(layout.arena_len(0), 0.0);
        let mut flat = vec![0.0; elements];
        layout.scatter(0, &whole, &mut flat);
        flat
    });
    let params = flat.next().unwrap_or_default();
    let slots = flat.by_ref().take(optimizer.rule.slots().len()).flatten().collect();
    Vectors {
        params,
        slots,
        averages: flat.next().unwrap_or_default(),
    }
}

/// The way back.
fn state_of(vectors: &Vectors, layout: &Layout, version: u64, powers: Option<AdamPowers>) -> State {
    let slotted = layout.server(0).map_or(0, |server| server.slotted_len);
    let elements = layout.flat_len().max(1);
    let arena = |flat: &[f32], length: usize| {
        let mut arena = Vec::new();
        layout.gather(0, flat, &mut arena);
        arena.truncate(length);
        arena.into()
    };
    let slots = vectors.slots.chunks_exact(elements).map(|slot| arena(slot, slotted));
    let averages = (!vectors.averages.is_empty()).then(|| arena(&vectors.averages, slotted));
    State {
        version,
        powers: powers.map_or(Vec::new(), |powers| vec![powers.beta1, powers.beta2]),
        vectors: std::iter::once(arena(&vectors.params, layout.arena_len(0)))
            .chain(slots)
            .chain(averages)
            .collect(),
    }
}

impl Residence {
    /// Variables that were brought to the accelerator from this state.
    pub(crate) fn new(resident: Resident, optimizer: OptimizerConfig, state: &State) -> Self {
        let powers = match state.powers[..] {
            [beta1, beta2] => Some(AdamPowers { beta1, beta2 }),
            _ => None,
        };
        Self {
            resident,
            optimizer,
            powers,
            archived: Cell::new(state.version),
        }
    }

    /// What a store is to take over to hold `version`, which is the accelerator's; none where it does.
    pub(crate) fn newer(&self, version: u64, layout: &Layout) -> Result<Option<State>, Error> {
        if self.archived.get() == version {
            return Ok(None);
        }
        let vectors = self.resident.read().map_err(Error::new)?;
        Ok(Some(state_of(&vectors, layout, version, self.powers)))
    }

    /// The store took it over.
    pub(crate) fn archive(&self, version: u64) {
        self.archived.set(version);
    }

    /// Refuses a gradient that is not finite, as a store does.
    pub(crate) fn check(&self) -> Result<(), ServiceError> {
        match self.resident.is_finite() {
            Ok(true) => Ok(()),
            Ok(false) => Err(ServiceError::new(
                ErrorCode::NonFiniteGradient,
                "the gradient is not finite",
            )),
            Err(error) => Err(ServiceError::new(ErrorCode::Internal, error.to_string())),
        }
    }

    /// Makes the step from `version`.
    pub(crate) fn commit(&mut self, version: u64, divisor: f32) -> Result<Committed, Error> {
        let learning_rate = schedule::learning_rate(&self.optimizer.learning_rate, version);
        let powers = self.powers.map_or([0.0; 2], |powers| [powers.beta1, powers.beta2]);
        let update = Update {
            rate: learning_rate,
            powers,
            divisor,
        };
        self.resident.apply(update).map_err(Error::new)?;
        self.powers = self.powers.map(|powers| powers.next(&self.optimizer.rule));
        Ok(Committed {
            version: version + 1,
            learning_rate,
        })
    }

    /// The own gradient of the last step.
    pub(crate) fn gradient(&self) -> Result<Vec<f32>, Error> {
        self.resident.gradient().map_err(Error::new)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coati_common::optimizer::Rule;
    use coati_common::variables::{VariableKind, VariableSpec};
    use coati_param_server::schedule::LearningRate;
    use coati_param_server::{Strategy, plan};

    use super::*;

    #[test]
    fn vectors_come_back_as_they_went() {
        let spec = |name: &str, elements, kind| VariableSpec {
            name: name.into(),
            shape: vec![elements],
            kind,
        };
        let variables = [
            spec("constant", 3, VariableKind::Constant),
            spec("small", 2, VariableKind::Trainable),
            spec("statistic", 4, VariableKind::MovingStatistic { decay: 0.9 }),
            spec("large", 50, VariableKind::Trainable),
        ];
        let layout = Layout::new(&plan(&variables, 1, Strategy::Balanced).unwrap()).unwrap();
        let optimizer = OptimizerConfig {
            rule: Rule::Adam {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
            },
            learning_rate: LearningRate::Constant(0.1),
            moving_average_decay: Some(0.99),
        };
        let vector = |length: usize, seed: f32| Arc::new((0..length).map(|i| i as f32 + seed).collect::<Vec<f32>>());
        let state = State {
            version: 7,
            powers: vec![0.5, 0.25],
            vectors: vec![vector(59, 1000.0), vector(52, 0.25), vector(52, 0.5), vector(52, 0.75)],
        };
        let vectors = vectors_of(&state, &layout, &optimizer);
        assert_eq!(
            (vectors.params.len(), vectors.slots.len(), vectors.averages.len()),
            (59, 118, 59)
        );
        let mut flat = vec![0.0; 59];
        layout.scatter(0, &state.vectors[0], &mut flat);
        assert_eq!(vectors.params, flat);
        let powers = AdamPowers {
            beta1: 0.5,
            beta2: 0.25,
        };
        let back = state_of(&vectors, &layout, 7, Some(powers));
        assert_eq!(
            (back.version, &back.powers, &back.vectors),
            (7, &state.powers, &state.vectors)
        );
    }
}
