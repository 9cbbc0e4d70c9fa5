use std::path::Path;

use coati_proto::object_detection::protos as pb;
use proptest::prelude::*;

use super::*;

pub(super) const GOLDEN: &str = include_str!("../../../tests/fixtures/golden/ssd_bccd/pipeline.config");
const TRAIN_STEP: &str = include_str!("../../../tests/fixtures/golden/train_step/pipeline.config");

pub(super) fn golden() -> PipelineConfig {
    PipelineConfig::parse(GOLDEN, "pipeline.config").unwrap()
}

#[test]
fn reads_the_golden_configurations() {
    let config = golden();
    let ssd = config.ssd().unwrap();
    assert_eq!(ssd.num_classes(), 3);
    let extractor = ssd.feature_extractor.as_ref().unwrap();
    assert_eq!(extractor.r#type(), "ssd_mobilenet_v1");
    assert_eq!((extractor.depth_multiplier(), extractor.min_depth()), (0.5, 8));
    let hyperparams = extractor.conv_hyperparams.as_ref().unwrap();
    assert_eq!(hyperparams.activation(), pb::hyperparams::Activation::Relu6);
    assert_eq!(config.train_config().batch_size(), 8);
    assert_eq!(config.train_config().data_augmentation_options.len(), 2);
    assert!(!config.train_config().optimizer.as_ref().unwrap().use_moving_average());
    assert_eq!(config.eval_config().metrics_set.len(), 2);
    assert_eq!(config.eval_input_readers().len(), 1);
    assert!(!config.eval_input_reader().shuffle());
    assert_eq!(config.line("model.ssd.num_classes"), Some(5));
    assert_eq!(
        config.line("train_config.data_augmentation_options[1].ssd_random_crop"),
        Some(98)
    );

    let config = PipelineConfig::parse(TRAIN_STEP, "pipeline.config").unwrap();
    assert_eq!(config.train_config().num_steps(), 100);
    assert!(config.train_input_reader().label_map_path().is_empty());
}

#[test]
fn defaults_are_the_references() {
    let decay = pb::ExponentialDecayLearningRate::default();
    assert!(decay.staircase());
    assert_eq!(
        (decay.initial_learning_rate(), decay.decay_steps(), decay.decay_factor()),
        (0.002, 4_000_000, 0.95)
    );
    assert_eq!(
        (
            decay.burnin_learning_rate(),
            decay.burnin_steps(),
            decay.min_learning_rate()
        ),
        (0.0, 0, 0.0)
    );
    let cosine = pb::CosineDecayLearningRate::default();
    assert_eq!(
        (cosine.learning_rate_base(), cosine.total_steps(), cosine.warmup_steps()),
        (0.002, 4_000_000, 10_000)
    );
    assert_eq!(
        (cosine.warmup_learning_rate(), cosine.hold_base_rate_steps()),
        (0.0002, 0)
    );
    let optimizer = pb::Optimizer::default();
    assert!(optimizer.use_moving_average());
    assert_eq!(optimizer.moving_average_decay(), 0.9999);
    let rms = pb::RmsPropOptimizer::default();
    assert_eq!(
        (rms.momentum_optimizer_value(), rms.decay(), rms.epsilon()),
        (0.9, 0.9, 1.0)
    );
    assert_eq!(pb::AdamOptimizer::default().epsilon(), 1e-8);
    let norm = pb::BatchNorm::default();
    assert_eq!(
        (norm.decay(), norm.epsilon(), norm.center(), norm.scale(), norm.train()),
        (0.999, 0.001, true, false, true)
    );
    let nms = pb::BatchNonMaxSuppression::default();
    assert_eq!((nms.score_threshold(), nms.iou_threshold()), (0.0, 0.6));
    assert_eq!((nms.max_detections_per_class(), nms.max_total_detections()), (100, 100));
    assert_eq!((nms.soft_nms_sigma(), nms.change_coordinate_frame()), (0.0, true));
    let hyperparams = pb::Hyperparams::default();
    assert_eq!(
        (hyperparams.op(), hyperparams.activation()),
        (pb::hyperparams::Op::Conv, pb::hyperparams::Activation::Relu)
    );
    let predictor = pb::ConvolutionalBoxPredictor::default();
    assert_eq!(
        (predictor.use_dropout(), predictor.dropout_keep_probability()),
        (true, 0.8)
    );
    assert_eq!((predictor.kernel_size(), predictor.box_code_size()), (1, 4));
    let miner = pb::HardExampleMiner::default();
    assert_eq!(
        (
            miner.num_hard_examples(),
            miner.iou_threshold(),
            miner.max_negatives_per_positive()
        ),
        (64, 0.7, 0)
    );
    let anchors = pb::SsdAnchorGenerator::default();
    assert_eq!(
        (anchors.num_layers(), anchors.min_scale(), anchors.max_scale()),
        (6, 0.2, 0.95)
    );
    assert!(anchors.reduce_boxes_in_lowest_layer());
    let train = pb::TrainConfig::default();
    assert_eq!(
        (train.batch_size(), train.replicas_to_aggregate(), train.sync_replicas()),
        (32, 1, false)
    );
    assert_eq!(
        (train.keep_checkpoint_every_n_hours(), train.add_regularization_loss()),
        (10000.0, true)
    );
    let ssd = pb::Ssd::default();
    assert_eq!(
        (ssd.normalize_loss_by_num_matches(), ssd.negative_class_weight()),
        (true, 1.0)
    );
    let extractor = pb::SsdFeatureExtractor::default();
    assert_eq!(
        (
            extractor.min_depth(),
            extractor.depth_multiplier(),
            extractor.num_layers()
        ),
        (16, 1.0, 6)
    );
    let coder = pb::FasterRcnnBoxCoder::default();
    assert_eq!(
        (
            coder.y_scale(),
            coder.x_scale(),
            coder.height_scale(),
            coder.width_scale()
        ),
        (10.0, 10.0, 5.0, 5.0)
    );
    let reader = pb::InputReader::default();
    assert_eq!(
        (
            reader.shuffle(),
            reader.sample_1_of_n_examples(),
            reader.max_number_of_boxes()
        ),
        (true, 1, 100)
    );
    assert_eq!(pb::EvalConfig::default().batch_size(), 1);
}

#[test]
fn effective_text_is_a_fixed_point() {
    for source in [GOLDEN, TRAIN_STEP] {
        let config = PipelineConfig::parse(source, "a").unwrap();
        let text = config.effective_text();
        let again = PipelineConfig::parse(&text, "b").unwrap();
        assert_eq!(again.effective_text(), text);
        assert_eq!(again.digest(), config.digest());
        assert_eq!(again.effective_json(), config.effective_json());
    }
}

#[test]
fn effective_text_fills_in_defaults_of_present_messages() {
    let source = r#"
        train_config {
          optimizer { adam_optimizer { learning_rate { exponential_decay_learning_rate { decay_factor: 0.5 } } } }
          freeze_variables: "a\"\\.*"
          data_augmentation_options { random_pad_image { pad_color: 1 pad_color: 0.25 } }
        }
        eval_config { super_categories { key: "b" value: "c" } super_categories { key: "a" value: "d" } }
    "#;
    let text = PipelineConfig::parse(source, "x").unwrap().effective_text();
    let optimizer = "  optimizer {
    adam_optimizer {
      learning_rate {
        exponential_decay_learning_rate {
          initial_learning_rate: 0.002
          decay_steps: 4000000
          decay_factor: 0.5
          staircase: true
          burnin_learning_rate: 0.0
          burnin_steps: 0
          min_learning_rate: 0.0
        }
      }
      epsilon: 1e-8
    }
    use_moving_average: true
    moving_average_decay: 0.9999
  }
";
    assert!(text.contains(optimizer), "{text}");
    // Without a default in the schema, absence has a meaning: no bounds here.
    let pad = "    random_pad_image {\n      pad_color: 1.0\n      pad_color: 0.25\n    }\n";
    assert!(text.contains(pad), "{text}");
    assert!(text.contains("  freeze_variables: \"a\\\"\\\\.*\"\n"), "{text}");
    let maps = "  super_categories {\n    key: \"a\"\n    value: \"d\"\n  }\n  super_categories {\n    key: \"b\"\n";
    assert!(text.contains(maps), "{text}");
    assert!(!text.contains("model"), "{text}");
}

#[test]
fn json_keeps_short_decimals() {
    let json = golden().effective_json();
    let nms = &json["model"]["ssd"]["post_processing"]["batch_non_max_suppression"];
    assert_eq!(nms["iou_threshold"].to_string(), "0.6");
    assert_eq!(
        json["model"]["ssd"]["loss"]["hard_example_miner"]["loss_type"],
        "CLASSIFICATION"
    );
    assert_eq!(
        json["train_config"]["optimizer"]["moving_average_decay"].to_string(),
        "0.9999"
    );
}

#[test]
fn digest_depends_on_meaning_not_on_spelling() {
    let digest = |source: &str| PipelineConfig::parse(source, "x").unwrap().digest();
    let short = digest("train_config { optimizer { momentum_optimizer { } } }");
    let spelled = "train_config: < batch_size: 32, optimizer { use_moving_average: true momentum_optimizer { momentum_optimizer_value: .9 } } >";
    assert_eq!(short, digest(spelled));
    assert_ne!(
        short,
        digest("train_config { optimizer { momentum_optimizer { momentum_optimizer_value: .8 } } }")
    );
    assert_eq!(short.len(), 64);
}

#[test]
fn marks_and_line_ends_of_other_systems() {
    let windows = format!("\u{feff}{}", GOLDEN.replace('\n', "\r\n"));
    let config = PipelineConfig::parse(&windows, "pipeline.config").unwrap();
    assert_eq!(config.proto, golden().proto);
    assert_eq!(config.line("model.ssd.num_classes"), Some(5));
}

#[test]
fn overrides() {
    let mut config = PipelineConfig::parse("eval_input_reader { } eval_input_reader { }", "x").unwrap();
    config.set_num_train_steps(7);
    config.set_sample_1_of_n_eval_examples(3);
    assert_eq!(config.train_config().num_steps(), 7);
    assert!(
        config
            .eval_input_readers()
            .iter()
            .all(|reader| reader.sample_1_of_n_examples() == 3)
    );
    let mut config = golden();
    config.evaluate_training_data();
    let reader = config.eval_input_reader();
    assert_eq!(reader.input_reader, config.train_input_reader().input_reader);
    assert!(!reader.shuffle());
}

#[test]
fn a_missing_or_binary_file_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.config");
    let error = PipelineConfig::load(&missing).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot read {}: ", missing.display())),
        "{error}"
    );
    let wide = folder.path().join("wide.config");
    std::fs::write(&wide, b"\xff\xfem\0o\0").unwrap();
    let error = PipelineConfig::load(&wide).unwrap_err().to_string();
    assert!(
        error.ends_with("is not UTF-8 text\nhint: the file is UTF-16; save it as UTF-8"),
        "{error}"
    );
}

#[test]
fn relative_paths_resolve_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.record-00000-of-00002"), b"").unwrap();
    std::fs::write(folder.path().join("map.pbtxt"), b"").unwrap();
    let path = folder.path().join("p.config");
    std::fs::write(&path, GOLDEN).unwrap();
    let config = PipelineConfig::load(&path).unwrap();
    assert_eq!(config.resolve_path("map.pbtxt"), folder.path().join("map.pbtxt"));
    assert_eq!(
        config.resolve_path("x.record-?????-of-00002"),
        folder.path().join("x.record-?????-of-00002")
    );
    assert_eq!(config.resolve_path("x.record@2"), folder.path().join("x.record@2"));
    assert_eq!(config.resolve_path("nowhere.record"), Path::new("nowhere.record"));
    assert_eq!(config.resolve_path("gs://bucket/x"), Path::new("gs://bucket/x"));
    assert_eq!(config.resolve_path("file:///x"), Path::new("/x"));
    // The current folder goes first: tests run in the package's.
    assert_eq!(config.resolve_path("Cargo.toml"), Path::new("Cargo.toml"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn garbage_never_panics(source in "\\PC*") {
        let _ = PipelineConfig::parse(&source, "x").map_err(|error| error.to_string());
    }

    #[test]
    fn near_misses_never_panic(
        cut in 0..GOLDEN.len(),
        keep in 0..GOLDEN.len(),
        insert in "[{}<>\\[\\]:;,\"'#0-9.eEfxX_+\\\\ \\n-]{0,12}|inf|nan|-|[a-z_]{1,12}|[äß\u{0}]",
    ) {
        let mut source = GOLDEN.as_bytes()[..cut].to_vec();
        source.extend_from_slice(insert.as_bytes());
        source.extend_from_slice(&GOLDEN.as_bytes()[keep.max(cut)..]);
        let source = String::from_utf8_lossy(&source);
        match PipelineConfig::parse(&source, "x") {
            Ok(config) => { config.effective_text(); let _ = supported::check(&config, supported::Mode::TrainAndEval); }
            Err(error) => prop_assert!(error.to_string().starts_with("x:"), "{error}"),
        }
    }
}
