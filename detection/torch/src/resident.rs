//! Variables that live on the device with their slots: steps are made there, and neither they nor gradients travel.
//!
//! All vectors have the flat vector's order and length, also where a variable has no slots: gradients of such elements are 0, with which no rule
//! changes a variable (where one would divide by 0, they are left out). The order of float32 operations is that of `coati_param_server::optimizer::update`, so on a CPU the bits are the same but for
//! roots, which libtorch rounds in its own way.

use std::ops::Range;

use coati_common::optimizer::Rule;
use coati_detection::accelerator::abi::Update;
use coati_detection::accelerator::resident::{Residence, Role};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::gradient::at;
use crate::transfer::{self, length};

/// See the module.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) residence: Residence,
    /// `[elements]`, as all that follow.
    pub(crate) params: Tensor,
    slots: Vec<Tensor>,
    averages: Option<Tensor>,
    /// Where gradients are summed over ranks.
    pub(crate) sums: Option<Tensor>,
    /// Elements of moving statistics, and 1 - decay of each.
    statistics: Option<(Tensor, Tensor)>,
    /// Which elements are trainable, where that is asked for.
    mask: Option<Tensor>,
    biases: Vec<Range<usize>>,
}

/// What comes from the host: flat vectors; slots one after the other.
pub(crate) struct Brought<'a> {
    pub(crate) params: &'a [f32],
    pub(crate) slots: &'a [f32],
    pub(crate) averages: &'a [f32],
}

impl Resident {
    pub(crate) fn new(
        residence: Residence,
        lengths: &[usize],
        brought: &Brought<'_>,
        device: Device,
    ) -> Result<Self, Error> {
        let elements: usize = lengths.iter().sum();
        length("roles", residence.variables.len(), lengths.len())?;
        length("params", brought.params.len(), elements)?;
        length("slots", brought.slots.len(), elements * residence.rule.slots().len())?;
        let averaged = usize::from(residence.moving_average_decay.is_some());
        length("averages", brought.averages.len(), elements * averaged)?;
        let there =
            |values: &[f32]| -> Result<Tensor, Error> { Ok(Tensor::f_from_slice(values)?.f_to_device(device)?) };
        let slots = brought.slots.chunks_exact(elements.max(1));
        let masked = residence.clip.is_some() || residence.rule.may_divide_by_zero();
        let (mut at, mut keep, mut biases, mut mask) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (role, &length) in residence.variables.iter().zip(lengths) {
            let range = start..start + length;
            start = range.end;
            if let Role::Statistic { decay } = role {
                at.extend(range.clone().map(|element| element as i64));
                keep.resize(at.len(), 1.0 - decay);
            }
            if masked {
                mask.resize(range.end, matches!(role, Role::Trainable | Role::Bias));
            }
            if *role == Role::Bias && residence.bias_multiplier.is_some() {
                biases.push(range);
            }
        }
        let statistics = if at.is_empty() {
            None
        } else {
            Some((Tensor::f_from_slice(&at)?.f_to_device(device)?, there(&keep)?))
        };
        let sums = residence
            .sums
            .map(|sums| if sums.bf16 { Kind::BFloat16 } else { Kind::Float });
        Ok(Self {
            params: there(brought.params)?,
            slots: slots.map(there).collect::<Result<_, _>>()?,
            averages: residence
                .moving_average_decay
                .map(|_| there(brought.averages))
                .transpose()?,
            sums: sums
                .map(|kind| Tensor::f_zeros([elements as i64], (kind, device)))
                .transpose()?,
            statistics,
            mask: masked
                .then(|| Tensor::f_from_slice(&mask)?.f_to_device(device))
                .transpose()?,
            biases,
            residence,
        })
    }

    /// Whether parts of a gradient are final before all of it is there.
    pub(crate) fn sums_early(&self) -> bool {
        self.sums.is_some() && self.residence.clip.is_none()
    }

    /// `bias_grad_multiplier` for the biases among these elements.
    pub(crate) fn multiply_biases(&self, gradient: &Tensor, elements: &Range<usize>) -> Result<(), Error> {
        let Some(multiplier) = self.residence.bias_multiplier else {
            return Ok(());
        };
        for biases in &self.biases {
            let part = biases.start.max(elements.start)..biases.end.min(elements.end);
            if !part.is_empty() {
                let _ = at(gradient, &part)?.f_mul_scalar_(f64::from(multiplier))?;
            }
        }
        Ok(())
    }

    /// `gradient_clipping_by_norm`, over all trainable variables together. A norm that is not finite changes nothing.
    pub(crate) fn clip(&self, gradient: &Tensor) -> Result<(), Error> {
        let (Some(most), Some(mask)) = (self.residence.clip, &self.mask) else {
            return Ok(());
        };
        let zero = gradient.f_zeros_like()?;
        let norm = gradient
            .f_where_self(mask, &zero)?
            .f_square()?
            .f_sum(Kind::Double)?
            .f_sqrt()?;
        let norm = norm.f_to_kind(Kind::Float)?;
        let most = Tensor::f_full_like(&norm, f64::from(most))?;
        let scale = most.f_div(&norm)?;
        let clips = norm.f_gt_tensor(&most)?.f_logical_and(&norm.f_isfinite()?)?;
        let scale = scale.f_where_self(&clips, &most.f_ones_like()?)?;
        let clipped = gradient.f_mul(&scale)?.f_where_self(mask, gradient)?;
        gradient.shallow_clone().f_copy_(&clipped)?;
        Ok(())
    }

    /// Brings the own gradient's elements to where they are summed.
    pub(crate) fn bring(&self, gradient: &Tensor, elements: &Range<usize>) -> Result<(), Error> {
        if let Some(sums) = &self.sums {
            at(sums, elements)?.f_copy_(&at(gradient, elements)?)?;
        }
        Ok(())
    }

    /// The same with all of it, times `weight`; 0 is nothing, whatever the gradient is.
    pub(crate) fn fill(&self, gradient: &Tensor, weight: f32) -> Result<(), Error> {
        let Some(sums) = &self.sums else { return Ok(()) };
        let mut sums = sums.shallow_clone();
        if weight == 0.0 {
            // Adding it changes no bit of anything.
            let _ = sums.f_fill_(-0.0)?;
        } else if weight == 1.0 {
            sums.f_copy_(gradient)?;
        } else {
            sums.f_copy_(&gradient.f_mul_scalar(f64::from(weight))?)?;
        }
        Ok(())
    }

    /// Whether what a step is to be made of is finite. Waits.
    pub(crate) fn finite(&self, gradient: &Tensor) -> Result<bool, Error> {
        let summed = self.sums.as_ref().unwrap_or(gradient);
        let finite = summed.f_isfinite()?.f_all()?.f_to_kind(Kind::Float)?;
        Ok(finite.f_double_value(&[])? == 1.0)
    }

    /// Makes a step of the sum, or of the own gradient where there is none. Does not wait.
    pub(crate) fn apply(&mut self, gradient: &Tensor, update: &Update) -> Result<(), Error> {
        let mut mean = match &self.sums {
            Some(sums) => sums.f_to_kind(Kind::Float)?,
            None => gradient.shallow_clone(),
        };
        if update.divisor > 1.0 {
            let _ = mean.f_div_scalar_(f64::from(update.divisor))?;
        }
        if let Some((at, keep)) = &self.statistics {
            let old = self.params.f_index_select(0, at)?;
            let change = old.f_sub(&mean.f_index_select(0, at)?)?.f_mul(keep)?;
            let _ = self.params.f_index_copy_(0, at, &old.f_sub(&change)?)?;
            let _ = mean.f_index_fill_(0, at, 0.0)?;
        }
        let rate = f64::from(update.rate);
        let params = &mut self.params;
        match (self.residence.rule, &mut self.slots[..]) {
            (Rule::Momentum { momentum, nesterov }, [slot]) => {
                let momentum = f64::from(momentum);
                let _ = slot.f_mul_scalar_(momentum)?.f_add_(&mean)?;
                let step = if nesterov {
                    let ahead = slot.f_mul_scalar(momentum)?.f_mul_scalar(rate)?;
                    mean.f_mul_scalar(rate)?.f_add(&ahead)?
                } else {
                    slot.f_mul_scalar(rate)?
                };
                let _ = params.f_sub_(&step)?;
            }
            (
                Rule::RmsProp {
                    decay,
                    momentum,
                    epsilon,
                },
                [square, slot],
            ) => {
                let keep = f64::from(1.0 - decay);
                let change = mean.f_mul(&mean)?.f_sub(square)?.f_mul_scalar(keep)?;
                let _ = square.f_add_(&change)?;
                let root = square.f_add_scalar(f64::from(epsilon))?.f_sqrt()?;
                let step = only(&self.mask, mean.f_mul_scalar(rate)?.f_div(&root)?)?;
                let _ = slot.f_mul_scalar_(f64::from(momentum))?.f_add_(&step)?;
                let _ = params.f_sub_(slot)?;
            }
            (Rule::Adam { beta1, beta2, epsilon }, [first, second]) => {
                let [power1, power2] = update.powers;
                let alpha = f64::from(update.rate * (1.0 - power2).sqrt() / (1.0 - power1));
                let change = mean.f_sub(first)?.f_mul_scalar(f64::from(1.0 - beta1))?;
                let _ = first.f_add_(&change)?;
                let change = mean.f_mul(&mean)?.f_sub(second)?;
                let _ = second.f_add_(&change.f_mul_scalar(f64::from(1.0 - beta2))?)?;
                let root = second.f_sqrt()?.f_add_scalar(f64::from(epsilon))?;
                let step = only(&self.mask, first.f_mul_scalar(alpha)?.f_div(&root)?)?;
                let _ = params.f_sub_(&step)?;
            }
            (rule, slots) => length("slots", slots.len(), rule.slots().len())?,
        }
        if let (Some(decay), Some(averages)) = (self.residence.moving_average_decay, &mut self.averages) {
            let change = averages.f_sub(params)?.f_mul_scalar(f64::from(1.0 - decay))?;
            let _ = averages.f_sub_(&change)?;
        }
        Ok(())
    }

    /// All that is held, as [`Brought`]. Waits.
    pub(crate) fn read(&self, params: &mut [f32], slots: &mut [f32], averages: &mut [f32]) -> Result<(), Error> {
        read("params", &self.params, params)?;
        length("slots", slots.len(), self.slots.len() * self.params.numel())?;
        for (slot, to) in self
            .slots
            .iter()
            .zip(slots.chunks_exact_mut(self.params.numel().max(1)))
        {
            read("slot", slot, to)?;
        }
        match &self.averages {
            Some(values) => read("averages", values, averages),
            None => length("averages", averages.len(), 0),
        }
    }
}

/// Nothing where an element is not trainable, even if 0 was divided by 0 there.
fn only(mask: &Option<Tensor>, step: Tensor) -> Result<Tensor, Error> {
    match mask {
        Some(mask) => Ok(step.f_where_self(mask, &step.f_zeros_like()?)?),
        None => Ok(step),
    }
}

/// Copies a vector to the host, and waits for it.
pub(crate) fn read(what: &'static str, from: &Tensor, to: &mut [f32]) -> Result<(), Error> {
    let there = from.f_detach()?.f_to_device(Device::Cpu)?;
    transfer::read(what, &there, to)
}
