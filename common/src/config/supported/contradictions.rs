//! Values that are fine each by itself and impossible together; the reference refuses them too.

use coati_proto::object_detection::protos::image_resizer::ImageResizerOneof;
use coati_proto::object_detection::protos::ssd_feature_extractor::FeaturePyramidOneof;
use coati_proto::object_detection::protos::{
    CheckpointVersion, anchor_generator, learning_rate, manual_step_learning_rate, matcher, optimizer,
};

use super::super::PipelineConfig;
use super::{Mode, Refusal};

pub(super) fn find(config: &PipelineConfig, mode: Mode, refused: &mut Vec<Refusal>) {
    let mut refuse = |path: &str, message: String, hint: &str| {
        refused.push(Refusal {
            file: config.name().to_owned(),
            line: config.line(path),
            path: path.to_owned(),
            message,
            hint: hint.to_owned(),
        });
    };
    thresholds(config, &mut refuse);
    layers(config, &mut refuse);
    channels(config, mode, &mut refuse);
    pyramid(config, &mut refuse);
    sides(config, &mut refuse);
    if mode != Mode::Eval {
        sizes(config, &mut refuse);
        schedule(config, &mut refuse);
        fine_tuning(config, &mut refuse);
    }
}

fn channels(config: &PipelineConfig, mode: Mode, refuse: &mut impl FnMut(&str, String, &str)) {
    let readers = [
        (
            "train_input_reader",
            config.train_input_reader().num_additional_channels(),
        ),
        (
            "eval_input_reader",
            config.eval_input_reader().num_additional_channels(),
        ),
    ];
    let [(_, train), (eval, other)] = readers;
    if mode == Mode::TrainAndEval && train != other {
        refuse(
            &format!("{eval}.num_additional_channels"),
            format!("{other}, and train_input_reader's is {train}"),
            "one network reads both: give both readers the same num_additional_channels",
        );
    }
    let (name, grey) = match resizer(config) {
        Some(ImageResizerOneof::FixedShapeResizer(fixed)) => ("fixed_shape_resizer", fixed.convert_to_grayscale()),
        Some(ImageResizerOneof::KeepAspectRatioResizer(keep)) => {
            ("keep_aspect_ratio_resizer", keep.convert_to_grayscale())
        }
        Some(ImageResizerOneof::ConditionalShapeResizer(conditional)) => {
            ("conditional_shape_resizer", conditional.convert_to_grayscale())
        }
        Some(ImageResizerOneof::PadToMultipleResizer(pad)) => ("pad_to_multiple_resizer", pad.convert_to_grayscale()),
        _ => return,
    };
    if let Some((reader, count)) = readers.into_iter().find(|&(_, count)| grey && count > 0) {
        refuse(
            &format!("model.ssd.image_resizer.{name}.convert_to_grayscale"),
            format!("true, and {reader}.num_additional_channels is {count}"),
            "only images of three channels become grey; leave one of the two out",
        );
    }
}

fn resizer(config: &PipelineConfig) -> Option<&ImageResizerOneof> {
    config.ssd()?.image_resizer.as_ref()?.image_resizer_oneof.as_ref()
}

fn sides(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let Some(ImageResizerOneof::KeepAspectRatioResizer(keep)) = resizer(config) else {
        return;
    };
    let (min, max) = (keep.min_dimension(), keep.max_dimension());
    if min > max {
        refuse(
            "model.ssd.image_resizer.keep_aspect_ratio_resizer.min_dimension",
            format!("{min}, and max_dimension is {max}"),
            "the short side becomes min_dimension, the long one at most max_dimension: exchange the two, or make max_dimension larger",
        );
    }
}

/// The resizer, where it leaves images of many sizes.
fn many_sizes(config: &PipelineConfig) -> Option<&'static str> {
    Some(match resizer(config) {
        Some(ImageResizerOneof::KeepAspectRatioResizer(keep)) if !keep.pad_to_max_dimension() => {
            "keep_aspect_ratio_resizer without pad_to_max_dimension"
        }
        Some(ImageResizerOneof::IdentityResizer(_)) => "identity_resizer",
        Some(ImageResizerOneof::ConditionalShapeResizer(_)) => "conditional_shape_resizer",
        Some(ImageResizerOneof::PadToMultipleResizer(_)) => "pad_to_multiple_resizer",
        _ => return None,
    })
}

/// Images of different sizes cannot be one batch: the reference's pipeline ends at the first that it tries to make.
fn sizes(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let Some(name) = many_sizes(config) else { return };
    let batch = config.train_config().batch_size();
    if batch > 1 {
        refuse(
            "train_config.batch_size",
            format!("{batch}, and {name} leaves images of many sizes, which cannot be one batch"),
            "batch_size: 1 (of each worker), or an image_resizer that gives all images one size: keep_aspect_ratio_resizer with \
             pad_to_max_dimension: true, or fixed_shape_resizer",
        );
    }
}

/// A pyramid adds maps to others enlarged twice: sides of any length do not halve evenly.
fn pyramid(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let extractor = config.ssd().and_then(|ssd| ssd.feature_extractor.as_ref());
    let (Some(name), Some(extractor)) = (many_sizes(config), extractor) else {
        return;
    };
    if !extractor.r#type().ends_with("_fpn") || extractor.use_explicit_padding() {
        return;
    }
    let levels = match &extractor.feature_pyramid_oneof {
        Some(FeaturePyramidOneof::Fpn(fpn)) => fpn.max_level(),
        _ => 5,
    };
    let stride = 1 << levels.clamp(0, 5);
    let padded = match resizer(config) {
        Some(ImageResizerOneof::PadToMultipleResizer(pad)) => pad.multiple(),
        _ => 1,
    };
    let multiple = extractor.pad_to_multiple();
    if multiple % stride != 0 && padded % stride != 0 {
        refuse(
            "model.ssd.feature_extractor.pad_to_multiple",
            format!("{multiple}, and {name} leaves images whose sides do not halve evenly up to the pyramid's top"),
            &format!("pad_to_multiple: {stride}"),
        );
    }
}

fn fine_tuning(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let train = config.train_config();
    if train.fine_tune_checkpoint().is_empty() {
        return;
    }
    let kind = train.fine_tune_checkpoint_type();
    if !["", "classification", "detection", "full"].contains(&kind) {
        refuse(
            "train_config.fine_tune_checkpoint_type",
            format!("there is no {kind:?}"),
            "classification (a backbone's checkpoint), detection (a detector's, without its box predictors) or full (all of a detector)",
        );
    }
    if train.fine_tune_checkpoint_version() == CheckpointVersion::V2 {
        refuse(
            "train_config.fine_tune_checkpoint_version",
            "V2 is a TF2 checkpoint, whose variables are named by their place in Keras objects; the models here have TensorFlow 1's names".to_owned(),
            "use V1 (the default) with a checkpoint of TensorFlow 1: the TF1 detection zoo's, or slim's classifiers",
        );
    }
}

fn thresholds(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let chosen = config
        .ssd()
        .and_then(|ssd| ssd.matcher.as_ref()?.matcher_oneof.as_ref());
    let Some(matcher::MatcherOneof::ArgmaxMatcher(matcher)) = chosen else {
        return;
    };
    if matcher.ignore_thresholds() {
        return;
    }
    let path = "model.ssd.matcher.argmax_matcher";
    let (matched, unmatched) = (matcher.matched_threshold(), matcher.unmatched_threshold());
    if unmatched > matched {
        let message = format!("unmatched_threshold {unmatched} is above matched_threshold {matched}");
        refuse(path, message, "unmatched_threshold is at most matched_threshold");
    } else if unmatched == matched && !matcher.negatives_lower_than_unmatched() {
        let message = format!("negatives lie between two thresholds that are both {matched}");
        refuse(
            path,
            message,
            "negatives_lower_than_unmatched: false needs different thresholds",
        );
    }
}

fn layers(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let Some(ssd) = config.ssd() else { return };
    let chosen = ssd
        .anchor_generator
        .as_ref()
        .and_then(|generator| generator.anchor_generator_oneof.as_ref());
    let (Some(anchor_generator::AnchorGeneratorOneof::SsdAnchorGenerator(anchors)), Some(extractor)) =
        (chosen, &ssd.feature_extractor)
    else {
        return;
    };
    let maps = extractor.num_layers();
    let layers = if anchors.scales.is_empty() {
        i64::from(anchors.num_layers())
    } else {
        anchors.scales.len() as i64
    };
    if layers != i64::from(maps) {
        let message = format!("anchors for {layers} layers, but the feature extractor has {maps}");
        refuse(
            "model.ssd.anchor_generator.ssd_anchor_generator",
            message,
            "num_layers (or the number of scales) is the same",
        );
    }
}

fn schedule(config: &PipelineConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let chosen = config
        .train_config()
        .optimizer
        .as_ref()
        .and_then(|optimizer| optimizer.optimizer.as_ref());
    let (name, rate) = match chosen {
        Some(optimizer::Optimizer::RmsPropOptimizer(o)) => ("rms_prop_optimizer", &o.learning_rate),
        Some(optimizer::Optimizer::MomentumOptimizer(o)) => ("momentum_optimizer", &o.learning_rate),
        Some(optimizer::Optimizer::AdamOptimizer(o)) => ("adam_optimizer", &o.learning_rate),
        None => return,
    };
    let path = format!("train_config.optimizer.{name}.learning_rate");
    match rate.as_ref().and_then(|rate| rate.learning_rate.as_ref()) {
        Some(learning_rate::LearningRate::CosineDecayLearningRate(cosine)) => {
            let path = format!("{path}.cosine_decay_learning_rate");
            let (total, warm) = (cosine.total_steps(), cosine.warmup_steps());
            if total < warm {
                let message = format!("total_steps {total} is below warmup_steps {warm}");
                refuse(
                    &path,
                    message,
                    "total_steps counts the warm-up (10000 steps unless set)",
                );
            }
            let (base, first) = (cosine.learning_rate_base(), cosine.warmup_learning_rate());
            if warm > 0 && base < first {
                let message = format!("learning_rate_base {base} is below warmup_learning_rate {first}");
                refuse(&path, message, "the warm-up rises to learning_rate_base");
            }
        }
        Some(learning_rate::LearningRate::ManualStepLearningRate(manual)) => {
            let steps: Vec<u32> = manual
                .schedule
                .iter()
                .map(manual_step_learning_rate::LearningRateSchedule::step)
                .collect();
            let path = format!("{path}.manual_step_learning_rate.schedule");
            if steps.first() == Some(&0) {
                refuse(
                    &format!("{path}[0]"),
                    "step 0".to_owned(),
                    "initial_learning_rate holds from step 0",
                );
            }
            if let Some(at) = (1..steps.len()).find(|&at| steps[at] <= steps[at - 1]) {
                let message = format!("step {} follows step {}", steps[at], steps[at - 1]);
                refuse(&format!("{path}[{at}]"), message, "steps rise from entry to entry");
            }
        }
        _ => {}
    }
}
