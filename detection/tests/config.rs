//! What a configuration becomes, and what is refused.

use coati_common::config::PipelineConfig;
use coati_detection::config::{self, Error, NetworkOptions};
use coati_detection::hard_example_miner::LossType;
use coati_detection::matcher::Matcher;
use coati_detection::model::{Options, Ssd};
use coati_detection::network::{Activation, Hyperparams, Initializer, Regularizer};
use coati_detection::postprocess::ScoreConverter;
use coati_proto::object_detection::protos::DetectionModel;

use crate::golden::{fixture, model};

const OPTIONS: NetworkOptions = NetworkOptions {
    regularization: true,
    threads: Some(1),
};
const STOCK: [usize; 6] = [3, 6, 6, 6, 6, 6];

/// The stock model with one piece of its text replaced.
fn with(from: &str, to: &str) -> DetectionModel {
    let text = std::fs::read_to_string(fixture("ssd_bccd/pipeline.config")).unwrap();
    assert!(text.contains(from), "{from}");
    PipelineConfig::parse(&text.replacen(from, to, 1), "test")
        .unwrap()
        .proto
        .model
        .unwrap()
}

fn refused(from: &str, to: &str) -> String {
    Ssd::new(
        &with(from, to),
        &Options {
            threads: Some(1),
            ..Options::default()
        },
    )
    .map(|_| ())
    .unwrap_err()
    .to_string()
}

#[test]
fn a_whole_configuration() {
    let model = model("ssd_bccd/pipeline.config");
    let ssd = config::ssd(&model).unwrap();
    let loss = config::loss(ssd).unwrap();
    let miner = loss.miner.unwrap();
    assert_eq!(
        (miner.num_hard_examples, miner.max_negatives_per_positive),
        (Some(3000), Some(3.0))
    );
    assert_eq!((miner.iou_threshold, miner.loss_type), (0.99, LossType::Classification));
    assert!(loss.normalize_loss_by_num_matches && !loss.normalize_loc_loss_by_codesize);
    assert!(matches!(loss.assigner.matcher, Matcher::ArgMax(matcher) if matcher.force_match_for_each_row));
    let post = config::post_processor(ssd).unwrap();
    assert_eq!(post.score_converter, ScoreConverter::Sigmoid);
    assert_eq!((post.nms.score_threshold, post.nms.max_total_detections), (1e-8, 100));
    let network = config::network(ssd, STOCK.to_vec(), OPTIONS).unwrap();
    assert_eq!(
        (network.num_classes, network.depth_multiplier, network.min_depth),
        (3, 0.5, 8)
    );
    assert_eq!((network.image_height, network.image_width), (300, 300));
    assert_eq!(network.base, network.extra);
    assert_eq!(
        network.base.initializer,
        Initializer::TruncatedNormal {
            mean: 0.0,
            stddev: 0.09
        }
    );
    assert_eq!(
        network.predictor.hyperparams.initializer,
        Initializer::TruncatedNormal {
            mean: 0.0,
            stddev: 0.03
        }
    );
    assert_eq!(network.base.activation, Activation::Relu6);
    assert_eq!(network.base.batch_norm.unwrap().decay, 0.97);
}

#[test]
fn zero_means_no_limit_to_the_miner() {
    let text = ["num_hard_examples: 3000", "max_negatives_per_positive: 3"];
    let of = |model: &DetectionModel| config::loss(config::ssd(model).unwrap()).unwrap().miner.unwrap();
    assert_eq!(of(&with(text[0], "num_hard_examples: 0")).num_hard_examples, None);
    assert_eq!(
        of(&with(text[1], "max_negatives_per_positive: 0")).max_negatives_per_positive,
        None
    );
}

#[test]
fn the_base_keeps_its_own_settings_unless_overridden() {
    let model = with("override_base_feature_extractor_hyperparams: true", "");
    let network = config::network(config::ssd(&model).unwrap(), STOCK.to_vec(), OPTIONS).unwrap();
    assert_eq!(network.base, Hyperparams::mobilenet_v1());
    assert_eq!(network.extra.batch_norm.unwrap().decay, 0.97);
}

#[test]
fn regularisation_and_batch_statistics_can_be_switched_off() {
    let model = with("num_classes: 3", "num_classes: 3 freeze_batchnorm: true");
    let options = NetworkOptions {
        regularization: false,
        ..OPTIONS
    };
    let network = config::network(config::ssd(&model).unwrap(), STOCK.to_vec(), options).unwrap();
    for hyper in [&network.base, &network.extra, &network.predictor.hyperparams] {
        assert_eq!(hyper.regularizer, Regularizer::None);
        assert!(!hyper.batch_norm.unwrap().train);
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let cases = [
        ("type: 'ssd_mobilenet_v1'", "type: 'ssd_nothing_v9'", "ssd_nothing_v9"),
        (
            "weighted_sigmoid { }",
            "weighted_sigmoid_focal { }",
            "hard_example_miner",
        ),
        (
            "faster_rcnn_box_coder { y_scale: 10.0 x_scale: 10.0 height_scale: 5.0 width_scale: 5.0 }",
            "square_box_coder { }",
            "square_box_coder",
        ),
        (
            "faster_rcnn_box_coder { y_scale: 10.0 x_scale: 10.0 height_scale: 5.0 width_scale: 5.0 }",
            "keypoint_box_coder { }",
            "keypoint_box_coder",
        ),
        (
            "max_total_detections: 100",
            "max_total_detections: 100 soft_nms_sigma: -0.5",
            "soft_nms_sigma",
        ),
        (
            "max_total_detections: 100",
            "max_total_detections: 10",
            "max_total_detections",
        ),
        (
            "unmatched_threshold: 0.5",
            "unmatched_threshold: 0.6",
            "unmatched_threshold",
        ),
        ("num_layers: 6", "num_layers: 5", "num_layers"),
        ("num_classes: 3", "num_classes: 0", "num_classes"),
        (
            "num_classes: 3",
            "num_classes: 1 add_background_class: false",
            "add_background_class",
        ),
        (
            "num_classes: 3",
            "num_classes: 3 explicit_background_class: true",
            "explicit_background_class",
        ),
        ("height: 300 width: 300", "height: 16 width: 300", "16"),
        ("depth_multiplier: 0.5", "depth_multiplier: -1", "depth_multiplier"),
        (
            "image_resizer { fixed_shape_resizer { height: 300 width: 300 } }",
            "",
            "image_resizer",
        ),
    ];
    for (from, to, named) in cases {
        let error = refused(from, to);
        assert!(error.contains(named), "{to}: {error}");
    }
}

#[test]
fn other_models_are_refused() {
    assert!(matches!(
        config::ssd(&DetectionModel::default()),
        Err(Error::Missing { field: "model", .. })
    ));
}

#[test]
fn frozen_variables_are_constant_and_nothing_may_be_left() {
    use coati_common::variables::VariableKind;
    let model = model("ssd_bccd/pipeline.config");
    let options = Options {
        update_trainable_variables: vec!["^BoxPredictor".to_owned()],
        threads: Some(1),
        ..Options::default()
    };
    let ssd = Ssd::new(&model, &options).unwrap();
    for spec in ssd.variables() {
        let expected = spec.name.starts_with("BoxPredictor");
        assert_eq!(spec.kind == VariableKind::Trainable, expected, "{}", spec.name);
    }
    let all = Options {
        freeze_variables: vec![".*".to_owned()],
        ..options
    };
    let error = Ssd::new(&model, &all).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no variable is left to train"), "{error}");
}
