//! Every sample configuration is built as it is, and run for two steps with thin layers and small images.

use std::path::Path;

use coati_common::config::PipelineConfig;
use coati_detection::Groundtruth;
use coati_detection::config;
use coati_detection::model::{Options, Ssd};
use coati_detection::network::plan::plan;
use coati_proto::object_detection::protos::{DetectionModel, detection_model, image_resizer};

fn options() -> Options {
    Options {
        threads: Some(2),
        ..Options::default()
    }
}

/// The model at a fraction of its depth and size, where it may have another.
fn small(mut model: DetectionModel) -> DetectionModel {
    let Some(detection_model::Model::Ssd(ssd)) = &mut model.model else {
        panic!("no ssd");
    };
    ssd.num_classes = Some(2);
    let extractor = ssd.feature_extractor.as_mut().unwrap();
    let name = extractor.r#type().to_owned();
    let side = if name.starts_with("embedded") { 256 } else { 160 };
    if !name.ends_with("_ppn") || name.contains("mobilenet") {
        extractor.depth_multiplier = Some(0.125);
        extractor.min_depth = Some(8);
    }
    extractor.pad_to_multiple = Some(if name.ends_with("_fpn") { 32 } else { 1 });
    let resizer = ssd.image_resizer.as_mut().unwrap();
    let Some(image_resizer::ImageResizerOneof::FixedShapeResizer(fixed)) = &mut resizer.image_resizer_oneof else {
        panic!("no fixed_shape_resizer");
    };
    (fixed.height, fixed.width) = (Some(side), Some(side));
    model
}

fn two_steps(model: &DetectionModel, name: &str) {
    let mut ssd = Ssd::new(model, &options()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (height, width) = ssd.input_size();
    let images: Vec<f32> = (0..height * width * 3)
        .map(|i| (i as u64 * 2_654_435_761 % 256) as f32)
        .collect();
    let truth = [Groundtruth {
        source_id: "a.jpg".to_owned(),
        boxes: vec![[0.1, 0.1, 0.6, 0.7]],
        classes: vec![1],
        weights: Vec::new(),
    }];
    let mut params = ssd.init_values(1);
    let mut gradients = vec![f32::NAN; params.len()];
    for step in 0..2 {
        let losses = ssd.train_step(&params, &images, &truth, &mut gradients).unwrap();
        assert!(
            losses.total.is_finite() && losses.classification > 0.0,
            "{name} step {step}: {losses:?}"
        );
        assert!(gradients.iter().all(|g| g.is_finite()), "{name} step {step}");
        let mut at = 0;
        for spec in ssd.variables() {
            let range = at..at + spec.elements();
            at = range.end;
            if spec.kind == coati_common::variables::VariableKind::Trainable {
                params[range.clone()]
                    .iter_mut()
                    .zip(&gradients[range])
                    .for_each(|(p, g)| *p -= 1e-4 * g);
            }
        }
    }
    assert!(gradients.iter().any(|&g| g != 0.0), "{name}");
}

#[test]
fn every_sample_configuration_is_built_and_runs() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs"));
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "config"))
        .collect();
    files.sort();
    let mut extractors = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let model = PipelineConfig::load(&file).unwrap().proto.model.unwrap();
        let ssd = config::ssd(&model).unwrap();
        let generator = config::anchor_generator(ssd.anchor_generator.as_ref()).unwrap();
        let network_options = config::NetworkOptions {
            regularization: true,
            threads: Some(1),
        };
        let network = config::network(ssd, generator.anchors_per_location().unwrap(), network_options)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let whole = plan(&network).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = config::image_size(ssd).unwrap();
        let anchors = generator.generate(&whole.feature_maps, size).unwrap();
        assert_eq!(anchors.len(), whole.anchors, "{name}");
        extractors.push(network.extractor);
        two_steps(&small(model), &name);
    }
    for extractor in coati_detection::network::extractors::ALL {
        assert!(
            extractors.iter().any(|name| name == extractor.name),
            "no sample of {}",
            extractor.name
        );
    }
}
