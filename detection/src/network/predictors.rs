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
    // A map alone has no scope of its own, as in the reference.
    let scope = if builder.config.anchors_per_location.len() == 1 {
        String::new()
    } else {
        format!("BoxPredictor_{index}/")
    };
    let first = builder.feature_map(map, anchors);
    let mut from = map;
    let depth = builder.channels(map).min(predictor.max_depth).max(predictor.min_depth);
    if depth > 0 {
        for i in 0..predictor.num_layers_before_predictor {
            let name = format!("{scope}Conv2d_{i}_1x1_{depth}");
            from = builder.conv(&name, from, square(1, 1), depth, hyper)?;
        }
    }
    let classes = (builder.config.num_classes + 1) * anchors;
    let boxes_scope = format!("{scope}BoxEncodingPredictor");
    let classes_scope = format!("{scope}ClassPredictor");
    let boxes = (boxes_scope.as_str(), 4 * anchors, 0.0);
    // The reference gives separable predictors no initial bias.
    let bias = if predictor.use_depthwise {
        0.0
    } else {
        predictor.class_prediction_bias_init
    };
    let classes = (classes_scope.as_str(), classes, bias);
    let kernel = predictor.kernel_size;
    let place = (anchors, first);
    if !predictor.use_depthwise && predictor.dropout_keep.is_none() {
        let name = format!("BoxPredictor_{index}");
        let parts = &[Part::Boxes, Part::Classes];
        return builder.head(&name, from, kernel, parts, &[boxes, classes], "weights", place);
    }
    for (part, each, keep) in [
        (&[Part::Boxes], boxes, None),
        (&[Part::Classes], classes, predictor.dropout_keep),
    ] {
        let mut from = from;
        if let Some(keep) = keep {
            from = builder.dropout(&format!("{}_dropout", each.0), from, keep)?;
        }
        if predictor.use_depthwise {
            let own = builder.depthwise(&format!("{}_depthwise", each.0), from, square(kernel, 1), hyper)?;
            builder.head(each.0, own, 1, part, &[each], "weights", place)?;
        } else {
            builder.head(each.0, from, kernel, part, &[each], "weights", place)?;
        }
    }
    Ok(())
}
