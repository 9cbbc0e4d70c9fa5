//! The coordinator's write-ahead log: which steps were decided since the last checkpoint, and which records they used.
//!
//! A step is written before any server is asked to commit it. So a coordinator that is started again finds the servers either
//! where the log ends or one step before, finishes that step, and goes on: no committed step and no record is lost with it.
//! The log survives the process, not the machine: a step is handed to the system, not forced onto the disk. If it is behind the
//! servers, it is of no use, and the job goes back to its last checkpoint.
//!
//! In a bucket it is made of [`objects`], and survives the machine, too.

mod objects;

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use coati_checkpoint::manifest::{DataPosition, OpenRange};
use coati_common::tfrecord::{Reader, Writer};
use coati_param_server::Contributor;
use coati_proto::coati::v1;
use coati_proto::coati::v1::step_log_record::Record;
use coati_storage::is_remote;
use objects::Objects;
use prost::Message as _;

/// Name of the file in the job directory.
pub const FILE: &str = "coati-steps.log";

const FORMAT: u32 = 1;

/// A decided step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// It makes `version + 1` out of this.
    pub version: u64,
    /// Ascending, each with the first position and the number of the records that it used.
    pub contributors: Vec<(Contributor, u64, u64)>,
}

/// What a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Whose it is.
    pub job: v1::JobRef,
    /// The incarnation that loaded the variables; that of `job`, or an earlier one whose servers were taken over since.
    pub since: u64,
    /// Where it begins.
    pub version: u64,
    /// Whose step made that, ascending, where it is known.
    pub last: Vec<Contributor>,
    /// What was used of the data until there.
    pub data: DataPosition,
    /// Without gaps, the first one from `version`.
    pub steps: Vec<Step>,
}

impl Log {
    /// The version that the last step makes.
    pub fn end(&self) -> u64 {
        self.version + self.steps.len() as u64
    }

    /// Whose step made the version at which it ends, where that is known.
    pub fn newest(&self) -> Vec<Contributor> {
        match self.steps.last() {
            Some(step) => step.contributors(),
            None => self.last.clone(),
        }
    }
}

impl Step {
    /// As the servers want them.
    pub fn contributors(&self) -> Vec<Contributor> {
        self.contributors.iter().map(|(by, _, _)| *by).collect()
    }
}

/// The end that is written to.
#[derive(Debug)]
pub struct StepLog {
    path: PathBuf,
    writer: Option<Sink>,
    /// The incarnation that writes, and the one that loaded its variables.
    since: Option<(u64, u64)>,
    /// The newest step's version and contributors.
    last: Option<(u64, Vec<Contributor>)>,
}

#[derive(Debug)]
enum Sink {
    File(Writer<BufWriter<File>>),
    Objects(Objects),
}

impl StepLog {
    /// Of this job directory. Nothing is written before [`StepLog::begin`].
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
            writer: None,
            since: None,
            last: None,
        }
    }

    /// Replaces what there is by a log that goes on from here: what came before is in a checkpoint, or forgotten.
    pub fn begin(&mut self, job: &v1::JobRef, version: u64, data: &DataPosition) -> io::Result<()> {
        let own = |(incarnation, since)| (incarnation == job.incarnation).then_some(since);
        let since = self.since.and_then(own);
        let last = self.last.take_if(|(from, _)| since.is_some() && *from + 1 == version);
        self.replace(&Log {
            job: job.clone(),
            since: since.unwrap_or(job.incarnation),
            version,
            last: last.map(|(_, by)| by).unwrap_or_default(),
            data: data.clone(),
            steps: Vec::new(),
        })
    }

    /// Goes on with `log` as `job`, which takes over the servers that it goes with. Before any of them is told, so that the next
    /// coordinator finds its way if this one dies meanwhile.
    pub fn take_over(&mut self, job: &v1::JobRef, log: &Log) -> io::Result<()> {
        if let Some(folder) = self.path.parent().filter(|folder| is_remote(folder)) {
            Objects::seal(folder, log)?;
        }
        self.replace(&Log {
            job: job.clone(),
            ..log.clone()
        })
    }

    fn replace(&mut self, log: &Log) -> io::Result<()> {
        self.writer = None;
        self.since = Some((log.job.incarnation, log.since));
        self.last = log.end().checked_sub(1).map(|from| (from, log.newest()));
        let begin = v1::LogBegin {
            format: FORMAT,
            job: Some(log.job.clone()),
            version: log.version,
            position: log.data.position,
            open: log
                .data
                .open
                .iter()
                .map(|range| wire(range.start, range.count))
                .collect(),
            since: log.since,
            last: log.last.iter().map(|&by| by.into()).collect(),
        };
        let records = std::iter::once(Record::Begin(begin)).chain(log.steps.iter().map(record));
        if let Some(folder) = self.path.parent() {
            if is_remote(folder) {
                self.writer = Some(Sink::Objects(Objects::begin(folder, records)?));
                return Ok(());
            }
            fs::create_dir_all(folder)?;
        }
        let temporary = self.path.with_extension("log.partial");
        let mut writer = Writer::new(BufWriter::new(File::create(&temporary)?));
        for record in records {
            put(&mut writer, record)?;
        }
        fs::rename(&temporary, &self.path)?;
        self.writer = Some(Sink::File(writer));
        Ok(())
    }

    /// Takes a decision, before anybody acts on it. After an error the log takes no further steps until it begins anew. `AlreadyExists`
    /// tells that another coordinator has taken the log over: nobody may act on the decision.
    pub fn step(&mut self, step: &Step) -> io::Result<()> {
        self.last = Some((step.version, step.contributors()));
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let put = match writer {
            Sink::File(writer) => put(writer, record(step)),
            Sink::Objects(objects) => objects.put(record(step)),
        };
        put.inspect_err(|_| self.writer = None)
    }

    /// The job is over for this incarnation: there is nothing to go on with. The log of a later one is left alone.
    pub fn end(&mut self, incarnation: u64) {
        self.writer = None;
        let later = self.path.parent().and_then(read);
        if later.is_none_or(|log| log.job.incarnation <= incarnation) {
            match self.path.parent().filter(|folder| is_remote(folder)) {
                Some(folder) => objects::clear(folder),
                None => drop(fs::remove_file(&self.path)),
            }
        }
    }
}

fn wire(first: u64, count: u64) -> v1::LogRange {
    v1::LogRange { first, count }
}

fn record(step: &Step) -> Record {
    let contributors = step.contributors.iter().map(|(by, first, count)| v1::LogContributor {
        contributor: Some((*by).into()),
        records: Some(wire(*first, *count)),
    });
    Record::Step(v1::LogStep {
        version: step.version,
        contributors: contributors.collect(),
    })
}

fn put(writer: &mut Writer<BufWriter<File>>, record: Record) -> io::Result<()> {
    let record = v1::StepLogRecord { record: Some(record) };
    writer.write(&record.encode_to_vec())?;
    writer.flush()
}

/// Reads a job directory's log; none where there is none, or it is no log of this format. A step that was not written to its
/// end, and what follows it, was never acted on.
pub fn read(folder: &Path) -> Option<Log> {
    if is_remote(folder) {
        let found = objects::read(folder).inspect_err(|error| tracing::warn!(%error, "{FILE} cannot be read"));
        return found.ok()??.log;
    }
    let path = folder.join(FILE);
    let file = BufReader::new(File::open(&path).ok()?);
    let mut reader = Reader::new(file, path.display().to_string());
    let mut data = Vec::new();
    from_records(&mut std::iter::from_fn(|| match reader.read_into(&mut data) {
        Ok(true) => v1::StepLogRecord::decode(data.as_slice()).ok()?.record,
        Ok(false) | Err(_) => None,
    }))
}

fn from_records(records: &mut dyn Iterator<Item = Record>) -> Option<Log> {
    let Some(Record::Begin(begin)) = records.next() else {
        return None;
    };
    if begin.format != FORMAT {
        tracing::warn!(
            format = begin.format,
            "{FILE} is of a format that this Coati does not know"
        );
        return None;
    }
    let job = begin.job?;
    let mut log = Log {
        since: if begin.since == 0 { job.incarnation } else { begin.since },
        job,
        version: begin.version,
        last: begin.last.iter().map(Contributor::from).collect(),
        data: DataPosition {
            position: begin.position,
            open: begin
                .open
                .iter()
                .map(|range| OpenRange {
                    start: range.first,
                    count: range.count,
                })
                .collect(),
        },
        steps: Vec::new(),
    };
    // Numbers that cannot be are a mistake of whoever wrote them, which the checksums do not find.
    if let Some(complaint) = log.data.complaint() {
        tracing::warn!(complaint, "{FILE} contradicts itself");
        return None;
    }
    while log.end() < u64::MAX
        && let Some(Record::Step(step)) = records.next()
    {
        let contributors: Option<Vec<_>> = step.contributors.into_iter().map(contributor).collect();
        let Some(contributors) = contributors.filter(|_| step.version == log.end()) else {
            break;
        };
        log.steps.push(Step {
            version: step.version,
            contributors,
        });
    }
    Some(log)
}

fn contributor(record: v1::LogContributor) -> Option<(Contributor, u64, u64)> {
    let (by, records) = (record.contributor?, record.records?);
    records.first.checked_add(records.count)?;
    Some((Contributor::from(&by), records.first, records.count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> v1::JobRef {
        v1::JobRef {
            job_id: "j".into(),
            incarnation: 3,
        }
    }

    fn step(version: u64) -> Step {
        let by = Contributor {
            replica: 1,
            sequence: 9 + version,
            samples: 4,
        };
        Step {
            version,
            contributors: vec![(by, version * 4, 4)],
        }
    }

    fn written(folder: &Path) -> StepLog {
        let mut log = StepLog::new(folder);
        let data = DataPosition {
            position: 28,
            open: vec![OpenRange { start: 8, count: 4 }],
        };
        log.begin(&job(), 7, &data).unwrap();
        log.step(&step(7)).unwrap();
        log.step(&step(8)).unwrap();
        log
    }

    #[test]
    fn what_was_decided_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), None);
        let mut log = written(folder.path());
        let found = read(folder.path()).unwrap();
        assert_eq!((found.job, found.version, found.data.position), (job(), 7, 28));
        assert_eq!(found.steps, [step(7), step(8)]);
        log.begin(&job(), 9, &DataPosition::default()).unwrap();
        let found = read(folder.path()).unwrap();
        assert_eq!((found.end(), found.steps.len()), (9, 0));
        assert_eq!(found.newest(), step(8).contributors(), "copies have it in hand");
        let later = v1::JobRef {
            incarnation: 4,
            ..job()
        };
        log.begin(&later, 9, &DataPosition::default()).unwrap();
        let found = read(folder.path()).unwrap();
        assert_eq!((found.since, found.newest()), (4, Vec::new()), "loaded anew");
        log.begin(&job(), 9, &DataPosition::default()).unwrap();
        log.end(2);
        assert!(read(folder.path()).is_some(), "it is of a later incarnation");
        log.end(3);
        assert_eq!(read(folder.path()), None);
    }

    #[test]
    fn who_takes_servers_over_keeps_the_steps_and_says_from_whom() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = written(folder.path());
        let before = read(folder.path()).unwrap();
        let mut steps = before.steps.clone();
        for incarnation in [4, 5] {
            let job = v1::JobRef { incarnation, ..job() };
            log.take_over(&job, &read(folder.path()).unwrap()).unwrap();
            steps.push(step(5 + incarnation));
            log.step(steps.last().unwrap()).unwrap();
            let found = read(folder.path()).unwrap();
            assert_eq!((found.since, &found.job), (3, &job));
            assert_eq!((found.version, &found.data, &found.steps), (7, &before.data, &steps));
            // With the next checkpoint.
            if incarnation == 5 {
                log.begin(&job, 11, &DataPosition::default()).unwrap();
                let found = read(folder.path()).unwrap();
                assert_eq!((found.since, found.newest()), (3, step(10).contributors()));
            }
        }
    }

    #[test]
    fn a_log_that_was_cut_anywhere_holds_the_whole_steps_before_the_cut() {
        let folder = tempfile::tempdir().unwrap();
        drop(written(folder.path()));
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        let mut seen = Vec::new();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let steps = read(folder.path()).map(|log| log.steps.len());
            if seen.last() != Some(&steps) {
                seen.push(steps);
            }
        }
        assert_eq!(seen, [None, Some(0), Some(1), Some(2)]);
        // A flipped bit ends the log there.
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, &damaged).unwrap();
            if let Some(log) = read(folder.path()) {
                assert!(
                    log.steps.len() < 2 && log.steps.iter().all(|s| *s == step(s.version)),
                    "byte {at}"
                );
            }
        }
    }

    #[test]
    fn steps_with_a_gap_end_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = written(folder.path());
        log.step(&step(11)).unwrap();
        assert_eq!(read(folder.path()).unwrap().end(), 9);
    }
}
