//! What a network is made from.

use serde::{Deserialize, Serialize};

/// Settings of an SSD with MobileNet v1. Meanings and defaults are those of the Object Detection API's messages of like names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Classes without the background.
    pub num_classes: usize,
    /// `feature_extractor.depth_multiplier`
    pub depth_multiplier: f64,
    /// `feature_extractor.min_depth`: channels never fall below this.
    pub min_depth: usize,
    /// Input height in pixels, at least [`MIN_IMAGE_SIZE`].
    pub image_height: usize,
    /// Input width in pixels, at least [`MIN_IMAGE_SIZE`].
    pub image_width: usize,
    /// Of the layers `Conv2d_0` to `Conv2d_13_pointwise`; slim's own unless `override_base_feature_extractor_hyperparams` is set.
    pub base: Hyperparams,
    /// Of the extra feature layers: `feature_extractor.conv_hyperparams`.
    pub extra: Hyperparams,
    /// `convolutional_box_predictor`
    pub predictor: PredictorConfig,
    /// Anchors at each location of each feature map; its length (2 to 6) is the number of feature maps.
    pub anchors_per_location: Vec<usize>,
    /// What the images given to [`super::Network::forward`] hold.
    pub input: InputRange,
    /// Compute threads; `None`: what `COATI_THREADS` says, otherwise one a core.
    pub threads: Option<usize>,
}

/// Images narrower or lower than this are refused, as by the reference.
pub const MIN_IMAGE_SIZE: usize = 33;

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
            num_classes,
            depth_multiplier: 1.0,
            min_depth: 16,
            image_height: 300,
            image_width: 300,
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

/// Range of the input's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputRange {
    /// 0 to 255: the first layer reads them as `2 / 255 * x - 1`.
    Bytes,
    /// Already between -1 and 1.
    Normalised,
}

/// The convolutional box predictor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictorConfig {
    /// Of its convolutions; batch norm and activation govern only the layers before the predictors.
    pub hyperparams: Hyperparams,
    /// Window of the predictors.
    pub kernel_size: usize,
    /// 1x1 convolutions before the predictors of each feature map.
    pub num_layers_before_predictor: usize,
    /// Lower limit on the channels of those; with `max_depth` 0 there are none.
    pub min_depth: usize,
    /// Upper limit on the channels of those.
    pub max_depth: usize,
    /// Initial bias of the class predictors.
    pub class_prediction_bias_init: f32,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self {
            hyperparams: Hyperparams::mobilenet_v1(),
            kernel_size: 1,
            num_layers_before_predictor: 0,
            min_depth: 0,
            max_depth: 0,
            class_prediction_bias_init: 0.0,
        }
    }
}

/// Settings of a group of convolutions: the message `Hyperparams`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparams {
    /// Penalty on the weights, those of depthwise convolutions included.
    pub regularizer: Regularizer,
    /// First values of the weights.
    pub initializer: Initializer,
    /// After normalisation.
    pub activation: Activation,
    /// Without it the convolutions have biases.
    pub batch_norm: Option<BatchNorm>,
}

impl Hyperparams {
    /// slim's `mobilenet_v1_arg_scope`, which governs the base network by default.
    pub fn mobilenet_v1() -> Self {
        Self {
            regularizer: Regularizer::L2 { weight: 0.000_04 },
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
            }),
        }
    }
}

/// Batch normalisation.
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
}

impl Activation {
    /// The interval that the activation limits its input to.
    pub(crate) fn limits(self) -> (f32, f32) {
        match self {
            Self::None => (f32::NEG_INFINITY, f32::INFINITY),
            Self::Relu => (0.0, f32::INFINITY),
            Self::Relu6 => (0.0, 6.0),
        }
    }
}
