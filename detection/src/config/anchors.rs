//! `anchor_generator`

use super::{Error, count, missing, require};
use crate::anchors::{Flexible, Generator, Grid, Level, Multiscale, Ssd};
use coati_proto::object_detection::protos as pb;
use coati_proto::object_detection::protos::anchor_generator::AnchorGeneratorOneof;

/// The generator that a message describes.
pub fn anchor_generator(message: Option<&pb::AnchorGenerator>) -> Result<Generator, Error> {
    const FIELD: &str = "anchor_generator";
    let generator = message.and_then(|message| message.anchor_generator_oneof.as_ref());
    match generator.ok_or_else(|| missing(FIELD, "ssd_anchor_generator { … }"))? {
        AnchorGeneratorOneof::SsdAnchorGenerator(ssd) => Ok(Generator::Ssd(from_ssd(ssd)?)),
        AnchorGeneratorOneof::MultiscaleAnchorGenerator(multiscale) => {
            Ok(Generator::Multiscale(from_multiscale(multiscale)?))
        }
        AnchorGeneratorOneof::GridAnchorGenerator(grid) => Ok(Generator::Grid(Grid {
            scales: grid.scales.clone(),
            aspect_ratios: grid.aspect_ratios.clone(),
            base: (grid.height() as f32, grid.width() as f32),
            stride: (grid.height_stride() as f32, grid.width_stride() as f32),
            offset: (grid.height_offset() as f32, grid.width_offset() as f32),
        })),
        AnchorGeneratorOneof::FlexibleGridAnchorGenerator(flexible) => Ok(Generator::Flexible(Flexible {
            levels: flexible.anchor_grid.iter().map(level).collect(),
            normalize_coordinates: flexible.normalize_coordinates(),
        })),
    }
}

fn level(grid: &pb::AnchorGrid) -> Level {
    Level {
        base_sizes: grid.base_sizes.clone(),
        aspect_ratios: grid.aspect_ratios.clone(),
        stride: (grid.height_stride() as f32, grid.width_stride() as f32),
        offset: (grid.height_offset() as f32, grid.width_offset() as f32),
    }
}

fn from_ssd(ssd: &pb::SsdAnchorGenerator) -> Result<Ssd, Error> {
    Ok(Ssd {
        num_layers: count(ssd.num_layers(), "ssd_anchor_generator.num_layers")?,
        min_scale: ssd.min_scale(),
        max_scale: ssd.max_scale(),
        scales: ssd.scales.clone(),
        aspect_ratios: ssd.aspect_ratios.clone(),
        interpolated_scale_aspect_ratio: ssd.interpolated_scale_aspect_ratio(),
        reduce_boxes_in_lowest_layer: ssd.reduce_boxes_in_lowest_layer(),
        base_anchor: (ssd.base_anchor_height(), ssd.base_anchor_width()),
        strides: pairs(
            &ssd.height_stride,
            &ssd.width_stride,
            "ssd_anchor_generator.width_stride",
        )?,
        offsets: pairs(
            &ssd.height_offset,
            &ssd.width_offset,
            "ssd_anchor_generator.width_offset",
        )?,
    })
}

fn from_multiscale(multiscale: &pb::MultiscaleAnchorGenerator) -> Result<Multiscale, Error> {
    let level = |value: i32, field| count(value, field).map(|level| level as u32);
    Ok(Multiscale {
        min_level: level(multiscale.min_level(), "multiscale_anchor_generator.min_level")?,
        max_level: level(multiscale.max_level(), "multiscale_anchor_generator.max_level")?,
        anchor_scale: multiscale.anchor_scale(),
        aspect_ratios: multiscale.aspect_ratios.clone(),
        scales_per_octave: level(
            multiscale.scales_per_octave(),
            "multiscale_anchor_generator.scales_per_octave",
        )?,
        normalize_coordinates: multiscale.normalize_coordinates(),
    })
}

fn pairs(heights: &[i32], widths: &[i32], field: &'static str) -> Result<Vec<(i32, i32)>, Error> {
    let expected = "as many as for the height";
    require(
        heights.len() == widths.len(),
        field,
        format!("{} values", widths.len()),
        expected,
    )?;
    Ok(heights.iter().copied().zip(widths.iter().copied()).collect())
}
