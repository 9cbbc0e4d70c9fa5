//! Anchor generators.

use coati_detection::config::anchor_generator;
use coati_proto::object_detection::protos::AnchorGenerator;

use crate::golden::{Npz, close, fixture, parse};

#[test]
fn every_generator_places_the_reference_s_anchors() {
    let text = std::fs::read_to_string(fixture("components/anchors.json")).unwrap();
    let cases: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut npz = Npz::component("anchors");
    assert_eq!(cases.len(), 12);
    for (name, case) in &cases {
        let message: AnchorGenerator = parse("AnchorGenerator", case["config"].as_str().unwrap());
        let size = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let maps: Vec<_> = case["feature_map_shapes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|shape| (size(&shape[0]), size(&shape[1])))
            .collect();
        let generator = anchor_generator(Some(&message)).unwrap();
        let anchors = generator
            .generate(&maps, (size(&case["im_height"]), size(&case["im_width"])))
            .unwrap();
        let pixels = name.starts_with("grid") || name.ends_with("pixels");
        close(
            name,
            anchors.as_flattened(),
            &npz.floats(name),
            0.0,
            if pixels { 1e-3 } else { 1e-6 },
        );
        let counted: usize = generator
            .anchors_per_location()
            .unwrap()
            .iter()
            .zip(&maps)
            .map(|(per, (h, w))| per * h * w)
            .sum();
        assert_eq!(counted, anchors.len(), "{name}");
    }
}
