//! Splits TFRecords: records move as they are, bit for bit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Image, Side, assign, one_sided};
use crate::example::wire::Features;
use crate::import;
use crate::import::sharded::{Shards, names};
use crate::shards::{self, Source};

/// What to split and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Records to train on: a file, or the start of the shards' names.
    pub train_output_path: PathBuf,
    /// Shards of it.
    pub num_train_shards: Option<u32>,
    /// Records to evaluate on.
    pub eval_output_path: PathBuf,
    /// Shards of it.
    pub num_eval_shards: Option<u32>,
    /// Share of the images to evaluate on.
    pub eval_share: f64,
    /// Changes who goes where.
    pub seed: u64,
}

/// What went where.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Images to train on.
    pub train: usize,
    /// Images to evaluate on.
    pub eval: usize,
    /// Images with each class on either side, by the class's text or number.
    pub classes: BTreeMap<String, [usize; 2]>,
    /// Images whose bytes another image has, too; they stay with it.
    pub duplicates: usize,
    /// Classes that are on one side only.
    pub one_sided: Vec<String>,
    /// Files written.
    pub files: Vec<PathBuf>,
}

/// Reads all records twice: to see what is in them, then to write them.
pub fn run(source: &Source, options: &Options) -> Result<Report, import::Error> {
    let numbers: Vec<u64> = (0..source.record_count()).collect();
    let known: Vec<(Image, Vec<String>)> = numbers
        .par_iter()
        .map(|&number| look(source, number))
        .collect::<Result<_, _>>()?;
    // Classes by name, so that records with and without numbers go together.
    let mut ids: BTreeMap<&str, i64> = BTreeMap::new();
    for name in known.iter().flat_map(|(_, names)| names) {
        let next = ids.len() as i64;
        ids.entry(name).or_insert(next);
    }
    let images: Vec<Image> = known
        .iter()
        .map(|(image, names)| Image {
            classes: names
                .iter()
                .filter_map(|name| ids.get(name.as_str()).copied())
                .collect(),
            digest: image.digest.clone(),
        })
        .collect();
    let sides = assign(&images, options.eval_share, options.seed);

    let mut report = Report::default();
    let mut train = Shards::create(names(&options.train_output_path, options.num_train_shards, ""))?;
    let mut eval = Shards::create(names(&options.eval_output_path, options.num_eval_shards, ""))?;
    for (&number, &side) in numbers.iter().zip(&sides) {
        let record = source
            .read(number)
            .map_err(|error| unreadable(&error, source, number))?;
        match side {
            Side::Train => {
                report.train += 1;
                train.write(&record)?;
            }
            Side::Eval => {
                report.eval += 1;
                eval.write(&record)?;
            }
        }
    }
    for ((_, names), &side) in known.iter().zip(&sides) {
        let mut names = names.clone();
        names.sort();
        names.dedup();
        for name in names {
            report.classes.entry(name).or_default()[side as usize] += 1;
        }
    }
    let mut digests: Vec<&[u8]> = images.iter().map(|image| image.digest.as_slice()).collect();
    digests.sort_unstable();
    report.duplicates = digests.windows(2).filter(|pair| pair[0] == pair[1]).count();
    let names: BTreeMap<i64, &str> = ids.iter().map(|(&name, &id)| (id, name)).collect();
    report.one_sided = one_sided(&images, &sides)
        .into_iter()
        .filter_map(|id| names.get(&id).map(|&name| name.to_owned()))
        .collect();
    report.files = train.finish()?;
    report.files.extend(eval.finish()?);
    Ok(report)
}

fn unreadable(error: &dyn std::fmt::Display, source: &Source, number: u64) -> import::Error {
    let place = source.location(number);
    import::Error::Record {
        path: place.file,
        what: format!("record {}: {error}", place.record),
        hint: "`coati data validate` lists all that is wrong, and with --fix repairs what can be repaired".to_owned(),
    }
}

fn look(source: &Source, number: u64) -> Result<(Image, Vec<String>), import::Error> {
    let record = source
        .read(number)
        .map_err(|error: shards::Error| unreadable(&error, source, number))?;
    let read = || -> Result<_, crate::example::wire::Error> {
        let features = Features::parse(&record)?;
        let texts = features.bytes("image/object/class/text")?;
        let labels = features.ints("image/object/class/label")?;
        let names =
            (0..texts.len().max(labels.len())).filter_map(|index| match (texts.get(index), labels.get(index)) {
                (Some(text), _) if !text.is_empty() => Some(String::from_utf8_lossy(text).into_owned()),
                (_, Some(label)) => Some(label.to_string()),
                _ => None,
            });
        let image = features.first_bytes("image/encoded")?.unwrap_or_default();
        // Records without an image differ by all that they hold.
        let digest = Sha256::digest(if image.is_empty() { record.as_slice() } else { image }).to_vec();
        let image = Image {
            classes: Vec::new(),
            digest,
        };
        Ok((image, names.collect()))
    };
    read().map_err(|error| unreadable(&error, source, number))
}
