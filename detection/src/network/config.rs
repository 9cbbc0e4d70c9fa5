//! What a network is made from.

use serde::{Deserialize, Serialize};

/// Settings of an SSD. Meanings and defaults are those of the Object Detection API's messages of like names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// `feature_extractor.type`: a name in [`super::extractors::ALL`].
    pub extractor: String,
    /// Classes without the background.
    pub num_classes: usize,
    /// `feature_extractor.depth_multiplier`
    pub depth_multiplier: f64,
    /// `feature_extractor.min_depth`: channels never fall below this.
    pub min_depth: usize,
    /// Input height in pixels.
    pub image_height: usize,
    /// Input width in pixels.
    pub image_width: usize,
    /// Channels of the images: 3 and `num_additional_channels`, or 1 with `convert_to_grayscale`.
    pub image_channels: usize,
    /// `feature_extractor.pad_to_multiple`: images are filled up with zeros at the bottom and on the right.
    pub pad_to_multiple: usize,
    /// `feature_extractor.use_explicit_padding`
    pub use_explicit_padding: bool,
    /// `feature_extractor.use_depthwise`: extra layers are separable convolutions.
    pub use_depthwise: bool,
    /// `feature_extractor.fpn`
    pub fpn: Fpn,
    /// Of the base network; slim's own unless `override_base_feature_extractor_hyperparams` is set.
    pub base: Hyperparams,
    /// Of the extra feature layers: `feature_extractor.conv_hyperparams`.
    pub extra: Hyperparams,
    /// `box_predictor`
    pub predictor: PredictorConfig,
    /// Anchors at each location of each feature map; its length is the number of feature maps.
    pub anchors_per_location: Vec<usize>,
    /// What the images given to [`super::Network::forward`] hold.
    pub input: InputRange,
    /// Compute threads; `None`: what `COATI_THREADS` says, otherwise one a core.
    pub threads: Option<usize>,
}

impl NetworkConfig {
    /// `ssd_mobilenet_v1` as in the Object Detection API's sample: 300 x 300, full depth, slim's settings for the base.
    pub fn ssd_mobilenet_v1(num_classes: usize) -> Self {
        let extra = Hyperparams {
            initializer: Initializer::TruncatedNormal {
                mean: 0.0,
                stddev: 0.03,
            },
            ..Hyperparams::mobilenet_v1()
        };
        Self {
            extractor: "ssd_mobilenet_v1".to_owned(),
            num_classes,
            depth_multiplier: 1.0,
            min_depth: 16,
            image_height: 300,
            image_width: 300,
            image_channels: 3,
            pad_to_multiple: 1,
            use_explicit_padding: false,
            use_depthwise: false,
            fpn: Fpn::default(),
            base: Hyperparams::mobilenet_v1(),
            predictor: PredictorConfig {
                hyperparams: extra.clone(),
                ..PredictorConfig::default()
            },
            extra,
            anchors_per_location: vec![3, 6, 6, 6, 6, 6],
            input: InputRange::Bytes,
            threads: None,
        }
    }
}

/// `feature_extractor.fpn`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpn {
    /// The largest map's: its side is the image's by 2 to the power of it.
    pub min_level: usize,
    /// The smallest map's.
    pub max_level: usize,
    /// Channels of the maps, before `depth_multiplier`.
    pub additional_layer_depth: usize,
}

impl Default for Fpn {
    fn default() -> Self {
        Self {
            min_level: 3,
            max_level: 7,
            additional_layer_depth: 256,
        }
    }
}

/// Range of the input's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputRange {
    /// 0 to 255: the first layer reads them as the feature extractor does.
    Bytes,
    /// As the feature extractor reads them.
    Normalised,
}

/// Which box predictor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PredictorKind {
    /// `convolutional_box_predictor`: each feature map has its own.
    PerMap,
    /// `weight_shared_convolutional_box_predictor`: one for all feature maps.
    Shared,
}

/// The box predictor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictorConfig {
    /// Which.
    pub kind: PredictorKind,
    /// Of its convolutions; batch norm and activation govern only the layers before the predictors.
    pub hyperparams: Hyperparams,
    /// Window of the predictors.
    pub kernel_size: usize,
    /// Layers before the predictors of each feature map: 1x1 convolutions, or those of the towers.
    pub num_layers_before_predictor: usize,
    /// Lower limit on the channels of those; with `max_depth` 0 there are none.
    pub min_depth: usize,
    /// Upper limit on the channels of those.
    pub max_depth: usize,
    /// Initial bias of the class predictors.
    pub class_prediction_bias_init: f32,
    /// Whether convolutions with a window are separable.
    pub use_depthwise: bool,
    /// Channels of the shared towers.
    pub depth: usize,
    /// Whether boxes and classes share one tower.
    pub share_prediction_tower: bool,
    /// Box encodings are limited to this interval.
    pub box_encodings_clip_range: Option<(f32, f32)>,
    /// `dropout_keep_probability` where `use_dropout` is set: the share of the class predictor's inputs that training keeps.
    pub dropout_keep: Option<f32>,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self {
            kind: PredictorKind::PerMap,
            hyperparams: Hyperparams::mobilenet_v1(),
            kernel_size: 1,
            num_layers_before_predictor: 0,
            min_depth: 0,
            max_depth: 0,
            class_prediction_bias_init: 0.0,
            use_depthwise: false,
            depth: 0,
            share_prediction_tower: false,
            box_encodings_clip_range: None,
            dropout_keep: None,
        }
    }
}

/// Settings of a group of convolutions: the message `Hyperparams`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparams {
    /// Penalty on the weights.
    pub regularizer: Regularizer,
    /// Whether those of depthwise convolutions have it too.
    pub regularize_depthwise: bool,
    /// First values of the weights.
    pub initializer: Initializer,
    /// After normalisation.
    pub activation: Activation,
    /// Without any normalisation the convolutions have biases.
    pub batch_norm: Option<BatchNorm>,
    /// Group norm in its place, with slim's settings.
    pub group_norm: bool,
}

impl Hyperparams {
    /// slim's `mobilenet_v1_arg_scope`, which governs the base network by default.
    pub fn mobilenet_v1() -> Self {
        Self {
            regularizer: Regularizer::L2 { weight: 0.000_04 },
            regularize_depthwise: true,
            initializer: Initializer::TruncatedNormal {
                mean: 0.0,
                stddev: 0.09,
            },
            activation: Activation::Relu6,
            batch_norm: Some(BatchNorm {
                decay: 0.9997,
                epsilon: 0.001,
                center: true,
                scale: true,
                train: true,
                sync: false,
            }),
            group_norm: false,
        }
    }
}

/// Batch normalisation.
#[allow(clippy::struct_excessive_bools, reason = "the message's own fields")]
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    /// Of the moving averages.
    pub decay: f32,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether there is a `beta`.
    pub center: bool,
    /// Whether there is a `gamma`.
    pub scale: bool,
    /// If false, training too normalises with the moving statistics and leaves them alone.
    pub train: bool,
    /// Statistics over all replicas' batches, where replicas are told of each other ([`super::Network::set_together`]).
    #[serde(default)]
    pub sync: bool,
}

/// Penalty that is added to the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Regularizer {
    /// None.
    None,
    /// `weight * sum(|w|)`
    L1 {
        /// Factor.
        weight: f32,
    },
    /// `weight * sum(w²) / 2` (slim's `l2_regularizer`)
    L2 {
        /// Factor.
        weight: f32,
    },
}

/// First values of weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Initializer {
    /// Normal, redrawn beyond two standard deviations.
    TruncatedNormal {
        /// Mean.
        mean: f32,
        /// Standard deviation before the truncation.
        stddev: f32,
    },
    /// Normal.
    RandomNormal {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        stddev: f32,
    },
    /// slim's `variance_scaling_initializer`: variance `factor / n`, with `n` counted by `mode`.
    VarianceScaling {
        /// Factor.
        factor: f32,
        /// Uniform instead of truncated normal.
        uniform: bool,
        /// What `n` is.
        mode: FanMode,
    },
}

/// `variance_scaling_initializer.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FanMode {
    /// Inputs of a unit.
    FanIn,
    /// Outputs of a unit.
    FanOut,
    /// Their mean.
    FanAvg,
}

/// Activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// Identity.
    None,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x / (1 + exp(-x))`
    Swish,
    /// `x * relu6(x + 3) / 6` (arXiv:1905.02244)
    HardSwish,
    /// `relu6(x + 3) * 0.16667`, the factor as MobileNet v3 rounds it: what gates its channels.
    HardSigmoid,
}
