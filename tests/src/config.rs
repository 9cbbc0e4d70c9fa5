//! The pipeline.config of the tests.

/// SSD MobileNet v1 at a quarter of its width, 96 x 96: a step takes milliseconds.
pub(crate) const PIPELINE: &str = r#"model {
  ssd {
    num_classes: 3
    image_resizer { fixed_shape_resizer { height: 96 width: 96 } }
    feature_extractor {
      type: "ssd_mobilenet_v1"
      depth_multiplier: 0.25
      min_depth: 8
      conv_hyperparams {
        activation: RELU_6
        regularizer { l2_regularizer { weight: 0.00004 } }
        initializer { truncated_normal_initializer { stddev: 0.09 } }
        batch_norm { train: true scale: true center: true decay: 0.97 epsilon: 0.001 }
      }
    }
    box_coder { faster_rcnn_box_coder { y_scale: 10 x_scale: 10 height_scale: 5 width_scale: 5 } }
    matcher {
      argmax_matcher { matched_threshold: 0.5 unmatched_threshold: 0.5 force_match_for_each_row: true }
    }
    similarity_calculator { iou_similarity { } }
    anchor_generator {
      ssd_anchor_generator { num_layers: 6 min_scale: 0.2 max_scale: 0.95 aspect_ratios: 1 aspect_ratios: 2 aspect_ratios: 0.5 }
    }
    box_predictor {
      convolutional_box_predictor {
        kernel_size: 1
        use_dropout: false
        conv_hyperparams {
          activation: RELU_6
          regularizer { l2_regularizer { weight: 0.00004 } }
          initializer { truncated_normal_initializer { stddev: 0.03 } }
          batch_norm { train: true scale: true center: true decay: 0.97 epsilon: 0.001 }
        }
      }
    }
    loss {
      classification_loss { weighted_sigmoid { } }
      localization_loss { weighted_smooth_l1 { } }
      hard_example_miner { num_hard_examples: 3000 iou_threshold: 0.99 loss_type: CLASSIFICATION max_negatives_per_positive: 3 }
      classification_weight: 1
      localization_weight: 1
    }
    normalize_loss_by_num_matches: true
    post_processing {
      batch_non_max_suppression { score_threshold: 1e-8 iou_threshold: 0.6 max_detections_per_class: 100 max_total_detections: 100 }
      score_converter: SIGMOID
    }
  }
}
train_config {
  batch_size: 4
  num_steps: 100
  sync_replicas: true
  replicas_to_aggregate: 3
  optimizer {
    momentum_optimizer {
      learning_rate { cosine_decay_learning_rate { learning_rate_base: 0.04 total_steps: 100 warmup_learning_rate: 0.01 warmup_steps: 20 } }
      momentum_optimizer_value: 0.9
    }
    use_moving_average: true
    moving_average_decay: 0.99
  }
  data_augmentation_options { random_horizontal_flip { } }
  data_augmentation_options { ssd_random_crop { } }
}
train_input_reader {
  tf_record_input_reader { input_path: "train.record-?????-of-00003" }
  label_map_path: "shapes/label_map.pbtxt"
}
eval_config {
  metrics_set: "coco_detection_metrics"
}
eval_input_reader {
  tf_record_input_reader { input_path: "val.record" }
  label_map_path: "shapes/label_map.pbtxt"
  shuffle: false
  num_epochs: 1
}
"#;
