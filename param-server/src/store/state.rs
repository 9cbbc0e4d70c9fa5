//! All that a store holds at one version, as plain vectors: how processes that hold the same variables hand them to one another.

use std::sync::Arc;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;

use super::Store;
use super::model::Model;
use crate::optimizer::AdamPowers;

/// See the module. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct State {
    /// Of the variables.
    pub version: u64,
    /// Adam's two scalars; empty for other optimisers.
    pub powers: Vec<f32>,
    /// Variables, slots, and averages if they are kept, each in arena order.
    pub vectors: Vec<Arc<Vec<f32>>>,
}

impl Store {
    /// What is held now. Takes moments: vectors are shared, and copied by the next commit.
    pub fn state(&self, job: &v1::JobRef) -> Result<State, ServiceError> {
        let (model, version) = self.engine(job)?.model()?;
        let powers = model.powers.map(|powers| vec![powers.beta1, powers.beta2]);
        let vectors = std::iter::once(model.values).chain(model.slots).chain(model.averages);
        Ok(State {
            version,
            powers: powers.unwrap_or_default(),
            vectors: vectors.collect(),
        })
    }

    /// Begins with what another store of the same variables and optimiser held. Its slots are taken as they are.
    pub fn take_over(&self, job: &v1::JobRef, state: State) -> Result<(), ServiceError> {
        let engine = self.engine(job)?;
        let (server, optimizer) = (engine.server()?, &engine.optimizer);
        let slots = optimizer.rule.slots().len();
        let slotted = slots + usize::from(optimizer.moving_average_decay.is_some());
        let expected: Vec<usize> = std::iter::once(server.arena_len)
            .chain(std::iter::repeat_n(server.slotted_len, slotted))
            .collect();
        let found: Vec<usize> = state.vectors.iter().map(|vector| vector.len()).collect();
        if found != expected {
            let message = format!("a state of vectors of {found:?} elements, expected are {expected:?}");
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        }
        let mut vectors = state.vectors.into_iter();
        let model = Model {
            values: vectors.next().unwrap_or_default(),
            slots: vectors.by_ref().take(slots).collect(),
            averages: vectors.next(),
            powers: match state.powers[..] {
                [beta1, beta2] => Some(AdamPowers { beta1, beta2 }),
                _ => None,
            },
            mean_squares: None,
        };
        engine.install(model, state.version)
    }
}
