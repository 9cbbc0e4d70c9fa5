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
fn what_only_tunes_tensorflows_input_is_listed_where_it_is_set() {
    let (from, to) = (
        "train_input_reader {",
        "train_input_reader { num_readers: 2 shuffle_buffer_size: 7 read_block_length: 3 min_after_dequeue: 5",
    );
    assert!(GOLDEN.contains(from), "the fixture has another form");
    let config = PipelineConfig::parse(&GOLDEN.replace(from, to), "pipeline.config").unwrap();
    let ignored = check(&config, Mode::TrainAndEval).unwrap().ignored;
    for field in [
        "num_readers",
        "shuffle_buffer_size",
        "read_block_length",
        "min_after_dequeue",
    ] {
        let field = format!("train_input_reader.{field}");
        assert!(ignored.contains(&field), "{field}: {ignored:?}");
    }
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
    assert!(refusal("'ssd_mobilenet_v1'", "'ssd_mobiledet_cpu'").starts_with(
        "pipeline.config:49: model.ssd.feature_extractor.type: \"ssd_mobiledet_cpu\" is not supported yet\n\
         hint: supported: \"ssd_mobilenet_v1\""
    ));
    let resizer = |to: &str| refused(&[("fixed_shape_resizer { height: 300 width: 300 }", to)]);
    assert_eq!(
        resizer(
            "keep_aspect_ratio_resizer { max_dimension: 512 min_dimension: 300 pad_to_max_dimension: true per_channel_pad_value: [1, 2, 3] }"
        ),
        [""; 0]
    );
    assert_eq!(
        resizer("fixed_shape_resizer { height: 300 width: 300 convert_to_grayscale: true }"),
        [""; 0]
    );
    assert_eq!(refused(&[("weighted_sigmoid", "weighted_sigmoid_focal")]), [""; 0]);
    assert_eq!(refused(&[("weighted_smooth_l1", "weighted_iou")]), [""; 0]);
    // Every augmentation and input option that the data pipeline knows is let through.
    let step = "random_pad_image { min_image_height: 10 min_image_width: 10 pad_color: [1, 2, 3] }";
    assert_eq!(refused(&[("ssd_random_crop { }", step)]), [""; 0]);
    assert_eq!(
        refused(&[("width: 300 }", "width: 300 resize_method: AREA }")]),
        [""; 0]
    );
    assert!(
        refusal(
            "faster_rcnn_box_coder { y_scale: 10.0 x_scale: 10.0 height_scale: 5.0 width_scale: 5.0 }",
            "square_box_coder { }"
        )
        .contains("model.ssd.box_coder.square_box_coder: not supported yet\nhint: its codes have three numbers")
    );
}

#[test]
fn a_short_side_that_is_longer_than_the_long_one_is_refused() {
    let fixed = "fixed_shape_resizer { height: 300 width: 300 }";
    // The default of min_dimension is 600.
    let wrong = refusal(
        fixed,
        "keep_aspect_ratio_resizer { max_dimension: 512 pad_to_max_dimension: true }",
    );
    assert!(
        wrong.contains("keep_aspect_ratio_resizer.min_dimension: 600, and max_dimension is 512\nhint: "),
        "{wrong}"
    );
}

#[test]
fn images_of_many_sizes_come_one_at_a_time() {
    let fixed = "fixed_shape_resizer { height: 300 width: 300 }";
    let batch = GOLDEN
        .lines()
        .find(|line| line.trim_start().starts_with("batch_size:"))
        .unwrap();
    for (resizer, name) in [
        (
            "keep_aspect_ratio_resizer { min_dimension: 300 max_dimension: 512 }",
            "keep_aspect_ratio_resizer without pad_to_max_dimension",
        ),
        ("identity_resizer { }", "identity_resizer"),
        ("conditional_shape_resizer { }", "conditional_shape_resizer"),
        ("pad_to_multiple_resizer { multiple: 32 }", "pad_to_multiple_resizer"),
    ] {
        let three = refused(&[(fixed, resizer), (batch, "batch_size: 3")]);
        let line = GOLDEN.lines().position(|line| line == batch).unwrap() + 1;
        assert_eq!(
            three,
            [format!(
                "pipeline.config:{line}: train_config.batch_size: 3, and {name} leaves images of many sizes, which cannot be one batch\n\
                 hint: batch_size: 1 (of each worker), or an image_resizer that gives all images one size: keep_aspect_ratio_resizer with \
                 pad_to_max_dimension: true, or fixed_shape_resizer"
            )]
        );
        assert_eq!(refused(&[(fixed, resizer), (batch, "batch_size: 1")]), [""; 0]);
        // Evaluation goes image by image anyway.
        let text = GOLDEN.replace(fixed, resizer).replace(batch, "batch_size: 3");
        let config = PipelineConfig::parse(&text, "pipeline.config").unwrap();
        assert_eq!(
            check(&config, Mode::Eval).map(|support| support.refused),
            Ok(Vec::new())
        );
    }
    let one = |resizer: &str| refused(&[(fixed, resizer), (batch, "batch_size: 1")]).remove(0);
    assert!(
        one("conditional_shape_resizer { condition: INVALID }")
            .ends_with("INVALID is not supported yet\nhint: supported: GREATER, SMALLER")
    );
    assert!(one("pad_to_multiple_resizer { multiple: 0 }").contains("pad_to_multiple_resizer.multiple: 0"));
    assert!(
        one("conditional_shape_resizer { size_threshold: 0 }").contains("conditional_shape_resizer.size_threshold: 0")
    );
}

#[test]
fn pyramids_over_images_of_many_sizes_are_padded() {
    let resizer = |to: &'static str| ("fixed_shape_resizer { height: 300 width: 300 }", to);
    let batch = GOLDEN
        .lines()
        .find(|line| line.trim_start().starts_with("batch_size:"))
        .unwrap();
    let of = |extractor: &str, to: &'static str| {
        let all = refused(&[("'ssd_mobilenet_v1'", extractor), resizer(to), (batch, "batch_size: 1")]);
        all.into_iter().find(|one| one.contains("pad_to_multiple"))
    };
    let fpn = "'ssd_mobilenet_v1_fpn'";
    let bare = of(fpn, "identity_resizer { }").unwrap();
    assert!(
        bare.contains("feature_extractor.pad_to_multiple: 1, and identity_resizer leaves images")
            && bare.ends_with("hint: pad_to_multiple: 32"),
        "{bare}"
    );
    assert_eq!(of(fpn, "fixed_shape_resizer { height: 320 width: 320 }"), None);
    assert_eq!(of(fpn, "pad_to_multiple_resizer { multiple: 64 }"), None);
    assert_eq!(
        of("'ssd_mobilenet_v1_fpn' pad_to_multiple: 32", "identity_resizer { }"),
        None
    );
    assert_eq!(
        of(
            "'ssd_mobilenet_v1_fpn' use_explicit_padding: true",
            "identity_resizer { }"
        ),
        None
    );
}

#[test]
fn channels_that_do_not_go_together() {
    let train = (
        "train_input_reader {",
        "train_input_reader { num_additional_channels: 2 ",
    );
    let eval = ("eval_input_reader {", "eval_input_reader { num_additional_channels: 2 ");
    assert_eq!(refused(&[train, eval]), [""; 0]);
    let one = refused(&[train]);
    assert!(
        one[0].contains("eval_input_reader.num_additional_channels: 0, and train_input_reader's is 2"),
        "{one:?}"
    );
    let grey = refused(&[train, eval, ("width: 300 }", "width: 300 convert_to_grayscale: true }")]);
    assert!(
        grey[0].contains("convert_to_grayscale: true, and train_input_reader.num_additional_channels is 2"),
        "{grey:?}"
    );
}

#[test]
fn values_that_are_not_built() {
    for (from, to, path) in [
        (
            "num_classes: 3",
            "num_classes: 3 use_confidences_as_targets: true",
            "model.ssd.use_confidences_as_targets: true",
        ),
        (
            "min_depth: 8",
            "min_depth: 8 use_hardswish: true",
            "feature_extractor.use_hardswish: true",
        ),
        (
            "min_depth: 8",
            "min_depth: 8 replace_preprocessor_with_placeholder: true",
            "feature_extractor.replace_preprocessor_with_placeholder: true",
        ),
        (
            "min_depth: 8",
            "min_depth: 8 bifpn { }",
            "feature_extractor.bifpn: not supported yet",
        ),
        (
            "num_steps: 3200",
            "use_bfloat16: true",
            "train_config.use_bfloat16: true",
        ),
    ] {
        let text = refusal(from, to);
        assert!(text.contains(path), "{path} in {text}");
    }
    assert!(refused(&[("batch_norm { train: true", "sync_batch_norm { train: true")]).is_empty());
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
fn what_checkpoints_are_started_from_and_what_comes_later() {
    let from = |rest: &str| {
        refused(&[(
            "num_steps: 3200",
            &format!("fine_tune_checkpoint: \"a/model.ckpt\" {rest}"),
        )])
    };
    assert!(from("").is_empty());
    assert!(from("fine_tune_checkpoint_type: \"full\" load_all_detection_checkpoint_vars: true").is_empty());
    let text = &from("fine_tune_checkpoint_type: \"detections\"")[0];
    assert!(
        text.starts_with("pipeline.config:88: train_config.fine_tune_checkpoint_type: there is no \"detections\"\nhint: classification "),
        "{text}"
    );
    let text = &from("fine_tune_checkpoint_version: V2")[0];
    assert!(
        text.contains("V2 is a TF2 checkpoint") && text.contains("hint: use V1"),
        "{text}"
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
    assert!(refusal("../bccd_tfrecord/test.record", "hdfs://bucket/test.record").contains(
        "eval_input_reader[0].tf_record_input_reader.input_path[0]: \"hdfs://bucket/test.record\" is not supported yet\n\
         hint: a local path, gs://BUCKET/KEY or s3://BUCKET/KEY"
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
            .contains("model.ssd.similarity_calculator: nothing is chosen\nhint: supported: ")
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

#[test]
fn nothing_of_the_sample_configurations_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = PipelineConfig::load(&path).unwrap();
        let support = survey(&config, Mode::TrainAndEval).unwrap();
        let refused: Vec<String> = support.refused.iter().map(ToString::to_string).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        count += 1;
    }
    assert!(count >= 14, "{count} configurations");
}
