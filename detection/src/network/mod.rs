//! Single shot detectors' networks, forward and backward on CPUs.
//!
//! A [`Network`] is a function of a flat parameter vector (the concatenation of [`Network::variables`]) and of images: it owns no
//! parameters, only the memory of a step, which it keeps from one step to the next. Results do not depend on the number of threads.
//!
//! It is laid out for images of one size, and for another one again ([`Network::lay_out`]), with the same variables, threads and memory.

mod backward;
mod blocks;
mod buffers;
mod builder;
mod config;
mod depthwise;
pub mod dropout;
mod error;
pub mod extractors;
mod forward;
mod group_norm;
mod init;
mod junctions;
mod layout;
mod memory;
mod norm;
pub mod plan;
mod predictors;
mod ring;
mod shared_predictor;
mod sliced;
#[cfg(test)]
mod tests;
mod together;

use std::ops::Range;
use std::time::Instant;

pub use config::{
    Activation, BatchNorm, FanMode, Fpn, Hyperparams, Initializer, InputRange, NetworkConfig, PredictorConfig,
    PredictorKind, Regularizer,
};
pub use error::Error;
pub use together::Together;

use crate::kernels::parallel::Shared;
use crate::kernels::{Isa, Pool};
use backward::OutputGradients;
use buffers::Buffers;
use coati_common::variables::VariableSpec;
use forward::Context;
use plan::{Operation, Plan};
pub(crate) use together::Hook;

/// Whether batch norm uses the batch's statistics and the network keeps what [`Network::backward`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Training.
    Train,
    /// Inference: moving statistics.
    Eval,
}

/// Raw predictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// `[batch, anchors, 4]`
    pub box_encodings: Vec<f32>,
    /// `[batch, anchors, num_classes + 1]`; column 0 is the background.
    pub class_logits: Vec<f32>,
}

impl Outputs {
    /// Slopes of 0 by boxes and classes, for a backward pass that only others have a use for.
    pub(crate) fn without_slopes(&self) -> (Vec<f32>, Vec<f32>) {
        (vec![0.0; self.box_encodings.len()], vec![0.0; self.class_logits.len()])
    }
}

/// Seconds that a layer took in the last forward and backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTime {
    /// The layer's variable scope.
    pub name: String,
    /// `convolution`, `pointwise`, `depthwise`, `predictor` or `junction` (without weights).
    pub kind: &'static str,
    /// Multiplications with additions in the forward pass for one image.
    pub multiply_adds: u64,
    /// Elements of its output for one image.
    pub outputs: u64,
    /// Forward pass.
    pub forward_s: f64,
    /// Backward pass.
    pub backward_s: f64,
}

/// Is told the flat range of a layer's variables and their gradients, as soon as they are complete; what it changes stays.
pub type Progress<'a> = &'a mut (dyn FnMut(Range<usize>, &mut [f32]) + Send);

/// A network. See the module.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    plan: Plan,
    pool: Pool,
    isa: Isa,
    buffers: Buffers,
    times: Vec<LayerTime>,
    /// Height, width and channels.
    image: [usize; 3],
    columns: usize,
    /// Images of the last forward pass, if it was in training mode; their pixels are needed once more by the first layer.
    images: Option<Vec<f32>>,
    /// What is dropped depends on it.
    key: u64,
    /// Their box encodings, where those are limited: beyond the limits there is no gradient.
    boxes: Vec<f32>,
    /// The other replicas.
    hook: Hook,
}

impl Network {
    /// Lays out the network and starts its threads; memory is taken by the first step.
    pub fn new(config: &NetworkConfig) -> Result<Self, Error> {
        Self::with_isa(config, Isa::detect())
    }

    /// As [`Network::new`], on a given instruction set.
    pub fn with_isa(config: &NetworkConfig, isa: Isa) -> Result<Self, Error> {
        let plan = plan::plan(config)?;
        let pool = Pool::new(config.threads.unwrap_or_else(Pool::default_threads))?;
        let times = plan.layers.iter().map(layer_time).collect();
        Ok(Self {
            buffers: Buffers::new(&plan),
            config: config.clone(),
            plan,
            pool,
            isa,
            times,
            image: [config.image_height, config.image_width, config.image_channels],
            columns: config.num_classes + 1,
            images: None,
            key: 0,
            boxes: Vec::new(),
            hook: Hook::default(),
        })
    }

    /// Whether batch norm is to use statistics over all replicas (`sync_batch_norm`).
    pub fn is_synchronised(&self) -> bool {
        self.plan
            .layers
            .iter()
            .any(|layer| layer.norm.is_some_and(|norm| norm.sync))
    }

    /// Whether other replicas' batches count in this one's statistics, and its in theirs.
    pub fn is_together(&self) -> bool {
        self.is_synchronised() && self.hook.is_set()
    }

    /// The other replicas, whose batches count in the statistics of layers with `sync_batch_norm`; without any each replica's are its own.
    /// All replicas then make each step in training mode at the same time.
    pub fn set_together(&mut self, together: Option<Box<dyn Together>>) {
        self.hook = Hook::new(together);
    }

    /// The variables in declared order, which is the order in which the reference creates them.
    pub fn variables(&self) -> &[VariableSpec] {
        &self.plan.variables
    }

    /// Elements of the flat vector.
    pub fn elements(&self) -> usize {
        self.plan.elements
    }

    /// First values of all variables; depends on the variables' names and the seed alone.
    pub fn init_values(&self, seed: u64) -> Vec<f32> {
        init::values(&self.plan, seed)
    }

    /// (height, width) of each feature map.
    pub fn feature_map_shapes(&self) -> Vec<(usize, usize)> {
        self.plan.feature_maps.clone()
    }

    /// Anchors of all feature maps together.
    pub fn anchors(&self) -> usize {
        self.plan.anchors
    }

    /// Columns of the class predictions: classes and background.
    pub fn class_columns(&self) -> usize {
        self.columns
    }

    /// Number of compute threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Where the time of the last step went.
    pub fn layer_times(&self) -> &[LayerTime] {
        &self.times
    }

    /// Sets what the next steps drop, where the predictors have dropout: [`dropout::key`] of the step.
    pub fn set_key(&mut self, key: u64) {
        self.key = key;
    }

    /// The first layer of the last forward pass whose values are not all finite, before its normalisation and activation, and the first image of
    /// the batch in it.
    pub fn first_not_finite(&self) -> Option<(&str, usize)> {
        let batch = self.images.as_ref()?.len() / self.image.iter().product::<usize>();
        let mut layers = self.plan.layers.iter().zip(&self.buffers.y_at);
        layers.find_map(|(layer, &at)| {
            let len = layer.window.outputs() * layer.padded_outputs();
            let values = self
                .buffers
                .y
                .get(at..at + batch * len)
                .filter(|_| layer.head.is_none())?;
            let place = values.iter().position(|value| !value.is_finite())?;
            Some((layer.name.as_str(), place / len))
        })
    }

    /// Predictions for `images` (`[batch, height, width, channels]`, values as [`NetworkConfig::input`] says).
    pub fn forward(&mut self, params: &[f32], images: &[f32], mode: Mode) -> Result<Outputs, Error> {
        let image: usize = self.image.iter().product();
        expect("params", params.len(), self.plan.elements, "all variables")?;
        let batch = (images.len() / image).max(1);
        expect(
            "images",
            images.len(),
            batch * image,
            "batch x height x width x channels",
        )?;
        let mut kept = self.images.take().unwrap_or_default();
        self.buffers.for_forward(&self.plan, batch)?;
        let anchors = batch * self.plan.anchors;
        let mut outputs = Outputs {
            box_encodings: vec![0.0; anchors * 4],
            class_logits: vec![0.0; anchors * self.columns],
        };
        let Self {
            plan,
            pool,
            isa,
            buffers,
            times,
            boxes,
            hook,
            key,
            ..
        } = self;
        let training = mode == Mode::Train;
        let context = Context {
            plan,
            pool,
            isa: *isa,
            params,
            images,
            input: (plan.input.0, &plan.input.1),
            batch,
            training,
            key: *key,
        };
        let to = forward::Outputs {
            boxes: Shared::new(&mut outputs.box_encodings),
            classes: Shared::new(&mut outputs.class_logits),
            columns: self.columns,
        };
        pool.enter(|| {
            for (i, time) in times.iter_mut().enumerate() {
                let start = Instant::now();
                context.layer(i, buffers, to, hook)?;
                time.forward_s = start.elapsed().as_secs_f64();
            }
            Ok::<_, Error>(())
        })?;
        if let Some((lo, hi)) = plan.clip {
            outputs.box_encodings.iter_mut().for_each(|x| *x = x.clamp(lo, hi));
            boxes.clone_from(&outputs.box_encodings);
        }
        if training {
            kept.clear();
            kept.extend_from_slice(images);
            self.images = Some(kept);
        }
        Ok(outputs)
    }

    /// Gradients of the loss whose gradients with respect to the outputs of the forward pass just before are `d_box` and `d_class`.
    ///
    /// Writes every element of `grads` (flat): for trainable variables the gradient of loss plus [`Network::regularization`], for moving
    /// statistics the batch's mean and unbiased variance, for constants 0. `params` must be those of the forward pass.
    pub fn backward(&mut self, params: &[f32], d_box: &[f32], d_class: &[f32], grads: &mut [f32]) -> Result<(), Error> {
        self.backward_with(params, d_box, d_class, grads, &mut |_, _| {})
    }

    /// As [`Network::backward`]; `progress` is told of each layer as soon as its gradients are complete, from the predictors to the image.
    pub fn backward_with(
        &mut self,
        params: &[f32],
        d_box: &[f32],
        d_class: &[f32],
        grads: &mut [f32],
        progress: Progress,
    ) -> Result<(), Error> {
        let Some(images) = self.images.take() else {
            return Err(Error::NoForward);
        };
        let batch = images.len() / self.image.iter().product::<usize>();
        let anchors = batch * self.plan.anchors;
        expect("params", params.len(), self.plan.elements, "all variables")?;
        expect("grads", grads.len(), self.plan.elements, "all variables")?;
        expect("d_box", d_box.len(), anchors * 4, "batch x anchors x 4")?;
        expect(
            "d_class",
            d_class.len(),
            anchors * self.columns,
            "batch x anchors x (num_classes + 1)",
        )?;
        self.buffers.for_backward(&self.plan, batch)?;
        let clipped = self.plan.clip.map(|(lo, hi)| {
            let slopes = d_box.iter().zip(&self.boxes);
            slopes
                .map(|(&d, &x)| if x > lo && x < hi { d } else { 0.0 })
                .collect::<Vec<f32>>()
        });
        let d_box = clipped.as_deref().unwrap_or(d_box);
        let Self {
            plan,
            pool,
            isa,
            buffers,
            times,
            hook,
            key,
            ..
        } = self;
        let context = Context {
            plan,
            pool,
            isa: *isa,
            params,
            images: &images,
            input: (plan.input.0, &plan.input.1),
            batch,
            training: true,
            key: *key,
        };
        let from = OutputGradients {
            boxes: d_box,
            classes: d_class,
            columns: self.columns,
        };
        pool.enter(|| {
            for (i, time) in times.iter_mut().enumerate().rev() {
                let start = Instant::now();
                context.layer_backward(i, buffers, from, grads, hook)?;
                time.backward_s = start.elapsed().as_secs_f64();
                let done = plan.layers[i].flat.clone();
                if !done.is_empty() {
                    progress(done.clone(), &mut grads[done]);
                }
            }
            Ok::<_, Error>(())
        })?;
        self.images = Some(images);
        Ok(())
    }

    /// The penalty on the weights: the regularisers' sum over convolution and depthwise weights.
    pub fn regularization(&self, params: &[f32]) -> Result<f32, Error> {
        expect("params", params.len(), self.plan.elements, "all variables")?;
        let mut total = 0.0;
        for layer in &self.plan.layers {
            let inputs = if layer.operation == Operation::Depthwise {
                1
            } else {
                layer.inputs
            };
            for weights in &layer.weights {
                let len = layer.window.area() * inputs * weights.columns;
                let values = params[weights.offset..weights.offset + len]
                    .iter()
                    .map(|&w| f64::from(w));
                total += match weights.regularizer {
                    Regularizer::None => 0.0,
                    Regularizer::L1 { weight } => f64::from(weight) * values.map(f64::abs).sum::<f64>(),
                    Regularizer::L2 { weight } => 0.5 * f64::from(weight) * values.map(|w| w * w).sum::<f64>(),
                };
            }
        }
        Ok(total as f32)
    }
}

/// Refuses a slice of the wrong length.
pub(crate) fn expect(what: &'static str, found: usize, expected: usize, why: &str) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Length {
        what,
        found,
        expected,
        why: why.to_owned(),
    })
}

fn layer_time(layer: &plan::Layer) -> LayerTime {
    let window = layer.window;
    let inputs = if layer.operation == Operation::Depthwise {
        1
    } else {
        layer.inputs
    };
    let outputs = (window.outputs() * layer.outputs) as u64;
    LayerTime {
        name: layer.name.clone(),
        kind: match layer.operation {
            _ if layer.head.is_some() => "predictor",
            Operation::Depthwise => "depthwise",
            Operation::Convolution if window.pointwise() => "pointwise",
            Operation::Convolution => "convolution",
            _ => "junction",
        },
        multiply_adds: if layer.weights.is_empty() {
            0
        } else {
            outputs * (window.area() * inputs) as u64
        },
        outputs,
        forward_s: 0.0,
        backward_s: 0.0,
    }
}
