//! A set's boxes against the anchors of a model: which of them no anchor can match.

use std::collections::BTreeMap;
use std::path::Path;

use coati_common::config::PipelineConfig;
use coati_dataset::shards::Location;
use coati_detection::matcher::Matcher;
use coati_detection::similarity::iou_matrix;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Boxes that are listed one by one.
const LISTED: usize = 20;

/// Anchors, and what has been compared with them.
pub(super) struct MatchUp {
    config: String,
    anchors: Vec<[f32; 4]>,
    /// (height, width) in pixels of the images that these are the anchors of, where `image_resizer` leaves others too.
    some_size: Option<(usize, usize)>,
    /// An anchor is trained on a box from this overlap on.
    threshold: f32,
    forced: bool,
    /// Of each class: boxes, those below the threshold, and the sum of the best overlaps.
    classes: BTreeMap<i64, (u64, u64, f64)>,
    listed: Vec<(String, i64, [f32; 4], f32)>,
}

impl MatchUp {
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        let config = PipelineConfig::load(path)?;
        let ssd = config.ssd().ok_or_else(|| {
            Failure::user(format!(
                "{}: no model with anchors\nhint: give a pipeline.config of an SSD",
                path.display()
            ))
        })?;
        let (threshold, forced) = match coati_detection::config::matcher(ssd)? {
            Matcher::ArgMax(matcher) => (
                matcher.thresholds.map_or(0.0, |thresholds| thresholds.matched),
                matcher.force_match_for_each_row,
            ),
            // Each box takes an anchor, whatever they have in common.
            Matcher::Bipartite => (0.0, true),
        };
        let model = coati_worker::model::build(&config, Some(1))?;
        let many_sizes = coati_worker::input::fit_options(&config, &model)?.many_sizes();
        Ok(Self {
            config: path.display().to_string(),
            anchors: model.anchors().to_vec(),
            some_size: many_sizes.then(|| model.input_size()),
            threshold,
            forced,
            classes: BTreeMap::new(),
            listed: Vec::new(),
        })
    }

    /// The boxes of a record and their classes, counted from 1.
    pub(super) fn add(&mut self, place: &Location, boxes: &[[f32; 4]], classes: &[i64]) {
        let overlaps = iou_matrix(boxes, &self.anchors);
        let rows = overlaps.chunks(self.anchors.len().max(1));
        for (index, ((row, bounds), &class)) in rows.zip(boxes).zip(classes).enumerate() {
            let best = row.iter().copied().fold(0.0, f32::max);
            let entry = self.classes.entry(class).or_default();
            entry.0 += 1;
            entry.2 += f64::from(best);
            if best < self.threshold {
                entry.1 += 1;
                if self.listed.len() < LISTED {
                    self.listed
                        .push((format!("{place}: object {index}"), class, *bounds, best));
                }
            }
        }
    }

    fn totals(&self) -> (u64, u64) {
        let classes = self.classes.values();
        classes.fold((0, 0), |(all, none), entry| (all + entry.0, none + entry.1))
    }

    /// The anchors' least and largest root of the area.
    fn range(&self) -> (f32, f32) {
        let roots = self
            .anchors
            .iter()
            .map(|[ymin, xmin, ymax, xmax]| ((ymax - ymin) * (xmax - xmin)).sqrt());
        roots.fold((f32::MAX, 0.0), |(least, most), root| (least.min(root), most.max(root)))
    }

    pub(super) fn json(&self, named: &dyn Fn(i64) -> String) -> Value {
        let (boxes, unmatched) = self.totals();
        let (least, most) = self.range();
        let classes: serde_json::Map<_, _> = self
            .classes
            .iter()
            .map(|(&class, &(boxes, unmatched, sum))| {
                let mean = sum / boxes.max(1) as f64;
                (
                    named(class),
                    json!({"boxes": boxes, "unmatched": unmatched, "mean_best_iou": mean}),
                )
            })
            .collect();
        let listed: Vec<_> = self
            .listed
            .iter()
            .map(|(place, class, bounds, best)| json!({"object": place, "class": named(*class), "box": bounds, "best_iou": best}))
            .collect();
        json!({"anchors": self.anchors.len(), "matched_threshold": self.threshold, "force_match_for_each_row": self.forced,
            "some_size": self.some_size.map(|(height, width)| [height, width]), "smallest_anchor": least, "largest_anchor": most, "boxes": boxes, "unmatched": unmatched, "classes": classes,
            "first_unmatched": listed})
    }

    pub(super) fn text(&self, named: &dyn Fn(i64) -> String) -> Vec<String> {
        let (boxes, unmatched) = self.totals();
        let (least, most) = self.range();
        let mut lines = vec![format!(
            "{}: {} anchors, sizes {least:.3} to {most:.3}; {unmatched} of {boxes} boxes overlap none of them by {} (matched_threshold){}",
            self.config,
            self.anchors.len(),
            self.threshold,
            if self.forced {
                ": only the one best anchor is trained on each of these"
            } else {
                ": no anchor is trained on them"
            }
        )];
        if let Some((height, width)) = self.some_size {
            lines.push(format!(
                "  image_resizer leaves images of many sizes, each with anchors of its own: these are those of {height} x {width} pixels"
            ));
        }
        for (&class, &(boxes, unmatched, sum)) in &self.classes {
            let mean = sum / boxes.max(1) as f64;
            lines.push(format!(
                "{unmatched:>8} of {boxes} {}, mean of the best overlaps {mean:.2}",
                named(class)
            ));
        }
        for (place, class, [ymin, xmin, ymax, xmax], best) in &self.listed {
            lines.push(format!(
                "  {place} ({}): {:.3} x {:.3} (width x height), best overlap {best:.2}",
                named(*class),
                xmax - xmin,
                ymax - ymin
            ));
        }
        lines
    }
}
