use super::super::tests::{GOLDEN, golden};
use super::*;

fn of(source: &str, mode: Mode) -> Support {
    survey(&PipelineConfig::parse(source, "pipeline.config").unwrap(), mode).unwrap()
}

/// What the golden configuration with some texts replaced is refused for.
fn refused(changes: &[(&str, &str)]) -> Vec<String> {
    let mut source = GOLDEN.to_owned();
    for (from, to) in changes {
        assert!(source.contains(from), "{from}");
        source = source.replacen(from, to, 1);
    }
    of(&source, Mode::TrainAndEval)
        .refused
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn refusal(from: &str, to: &str) -> String {
    let all = refused(&[(from, to)]);
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0].clone()
}

#[test]
fn the_golden_configuration_runs() {
    let support = check(&golden(), Mode::TrainAndEval).unwrap();
    assert_eq!(
        support.ignored,
        ["eval_input_reader.num_epochs", "eval_input_reader.num_readers"]
    );
    assert_eq!(support.warnings, [] as [&str; 0]);
}

#[test]
fn metrics_of_masks_are_left_out() {
    let (from, to) = ("\"pascal_voc_detection_metrics\"", "\"coco_mask_metrics\"");
    let config = PipelineConfig::parse(&GOLDEN.replace(from, to), "pipeline.config").unwrap();
    let warnings = check(&config, Mode::TrainAndEval).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("eval_config.metrics_set[1]: coco_mask_metrics is not supported yet and left out; supported: coco_detection_metrics, pascal_voc"),
        "{warnings:?}"
    );
}

#[test]
fn other_extractors_resizers_and_losses_are_named() {
    assert_eq!(
        refusal("'ssd_mobilenet_v1'", "'ssd_resnet50_v1_fpn'"),
        "pipeline.config:49: model.ssd.feature_extractor.type: \"ssd_resnet50_v1_fpn\" is not supported yet\n\
         hint: supported: \"ssd_mobilenet_v1\""
    );
    assert_eq!(
        refusal(
            "fixed_shape_resizer { height: 300 width: 300 }",
            "keep_aspect_ratio_resizer { }"
        ),
        "pipeline.config:29: model.ssd.image_resizer.keep_aspect_ratio_resizer: not supported yet\n\
         hint: supported: fixed_shape_resizer"
    );
    assert!(refusal("weighted_sigmoid", "weighted_sigmoid_focal").ends_with("hint: supported: weighted_sigmoid"));
    assert!(refusal("weighted_smooth_l1", "weighted_iou").ends_with("hint: supported: weighted_smooth_l1"));
    assert!(refusal("iou_similarity { }", "ioa_similarity { }").ends_with("hint: supported: iou_similarity"));
    assert!(refusal("ssd_random_crop { }", "random_rgb_to_gray { }").contains(
        "train_config.data_augmentation_options[1].random_rgb_to_gray: not supported yet\n\
         hint: supported: random_horizontal_flip, random_crop_image, ssd_random_crop"
    ));
}

#[test]
fn values_that_are_not_built() {
    for (from, to, path) in [
        (
            "width: 300 }",
            "width: 300 resize_method: AREA }",
            "model.ssd.image_resizer.fixed_shape_resizer.resize_method: AREA",
        ),
        (
            "width: 300 }",
            "width: 300 convert_to_grayscale: true }",
            ".convert_to_grayscale: true",
        ),
        (
            "num_classes: 3",
            "num_classes: 3 encode_background_as_zeros: true",
            "model.ssd.encode_background_as_zeros: true",
        ),
        (
            "min_depth: 8",
            "min_depth: 8 use_depthwise: true",
            "feature_extractor.use_depthwise: true",
        ),
        (
            "min_depth: 8",
            "min_depth: 8 pad_to_multiple: 32",
            "feature_extractor.pad_to_multiple: 32",
        ),
        (
            "min_depth: 8",
            "min_depth: 8 fpn { }",
            "feature_extractor.fpn: not supported yet",
        ),
        (
            "iou_threshold: 0.6",
            "soft_nms_sigma: 0.5",
            "batch_non_max_suppression.soft_nms_sigma: 0.5",
        ),
        (
            "iou_threshold: 0.6",
            "use_class_agnostic_nms: true",
            ".use_class_agnostic_nms: true",
        ),
        (
            "iou_threshold: 0.6",
            "use_combined_nms: true",
            ".use_combined_nms: true",
        ),
        (
            "num_steps: 3200",
            "use_bfloat16: true",
            "train_config.use_bfloat16: true",
        ),
        (
            "activation: RELU_6",
            "activation: SWISH",
            "conv_hyperparams.activation: SWISH",
        ),
        (
            "l2_regularizer",
            "l1_regularizer",
            "regularizer.l1_regularizer: not supported yet",
        ),
        (
            "shuffle: false",
            "load_instance_masks: true",
            "eval_input_reader[0].load_instance_masks: true",
        ),
    ] {
        let text = refusal(from, to);
        assert!(text.contains(path), "{path} in {text}");
    }
    // A default can be what is not built.
    assert_eq!(
        refusal("use_dropout: false", ""),
        "pipeline.config:31: model.ssd.box_predictor.convolutional_box_predictor.use_dropout: true (the default) is not supported yet\n\
         hint: write `use_dropout: false`"
    );
    // Spelled-out defaults are no reason to refuse.
    assert!(
        refused(&[(
            "num_classes: 3",
            "num_classes: 3 encode_background_as_zeros: false negative_class_weight: 1"
        )])
        .is_empty()
    );
}

#[test]
fn checkpoints_quantisation_and_buckets_come_later() {
    assert_eq!(
        refusal("num_steps: 3200", "fine_tune_checkpoint: \"model.ckpt\""),
        "pipeline.config:88: train_config.fine_tune_checkpoint: \"model.ckpt\" is not supported yet\n\
         hint: starting from a checkpoint comes later; leave it empty to train from scratch"
    );
    assert!(
        refused(&[(
            "num_steps: 3200",
            "fine_tune_checkpoint: \"\" from_detection_checkpoint: true"
        )])
        .is_empty()
    );
    let all = of(
        &format!("{GOLDEN} graph_rewriter {{ quantization {{ }} }}"),
        Mode::Train,
    )
    .refused;
    assert_eq!(all[0].path, "graph_rewriter");
    assert!(refusal("../bccd_tfrecord/test.record", "gs://bucket/test.record").contains(
        "eval_input_reader[0].tf_record_input_reader.input_path[0]: \"gs://bucket/test.record\" is not supported yet\n\
         hint: local paths only so far"
    ));
}

#[test]
fn what_is_missing_or_impossible() {
    assert_eq!(
        refusal("num_classes: 3", ""),
        "pipeline.config:4: model.ssd.num_classes: missing\nhint: `Ssd` needs `num_classes`"
    );
    assert!(
        refusal("num_classes: 3", "num_classes: 0")
            .contains("model.ssd.num_classes: 0 is out of range\nhint: allowed: 1 or more")
    );
    assert!(refusal("depth_multiplier: 0.5", "depth_multiplier: nan").contains("allowed: a number above 0"));
    assert!(
        refusal("iou_similarity { }", "")
            .contains("model.ssd.similarity_calculator: nothing is chosen\nhint: supported: iou_similarity")
    );
    assert!(
        refusal("unmatched_threshold: 0.5", "unmatched_threshold: 0.7").contains("unmatched_threshold 0.7 is above")
    );
    assert!(refusal("total_steps: 3200", "total_steps: 100").contains("total_steps 100 is below warmup_steps 200"));
    assert!(
        refusal("\"coco_detection_metrics\"", "\"coco_detection_metric\"")
            .contains("did you mean `coco_detection_metrics`?")
    );
    assert!(
        refusal("num_layers: 6", "num_layers: 5").contains("anchors for 5 layers, but the feature extractor has 6")
    );
    let paths: Vec<_> = of("", Mode::TrainAndEval)
        .refused
        .into_iter()
        .map(|refusal| refusal.path)
        .collect();
    assert_eq!(
        paths,
        ["model", "train_config", "train_input_reader", "eval_input_reader"]
    );
    let other = of("model { center_net { } }", Mode::Eval).refused;
    assert_eq!(
        other[0].to_string(),
        "pipeline.config:1: model.center_net: not supported yet\nhint: supported: ssd"
    );
}

#[test]
fn only_what_the_mode_uses_is_looked_at() {
    let spoiled = GOLDEN.replace("num_steps: 3200", "use_bfloat16: true");
    assert!(of(&spoiled, Mode::Eval).refused.is_empty());
    let spoiled = GOLDEN.replace("num_examples: 72", "ignore_groundtruth: true");
    assert!(of(&spoiled, Mode::Train).refused.is_empty());
    assert_eq!(of(&spoiled, Mode::Eval).refused.len(), 1);
}

#[test]
fn further_evaluation_inputs_are_warned_about() {
    let second = "eval_input_reader { label_map_path: 'm' tf_record_input_reader { input_path: 'r' } }";
    let support = of(&format!("{GOLDEN}\n{second}"), Mode::Eval);
    assert!(support.refused.is_empty());
    assert!(
        support
            .warnings
            .iter()
            .any(|warning| warning.starts_with("of 2 eval_input_readers the first"))
    );
}

/// A misspelled row of the table would refuse (or drop) a field in silence.
#[test]
fn the_tables_name_fields_of_the_schema() {
    let known = |message: &str, name: &str| {
        let pool = crate::config::schema::message("Ssd").unwrap().parent_pool().clone();
        let found = pool
            .all_messages()
            .find(|found| found.package_name() == "object_detection.protos" && found.name() == message);
        found.is_some_and(|found| {
            found.get_field_by_name(name).is_some() || found.oneofs().any(|oneof| oneof.name() == name)
        })
    };
    for (message, fields) in [rules::HONOURED, rules::IGNORED, rules::WARNED, rules::REQUIRED].concat() {
        for field in fields.split_whitespace() {
            assert!(known(message, field), "{message}.{field}");
        }
    }
    let keys = rules::RANGES
        .iter()
        .map(|(key, ..)| key)
        .chain(rules::LOCAL)
        .chain(rules::NOTES.iter().map(|(key, _)| key));
    for key in keys
        .chain(rules::ONLY.iter().map(|(key, _)| key))
        .filter(|key| key.starts_with(char::is_uppercase))
    {
        let (message, field) = key.split_once('.').unwrap();
        assert!(known(message, field), "{key}");
    }
}
