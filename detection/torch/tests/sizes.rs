//! A session laid out for another size computes what one opened for it does.

use std::path::Path;

use coati_common::config::PipelineConfig;
use coati_detection::Groundtruth;
use coati_detection::accelerator::Device;
use coati_detection::model::{Options, Ssd};

use super::apart;

fn built(resizer: &str, hard: bool) -> Ssd {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/golden/train_step/pipeline.config"
    ));
    let text = std::fs::read_to_string(path).unwrap();
    let (before, after) = text.split_once("fixed_shape_resizer {").unwrap();
    let mut text = format!("{before}{resizer}{}", after.split_once('}').unwrap().1);
    if !hard {
        // Without it the losses are computed on the device.
        let (before, after) = text.split_once("hard_example_miner {").unwrap();
        text = format!("{before}{}", after.split_once('}').unwrap().1);
    }
    let config = PipelineConfig::parse(&text, "pipeline.config").unwrap();
    let options = Options {
        threads: Some(2),
        device: Device::TorchCpu,
        ..Options::default()
    };
    Ssd::new(config.model().unwrap(), &options).unwrap()
}

#[test]
fn sizes_that_change() {
    for hard in [true, false] {
        let mut many = built("identity_resizer { }", hard);
        let params = many.init_values(1);
        let truth = [Groundtruth {
            source_id: "a.jpg".to_owned(),
            boxes: vec![[0.1, 0.1, 0.6, 0.7]],
            classes: vec![2],
            weights: Vec::new(),
        }];
        for (height, width) in [(64, 96), (150, 70), (64, 96)] {
            let mut one = built(
                &format!("fixed_shape_resizer {{ height: {height} width: {width} }}"),
                hard,
            );
            many.set_input_size((height, width)).unwrap();
            assert_eq!(many.device(), Device::TorchCpu);
            let images: Vec<f32> = (0..height * width * 3).map(|i| ((i * 7919) % 256) as f32).collect();
            let (mut expected, mut found) = (vec![f32::NAN; params.len()], vec![f32::NAN; params.len()]);
            let losses = [
                many.train_step(&params, &images, &truth, &mut found).unwrap(),
                one.train_step(&params, &images, &truth, &mut expected).unwrap(),
            ];
            assert!((losses[0].total - losses[1].total).abs() < 1e-4, "{losses:?}");
            assert!(apart(&found, &expected) < 1e-4);
            let found = many.detect(&params, &images).unwrap();
            assert_eq!(found.len(), one.detect(&params, &images).unwrap().len());
        }
        assert!(many.set_input_size((64, 20)).unwrap_err().is_of_size());
        // A picture of the size before still goes through.
        assert_eq!(many.detect(&params, &vec![7.0; 64 * 96 * 3]).unwrap().len(), 1);
    }
}
