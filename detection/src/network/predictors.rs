//! `convolutional_box_predictor`: each feature map has predictors of its own (the reference's `ConvolutionalBoxPredictor`).

use super::builder::{Builder, Padding, square};
use super::error::Error;
use super::plan::{Part, Source};

/// Adds the predictors of all feature maps.
pub(crate) fn add(builder: &mut Builder, maps: &[Source]) -> Result<(), Error> {
    builder.padding = Padding::Same;
    let config = builder.config;
    for (index, (&map, &anchors)) in maps.iter().zip(&config.anchors_per_location).enumerate() {
        one(builder, index, map, anchors)?;
    }
    Ok(())
}

fn one(builder: &mut Builder, index: usize, map: Source, anchors: usize) -> Result<(), Error> {
    let predictor = &builder.config.predictor;
    let hyper = &predictor.hyperparams;
    let scope = format!("BoxPredictor_{index}");
    let first = builder.feature_map(map, anchors);
    let mut from = map;
    let depth = builder.channels(map).min(predictor.max_depth).max(predictor.min_depth);
    if depth > 0 {
        for i in 0..predictor.num_layers_before_predictor {
            let name = format!("{scope}/Conv2d_{i}_1x1_{depth}");
            from = builder.conv(&name, from, square(1, 1), depth, hyper)?;
        }
    }
    let classes = (builder.config.num_classes + 1) * anchors;
    let boxes_scope = format!("{scope}/BoxEncodingPredictor");
    let classes_scope = format!("{scope}/ClassPredictor");
    let boxes = (boxes_scope.as_str(), 4 * anchors, 0.0);
    let classes = (classes_scope.as_str(), classes, predictor.class_prediction_bias_init);
    let kernel = predictor.kernel_size;
    if !predictor.use_depthwise {
        let parts = &[Part::Boxes, Part::Classes];
        return builder.head(
            &scope,
            from,
            kernel,
            parts,
            &[boxes, classes],
            "weights",
            (anchors, first),
        );
    }
    for (part, each) in [(&[Part::Boxes], boxes), (&[Part::Classes], classes)] {
        let own = builder.depthwise(&format!("{}_depthwise", each.0), from, square(kernel, 1), hyper)?;
        builder.head(each.0, own, 1, part, &[each], "weights", (anchors, first))?;
    }
    Ok(())
}
