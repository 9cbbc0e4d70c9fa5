//! Variables that live on a device: steps are made where gradients are, and only losses come to the host.
//!
//! [`Residence`] says how steps are made; [`super::Accelerator::reside`] brings the variables there. The training loop computes by the
//! accelerator, and whoever makes steps has a [`Resident`] of the same session.

use std::sync::Arc;

use coati_common::optimizer::Rule;
use serde::{Deserialize, Serialize};

use super::Session;
use super::abi::{FloatsMut, Message, Update};
use crate::network;

/// What a variable is to the optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// Updated by gradients.
    Trainable,
    /// The same, and `bias_grad_multiplier` is for it.
    Bias,
    /// Moving average of what batches have: `value = decay * value + (1 - decay) * batch`.
    Statistic {
        /// See above.
        decay: f32,
    },
    /// Never changes.
    Constant,
}

/// How gradients are summed over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summing {
    /// Bytes of gradients after which the backward pass is cut, so that they may be summed while it goes on.
    pub bucket_bytes: usize,
    /// Whether they are rounded to bfloat16 for it.
    pub bf16: bool,
}

/// How steps are made; crosses the border as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Residence {
    /// The optimiser's.
    pub rule: Rule,
    /// Decay of the moving averages kept of variables, if any are kept.
    pub moving_average_decay: Option<f32>,
    /// Of the model's variables, in order.
    pub variables: Vec<Role>,
    /// `bias_grad_multiplier`
    pub bias_multiplier: Option<f32>,
    /// `gradient_clipping_by_norm`
    pub clip: Option<f32>,
    /// None where nobody else trains: the own gradient is what steps are made of.
    pub sums: Option<Summing>,
}

/// What a device holds at one version, or is given: flat vectors in the order of the model's variables, whose elements without slots
/// mean nothing there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vectors {
    /// `[elements]`
    pub params: Vec<f32>,
    /// `[slots, elements]`
    pub slots: Vec<f32>,
    /// `[elements]`; empty where no averages are kept.
    pub averages: Vec<f32>,
}

/// The variables on a device, for whoever makes steps. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Resident {
    pub(super) session: Arc<Session>,
    pub(super) elements: usize,
    pub(super) slots: usize,
    pub(super) averages: bool,
    pub(super) sums: Option<usize>,
    pub(super) summing: Option<Summing>,
}

impl Resident {
    /// Where gradients are summed, and how: the address of element 0 on the device.
    pub fn sums(&self) -> Option<(usize, Summing)> {
        self.sums.zip(self.summing)
    }

    /// Elements of the flat vector.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Brings all of the own gradient, times `weight`, to where gradients are summed: 0 is nothing, even of a gradient that is not finite.
    pub fn fill(&self, weight: f32) -> Result<(), network::Error> {
        self.session
            .call(|api, session, message| unsafe { (api.fill)(session, weight, message) })
    }

    /// Whether the sum, or the own gradient where there is none, is finite. Waits for the device.
    pub fn is_finite(&self) -> Result<bool, network::Error> {
        let mut finite = false;
        let place = &raw mut finite;
        self.session
            .call(|api, session, message| unsafe { (api.finite)(session, place, message) })?;
        Ok(finite)
    }

    /// Makes a step. Does not wait for it.
    pub fn apply(&self, update: Update) -> Result<(), network::Error> {
        self.session
            .call(|api, session, message| unsafe { (api.apply)(session, &raw const update, message) })
    }

    /// All that is held, after all steps so far.
    pub fn read(&self) -> Result<Vectors, network::Error> {
        let mut vectors = Vectors {
            params: vec![0.0; self.elements],
            slots: vec![0.0; self.elements * self.slots],
            averages: vec![0.0; if self.averages { self.elements } else { 0 }],
        };
        let (params, slots) = (&mut vectors.params[..], &mut vectors.slots[..]);
        let all: [FloatsMut; 3] = [params.into(), slots.into(), vectors.averages.as_mut_slice().into()];
        self.session.call(|api, session, message: *mut Message| unsafe {
            (api.read)(session, all[0], all[1], all[2], message)
        })?;
        Ok(vectors)
    }

    /// The own gradient of the last step.
    pub fn gradient(&self) -> Result<Vec<f32>, network::Error> {
        let mut gradient = vec![0.0; self.elements];
        let place: FloatsMut = gradient.as_mut_slice().into();
        self.session
            .call(|api, session, message| unsafe { (api.gradient)(session, place, message) })?;
        Ok(gradient)
    }
}
