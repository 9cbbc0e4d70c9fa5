//! `coati data inspect`: a set's statistics, or one record with its picture.

use std::collections::BTreeMap;

use anyhow::Context as _;
use coati_common::label_map::LabelMap;
use coati_dataset::decode::{self, Decoder};
use coati_dataset::example::{self, Classes};
use coati_dataset::shards::Source;
use coati_evaluation::draw::{Label, draw_boxes};
use serde_json::json;

use crate::args::{Format, InspectArgs};
use crate::console::{report, say};
use crate::failure::Failure;

/// Bad records that are listed one by one; the rest is counted.
const LISTED: usize = 20;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.input_path)?;
    let classes = match &args.label_map_path {
        Some(path) => Classes::from(&LabelMap::load(path)?),
        None => Classes::numbered(usize::from(u16::MAX)),
    };
    let options = example::Options { classes, strict: false };
    match args.record {
        Some(record) => one(args, &source, record, &options),
        None => all(args, &source, &options),
    }
}

fn all(args: &InspectArgs, source: &Source, options: &example::Options) -> anyhow::Result<()> {
    let mut decoder = Decoder::new(decode::Options::default());
    let mut boxes: BTreeMap<i64, u64> = BTreeMap::new();
    let mut sizes: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let (mut bad, mut empty, mut smallest, mut largest) = (Vec::new(), 0_u64, f32::MAX, 0.0_f32);
    for number in 0..source.record_count() {
        let place = source.location(number);
        let record = match source.read(number) {
            Ok(record) => record,
            Err(error) => {
                // It names the place itself.
                bad.push(error.to_string());
                continue;
            }
        };
        match example::decode(&record, options) {
            Ok(annotated) => {
                if let Err(error) = decoder.size(annotated.image) {
                    bad.push(format!("{place}: {error}"));
                }
                *sizes.entry((annotated.width, annotated.height)).or_default() += 1;
                empty += u64::from(annotated.objects.is_empty());
                for (class, bounds) in annotated.objects.classes.iter().zip(&annotated.objects.boxes) {
                    *boxes.entry(class + 1).or_default() += 1;
                    let area = (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]);
                    smallest = smallest.min(area.sqrt());
                    largest = largest.max(area.sqrt());
                }
                bad.extend(annotated.bad_objects.iter().map(|object| format!("{place}: {object}")));
            }
            Err(error) => bad.push(format!("{place}: {error}")),
        }
    }
    let named = |id: i64| options.classes.title(id);
    match args.format {
        Format::Json => {
            let classes: serde_json::Map<_, _> = boxes.iter().map(|(&id, &count)| (named(id), count.into())).collect();
            let sizes: Vec<_> = sizes
                .iter()
                .map(|(&(w, h), &count)| json!({"width": w, "height": h, "images": count}))
                .collect();
            let files: Vec<_> = source.files().map(|path| path.display().to_string()).collect();
            let data = json!({"records": source.record_count(), "files": files, "digest": source.digest(), "boxes": classes,
                "images_without_boxes": empty, "image_sizes": sizes, "bad": bad});
            report(&serde_json::to_string(&data).context("the statistics")?);
        }
        Format::Text => {
            report(&format!(
                "{} records in {} file(s), {empty} without boxes",
                source.record_count(),
                source.files().len()
            ));
            for (&id, count) in &boxes {
                report(&format!("{count:>8} {}", named(id)));
            }
            if largest > 0.0 {
                report(&format!(
                    "box sizes (root of the area, 1 is the image): {smallest:.3} to {largest:.3}"
                ));
            }
            let mut common: Vec<_> = sizes.into_iter().collect();
            common.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
            for ((width, height), count) in common.iter().take(5) {
                report(&format!("{count:>8} images of {width}x{height}"));
            }
            for problem in bad.iter().take(LISTED) {
                say(&format!("warning: {problem}"));
            }
            if bad.len() > LISTED {
                say(&format!("warning: and {} more", bad.len() - LISTED));
            }
        }
    }
    Ok(())
}

fn one(args: &InspectArgs, source: &Source, number: u64, options: &example::Options) -> anyhow::Result<()> {
    let record = source.read(number)?;
    let place = source.location(number);
    let annotated = example::decode(&record, options).map_err(|error| Failure::user(format!("{place}: {error}")))?;
    let name = |class: i64| options.classes.title(class + 1);
    let objects: Vec<_> = annotated
        .objects
        .boxes
        .iter()
        .zip(&annotated.objects.classes)
        .map(|(bounds, &class)| json!({"class": name(class), "id": class + 1, "box": bounds}))
        .collect();
    match args.format {
        Format::Json => {
            let data = json!({"file": place.file.display().to_string(), "record": place.record, "filename": annotated.filename,
                "source_id": annotated.source_id, "format": annotated.format, "width": annotated.width, "height": annotated.height,
                "image_bytes": annotated.image.len(), "objects": objects,
                "bad": annotated.bad_objects.iter().map(ToString::to_string).collect::<Vec<_>>()});
            report(&serde_json::to_string(&data).context("the record")?);
        }
        Format::Text => {
            report(&format!(
                "{place}: {} ({} {}x{}, {} bytes)",
                annotated.filename,
                annotated.format,
                annotated.width,
                annotated.height,
                annotated.image.len()
            ));
            for (bounds, &class) in annotated.objects.boxes.iter().zip(&annotated.objects.classes) {
                let [ymin, xmin, ymax, xmax] = bounds;
                report(&format!(
                    "  {}: ymin {ymin:.4} xmin {xmin:.4} ymax {ymax:.4} xmax {xmax:.4}",
                    name(class)
                ));
            }
            for object in &annotated.bad_objects {
                say(&format!("warning: {object}"));
            }
        }
    }
    if let Some(path) = &args.picture {
        let image = Decoder::new(decode::Options::default()).decode(annotated.image)?;
        let (height, width) = (image.height, image.width);
        let mut picture = image::RgbImage::from_raw(width as u32, height as u32, image.pixels)
            .context("the decoded image has another size than it says")?;
        let labels: Vec<Label> = annotated
            .objects
            .boxes_px(height, width)
            .into_iter()
            .zip(&annotated.objects.classes)
            .map(|(box_px, &class)| Label {
                box_px,
                text: name(class),
                colour: class as usize + 1,
            })
            .collect();
        draw_boxes(&mut picture, &labels);
        picture
            .save(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        say(&format!("picture: {}", path.display()));
    }
    Ok(())
}
