//! Detections for whole data sets: the reference's `infer_detections`, shard by shard.

mod shard;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use coati_common::tfrecord;
use coati_dataset::decode::Image;
use coati_dataset::example::rewrite::{self, with_detections};
use coati_dataset::example::{self, Extras};
use coati_dataset::shards::pattern;
use coati_detection::Detections;
use serde::Serialize;

use crate::detect::{self, Detector, Files};
use shard::{Claimed, Counts, Shard, State};

/// Records that cannot be used, named one by one; the others are counted.
const NAMED: usize = 20;
/// How often a shard that another process is at is looked at; in a bucket a look is some requests.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOK_EVERY_REMOTE: Duration = Duration::from_secs(2);
/// A process that writes nothing for so long hangs.
const STUCK_AFTER: Duration = Duration::from_secs(600);

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
    /// Whoever is at a shard does not get on with it.
    #[error("{}: another process has been at it for {minutes} min without writing a record\nhint: {}; when it has ended, the same command makes the rest", output.display(), find(partial))]
    Stuck {
        /// The output.
        output: PathBuf,
        /// What it writes.
        partial: PathBuf,
        /// For how long.
        minutes: u64,
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

/// How to find who writes a file.
fn find(partial: &Path) -> String {
    if coati_storage::is_remote(partial) {
        return format!(
            "the object in {} names its host and process",
            partial.with_extension("claim").display()
        );
    }
    format!("find it with `fuser {}`", partial.display())
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
    /// Stay until every output is complete: wait for those that another process is at, and make them where it dies.
    pub wait: bool,
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

/// Makes all outputs that are not complete. Several processes may run the same command: each takes shards that nobody else is at.
pub fn run(detector: &mut Detector, options: &Options, watcher: &mut dyn Watcher) -> Result<Report, Error> {
    let begun = Instant::now();
    let shards = shards(&detector.digest()?, options)?;
    refuse_others(&shards, options)?;
    let mut report = Report::default();
    let mut elsewhere = Vec::new();
    for index in 0..shards.len() {
        if take(detector, options, &shards, index, &mut report, watcher)? != Taken::Complete {
            elsewhere.push(index);
        }
    }
    for index in elsewhere {
        let mut stalled = Stalled::default();
        loop {
            match take(detector, options, &shards, index, &mut report, watcher)? {
                Taken::Complete => break,
                Taken::Elsewhere { known: true } if !options.wait => {
                    report.elsewhere.push(shards[index].output().to_owned());
                    break;
                }
                Taken::Elsewhere { .. } => stalled.wait(&shards[index])?,
            }
        }
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// What there is of the outputs, without making any: which are complete, and what is in them.
pub fn survey(detector: &Detector, options: &Options) -> Result<Report, Error> {
    let shards = shards(&detector.digest()?, options)?;
    refuse_others(&shards, options)?;
    let mut report = Report::default();
    for shard in &shards {
        if shard.state()? == State::Complete {
            let counts = shard.counts().unwrap_or_default();
            report.complete.push(shard.output().to_owned());
            report.records += counts.records;
            report.detections += counts.detections;
            report.without_image_count += counts.without_image;
        }
    }
    Ok(report)
}

/// What there is of a shard after an attempt to make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Complete,
    /// See [`Claimed::Elsewhere`].
    Elsewhere {
        known: bool,
    },
}

/// Makes a shard unless somebody is at it.
fn take(
    detector: &mut Detector,
    options: &Options,
    shards: &[Shard],
    index: usize,
    report: &mut Report,
    watcher: &mut dyn Watcher,
) -> Result<Taken, Error> {
    let shard = &shards[index];
    let path = shard.output().to_owned();
    match shard.claim()? {
        Claimed::Complete => {
            if !report.made.contains(&path) && !report.complete.contains(&path) {
                report.complete.push(path);
            }
            Ok(Taken::Complete)
        }
        Claimed::Elsewhere { known } => Ok(Taken::Elsewhere { known }),
        Claimed::Ours { writer, again } => {
            watcher.shard(index + 1, shards.len(), &path, again);
            make(detector, options, shard, writer, report, watcher)?;
            report.made.push(path);
            Ok(Taken::Complete)
        }
    }
}

/// Whether a shard that another process is at gets on.
#[derive(Default)]
struct Stalled {
    seen: Option<(u64, SystemTime)>,
    since: Option<Instant>,
}

impl Stalled {
    fn wait(&mut self, shard: &Shard) -> Result<(), Error> {
        let now = shard.progress();
        if now != self.seen || self.since.is_none() {
            (self.seen, self.since) = (now, Some(Instant::now()));
        }
        if self.since.is_some_and(|since| since.elapsed() >= STUCK_AFTER) {
            return Err(Error::Stuck {
                output: shard.output().to_owned(),
                partial: shard.partial().to_owned(),
                minutes: STUCK_AFTER.as_secs() / 60,
            });
        }
        thread::sleep(if shard.is_remote() {
            LOOK_EVERY_REMOTE
        } else {
            LOOK_EVERY
        });
        Ok(())
    }
}

/// Inputs and outputs in pairs; `digest` is the detector's.
fn shards(digest: &str, options: &Options) -> Result<Vec<Shard>, Error> {
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
    let folder = state_folder(&options.output_tfrecord_path);
    let pairs = inputs.iter().zip(&outputs).enumerate();
    pairs
        .map(|(index, (input, output))| {
            let place = (index, inputs.len());
            Shard::new(input, output, &folder, place, digest, options.discard_image_pixels)
        })
        .collect()
}

/// What was made otherwise is said before hours are spent on the rest.
fn refuse_others(shards: &[Shard], options: &Options) -> Result<(), Error> {
    for shard in shards {
        if let (State::Other(why), false) = (shard.state()?, options.overwrite) {
            return Err(Error::Other {
                path: shard.output().to_owned(),
                why,
            });
        }
    }
    Ok(())
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
    let (before, images_before) = (report.clone(), report.records);
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
        writer.flush()?;
        report.records += 1;
        Ok(())
    };
    let mut done = images_before;
    let channels = detector.fit().additional_channels;
    let read = |record: &Record| record.image(channels);
    detector.run(records, options.batch_size, read, &mut |record, outcome| {
        take(record, outcome)?;
        done += 1;
        watcher.records(done);
        Ok::<(), Error>(())
    })?;
    let counts = Counts {
        records: report.records - before.records,
        detections: report.detections - before.detections,
        without_image: report.without_image_count - before.without_image_count,
    };
    writer.finish(shard, counts)
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
