//! The layers of a network in order, their shapes and their variables.

use std::collections::HashSet;
use std::ops::Range;

use coati_common::variables::VariableSpec;

use super::builder::Builder;
use super::config::{Activation, Initializer, NetworkConfig, PredictorKind, Regularizer};
use super::error::Error;
use super::extractors::Extractor;
use super::{extractors, predictors, shared_predictor};
use crate::kernels::padded;
pub use crate::kernels::patches::Window;

/// Where a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The images.
    Image,
    /// The output of an earlier layer.
    Layer(usize),
}

/// What a layer computes before its normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// Every output channel reads all input channels.
    Convolution,
    /// Every input channel on its own; there may be several output channels for each.
    Depthwise,
    /// The sum of all that it reads. What has half the size is enlarged by repeating each pixel.
    Add,
    /// The channels of all that it reads, one after the other.
    Concat,
    /// The largest value in the window.
    MaxPool,
    /// The mean of those values in the window that lie inside the image.
    AveragePool,
    /// The first map that it reads, each channel multiplied by the one pixel of the second.
    Gate,
    /// Each image's channels in so many groups of neighbours, each group with mean 0 and variance 1 (arXiv:1803.08494).
    GroupNorm {
        /// Number of groups.
        groups: usize,
        /// Added to the variance.
        epsilon: f32,
    },
    /// In training, values are set to 0 at random and the others divided by the share that is kept (`dropout`).
    Dropout {
        /// The share.
        keep: f32,
    },
}

/// A weight variable `[rows, columns, inputs, outputs]`; predictors may have two, side by side.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Where it begins in the flat vector.
    pub offset: usize,
    /// Output channels.
    pub columns: usize,
    /// First column in the layer's matrix.
    pub first: usize,
    /// Offset of the biases, if there are any.
    pub bias: Option<usize>,
    /// Penalty on it; of a variable that several layers share only the first has one.
    pub regularizer: Regularizer,
    /// Whether a later layer uses the same variables, so that gradients are added to that layer's.
    pub adds: bool,
}

/// Offsets of the variables that scale and shift what [`Operation::GroupNorm`] computes.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// Scale.
    pub gamma: usize,
    /// Offset.
    pub beta: usize,
}

/// Offsets of batch norm's variables.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Scale.
    pub gamma: Option<usize>,
    /// Offset.
    pub beta: Option<usize>,
    /// Moving mean.
    pub mean: usize,
    /// Moving variance.
    pub variance: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether training normalises with the batch's own statistics.
    pub train: bool,
    /// Whether those are all replicas' together.
    pub sync: bool,
}

/// What a predictor's weights predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Box encodings.
    Boxes,
    /// Class logits.
    Classes,
}

/// A predictor's part of the outputs.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// What each of the layer's weights predicts.
    pub parts: &'static [Part],
    /// Anchors at each location.
    pub anchors: usize,
    /// Anchors of the feature maps before this one.
    pub first: usize,
}

/// One operation with the normalisation and activation that follow it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Variable scope.
    pub name: String,
    /// What it computes.
    pub operation: Operation,
    /// What it reads.
    pub source: Source,
    /// What [`Operation::Add`] and [`Operation::Concat`] read beside it.
    pub others: Vec<usize>,
    /// Window, stride, padding and sizes.
    pub window: Window,
    /// Channels read, without padding.
    pub inputs: usize,
    /// Channels written, without padding.
    pub outputs: usize,
    /// Its weights, if it has any.
    pub weights: Vec<Weights>,
    /// Batch norm; without it there may be biases.
    pub norm: Option<Norm>,
    /// Scale and offset of each channel where no batch norm has them.
    pub affine: Option<Affine>,
    /// What its values go through last.
    pub activation: Activation,
    /// Set on predictors.
    pub head: Option<Head>,
    /// The layer's variables in the flat vector.
    pub flat: Range<usize>,
    /// Layers that read this one's output, in order.
    pub readers: Vec<usize>,
}

impl Layer {
    /// Channels as stored.
    pub(crate) fn padded_outputs(&self) -> usize {
        padded(self.outputs)
    }

    /// Channels of the input as stored: the image is read as it comes.
    pub(crate) fn padded_inputs(&self) -> usize {
        if self.source == Source::Image {
            self.inputs
        } else {
            padded(self.inputs)
        }
    }

    /// The layers that it reads, in order.
    pub fn sources(&self) -> impl Iterator<Item = usize> + '_ {
        let first = match self.source {
            Source::Image => None,
            Source::Layer(source) => Some(source),
        };
        first.into_iter().chain(self.others.iter().copied())
    }

    /// Whether it is computed as a product of matrices: all but what slides over feature maps channel by channel, or has no weights.
    pub(crate) fn dense(&self) -> bool {
        match self.operation {
            Operation::Convolution => true,
            Operation::Depthwise => self.source == Source::Image,
            _ => false,
        }
    }

    /// Output channels for each input channel of a depthwise convolution.
    pub(crate) fn multiplier(&self) -> usize {
        self.outputs / self.inputs.max(1)
    }

    /// Whether nothing reads it and it predicts nothing.
    pub(crate) fn idle(&self) -> bool {
        self.readers.is_empty() && self.head.is_none()
    }

    /// Rows of the weight matrix, a multiple of 16.
    pub(crate) fn patch(&self) -> usize {
        padded(self.window.area() * self.padded_inputs())
    }
}

/// How a variable begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Initial {
    Constant(f32),
    Random(Initializer),
}

/// The whole network.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order: each reads only earlier ones.
    pub layers: Vec<Layer>,
    /// The variables of the flat vector.
    pub variables: Vec<VariableSpec>,
    pub(crate) initial: Vec<Initial>,
    /// Elements of the flat vector.
    pub elements: usize,
    /// (height, width) of the images in pixels.
    pub image: (usize, usize),
    /// (height, width) of the feature maps.
    pub feature_maps: Vec<(usize, usize)>,
    /// Anchors of all feature maps together.
    pub anchors: usize,
    /// The first layers read images as `multiplier * x + offset`, with an offset for each channel.
    pub input: (f32, Vec<f32>),
    /// Box encodings are limited to this interval.
    pub clip: Option<(f32, f32)>,
}

/// Refuses what cannot be built, then lays out the layers of the feature extractor and of the box predictor.
pub fn plan(config: &NetworkConfig) -> Result<Plan, Error> {
    let extractor = extractors::find(&config.extractor)?;
    validate(config, extractor)?;
    let mut builder = Builder::new(config, extractor);
    let maps = (extractor.build)(&mut builder)?;
    match config.predictor.kind {
        PredictorKind::PerMap => predictors::add(&mut builder, &maps)?,
        PredictorKind::Shared => shared_predictor::add(&mut builder, &maps)?,
    }
    Ok(finished(builder.plan))
}

/// Notes who reads whom and which variables are shared.
fn finished(mut plan: Plan) -> Plan {
    for i in 0..plan.layers.len() {
        let sources: Vec<usize> = plan.layers[i].sources().collect();
        for source in sources {
            plan.layers[source].readers.push(i);
        }
    }
    let mut seen = HashSet::new();
    for weights in plan.layers.iter_mut().rev().flat_map(|layer| &mut layer.weights) {
        weights.adds = !seen.insert(weights.offset);
    }
    plan
}

/// The longest side of an image in pixels.
pub(crate) const LARGEST: usize = 16_384;

fn validate(config: &NetworkConfig, extractor: &Extractor) -> Result<(), Error> {
    let (height, width) = (config.image_height, config.image_width);
    let least = extractor.least_size;
    if height < least || width < least {
        return Err(Error::ImageSize { height, width, least });
    }
    let maps = config.anchors_per_location.len();
    if !extractor.maps.contains(&maps) {
        return Err(Error::FeatureMaps {
            extractor: extractor.name,
            found: maps,
            expected: extractor.maps.clone(),
        });
    }
    let least_anchors = config.anchors_per_location.iter().copied().min().unwrap_or(0);
    let most_anchors = config.anchors_per_location.iter().copied().max().unwrap_or(0);
    let predictor = &config.predictor;
    let depth = config.depth_multiplier;
    let checks = [
        (
            "image_resizer height",
            height.to_string(),
            height <= LARGEST,
            "at most 16384 pixels",
        ),
        (
            "image_resizer width",
            width.to_string(),
            width <= LARGEST,
            "at most 16384 pixels",
        ),
        (
            "num_additional_channels",
            (config.image_channels as i64 - 3).to_string(),
            (1..=64).contains(&config.image_channels),
            "0 to 61",
        ),
        (
            "num_classes",
            config.num_classes.to_string(),
            (1..=100_000).contains(&config.num_classes),
            "1 to 100000",
        ),
        (
            "depth_multiplier",
            depth.to_string(),
            depth > 0.0 && depth <= 16.0,
            "above 0, at most 16",
        ),
        (
            "min_depth",
            config.min_depth.to_string(),
            (1..=4096).contains(&config.min_depth),
            "1 to 4096",
        ),
        (
            "pad_to_multiple",
            config.pad_to_multiple.to_string(),
            (1..=1024).contains(&config.pad_to_multiple),
            "1 to 1024",
        ),
        (
            "kernel_size",
            predictor.kernel_size.to_string(),
            (1..=9).contains(&predictor.kernel_size),
            "1 to 9",
        ),
        (
            "num_layers_before_predictor",
            predictor.num_layers_before_predictor.to_string(),
            predictor.num_layers_before_predictor <= 16,
            "at most 16",
        ),
        (
            "box predictor min_depth",
            predictor.min_depth.to_string(),
            predictor.min_depth <= 4096,
            "at most 4096",
        ),
        (
            "box predictor depth",
            predictor.depth.to_string(),
            predictor.depth <= 4096,
            "at most 4096",
        ),
        (
            "anchors per location",
            least_anchors.to_string(),
            least_anchors > 0,
            "at least one on each feature map",
        ),
        (
            "anchors per location",
            most_anchors.to_string(),
            most_anchors <= 1000,
            "at most 1000",
        ),
    ];
    match checks.into_iter().find(|(_, _, holds, _)| !holds) {
        Some((setting, value, _, expected)) => Err(Error::Setting {
            setting,
            value,
            expected,
        }),
        None => Ok(()),
    }
}
