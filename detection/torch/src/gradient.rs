//! The flat gradient of a step on the device: written run by run while the backward pass goes on.

use std::collections::HashMap;
use std::ops::Range;

use coati_detection::network::Regularizer;
use coati_detection::network::plan::Plan;
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::pass::Statistics;
use crate::segments::Segments;

/// A batch's own values of moving statistics, by the variable's offset.
pub(crate) struct BatchValues<'a>(HashMap<usize, &'a Tensor>);

impl<'a> BatchValues<'a> {
    pub(crate) fn new(statistics: &'a [Statistics]) -> Self {
        let of = |Statistics { norm, mean, variance }: &'a Statistics| [(norm.mean, mean), (norm.variance, variance)];
        Self(statistics.iter().flat_map(of).collect())
    }
}

/// Neighbours among the variables that one segment completes.
#[derive(Clone, Debug)]
struct Run {
    variables: Range<usize>,
    elements: Range<usize>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gradient {
    /// Of trainable variables the gradient, of moving statistics the batch's own values, of all others 0.
    pub(crate) flat: Tensor,
    /// By segments.
    runs: Vec<Vec<Run>>,
    /// The regularisers' factors of every parameter (L1, L2), where there are any.
    penalties: [Option<Tensor>; 2],
    starts: Vec<usize>,
    lengths: Vec<usize>,
}

impl Gradient {
    /// Of the variables that are `written`; the others' gradients stay 0.
    pub(crate) fn new(
        plan: &Plan,
        segments: &Segments,
        starts: &[usize],
        written: &[bool],
        device: Device,
    ) -> Result<Self, Error> {
        let lengths: Vec<usize> = plan.variables.iter().map(|spec| spec.elements()).collect();
        let run = |variables: Range<usize>| Run {
            elements: starts[variables.start]..starts[variables.end - 1] + lengths[variables.end - 1],
            variables,
        };
        let of = |segment| segments.runs(segment, |variable| written[variable]);
        Ok(Self {
            flat: Tensor::f_zeros([plan.elements as i64], (Kind::Float, device))?,
            runs: (0..segments.count())
                .map(|segment| of(segment).into_iter().map(run).collect())
                .collect(),
            penalties: penalties(plan, starts, &lengths, device)?,
            starts: starts.to_vec(),
            lengths,
        })
    }

    /// Writes what a segment completed, and returns which elements those are. `gradients` are multiples by `scale`, which is taken out.
    pub(crate) fn write(
        &self,
        segment: usize,
        gradients: &mut [Option<Tensor>],
        batch: &BatchValues<'_>,
        params: &Tensor,
        scale: Option<&Tensor>,
    ) -> Result<Vec<Range<usize>>, Error> {
        let mut written = Vec::new();
        for run in &self.runs[segment] {
            let mut values = Vec::with_capacity(run.variables.len());
            for variable in run.variables.clone() {
                let own = match (batch.0.get(&self.starts[variable]), gradients[variable].take()) {
                    // A scale is a power of two, so that this changes no bit in the end.
                    (Some(own), _) => match scale {
                        Some(scale) => own.f_mul(scale)?,
                        None => own.shallow_clone(),
                    },
                    (None, Some(gradient)) => gradient.f_reshape([-1])?,
                    (None, None) => {
                        Tensor::f_zeros([self.lengths[variable] as i64], (Kind::Float, self.flat.device()))?
                    }
                };
                values.push(own);
            }
            let mut to = at(&self.flat, &run.elements)?;
            let _ = Tensor::f_cat_out(&to, &values, 0)?;
            if let Some(scale) = scale {
                let _ = to.f_div_(scale)?;
            }
            let params = at(params, &run.elements)?;
            if let Some(l1) = &self.penalties[0] {
                let _ = to.f_addcmul_(&params.f_sign()?, &at(l1, &run.elements)?)?;
            }
            if let Some(l2) = &self.penalties[1] {
                let _ = to.f_addcmul_(&params, &at(l2, &run.elements)?)?;
            }
            written.push(run.elements.clone());
        }
        Ok(written)
    }

    /// The penalty on the weights, as a tensor without dimensions.
    pub(crate) fn penalty(&self, params: &Tensor) -> Result<Tensor, Error> {
        let mut sum = Tensor::f_zeros([], (Kind::Float, self.flat.device()))?;
        if let Some(l1) = &self.penalties[0] {
            sum = sum.f_add(&params.f_abs()?.f_dot(l1)?)?;
        }
        if let Some(l2) = &self.penalties[1] {
            sum = sum.f_add(&params.f_mul(l2)?.f_dot(params)?.f_mul_scalar(0.5)?)?;
        }
        Ok(sum)
    }
}

/// A range of a flat tensor: a view.
pub(crate) fn at(flat: &Tensor, elements: &Range<usize>) -> Result<Tensor, Error> {
    Ok(flat.f_narrow(0, elements.start as i64, elements.len() as i64)?)
}

/// Of `sign(w)` and of `w` in the regularisers' gradient.
fn penalties(plan: &Plan, starts: &[usize], lengths: &[usize], device: Device) -> Result<[Option<Tensor>; 2], Error> {
    let mut factors = [None, None];
    for weights in plan.layers.iter().flat_map(|layer| &layer.weights) {
        let (which, factor) = match weights.regularizer {
            Regularizer::None => continue,
            Regularizer::L1 { weight } => (0, weight),
            Regularizer::L2 { weight } => (1, weight),
        };
        let index = starts.binary_search(&weights.offset);
        let index = index.map_err(|_| Error::NoVariable(weights.offset))?;
        let all = factors[which].get_or_insert_with(|| vec![0.0_f32; plan.elements]);
        all[weights.offset..weights.offset + lengths[index]].fill(factor);
    }
    let [l1, l2] = factors.map(|all| {
        all.map(|all| Tensor::f_from_slice(&all)?.f_to_device(device))
            .transpose()
    });
    Ok([l1?, l2?])
}
