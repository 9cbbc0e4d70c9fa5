//! `weight_shared_convolutional_box_predictor`: all feature maps share towers and predictors, and have batch norms of their own (the
//! reference's `WeightSharedConvolutionalBoxPredictor`, arXiv:1708.02002).

use super::builder::{Builder, Normaliser, Padding, square};
use super::config::{Activation, Hyperparams};
use super::error::Error;
use super::plan::{Part, Source};

const SCOPE: &str = "WeightSharedConvolutionalBoxPredictor";
/// Whatever the settings say: towers have no other activation.
const TOWER: Activation = Activation::Relu6;

/// Adds the predictors of all feature maps.
pub(crate) fn add(builder: &mut Builder, maps: &[Source]) -> Result<(), Error> {
    builder.padding = Padding::Same;
    let config = builder.config;
    let (least, most) = config
        .anchors_per_location
        .iter()
        .fold((usize::MAX, 0), |(least, most), &n| (least.min(n), most.max(n)));
    if least != most {
        return Err(Error::Setting {
            setting: "anchors per location",
            value: format!("{:?}", config.anchors_per_location),
            expected: "as many on each feature map, since a weight_shared_convolutional_box_predictor has one set of weights; for \
                       ssd_anchor_generator write reduce_boxes_in_lowest_layer: false",
        });
    }
    let maps = projected(builder, maps);
    for (index, map) in maps.into_iter().enumerate() {
        one(builder, index, map, least)?;
    }
    Ok(())
}

/// What a map is projected to: nothing if all have the same number of channels, else the commonest number.
enum Map {
    As(Source),
    To(Source, usize),
}

fn projected(builder: &Builder, maps: &[Source]) -> Vec<Map> {
    let channels: Vec<usize> = maps.iter().map(|&map| builder.channels(map)).collect();
    if channels.windows(2).all(|pair| pair[0] == pair[1]) {
        return maps.iter().map(|&map| Map::As(map)).collect();
    }
    let count = |n: usize| channels.iter().filter(|&&other| other == n).count();
    // Of several equally common ones the first.
    let target = channels.iter().rev().copied().max_by_key(|&n| count(n)).unwrap_or(0);
    maps.iter().map(|&map| Map::To(map, target)).collect()
}

fn one(builder: &mut Builder, index: usize, map: Map, anchors: usize) -> Result<(), Error> {
    let config = builder.config;
    let predictor = &config.predictor;
    let map = match map {
        Map::As(map) => map,
        Map::To(map, channels) => {
            let name = format!("{SCOPE}/ProjectionLayer/conv2d_{index}");
            let plain = (own(&predictor.hyperparams), Activation::None);
            builder.conv_with(
                (&name, "weights"),
                map,
                square(1, 1),
                channels,
                &predictor.hyperparams,
                plain,
            )?
        }
    };
    let first = builder.feature_map(map, anchors);
    let (boxes, classes) = if predictor.share_prediction_tower {
        let shared = tower(builder, "PredictionTower", index, map)?;
        (shared, None)
    } else {
        (
            tower(builder, "BoxPredictionTower", index, map)?,
            Some("ClassPredictionTower"),
        )
    };
    let place = (anchors, first);
    head(
        builder,
        "BoxPredictor",
        boxes,
        &[Part::Boxes],
        (4 * anchors, 0.0),
        place,
    )?;
    let mut classes = match classes {
        Some(name) => tower(builder, name, index, map)?,
        None => boxes,
    };
    if let Some(keep) = predictor.dropout_keep {
        classes = builder.dropout(&format!("{SCOPE}/ClassPredictor_dropout_{index}"), classes, keep)?;
    }
    let columns = (config.num_classes + 1) * anchors;
    let outputs = (columns, predictor.class_prediction_bias_init);
    head(builder, "ClassPredictor", classes, &[Part::Classes], outputs, place)
}

/// The towers know batch norm alone: whatever else the settings ask for, the reference gives them biases.
fn own(hyper: &Hyperparams) -> Normaliser<'static> {
    if hyper.batch_norm.is_some() {
        Normaliser::Own
    } else {
        Normaliser::Biases
    }
}

fn tower(builder: &mut Builder, tower: &str, index: usize, map: Source) -> Result<Source, Error> {
    let predictor = &builder.config.predictor;
    let mut last = map;
    for i in 0..predictor.num_layers_before_predictor {
        let name = format!("{SCOPE}/{tower}/conv2d_{i}");
        let scope = format!("{name}/BatchNorm/feature_{index}");
        let after = (Normaliser::Scope(&scope), TOWER);
        let sliding = square(predictor.kernel_size, 1);
        let hyper = &predictor.hyperparams;
        last = if predictor.use_depthwise {
            builder.separable(&name, last, (sliding, 1), predictor.depth, hyper, after)?
        } else {
            builder.conv_with((&name, "weights"), last, sliding, predictor.depth, hyper, after)?
        };
    }
    Ok(last)
}

fn head(
    builder: &mut Builder,
    scope: &str,
    from: Source,
    part: &'static [Part],
    (columns, bias): (usize, f32),
    place: (usize, usize),
) -> Result<(), Error> {
    let predictor = &builder.config.predictor;
    let scope = format!("{SCOPE}/{scope}");
    let outputs = [(scope.as_str(), columns, bias)];
    let kernel = predictor.kernel_size;
    if !predictor.use_depthwise {
        return builder.head(&scope, from, kernel, part, &outputs, "weights", place);
    }
    let linear = builder.linear_depthwise(&scope, from, square(kernel, 1), &predictor.hyperparams)?;
    builder.head(&scope, linear, 1, part, &outputs, "pointwise_weights", place)
}
