//! `embedded_ssd_mobilenet_v1`: MobileNet v1 for 256 x 256 pixels, whose last feature map is one pixel.

use super::super::builder::Builder;
use super::super::error::Error;
use super::super::plan::Source;
use super::extra_maps::{self, Extra};
use super::{Extractor, mobilenet_v1};

/// The reference's `EmbeddedSSDMobileNetV1FeatureExtractor`.
pub(super) const SSD: Extractor = Extractor {
    name: "embedded_ssd_mobilenet_v1",
    maps: 2..=5,
    build: ssd,
    ..mobilenet_v1::SSD
};

const EXTRAS: [Extra; 3] = [(512, 3), (256, 3), (256, 2)];

fn ssd(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let config = builder.config;
    let refused = |setting, value: String, expected| {
        Err(Error::Setting {
            setting,
            value,
            expected,
        })
    };
    if (config.image_height, config.image_width) != (256, 256) {
        let value = format!("{} x {}", config.image_height, config.image_width);
        return refused("image_resizer", value, "256 x 256 for embedded_ssd_mobilenet_v1");
    }
    if config.pad_to_multiple != 1 {
        let value = config.pad_to_multiple.to_string();
        return refused("pad_to_multiple", value, "1 for embedded_ssd_mobilenet_v1");
    }
    let outputs = mobilenet_v1::base(builder, (1024, 1024))?;
    let maps = vec![outputs[11], outputs[13]];
    extra_maps::add(builder, (mobilenet_v1::SCOPE, "Conv2d_13_pointwise"), maps, &EXTRAS)
}
