//! Finds what makes training fail or explode, and repairs what can be repaired without guessing.
//!
//! [`check`] looks at one record and gives its findings and, where that is possible, the record as it should be. [`run`] does so
//! for files, on all cores, and compares the images of the sets.

mod check;
mod edit;
mod finding;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use coati_common::tfrecord::{self, Reader};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use check::{Checked, check};
pub use finding::{Finding, Flaw, Repair};

use crate::example::Classes;
use crate::import;
use crate::import::sharded::replace_with;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// The label map; without it, labels only have to be at least 1.
    pub classes: Option<Classes>,
    /// Write the files anew with what can be repaired.
    pub fix: bool,
    /// Where repaired files go, under their names; without it they replace the old ones.
    pub output_dir: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Records read, of all sets.
    pub records: u64,
    /// All findings, in order of files and records; those between records come last.
    pub findings: Vec<Finding>,
    /// Findings by flaw.
    pub counts: BTreeMap<&'static str, u64>,
    /// Findings that are repaired (with `fix`) or could be.
    pub repairable: u64,
    /// Files written.
    pub files: Vec<PathBuf>,
}

impl Report {
    /// Findings that remain.
    pub fn remaining(&self, fix: bool) -> u64 {
        let all = self.findings.len() as u64;
        if fix { all - self.repairable } else { all }
    }
}

/// Records are checked in groups of this many, so that memory stays small.
const GROUP: usize = 128;

/// Where an image was seen first.
struct Seen {
    set: usize,
    file: PathBuf,
    record: u64,
}

/// Checks sets of files, as `("train", files)`; `progress` hears of done records.
///
/// Images that are in two sets are findings of the later one, images that are twice in a set of that one.
pub fn run(
    sets: &[(String, Vec<PathBuf>)],
    options: &Options,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Report, import::Error> {
    let mut report = Report::default();
    let mut seen: HashMap<[u8; 32], Seen> = HashMap::new();
    let mut twice = Vec::new();
    for (index, (name, files)) in sets.iter().enumerate() {
        let (records_before, findings_before) = (report.records, report.findings.len());
        for file in files {
            let mut image = |record: u64, digest: [u8; 32]| {
                if let Some(first) = seen.get(&digest) {
                    let other = &sets[first.set].0;
                    let flaw = if first.set == index {
                        Flaw::DuplicateImage
                    } else {
                        Flaw::ImageInTwoSets
                    };
                    let what = if first.set == index {
                        format!("the same image is in {}: record {}", first.file.display(), first.record)
                    } else {
                        format!(
                            "the same image is in the set {other}: {}: record {}",
                            first.file.display(),
                            first.record
                        )
                    };
                    twice.push(Finding::new(
                        file,
                        Some(record),
                        flaw,
                        Some("image/encoded"),
                        what,
                        None,
                    ));
                } else {
                    let place = Seen {
                        set: index,
                        file: file.clone(),
                        record,
                    };
                    seen.insert(digest, place);
                }
            };
            one_file(file, options, &mut report, &mut image, progress)?;
        }
        if let Some(file) = files.first()
            && (report.records, report.findings.len()) == (records_before, findings_before)
        {
            let what = format!("no record in {} file(s) of the set {name}", files.len());
            let finding = Finding::new(file, None, Flaw::EmptySet, None, what, None);
            report.findings.push(finding);
        }
        tracing::debug!(set = %name, records = report.records, "checked");
    }
    report.findings.append(&mut twice);
    for finding in &report.findings {
        *report.counts.entry(finding.flaw.name()).or_default() += 1;
        report.repairable += u64::from(finding.repair.is_some());
    }
    Ok(report)
}

fn one_file(
    file: &Path,
    options: &Options,
    report: &mut Report,
    image: &mut dyn FnMut(u64, [u8; 32]),
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), import::Error> {
    let mut reader = Reader::open(file).map_err(|error| import::Error::Record {
        path: file.to_owned(),
        what: error.to_string(),
        hint: "is the path right, and may you read it?".to_owned(),
    })?;
    let (mut changed, mut readable) = (false, false);
    let target = options.output_dir.as_ref().map_or_else(
        || file.to_owned(),
        |folder| folder.join(file.file_name().unwrap_or_default()),
    );
    let mut output = options.fix.then(|| replace_with(&target)).transpose()?;
    let mut more = true;
    while more {
        let first = reader.position();
        let mut group = Vec::with_capacity(GROUP);
        while group.len() < GROUP {
            let mut data = Vec::new();
            match reader.read_into(&mut data) {
                Ok(true) => group.push(Ok(data)),
                Ok(false) => {
                    more = false;
                    break;
                }
                Err(error) => {
                    more = error.is_local();
                    group.push(Err(error));
                    if !more {
                        break;
                    }
                }
            }
        }
        let mut writer = tfrecord::Writer::new(Vec::new());
        let checked: Vec<(Checked, Option<[u8; 32]>)> = group
            .par_iter()
            .enumerate()
            .map(|(offset, record)| match record {
                Ok(bytes) => {
                    let checked = check(bytes, options.classes.as_ref());
                    let digest = check::image(bytes).map(|image| Sha256::digest(image).into());
                    (checked, digest)
                }
                Err(error) => (check::unreadable(error, first == 0 && offset == 0), None),
            })
            .collect();
        for ((number, record), (checked, digest)) in (first..).zip(&group).zip(checked) {
            report.records += 1;
            readable |= record.is_ok() || checked.findings.iter().all(|found| found.repair.is_some());
            if let Some(digest) = digest {
                image(number, digest);
            }
            changed |= checked.repaired.is_some() || checked.drop;
            if options.fix && !checked.drop {
                let bytes = checked.repaired.as_ref().or(record.as_ref().ok());
                if let Some(bytes) = bytes {
                    // Writing to memory cannot fail.
                    let _ = writer.write(bytes);
                }
            }
            report
                .findings
                .extend(checked.findings.into_iter().map(|found| found.at(file, number)));
        }
        if let Some(output) = &mut output {
            output.write(writer.get_ref())?;
        }
        progress(report.records);
    }
    // A file that needs nothing stays as it is, unless the others go to a folder, where it belongs, too. One that holds no records is
    // somebody's, and stays.
    if let Some(output) = output
        && readable
        && (changed || options.output_dir.is_some())
    {
        output.finish()?;
        report.files.push(target);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
