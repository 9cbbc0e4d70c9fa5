//! `coati data inspect`: a set's statistics, or one record with its picture.

mod anchors;
mod sizes;

use std::collections::BTreeMap;

use anyhow::Context as _;
use coati_common::label_map::LabelMap;
use coati_dataset::decode::{self, Decoder};
use coati_dataset::example::wire::{Features, Values};
use coati_dataset::example::{self, Classes};
use coati_dataset::shards::Source;
use coati_evaluation::draw::{self, Label, draw_boxes};
use serde_json::json;

use crate::args::{Format, InspectArgs};
use crate::console::{report, say};
use crate::failure::Failure;

/// Of pictures whose name ends in .jpg; all others are PNG.
const JPEG_QUALITY: u8 = 92;
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
    let mut with_class: BTreeMap<i64, u64> = BTreeMap::new();
    let mut areas = sizes::Sizes::default();
    let mut match_up = args
        .pipeline_config_path
        .as_deref()
        .map(anchors::MatchUp::new)
        .transpose()?;
    let (mut bad, mut empty) = (Vec::new(), 0_u64);
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
                let mut here: Vec<i64> = annotated.objects.classes.iter().map(|class| class + 1).collect();
                for (class, bounds) in here.iter().zip(&annotated.objects.boxes) {
                    *boxes.entry(*class).or_default() += 1;
                    areas.add(*bounds, annotated.height, annotated.width);
                }
                if let Some(match_up) = &mut match_up {
                    match_up.add(&place, &annotated.objects.boxes, &here);
                }
                here.sort_unstable();
                here.dedup();
                for class in here {
                    *with_class.entry(class).or_default() += 1;
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
            let images: serde_json::Map<_, _> = with_class
                .iter()
                .map(|(&id, &count)| (named(id), count.into()))
                .collect();
            let data = json!({"records": source.record_count(), "files": files, "digest": source.digest(), "boxes": classes,
                "images_of_class": images, "images_without_boxes": empty, "image_sizes": sizes, "box_sizes": areas.json(),
                "anchors": match_up.as_ref().map(|match_up| match_up.json(&named)), "bad": bad});
            report(&serde_json::to_string(&data).context("the statistics")?);
        }
        Format::Text => {
            report(&format!(
                "{} records in {} file(s), {empty} without boxes",
                source.record_count(),
                source.files().len()
            ));
            let all = boxes.values().sum::<u64>().max(1) as f64;
            for (&id, &count) in &boxes {
                let images = with_class.get(&id).copied().unwrap_or(0);
                let share = 100.0 * count as f64 / all;
                report(&format!(
                    "{count:>8} {} ({share:.1} % of the boxes, in {images} images)",
                    named(id)
                ));
            }
            for line in areas.text() {
                report(&line);
            }
            for line in match_up.iter().flat_map(|match_up| match_up.text(&named)) {
                report(&line);
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
    let features = Features::parse(&record).map_err(|error| Failure::user(format!("{place}: {error}")))?;
    match args.format {
        Format::Json => {
            let fields: serde_json::Map<_, _> = features
                .all()
                .into_iter()
                .map(|(name, values)| (name.to_owned(), json!({"kind": values.kind(), "values": values.len()})))
                .collect();
            let data = json!({"file": place.file.display().to_string(), "record": place.record, "filename": annotated.filename,
                "source_id": annotated.source_id, "format": annotated.format, "width": annotated.width, "height": annotated.height,
                "image_bytes": annotated.image.len(), "objects": objects, "fields": fields,
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
            report("fields:");
            for (name, values) in features.all() {
                report(&format!(
                    "  {name}: {} x {}: {}",
                    values.len(),
                    values.kind(),
                    shown(&values)
                ));
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
        let is_jpeg = path
            .extension()
            .is_some_and(|ending| ["jpg", "jpeg"].iter().any(|jpeg| ending.eq_ignore_ascii_case(jpeg)));
        let bytes = if is_jpeg {
            draw::jpeg(&picture, JPEG_QUALITY)
        } else {
            draw::png(&picture)
        };
        let written = bytes
            .context("the picture cannot be encoded")
            .and_then(|bytes| Ok(coati_storage::write(path, &bytes)?));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        say(&format!("picture: {}", path.display()));
    }
    Ok(())
}

/// The first values of a feature, as short as a line wants them.
fn shown(values: &Values) -> String {
    const FIRST: usize = 6;
    let (mut texts, all): (Vec<String>, usize) = match values {
        Values::Bytes(list) => (list.iter().take(FIRST).map(|bytes| text(bytes)).collect(), list.len()),
        Values::Floats(list) => (
            list.iter().take(FIRST).map(|value| format!("{value:.4}")).collect(),
            list.len(),
        ),
        Values::Ints(list) => (list.iter().take(FIRST).map(ToString::to_string).collect(), list.len()),
    };
    if all > FIRST {
        texts.push("…".to_owned());
    }
    texts.join(", ")
}

/// Text as it is, other bytes by their number.
fn text(bytes: &[u8]) -> String {
    const LONGEST: usize = 80;
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= LONGEST && !text.chars().any(char::is_control) => format!("{text:?}"),
        _ => format!("({} bytes)", bytes.len()),
    }
}
