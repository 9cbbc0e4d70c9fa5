//! `feature_extractor`, `box_predictor` and their hyperparameters.

use super::{Error, count, image_size, missing, num_classes, require, unsupported};
use crate::network::{
    Activation, BatchNorm, FanMode, Fpn, Hyperparams, Initializer, InputRange, NetworkConfig, PredictorConfig,
    PredictorKind, Regularizer, extractors,
};
use crate::squash::Squash;
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::box_predictor::BoxPredictorOneof;
use coati_proto::object_detection::protos::ssd_feature_extractor::FeaturePyramidOneof;
use coati_proto::object_detection::protos::{hyperparams, initializer, regularizer};

/// What a network is made of beside the model's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// `train_config.add_regularization_loss`: without it no weight is penalised.
    pub regularization: bool,
    /// Compute threads; `None`: what `COATI_THREADS` says, otherwise one a core.
    pub threads: Option<usize>,
}

/// The network of `ssd`, which reads images of 0 to 255.
pub fn network(
    ssd: &pb::Ssd,
    anchors_per_location: Vec<usize>,
    options: NetworkOptions,
) -> Result<NetworkConfig, Error> {
    let field = "model.ssd.feature_extractor";
    let extractor = ssd
        .feature_extractor
        .as_ref()
        .ok_or_else(|| missing(field, "feature_extractor { … }"))?;
    let known = extractors::find(extractor.r#type())
        .map_err(|error| unsupported("model.ssd.feature_extractor.type", extractor.r#type(), built(&error)))?;
    check_extractor(extractor, known)?;
    if !known.pyramid {
        require(
            count(extractor.num_layers(), "model.ssd.feature_extractor.num_layers")? == anchors_per_location.len(),
            "model.ssd.feature_extractor.num_layers",
            extractor.num_layers(),
            "it must be the anchor generator's num_layers",
        )?;
    }
    let (image_height, image_width) = image_size(ssd)?;
    let extra = hyperparams(
        extractor.conv_hyperparams.as_ref(),
        "model.ssd.feature_extractor.conv_hyperparams",
    )?;
    let overridden = extractor.override_base_feature_extractor_hyperparams() && known.overridable;
    let base = match known.base {
        Some(own) if !overridden => own(),
        None if !overridden => {
            return Err(unsupported(
                "model.ssd.feature_extractor.override_base_feature_extractor_hyperparams",
                "false",
                "this feature extractor has no settings of its own; write override_base_feature_extractor_hyperparams: true",
            ));
        }
        _ => extra.clone(),
    };
    let mut config = NetworkConfig {
        extractor: known.name.to_owned(),
        num_classes: num_classes(ssd)?,
        depth_multiplier: f64::from(extractor.depth_multiplier()),
        min_depth: count(extractor.min_depth(), "model.ssd.feature_extractor.min_depth")?,
        pad_to_multiple: count(
            extractor.pad_to_multiple(),
            "model.ssd.feature_extractor.pad_to_multiple",
        )?,
        use_explicit_padding: extractor.use_explicit_padding(),
        use_depthwise: extractor.use_depthwise(),
        fpn: pyramid(extractor)?,
        image_height,
        image_width,
        image_channels: 3,
        base,
        extra,
        predictor: predictor(ssd)?,
        anchors_per_location,
        input: InputRange::Bytes,
        threads: options.threads,
    };
    // Where the base has settings of its own, whose statistics they are is the configuration's choice.
    let sync = config.extra.batch_norm.is_some_and(|norm| norm.sync);
    if let Some(norm) = config.base.batch_norm.as_mut() {
        norm.sync |= sync;
    }
    for hyper in [&mut config.base, &mut config.extra, &mut config.predictor.hyperparams] {
        if !options.regularization {
            hyper.regularizer = Regularizer::None;
        }
        if let Some(norm) = hyper.batch_norm.as_mut().filter(|_| ssd.freeze_batchnorm()) {
            norm.train = false;
        }
    }
    Ok(config)
}

/// What an error about the name has to say beside the name.
fn built(_: &crate::network::Error) -> &'static str {
    "it is not built; coati's docs/compatibility.md lists the feature extractors that are"
}

fn check_extractor(extractor: &pb::SsdFeatureExtractor, known: &extractors::Extractor) -> Result<(), Error> {
    let others = [
        (
            "model.ssd.feature_extractor.use_explicit_padding",
            extractor.use_explicit_padding() && !known.explicit_padding,
            "the reference refuses this for this feature extractor; leave it out",
        ),
        (
            "model.ssd.feature_extractor.use_depthwise",
            extractor.use_depthwise() && !known.depthwise,
            "this feature extractor has no layers that it applies to; leave it out",
        ),
        (
            "model.ssd.feature_extractor.fpn",
            extractor.feature_pyramid_oneof.is_some() && !known.pyramid,
            "this feature extractor has no pyramid; leave it out",
        ),
        (
            "model.ssd.feature_extractor.use_hardswish",
            extractor.use_hardswish(),
            "this is not supported; leave it out",
        ),
    ];
    others
        .into_iter()
        .try_for_each(|(field, set, hint)| require(!set, field, "set", hint))
}

fn pyramid(extractor: &pb::SsdFeatureExtractor) -> Result<Fpn, Error> {
    const FIELD: &str = "model.ssd.feature_extractor.fpn";
    match &extractor.feature_pyramid_oneof {
        None => Ok(Fpn::default()),
        Some(FeaturePyramidOneof::Fpn(fpn)) => Ok(Fpn {
            min_level: count(fpn.min_level(), "model.ssd.feature_extractor.fpn.min_level")?,
            max_level: count(fpn.max_level(), "model.ssd.feature_extractor.fpn.max_level")?,
            additional_layer_depth: count(
                fpn.additional_layer_depth(),
                "model.ssd.feature_extractor.fpn.additional_layer_depth",
            )?,
        }),
        Some(FeaturePyramidOneof::Bifpn(_)) => Err(unsupported(FIELD, "bifpn", "fpn is supported")),
    }
}

fn predictor(ssd: &pb::Ssd) -> Result<PredictorConfig, Error> {
    const FIELD: &str = "model.ssd.box_predictor";
    let predictor = ssd
        .box_predictor
        .as_ref()
        .and_then(|predictor| predictor.box_predictor_oneof.as_ref());
    match predictor.ok_or_else(|| missing(FIELD, "convolutional_box_predictor { … }"))? {
        BoxPredictorOneof::ConvolutionalBoxPredictor(message) => per_map(message),
        BoxPredictorOneof::WeightSharedConvolutionalBoxPredictor(message) => shared(message),
        _ => Err(unsupported(
            FIELD,
            "another predictor",
            "convolutional_box_predictor and weight_shared_convolutional_box_predictor are supported",
        )),
    }
}

fn per_map(message: &pb::ConvolutionalBoxPredictor) -> Result<PredictorConfig, Error> {
    let code_size = message.box_code_size();
    require(
        code_size == 4,
        "convolutional_box_predictor.box_code_size",
        code_size,
        "it must be 4",
    )?;
    let layers = message.num_layers_before_predictor();
    let range = message.box_encodings_clip_range.as_ref();
    Ok(PredictorConfig {
        hyperparams: hyperparams(
            message.conv_hyperparams.as_ref(),
            "convolutional_box_predictor.conv_hyperparams",
        )?,
        kernel_size: window(
            message.kernel_size(),
            message.use_depthwise(),
            "convolutional_box_predictor.kernel_size",
        )?,
        num_layers_before_predictor: count(layers, "convolutional_box_predictor.num_layers_before_predictor")?,
        min_depth: count(message.min_depth(), "convolutional_box_predictor.min_depth")?,
        max_depth: count(message.max_depth(), "convolutional_box_predictor.max_depth")?,
        class_prediction_bias_init: message.class_prediction_bias_init(),
        use_depthwise: message.use_depthwise(),
        box_encodings_clip_range: range.map(|range| clip_range(range.min(), range.max())).transpose()?,
        dropout_keep: dropout(
            message.use_dropout(),
            message.dropout_keep_probability(),
            "convolutional_box_predictor.dropout_keep_probability",
        )?,
        ..PredictorConfig::default()
    })
}

/// Which class predictions go through a sigmoid inside the predictor.
pub fn squash(ssd: &pb::Ssd) -> Squash {
    use pb::weight_shared_convolutional_box_predictor::ScoreConverter;
    let predictor = ssd
        .box_predictor
        .as_ref()
        .and_then(|predictor| predictor.box_predictor_oneof.as_ref());
    match predictor {
        Some(BoxPredictorOneof::ConvolutionalBoxPredictor(message)) if message.apply_sigmoid_to_scores() => {
            Squash::Always
        }
        Some(BoxPredictorOneof::WeightSharedConvolutionalBoxPredictor(message))
            if message.score_converter() == ScoreConverter::Sigmoid =>
        {
            Squash::Inference
        }
        _ => Squash::Never,
    }
}

/// The reference refuses separable predictors of 1 x 1, the default of a `convolutional_box_predictor`.
fn window(kernel_size: i32, separable: bool, field: &'static str) -> Result<usize, Error> {
    require(
        !separable || kernel_size != 1,
        field,
        "1, with use_depthwise: true",
        "a separable convolution of 1 x 1 has no window; write kernel_size: 3",
    )?;
    count(kernel_size, field)
}

/// The share that is kept, where there is dropout.
fn dropout(used: bool, keep: f32, field: &'static str) -> Result<Option<f32>, Error> {
    require(!used || keep > 0.0 && keep <= 1.0, field, keep, "above 0, at most 1")?;
    Ok((used && keep < 1.0).then_some(keep))
}

fn shared(message: &pb::WeightSharedConvolutionalBoxPredictor) -> Result<PredictorConfig, Error> {
    require(
        !message.apply_conv_hyperparams_to_heads() && !message.apply_conv_hyperparams_pointwise(),
        "weight_shared_convolutional_box_predictor.apply_conv_hyperparams_to_heads",
        "set",
        "only the reference's keras models know this; leave it out",
    )?;
    let code_size = message.box_code_size();
    require(
        code_size == 4,
        "weight_shared_convolutional_box_predictor.box_code_size",
        code_size,
        "it must be 4",
    )?;
    let layers = message.num_layers_before_predictor();
    let depth = count(message.depth(), "weight_shared_convolutional_box_predictor.depth")?;
    require(
        depth > 0 || layers == 0,
        "weight_shared_convolutional_box_predictor.depth",
        depth,
        "the towers need channels, for example depth: 256",
    )?;
    let range = message.box_encodings_clip_range.as_ref();
    Ok(PredictorConfig {
        kind: PredictorKind::Shared,
        hyperparams: hyperparams(
            message.conv_hyperparams.as_ref(),
            "weight_shared_convolutional_box_predictor.conv_hyperparams",
        )?,
        kernel_size: window(
            message.kernel_size(),
            message.use_depthwise(),
            "weight_shared_convolutional_box_predictor.kernel_size",
        )?,
        num_layers_before_predictor: count(
            layers,
            "weight_shared_convolutional_box_predictor.num_layers_before_predictor",
        )?,
        depth,
        class_prediction_bias_init: message.class_prediction_bias_init(),
        use_depthwise: message.use_depthwise(),
        share_prediction_tower: message.share_prediction_tower(),
        dropout_keep: dropout(
            message.use_dropout(),
            message.dropout_keep_probability(),
            "weight_shared_convolutional_box_predictor.dropout_keep_probability",
        )?,
        box_encodings_clip_range: range.map(|range| clip_range(range.min(), range.max())).transpose()?,
        ..PredictorConfig::default()
    })
}

fn clip_range(min: f32, max: f32) -> Result<(f32, f32), Error> {
    require(
        min < max,
        "box_encodings_clip_range",
        format!("{min} to {max}"),
        "min must be below max",
    )?;
    Ok((min, max))
}

fn hyperparams(message: Option<&pb::Hyperparams>, field: &'static str) -> Result<Hyperparams, Error> {
    let message = message.ok_or_else(|| missing(field, "conv_hyperparams { … }"))?;
    Ok(Hyperparams {
        regularizer: regularizer(message),
        regularize_depthwise: true,
        initializer: initializer(message, field)?,
        activation: match message.activation() {
            hyperparams::Activation::None => Activation::None,
            hyperparams::Activation::Relu => Activation::Relu,
            hyperparams::Activation::Relu6 => Activation::Relu6,
            hyperparams::Activation::Swish => Activation::Swish,
        },
        group_norm: matches!(
            message.normalizer_oneof,
            Some(hyperparams::NormalizerOneof::GroupNorm(_))
        ),
        batch_norm: match &message.normalizer_oneof {
            None | Some(hyperparams::NormalizerOneof::GroupNorm(_)) => None,
            Some(hyperparams::NormalizerOneof::BatchNorm(norm)) => Some(batch_norm(norm, false)),
            Some(hyperparams::NormalizerOneof::SyncBatchNorm(norm)) => Some(batch_norm(norm, true)),
        },
    })
}

fn batch_norm(norm: &pb::BatchNorm, sync: bool) -> BatchNorm {
    BatchNorm {
        decay: norm.decay(),
        epsilon: norm.epsilon(),
        center: norm.center(),
        scale: norm.scale(),
        train: norm.train(),
        sync,
    }
}

fn regularizer(message: &pb::Hyperparams) -> Regularizer {
    match message
        .regularizer
        .as_ref()
        .and_then(|regularizer| regularizer.regularizer_oneof.as_ref())
    {
        None => Regularizer::None,
        Some(regularizer::RegularizerOneof::L1Regularizer(l1)) => Regularizer::L1 { weight: l1.weight() },
        Some(regularizer::RegularizerOneof::L2Regularizer(l2)) => Regularizer::L2 { weight: l2.weight() },
    }
}

fn initializer(message: &pb::Hyperparams, field: &'static str) -> Result<Initializer, Error> {
    use pb::variance_scaling_initializer::Mode;
    let initializer = message
        .initializer
        .as_ref()
        .and_then(|initializer| initializer.initializer_oneof.as_ref());
    match initializer.ok_or_else(|| missing(field, "initializer { truncated_normal_initializer { stddev: 0.03 } }"))? {
        initializer::InitializerOneof::TruncatedNormalInitializer(normal) => Ok(Initializer::TruncatedNormal {
            mean: normal.mean(),
            stddev: normal.stddev(),
        }),
        initializer::InitializerOneof::RandomNormalInitializer(normal) => Ok(Initializer::RandomNormal {
            mean: normal.mean(),
            stddev: normal.stddev(),
        }),
        initializer::InitializerOneof::VarianceScalingInitializer(scaling) => Ok(Initializer::VarianceScaling {
            factor: scaling.factor(),
            uniform: scaling.uniform(),
            mode: match scaling.mode() {
                Mode::FanIn => FanMode::FanIn,
                Mode::FanOut => FanMode::FanOut,
                Mode::FanAvg => FanMode::FanAvg,
            },
        }),
        initializer::InitializerOneof::KerasInitializerByName(name) => {
            let expected = "truncated_normal_initializer, random_normal_initializer and variance_scaling_initializer are supported";
            Err(unsupported(
                field,
                format!("keras_initializer_by_name: {name:?}"),
                expected,
            ))
        }
    }
}
