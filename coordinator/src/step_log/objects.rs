//! The log in a bucket, which knows neither appending nor renames: one small object a step, each made only if it is not there yet.
//!
//! `coati-steps.log/GENERATION-NUMBER`. Number 0 says where the log begins, with the steps that it already has; each further one is a
//! step. A log begins by making number 0 of the next generation, in one request, and only then the objects of older ones go. So there
//! is a whole log at each instant.
//!
//! Two coordinators that know nothing of each other cannot both write: a number belongs to whoever makes it. Who takes a log over
//! *seals* it first, by making its next number, an empty one; where that is taken, the other one is still deciding steps. After it, the
//! other one's next step is refused before any server hears of it. Locks and clocks play no part in that.

use std::io;
use std::path::{Path, PathBuf};

use coati_common::tfrecord::{Reader, Writer};
use coati_proto::coati::v1::StepLogRecord;
use coati_proto::coati::v1::step_log_record::Record;
use prost::Message as _;

use super::{FILE, Log, from_records};

/// The end of a log that is written to.
#[derive(Debug)]
pub(super) struct Objects {
    folder: PathBuf,
    generation: u64,
    next: u64,
}

/// What a bucket has of the newest log.
#[derive(Debug)]
pub(super) struct Found {
    pub log: Option<Log>,
    generation: u64,
    /// The first number that is not taken by a step.
    end: u64,
}

fn folder(job: &Path) -> PathBuf {
    job.join(FILE)
}

fn object(folder: &Path, generation: u64, number: u64) -> PathBuf {
    folder.join(format!("{generation:010}-{number:010}"))
}

fn parse(name: &str) -> Option<(u64, u64)> {
    let (generation, number) = name.split_once('-')?;
    Some((generation.parse().ok()?, number.parse().ok()?))
}

/// The generations and numbers of all objects, ascending.
fn numbers(folder: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut found: Vec<_> = coati_storage::list(folder)?
        .iter()
        .filter_map(|entry| parse(&entry.name))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Of the numbers of the newest whole generation, those without a gap: the generation and how many.
fn newest(numbers: &[(u64, u64)]) -> Option<(u64, u64)> {
    let (generation, _) = *numbers.iter().rev().find(|(_, number)| *number == 0)?;
    let own = numbers.iter().filter(|(of, _)| *of == generation);
    let count = own
        .enumerate()
        .take_while(|(at, (_, number))| *at as u64 == *number)
        .count();
    Some((generation, count as u64))
}

/// Reads the newest log of a job's folder.
pub(super) fn read(job: &Path) -> io::Result<Option<Found>> {
    let folder = folder(job);
    let Some((generation, count)) = newest(&numbers(&folder)?) else {
        return Ok(None);
    };
    let paths: Vec<PathBuf> = (0..count).map(|number| object(&folder, generation, number)).collect();
    let mut records = Vec::new();
    let mut end = 0;
    for (number, bytes) in coati_storage::read_many(&paths)?.iter().enumerate() {
        let found = decode(bytes);
        // A seal says nothing, and nothing follows it.
        if found.is_empty() {
            break;
        }
        end = number as u64 + 1;
        records.extend(found);
    }
    Ok(Some(Found {
        log: from_records(&mut records.into_iter()),
        generation,
        end,
    }))
}

fn decode(bytes: &[u8]) -> Vec<Record> {
    let records = Reader::new(bytes, FILE).map_while(Result::ok);
    records
        .map_while(|bytes| StepLogRecord::decode(bytes.as_slice()).ok()?.record)
        .collect()
}

fn encode(records: impl IntoIterator<Item = Option<Record>>) -> io::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new());
    for record in records {
        writer.write(&StepLogRecord { record }.encode_to_vec())?;
    }
    Ok(writer.into_inner())
}

fn taken(path: &Path) -> io::Error {
    let text = format!("{}: another coordinator writes this job's log", path.display());
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

fn make(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if coati_storage::put_new(path, bytes)? {
        Ok(())
    } else {
        Err(taken(path))
    }
}

impl Objects {
    /// Begins a log with these records, in place of all before it.
    pub(super) fn begin(job: &Path, records: impl IntoIterator<Item = Record>) -> io::Result<Self> {
        let folder = folder(job);
        let older = numbers(&folder)?;
        let generation = older.last().map_or(1, |(newest, _)| newest + 1);
        make(&object(&folder, generation, 0), &encode(records.into_iter().map(Some))?)?;
        remove(&folder, &older);
        Ok(Self {
            folder,
            generation,
            next: 1,
        })
    }

    /// Ends the log as it was read: whoever wrote it writes no more. An error where it has grown since.
    pub(super) fn seal(job: &Path, log: &Log) -> io::Result<()> {
        let folder = folder(job);
        let Some(found) = read(job)? else { return Ok(()) };
        let end = object(&folder, found.generation, found.end);
        if found.log.as_ref() != Some(log) {
            return Err(taken(&end));
        }
        make(&end, &encode([None])?)
    }

    /// Appends one record, to last when this returns.
    pub(super) fn put(&mut self, record: Record) -> io::Result<()> {
        make(
            &object(&self.folder, self.generation, self.next),
            &encode([Some(record)])?,
        )?;
        self.next += 1;
        Ok(())
    }
}

/// Removes all of a job's log.
pub(super) fn clear(job: &Path) {
    let folder = folder(job);
    if let Ok(all) = numbers(&folder) {
        remove(&folder, &all);
    }
}

/// What stays is older than the log that counts, and goes the next time. The beginnings go last, so that no log is left without its
/// first steps.
fn remove(folder: &Path, numbers: &[(u64, u64)]) {
    let paths = numbers
        .iter()
        .rev()
        .map(|&(generation, number)| object(folder, generation, number));
    if let Err(error) = coati_storage::remove_many(&paths.collect::<Vec<_>>()) {
        tracing::debug!(%error, "objects of an older log stay");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_generation_that_has_begun_counts_to_its_first_gap() {
        assert_eq!(newest(&[]), None);
        assert_eq!(newest(&[(1, 0), (1, 1), (1, 3)]), Some((1, 2)));
        assert_eq!(newest(&[(1, 0), (1, 1), (2, 0)]), Some((2, 1)));
        assert_eq!(
            newest(&[(1, 0), (2, 1)]),
            Some((1, 1)),
            "the second one is being removed"
        );
        assert_eq!(parse("0000000002-0000000013"), Some((2, 13)));
        assert_eq!(parse("x"), None);
    }
}
