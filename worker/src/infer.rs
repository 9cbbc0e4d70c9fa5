//! Detections for whole data sets: the reference's `infer_detections`, shard by shard.

mod shard;

use std::path::{Path, PathBuf};
use std::time::Instant;

use coati_common::tfrecord;
use coati_dataset::decode::Image;
use coati_dataset::example::rewrite::{self, with_detections};
use coati_dataset::example::{self, Extras};
use coati_dataset::shards::pattern;
use coati_detection::Detections;
use serde::Serialize;

use crate::detect::{self, Detector, Files};
use shard::{Claimed, Shard, State};

/// Records that cannot be used, named one by one; the others are counted.
const NAMED: usize = 20;

/// What inference can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model refused.
    #[error(transparent)]
    Detect(#[from] detect::Error),
    /// The paths mean no files.
    #[error(transparent)]
    Pattern(#[from] pattern::Error),
    /// An input's records cannot be told apart any more.
    #[error(transparent)]
    Record(#[from] tfrecord::Error),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// `read`, `write`, `lock`, …
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Input and output are the same file.
    #[error("{}: is an input, too\nhint: --output_tfrecord_path must name another file; inputs are never changed", .0.display())]
    OverInput(PathBuf),
    /// The output is there and was made otherwise.
    #[error("{}: {why}\nhint: choose another --output_tfrecord_path, or make it anew with --overwrite", path.display())]
    Other {
        /// The output.
        path: PathBuf,
        /// What differs.
        why: String,
    },
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files, patterns, `name@3`; an element may list several, separated by commas.
    pub input_tfrecord_paths: Vec<String>,
    /// The output; one of several shards gets `-00000-of-00003` behind it.
    pub output_tfrecord_path: PathBuf,
    /// Leave `image/encoded` out of the output.
    pub discard_image_pixels: bool,
    /// Images that go through the network together.
    pub batch_size: usize,
    /// Make outputs anew that were made otherwise.
    pub overwrite: bool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Outputs made by this run.
    pub made: Vec<PathBuf>,
    /// Outputs that were complete before.
    pub complete: Vec<PathBuf>,
    /// Outputs that another process was making.
    pub elsewhere: Vec<PathBuf>,
    /// Records written by this run.
    pub records: u64,
    /// Detections in them.
    pub detections: u64,
    /// Records without a usable image, which were written as they are; the first of them, in words.
    pub without_image: Vec<String>,
    /// How many there are.
    pub without_image_count: u64,
    /// Records whose bytes are damaged, which were left out, in words.
    pub damaged: Vec<String>,
    /// From the first record to the last.
    pub seconds: f64,
}

/// Hears of a run.
pub trait Watcher {
    /// A shard is begun; `number` counts from 1. `again`: what an earlier run left of it was incomplete.
    fn shard(&mut self, number: usize, shards: usize, path: &Path, again: bool);
    /// So many records of the run are done.
    fn records(&mut self, done: u64);
}

/// The outputs' names: the path itself for one input, shards otherwise.
pub fn outputs(inputs: usize, output: &Path) -> Vec<PathBuf> {
    if inputs == 1 {
        return vec![output.to_owned()];
    }
    let base = output.to_string_lossy();
    (0..inputs)
        .map(|index| pattern::shard_path(&base, index, inputs))
        .collect()
}

/// Makes all outputs that are not complete. Several processes may run the same command, on one disk: each takes shards that nobody else is at.
pub fn run(detector: &mut Detector, options: &Options, watcher: &mut dyn Watcher) -> Result<Report, Error> {
    let begun = Instant::now();
    let inputs = pattern::expand(&options.input_tfrecord_paths)?;
    let outputs = outputs(inputs.len(), &options.output_tfrecord_path);
    let canonical = |path: &PathBuf| {
        if coati_storage::is_remote(path) {
            Some(path.clone())
        } else {
            path.canonicalize().ok()
        }
    };
    let sources: Vec<_> = inputs.iter().filter_map(canonical).collect();
    if let Some(same) = outputs
        .iter()
        .find(|path| canonical(path).is_some_and(|path| sources.contains(&path)))
    {
        return Err(Error::OverInput(same.clone()));
    }
    let digest = detector.digest()?;
    let shards: Vec<Shard> = inputs
        .iter()
        .zip(&outputs)
        .enumerate()
        .map(|(index, (input, output))| {
            let folder = state_folder(&options.output_tfrecord_path);
            Shard::new(
                input,
                output,
                &folder,
                (index, inputs.len()),
                &digest,
                options.discard_image_pixels,
            )
        })
        .collect::<Result<_, _>>()?;
    // What was made otherwise is said before hours are spent on the rest.
    for shard in &shards {
        if let (State::Other(why), false) = (shard.state()?, options.overwrite) {
            return Err(Error::Other {
                path: shard.output().to_owned(),
                why,
            });
        }
    }
    let mut report = Report::default();
    for (index, shard) in shards.iter().enumerate() {
        let path = shard.output().to_owned();
        match shard.claim()? {
            Claimed::Complete => report.complete.push(path),
            Claimed::Elsewhere => report.elsewhere.push(path),
            Claimed::Ours { writer, again } => {
                watcher.shard(index + 1, shards.len(), &path, again);
                make(detector, options, shard, writer, &mut report, watcher)?;
                report.made.push(path);
            }
        }
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Where a run keeps what it knows of its shards, and shards that are not complete.
fn state_folder(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".infer");
    name.into()
}

fn make(
    detector: &mut Detector,
    options: &Options,
    shard: &Shard,
    mut writer: shard::Writer,
    report: &mut Report,
    watcher: &mut dyn Watcher,
) -> Result<(), Error> {
    let reader = tfrecord::Reader::open(shard.input())?;
    let records = reader.enumerate().map(|(number, record)| Record { number, record });
    let before = report.records;
    let discard = options.discard_image_pixels;
    let mut take = |record: Record, outcome: Result<(Image, Detections), String>| -> Result<(), Error> {
        let place = format!("{}: record {}", shard.input().display(), record.number);
        let bytes = match record.record {
            Ok(bytes) => bytes,
            // The next record can be found all the same.
            Err(error) if error.is_local() => {
                report.damaged.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let made = match outcome {
            Ok((_, found)) => {
                report.detections += found.len() as u64;
                with_detections(&bytes, &stored(&found), discard).map_err(|error| error.to_string())
            }
            Err(error) => Err(error),
        };
        let made = made.unwrap_or_else(|error| {
            report.without_image_count += 1;
            if report.without_image.len() < NAMED {
                report.without_image.push(format!("{place}: {error}"));
            }
            bytes
        });
        writer.write(&made)?;
        report.records += 1;
        Ok(())
    };
    let mut done = before;
    let channels = detector.fit().additional_channels;
    let read = |record: &Record| record.image(channels);
    detector.run(records, options.batch_size, read, &mut |record, outcome| {
        take(record, outcome)?;
        done += 1;
        watcher.records(done);
        Ok::<(), Error>(())
    })?;
    writer.finish(shard)
}

struct Record {
    number: usize,
    record: Result<Vec<u8>, tfrecord::Error>,
}

impl Record {
    /// The files of its image; with so many additional channels.
    fn image(&self, channels: usize) -> Result<Files, String> {
        let record = self.record.as_ref().map_err(ToString::to_string)?;
        let extras = Extras {
            additional_channels: channels,
            ..Extras::default()
        };
        let found = example::images(record, &extras).map_err(|error| error.to_string())?;
        Ok(Files {
            image: found.0.to_vec(),
            channels: found.1.into_iter().map(<[u8]>::to_vec).collect(),
        })
    }
}

fn stored(found: &Detections) -> rewrite::Detections {
    rewrite::Detections {
        boxes: found.boxes.clone(),
        labels: found.classes.iter().map(|&class| class as i64 + 1).collect(),
        scores: found.scores.clone(),
    }
}
