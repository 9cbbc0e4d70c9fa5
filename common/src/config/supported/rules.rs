//! The table of what is built. A field that stands in no list is supported at its default only.
//!
//! Keys are `Message.field`; a key that starts with a lower-case name is a path of the configuration and goes before.

/// Honoured with every value; of messages, their fields are looked up in turn.
pub(super) const HONOURED: &[(&str, &str)] = &[
    (
        "TrainEvalPipelineConfig",
        "model train_config train_input_reader eval_config eval_input_reader",
    ),
    ("DetectionModel", "ssd"),
    (
        "Ssd",
        "num_classes image_resizer feature_extractor box_coder matcher similarity_calculator box_predictor anchor_generator \
         post_processing normalize_loss_by_num_matches normalize_loc_loss_by_codesize loss encode_background_as_zeros \
         negative_class_weight add_background_class explicit_background_class",
    ),
    (
        "SsdFeatureExtractor",
        "type depth_multiplier min_depth conv_hyperparams override_base_feature_extractor_hyperparams pad_to_multiple \
         use_explicit_padding use_depthwise num_layers fpn",
    ),
    ("FeaturePyramidNetworks", "min_level max_level additional_layer_depth"),
    (
        "ImageResizer",
        "fixed_shape_resizer keep_aspect_ratio_resizer identity_resizer conditional_shape_resizer pad_to_multiple_resizer",
    ),
    (
        "ConditionalShapeResizer",
        "condition size_threshold resize_method convert_to_grayscale",
    ),
    ("PadToMultipleResizer", "multiple convert_to_grayscale"),
    ("FixedShapeResizer", "height width resize_method convert_to_grayscale"),
    (
        "KeepAspectRatioResizer",
        "min_dimension max_dimension resize_method pad_to_max_dimension convert_to_grayscale per_channel_pad_value",
    ),
    ("BoxCoder", "faster_rcnn_box_coder mean_stddev_box_coder"),
    ("MeanStddevBoxCoder", "stddev"),
    ("FasterRcnnBoxCoder", "y_scale x_scale height_scale width_scale"),
    ("Matcher", "argmax_matcher bipartite_matcher"),
    (
        "ArgMaxMatcher",
        "matched_threshold unmatched_threshold ignore_thresholds negatives_lower_than_unmatched force_match_for_each_row",
    ),
    (
        "RegionSimilarityCalculator",
        "iou_similarity ioa_similarity neg_sq_dist_similarity thresholded_iou_similarity",
    ),
    ("ThresholdedIouSimilarity", "iou_threshold"),
    (
        "BoxPredictor",
        "convolutional_box_predictor weight_shared_convolutional_box_predictor",
    ),
    (
        "ConvolutionalBoxPredictor",
        "conv_hyperparams min_depth max_depth num_layers_before_predictor kernel_size class_prediction_bias_init use_depthwise \
         box_encodings_clip_range use_dropout dropout_keep_probability apply_sigmoid_to_scores",
    ),
    (
        "WeightSharedConvolutionalBoxPredictor",
        "conv_hyperparams depth num_layers_before_predictor kernel_size class_prediction_bias_init share_prediction_tower \
         use_depthwise box_encodings_clip_range use_dropout dropout_keep_probability score_converter",
    ),
    ("BoxEncodingsClipRange", "min max"),
    (
        "AnchorGenerator",
        "ssd_anchor_generator multiscale_anchor_generator flexible_grid_anchor_generator",
    ),
    ("FlexibleGridAnchorGenerator", "anchor_grid normalize_coordinates"),
    (
        "AnchorGrid",
        "base_sizes aspect_ratios height_stride width_stride height_offset width_offset",
    ),
    (
        "MultiscaleAnchorGenerator",
        "min_level max_level anchor_scale aspect_ratios scales_per_octave normalize_coordinates",
    ),
    (
        "SsdAnchorGenerator",
        "num_layers min_scale max_scale scales aspect_ratios interpolated_scale_aspect_ratio reduce_boxes_in_lowest_layer \
         base_anchor_height base_anchor_width height_stride width_stride height_offset width_offset",
    ),
    (
        "PostProcessing",
        "batch_non_max_suppression score_converter logit_scale calibration_config",
    ),
    (
        "BatchNonMaxSuppression",
        "score_threshold iou_threshold max_detections_per_class max_total_detections soft_nms_sigma use_class_agnostic_nms \
         use_combined_nms",
    ),
    (
        "CalibrationConfig",
        "function_approximation class_id_function_approximations temperature_scaling_calibration",
    ),
    ("FunctionApproximation", "x_y_pairs"),
    ("ClassIdFunctionApproximations", "class_id_xy_pairs_map"),
    ("TemperatureScalingCalibration", "scaler"),
    ("XYPairs", "x_y_pair"),
    ("XYPair", "x y"),
    (
        "Loss",
        "localization_loss classification_loss hard_example_miner classification_weight localization_weight random_example_sampler",
    ),
    ("RandomExampleSampler", "positive_sample_fraction"),
    (
        "LocalizationLoss",
        "weighted_smooth_l1 weighted_l2 weighted_iou l1_localization_loss weighted_giou",
    ),
    ("WeightedSmoothL1LocalizationLoss", "delta"),
    (
        "ClassificationLoss",
        "weighted_sigmoid weighted_softmax bootstrapped_sigmoid weighted_sigmoid_focal weighted_logits_softmax \
         penalty_reduced_logistic_focal_loss weighted_dice_classification_loss",
    ),
    ("SigmoidFocalClassificationLoss", "gamma alpha"),
    ("WeightedSoftmaxClassificationLoss", "logit_scale"),
    ("WeightedSoftmaxClassificationAgainstLogitsLoss", "logit_scale"),
    ("BootstrappedSigmoidClassificationLoss", "alpha hard_bootstrap"),
    ("PenaltyReducedLogisticFocalLoss", "alpha beta"),
    (
        "WeightedDiceClassificationLoss",
        "squared_normalization is_prediction_probability",
    ),
    (
        "HardExampleMiner",
        "num_hard_examples iou_threshold loss_type max_negatives_per_positive min_negatives_per_image",
    ),
    (
        "Hyperparams",
        "regularizer initializer activation batch_norm sync_batch_norm group_norm",
    ),
    ("Regularizer", "l1_regularizer l2_regularizer"),
    ("L1Regularizer", "weight"),
    ("L2Regularizer", "weight"),
    (
        "Initializer",
        "truncated_normal_initializer variance_scaling_initializer random_normal_initializer",
    ),
    ("TruncatedNormalInitializer", "mean stddev"),
    ("RandomNormalInitializer", "mean stddev"),
    ("VarianceScalingInitializer", "factor uniform mode"),
    ("BatchNorm", "decay center scale epsilon train"),
    (
        "Optimizer",
        "rms_prop_optimizer momentum_optimizer adam_optimizer use_moving_average moving_average_decay",
    ),
    (
        "RMSPropOptimizer",
        "learning_rate momentum_optimizer_value decay epsilon",
    ),
    ("MomentumOptimizer", "learning_rate momentum_optimizer_value"),
    ("AdamOptimizer", "learning_rate epsilon"),
    (
        "LearningRate",
        "constant_learning_rate exponential_decay_learning_rate manual_step_learning_rate cosine_decay_learning_rate",
    ),
    ("ConstantLearningRate", "learning_rate"),
    (
        "ExponentialDecayLearningRate",
        "initial_learning_rate decay_steps decay_factor staircase burnin_learning_rate burnin_steps min_learning_rate",
    ),
    ("ManualStepLearningRate", "initial_learning_rate schedule warmup"),
    ("LearningRateSchedule", "step learning_rate"),
    (
        "CosineDecayLearningRate",
        "learning_rate_base total_steps warmup_learning_rate warmup_steps hold_base_rate_steps",
    ),
    (
        "TrainConfig",
        "batch_size data_augmentation_options sync_replicas keep_checkpoint_every_n_hours optimizer \
         gradient_clipping_by_norm num_steps bias_grad_multiplier update_trainable_variables freeze_variables \
         replicas_to_aggregate add_regularization_loss max_number_of_boxes fine_tune_checkpoint fine_tune_checkpoint_type \
         fine_tune_checkpoint_version from_detection_checkpoint load_all_detection_checkpoint_vars",
    ),
    (
        "PreprocessingStep",
        "normalize_image random_horizontal_flip random_pixel_value_scale random_image_scale random_rgb_to_gray \
         random_adjust_brightness random_adjust_contrast random_adjust_hue random_adjust_saturation random_distort_color \
         random_jitter_boxes random_crop_image random_pad_image random_crop_pad_image random_crop_to_aspect_ratio \
         random_black_patches random_resize_method scale_boxes_to_pixel_coordinates resize_image subtract_channel_mean \
         ssd_random_crop ssd_random_crop_pad ssd_random_crop_fixed_aspect_ratio ssd_random_crop_pad_fixed_aspect_ratio \
         random_vertical_flip random_rotation90 rgb_to_gray convert_class_logits_to_softmax random_absolute_pad_image \
         random_self_concat_image autoaugment_image drop_label_probabilistically remap_labels random_jpeg_quality \
         random_downscale_to_target_pixels random_patch_gaussian random_square_crop_by_scale \
         random_scale_crop_and_pad_to_square adjust_gamma",
    ),
    (
        "NormalizeImage",
        "original_minval original_maxval target_minval target_maxval",
    ),
    ("RandomHorizontalFlip", "probability keypoint_flip_permutation"),
    ("RandomVerticalFlip", "probability keypoint_flip_permutation"),
    ("RandomRotation90", "probability keypoint_rot_permutation"),
    ("RandomPixelValueScale", "minval maxval"),
    ("RandomImageScale", "min_scale_ratio max_scale_ratio"),
    ("RandomRGBtoGray", "probability"),
    ("RandomAdjustBrightness", "max_delta"),
    ("RandomAdjustContrast", "min_delta max_delta"),
    ("RandomAdjustHue", "max_delta"),
    ("RandomAdjustSaturation", "min_delta max_delta"),
    ("RandomDistortColor", "color_ordering"),
    ("RandomJitterBoxes", "ratio jitter_mode"),
    (
        "RandomCropImage",
        "min_object_covered min_aspect_ratio max_aspect_ratio min_area max_area overlap_thresh clip_boxes random_coef",
    ),
    (
        "RandomPadImage",
        "min_image_height min_image_width max_image_height max_image_width pad_color",
    ),
    (
        "RandomAbsolutePadImage",
        "max_height_padding max_width_padding pad_color",
    ),
    (
        "RandomCropPadImage",
        "min_object_covered min_aspect_ratio max_aspect_ratio min_area max_area overlap_thresh clip_boxes random_coef \
         min_padded_size_ratio max_padded_size_ratio pad_color",
    ),
    ("RandomCropToAspectRatio", "aspect_ratio overlap_thresh clip_boxes"),
    (
        "RandomBlackPatches",
        "max_black_patches probability size_to_image_ratio",
    ),
    ("RandomResizeMethod", "target_height target_width"),
    ("ResizeImage", "new_height new_width method"),
    ("SubtractChannelMean", "means"),
    ("SSDRandomCrop", "operations"),
    (
        "SSDRandomCropOperation",
        "min_object_covered min_aspect_ratio max_aspect_ratio min_area max_area overlap_thresh clip_boxes random_coef",
    ),
    ("SSDRandomCropPad", "operations"),
    (
        "SSDRandomCropPadOperation",
        "min_object_covered min_aspect_ratio max_aspect_ratio min_area max_area overlap_thresh clip_boxes random_coef \
         min_padded_size_ratio max_padded_size_ratio pad_color_r pad_color_g pad_color_b",
    ),
    ("SSDRandomCropFixedAspectRatio", "operations aspect_ratio"),
    (
        "SSDRandomCropFixedAspectRatioOperation",
        "min_object_covered min_area max_area overlap_thresh clip_boxes random_coef",
    ),
    (
        "SSDRandomCropPadFixedAspectRatio",
        "operations aspect_ratio min_padded_size_ratio max_padded_size_ratio",
    ),
    (
        "SSDRandomCropPadFixedAspectRatioOperation",
        "min_object_covered min_aspect_ratio max_aspect_ratio min_area max_area overlap_thresh clip_boxes random_coef",
    ),
    ("ConvertClassLogitsToSoftmax", "temperature"),
    (
        "RandomSelfConcatImage",
        "concat_vertical_probability concat_horizontal_probability",
    ),
    ("AutoAugmentImage", "policy_name"),
    ("DropLabelProbabilistically", "label drop_probability"),
    ("RemapLabels", "original_labels new_label"),
    ("RandomJpegQuality", "random_coef min_jpeg_quality max_jpeg_quality"),
    (
        "RandomDownscaleToTargetPixels",
        "random_coef min_target_pixels max_target_pixels",
    ),
    (
        "RandomPatchGaussian",
        "random_coef min_patch_size max_patch_size min_gaussian_stddev max_gaussian_stddev",
    ),
    ("RandomSquareCropByScale", "max_border scale_min scale_max num_scales"),
    ("RandomScaleCropAndPadToSquare", "output_size scale_min scale_max"),
    ("AdjustGamma", "gamma gain"),
    (
        "InputReader",
        "label_map_path shuffle sample_1_of_n_examples use_display_name tf_record_input_reader max_number_of_boxes \
         load_instance_masks mask_type num_keypoints num_additional_channels load_multiclass_scores sample_from_datasets_weights",
    ),
    ("TFRecordInputReader", "input_path"),
    (
        "EvalConfig",
        "metrics_set num_examples eval_interval_secs max_evals num_visualizations min_score_threshold \
         max_num_boxes_to_visualize use_moving_averages include_metrics_per_category all_metrics_per_category \
         recall_lower_bound recall_upper_bound visualization_export_dir keep_image_id_for_visualization_export skip_scores skip_labels \
         visualize_groundtruth_boxes groundtruth_box_visualization_color retain_original_images \
         skip_predictions_for_unlabeled_class image_classes_field_map_empty_to_ones",
    ),
];

/// Supported with these values alone, whether written or left to the default.
pub(super) const ONLY: &[(&str, &[&str])] = &[
    (
        "SsdFeatureExtractor.type",
        &[
            "ssd_mobilenet_v1",
            "ssd_mobilenet_v1_fpn",
            "ssd_mobilenet_v1_ppn",
            "embedded_ssd_mobilenet_v1",
            "ssd_mobilenet_v2",
            "ssd_mobilenet_v2_fpn",
            "ssd_mobilenet_v3_large",
            "ssd_mobilenet_v3_small",
            "ssd_mobilenet_edgetpu",
            "ssd_inception_v2",
            "ssd_inception_v3",
            "ssd_resnet50_v1_fpn",
            "ssd_resnet101_v1_fpn",
            "ssd_resnet152_v1_fpn",
            "ssd_resnet50_v1_ppn",
            "ssd_resnet101_v1_ppn",
            "ssd_resnet152_v1_ppn",
        ],
    ),
    ("ConditionalShapeResizer.condition", &["GREATER", "SMALLER"]),
    ("InputReader.input_type", &["TF_EXAMPLE", "INPUT_DEFAULT"]),
    ("train_input_reader.num_epochs", &["0"]),
];

/// Accepted without effect: they tune TensorFlow's input pipeline or its graph, not the result.
pub(super) const IGNORED: &[(&str, &str)] = &[
    ("Ssd", "inplace_batchnorm_update implicit_example_weight"),
    // Read by the reference and used nowhere in it; the same for the settings of losses that nothing chooses.
    (
        "Loss",
        "equalization_loss min_num_negative_samples desired_negative_sampling_ratio",
    ),
    ("BipartiteMatcher", "use_matmul_gather"),
    ("WeightedL2LocalizationLoss", "anchorwise_output"),
    ("SigmoidFocalClassificationLoss", "anchorwise_output"),
    ("WeightedSoftmaxClassificationLoss", "anchorwise_output"),
    ("WeightedSoftmaxClassificationAgainstLogitsLoss", "anchorwise_output"),
    ("BootstrappedSigmoidClassificationLoss", "anchorwise_output"),
    ("XYPairs", "training_data_type"),
    ("ArgMaxMatcher", "use_matmul_gather"),
    ("WeightedSigmoidClassificationLoss", "anchorwise_output"),
    ("WeightedSmoothL1LocalizationLoss", "anchorwise_output"),
    ("Hyperparams", "regularize_depthwise"),
    (
        "BatchNonMaxSuppression",
        "use_static_shapes max_classes_per_detection use_partitioned_nms change_coordinate_frame use_hard_nms use_cpu_nms",
    ),
    (
        "TrainConfig",
        "run_fine_tune_checkpoint_dummy_computation startup_delay_steps batch_queue_capacity num_batch_queue_threads \
         prefetch_queue_capacity unpad_groundtruth_tensors retain_original_images summarize_gradients",
    ),
    (
        "InputReader",
        "name shuffle_buffer_size filenames_shuffle_buffer_size num_epochs num_readers num_parallel_batches \
         num_prefetch_batches queue_capacity min_after_dequeue read_block_length prefetch_size num_parallel_map_calls \
         drop_remainder include_source_id",
    ),
    ("EvalConfig", "batch_size save_graph eval_master use_dummy_loss_in_eval"),
];

/// Accepted; what they ask for is not done, and the job says so.
pub(super) const WARNED: &[(&str, &str)] = &[("EvalConfig", "export_path super_categories parameterized_metric")];

/// Values of repeated names that are built; others are known and warned about. The last two are older names of the reference.
pub const METRICS: &[&str] = &[
    "coco_detection_metrics",
    "pascal_voc_detection_metrics",
    "weighted_pascal_voc_detection_metrics",
    "oid_V2_detection_metrics",
    "oid_challenge_detection_metrics",
    "precision_at_recall_detection_metrics",
    "open_images_V2_detection_metrics",
    "oid_challenge_object_detection_metrics",
];

/// Names of metrics in the reference (`eval_util.EVAL_METRICS_CLASS_DICT`) that no model here can be measured by: they ask for masks or
/// keypoints.
pub(super) const OTHER_METRICS: &[&str] = &[
    "coco_keypoint_metrics",
    "coco_mask_metrics",
    "coco_panoptic_metrics",
    "lvis_mask_metrics",
    "oid_challenge_segmentation_metrics",
    "pascal_voc_instance_segmentation_metrics",
    "weighted_pascal_voc_instance_segmentation_metrics",
];

/// Fields and oneofs that a message cannot do without.
pub(super) const REQUIRED: &[(&str, &str)] = &[
    ("TrainEvalPipelineConfig", "model"),
    ("DetectionModel", "model"),
    (
        "Ssd",
        "num_classes image_resizer feature_extractor box_coder matcher similarity_calculator box_predictor anchor_generator \
         post_processing loss",
    ),
    ("SsdFeatureExtractor", "type conv_hyperparams"),
    ("ImageResizer", "image_resizer_oneof"),
    ("BoxCoder", "box_coder_oneof"),
    ("Matcher", "matcher_oneof"),
    ("RegionSimilarityCalculator", "region_similarity"),
    ("BoxPredictor", "box_predictor_oneof"),
    ("ConvolutionalBoxPredictor", "conv_hyperparams"),
    ("WeightSharedConvolutionalBoxPredictor", "conv_hyperparams"),
    ("AnchorGenerator", "anchor_generator_oneof"),
    ("SsdAnchorGenerator", "aspect_ratios"),
    ("Loss", "localization_loss classification_loss"),
    ("LocalizationLoss", "localization_loss"),
    ("ClassificationLoss", "classification_loss"),
    ("TrainConfig", "optimizer"),
    ("Optimizer", "optimizer"),
    ("RMSPropOptimizer", "learning_rate"),
    ("MomentumOptimizer", "learning_rate"),
    ("AdamOptimizer", "learning_rate"),
    ("LearningRate", "learning_rate"),
    ("ManualStepLearningRate", "schedule"),
    ("PreprocessingStep", "preprocessing_step"),
    ("InputReader", "label_map_path input_reader"),
    ("TFRecordInputReader", "input_path"),
];

/// Above zero.
const POSITIVE: f64 = f64::MIN_POSITIVE;
const ANY: f64 = f64::INFINITY;

/// Least and greatest value of numbers.
pub(super) const RANGES: &[(&str, f64, f64)] = &[
    ("Ssd.num_classes", 1.0, ANY),
    ("SsdFeatureExtractor.depth_multiplier", POSITIVE, ANY),
    ("SsdFeatureExtractor.min_depth", 1.0, ANY),
    ("SsdFeatureExtractor.pad_to_multiple", 1.0, 1024.0),
    ("SsdFeatureExtractor.num_layers", 1.0, ANY),
    ("FeaturePyramidNetworks.min_level", 2.0, 5.0),
    ("FeaturePyramidNetworks.max_level", 2.0, 10.0),
    ("FeaturePyramidNetworks.additional_layer_depth", 1.0, 4096.0),
    ("FixedShapeResizer.height", 33.0, 16384.0),
    ("FixedShapeResizer.width", 33.0, 16384.0),
    ("KeepAspectRatioResizer.min_dimension", 1.0, 16384.0),
    ("KeepAspectRatioResizer.max_dimension", 33.0, 16384.0),
    ("ConditionalShapeResizer.size_threshold", 1.0, 16384.0),
    ("PadToMultipleResizer.multiple", 1.0, 16384.0),
    ("FasterRcnnBoxCoder.y_scale", POSITIVE, ANY),
    ("FasterRcnnBoxCoder.x_scale", POSITIVE, ANY),
    ("FasterRcnnBoxCoder.height_scale", POSITIVE, ANY),
    ("FasterRcnnBoxCoder.width_scale", POSITIVE, ANY),
    ("ConvolutionalBoxPredictor.kernel_size", 1.0, ANY),
    ("ConvolutionalBoxPredictor.min_depth", 0.0, ANY),
    ("ConvolutionalBoxPredictor.max_depth", 0.0, ANY),
    ("ConvolutionalBoxPredictor.num_layers_before_predictor", 0.0, 16.0),
    ("WeightSharedConvolutionalBoxPredictor.kernel_size", 1.0, ANY),
    ("WeightSharedConvolutionalBoxPredictor.depth", 0.0, 4096.0),
    (
        "WeightSharedConvolutionalBoxPredictor.num_layers_before_predictor",
        0.0,
        16.0,
    ),
    ("SsdAnchorGenerator.num_layers", 1.0, ANY),
    ("MultiscaleAnchorGenerator.min_level", 0.0, 30.0),
    ("MultiscaleAnchorGenerator.max_level", 0.0, 30.0),
    ("MultiscaleAnchorGenerator.anchor_scale", POSITIVE, ANY),
    ("MultiscaleAnchorGenerator.aspect_ratios", POSITIVE, ANY),
    ("MultiscaleAnchorGenerator.scales_per_octave", 1.0, 64.0),
    ("SsdAnchorGenerator.aspect_ratios", POSITIVE, ANY),
    ("SsdAnchorGenerator.interpolated_scale_aspect_ratio", 0.0, ANY),
    ("BatchNonMaxSuppression.iou_threshold", 0.0, 1.0),
    ("BatchNonMaxSuppression.max_detections_per_class", 1.0, ANY),
    ("BatchNonMaxSuppression.max_total_detections", 1.0, ANY),
    ("HardExampleMiner.num_hard_examples", 0.0, ANY),
    ("HardExampleMiner.iou_threshold", 0.0, 1.0),
    ("HardExampleMiner.max_negatives_per_positive", 0.0, ANY),
    ("HardExampleMiner.min_negatives_per_image", 0.0, ANY),
    ("WeightedSmoothL1LocalizationLoss.delta", POSITIVE, ANY),
    ("SigmoidFocalClassificationLoss.gamma", 0.0, ANY),
    ("WeightedSoftmaxClassificationLoss.logit_scale", POSITIVE, ANY),
    (
        "WeightedSoftmaxClassificationAgainstLogitsLoss.logit_scale",
        POSITIVE,
        ANY,
    ),
    ("BootstrappedSigmoidClassificationLoss.alpha", 0.0, 1.0),
    ("RandomExampleSampler.positive_sample_fraction", POSITIVE, 1.0),
    ("MeanStddevBoxCoder.stddev", POSITIVE, ANY),
    ("PostProcessing.logit_scale", POSITIVE, ANY),
    ("BatchNonMaxSuppression.soft_nms_sigma", 0.0, ANY),
    ("TemperatureScalingCalibration.scaler", POSITIVE, ANY),
    ("Ssd.negative_class_weight", 0.0, ANY),
    ("Loss.classification_weight", 0.0, ANY),
    ("Loss.localization_weight", 0.0, ANY),
    ("L1Regularizer.weight", 0.0, ANY),
    ("L2Regularizer.weight", 0.0, ANY),
    ("TruncatedNormalInitializer.stddev", 0.0, ANY),
    ("RandomNormalInitializer.stddev", 0.0, ANY),
    ("VarianceScalingInitializer.factor", POSITIVE, ANY),
    ("BatchNorm.decay", 0.0, 1.0),
    ("BatchNorm.epsilon", POSITIVE, ANY),
    ("Optimizer.moving_average_decay", 0.0, 1.0),
    ("RMSPropOptimizer.momentum_optimizer_value", 0.0, 1.0),
    ("RMSPropOptimizer.decay", 0.0, 1.0),
    ("RMSPropOptimizer.epsilon", 0.0, ANY),
    ("MomentumOptimizer.momentum_optimizer_value", 0.0, 1.0),
    ("AdamOptimizer.epsilon", POSITIVE, ANY),
    ("ConstantLearningRate.learning_rate", 0.0, ANY),
    ("ExponentialDecayLearningRate.initial_learning_rate", 0.0, ANY),
    ("ExponentialDecayLearningRate.decay_steps", 1.0, ANY),
    ("ExponentialDecayLearningRate.decay_factor", 0.0, ANY),
    ("ExponentialDecayLearningRate.burnin_learning_rate", 0.0, ANY),
    ("ExponentialDecayLearningRate.min_learning_rate", 0.0, ANY),
    ("ManualStepLearningRate.initial_learning_rate", 0.0, ANY),
    ("LearningRateSchedule.learning_rate", 0.0, ANY),
    ("CosineDecayLearningRate.learning_rate_base", 0.0, ANY),
    ("CosineDecayLearningRate.warmup_learning_rate", 0.0, ANY),
    ("InputReader.max_number_of_boxes", 0.0, ANY),
    ("InputReader.num_keypoints", 0.0, 1024.0),
    ("InputReader.num_additional_channels", 0.0, 61.0),
    ("TrainConfig.batch_size", 1.0, 65536.0),
    ("TrainConfig.keep_checkpoint_every_n_hours", 0.0, ANY),
    ("TrainConfig.gradient_clipping_by_norm", 0.0, ANY),
    ("TrainConfig.bias_grad_multiplier", 0.0, ANY),
    ("TrainConfig.replicas_to_aggregate", 0.0, ANY),
    ("EvalConfig.batch_size", 1.0, 65536.0),
    ("EvalConfig.recall_lower_bound", 0.0, 1.0),
    ("EvalConfig.recall_upper_bound", 0.0, 1.0),
];

/// Files that are opened; only local ones so far.
pub(super) const LOCAL: &[&str] = &[
    "TFRecordInputReader.input_path",
    "InputReader.label_map_path",
    "TrainConfig.fine_tune_checkpoint",
];

/// What else there is to say about something refused.
pub(super) const NOTES: &[(&str, &str)] = &[
    (
        "TrainEvalPipelineConfig.graph_rewriter",
        "training with quantisation comes later; remove it",
    ),
    (
        "Loss.expected_loss_weights",
        "the reference's release lacks the functions it names; remove it",
    ),
    (
        "CalibrationConfig.sigmoid_calibration",
        "the reference names it and does not build it; use function_approximation",
    ),
    (
        "CalibrationConfig.class_id_sigmoid_calibrations",
        "the reference names it and does not build it; use class_id_function_approximations",
    ),
    (
        "BoxCoder.square_box_coder",
        "its codes have three numbers, the box predictors make four; supported: faster_rcnn_box_coder, mean_stddev_box_coder",
    ),
    (
        "BoxCoder.keypoint_box_coder",
        "keypoints are not read from records; supported: faster_rcnn_box_coder, mean_stddev_box_coder",
    ),
    ("ConvolutionalBoxPredictor.use_dropout", "write `use_dropout: false`"),
];

/// Whether the list names the field.
pub(super) fn listed(list: &[(&str, &str)], message: &str, field: &str) -> bool {
    list.iter()
        .any(|(owner, fields)| *owner == message && fields.split_whitespace().any(|name| name == field))
}
