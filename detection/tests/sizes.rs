//! Images of many sizes: a detector laid out again is the detector made for that size.

use coati_detection::Groundtruth;
use coati_detection::accelerator::Device;
use coati_detection::config;
use coati_detection::model::{Error, Options, Ssd};
use coati_proto::object_detection::protos::{DetectionModel, detection_model};

use crate::golden::{model, parse};

fn with(resizer: &str) -> DetectionModel {
    let mut model = model("train_step/pipeline.config");
    if let Some(detection_model::Model::Ssd(ssd)) = &mut model.model {
        ssd.image_resizer = Some(parse("ImageResizer", resizer));
    }
    model
}

fn built(resizer: &str) -> Result<Ssd, Error> {
    let options = Options {
        threads: Some(2),
        device: Device::Cpu,
        ..Options::default()
    };
    Ssd::new(&with(resizer), &options)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_first_size_is_one_that_images_may_have() {
    for (resizer, size) in [
        ("fixed_shape_resizer { height: 90 width: 70 }", (90, 70)),
        (
            "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 96 }",
            (96, 96),
        ),
        (
            "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 96 pad_to_max_dimension: true }",
            (96, 96),
        ),
        ("identity_resizer { }", (300, 300)),
        ("conditional_shape_resizer { size_threshold: 80 }", (80, 80)),
        (
            "conditional_shape_resizer { condition: SMALLER size_threshold: 80 }",
            (300, 300),
        ),
        ("pad_to_multiple_resizer { multiple: 128 }", (384, 384)),
    ] {
        let model = with(resizer);
        assert_eq!(config::image_size(config::ssd(&model).unwrap()), Ok(size), "{resizer}");
        assert_eq!(built(resizer).unwrap().input_size(), size, "{resizer}");
    }
    let small = built("conditional_shape_resizer { size_threshold: 32 }").unwrap_err();
    assert!(
        small.to_string().contains("32 x 32: each side must be at least 33"),
        "{small}"
    );
}

#[test]
fn sizes_that_change_give_the_bits_of_detectors_made_for_them() {
    let mut many = built("identity_resizer { }").unwrap();
    let params = many.init_values(1);
    let truth = [Groundtruth {
        source_id: "a.jpg".to_owned(),
        boxes: vec![[0.1, 0.1, 0.6, 0.7]],
        classes: vec![2],
        weights: Vec::new(),
    }];
    for (height, width) in [(64, 96), (150, 70), (33, 40), (64, 96)] {
        let mut one = built(&format!("fixed_shape_resizer {{ height: {height} width: {width} }}")).unwrap();
        many.set_input_size((height, width)).unwrap();
        assert_eq!(many.input_size(), (height, width));
        assert_eq!((many.variables(), many.anchors()), (one.variables(), one.anchors()));
        assert_eq!(bits(&many.init_values(1)), bits(&one.init_values(1)));
        let images: Vec<f32> = (0..height * width * 3).map(|i| ((i * 7919) % 256) as f32).collect();
        let (mut expected, mut found) = (vec![f32::NAN; params.len()], vec![f32::NAN; params.len()]);
        assert_eq!(
            many.train_step(&params, &images, &truth, &mut found).unwrap(),
            one.train_step(&params, &images, &truth, &mut expected).unwrap()
        );
        assert!(bits(&found) == bits(&expected), "gradients at {height} x {width}");
        assert_eq!(
            many.evaluate(&params, &images, &truth).unwrap(),
            one.evaluate(&params, &images, &truth).unwrap()
        );
        assert_eq!(
            many.detect(&params, &images).unwrap(),
            one.detect(&params, &images).unwrap()
        );
    }
    // What there is no network for changes nothing.
    for size in [(20, 96), (64, 1 << 15), (0, 0)] {
        assert!(many.set_input_size(size).unwrap_err().is_of_size());
    }
    assert_eq!(many.input_size(), (64, 96));
    let short = many.detect(&params, &[0.0; 3]).unwrap_err();
    assert!(!short.is_of_size(), "{short}");
    assert_eq!(many.detect(&params, &vec![7.0; 64 * 96 * 3]).unwrap().len(), 1);
}
