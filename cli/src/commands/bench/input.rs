//! The input pipeline alone: from records to batches that are ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use coati_common::tfrecord::Reader;
use coati_dataset::augment::{RandomHorizontalFlip, SsdRandomCrop, ssd_operations};
use coati_dataset::batch::{Lease, Loader, Options, Records};
use coati_dataset::decode;
use coati_dataset::example::{self, Classes};
use coati_dataset::shards::{Source, pattern};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::spread;
use crate::args::BenchInputArgs;
use crate::console::report;

/// Batches that warm the page cache and the buffers up.
const WARM: u64 = 16;

pub(crate) fn run(arguments: &BenchInputArgs) -> anyhow::Result<()> {
    if arguments.sequential {
        return sequential(arguments);
    }
    let source = Source::open(&arguments.input_path)?;
    let images = arguments.batches * arguments.batch_size as u64;
    if arguments.virtual_gb > 0.0 {
        let records = Virtual::new(&source, arguments.virtual_gb)?;
        return flat(Arc::new(records), arguments);
    }
    let records = source.record_count();
    let loader = loader(Arc::new(source), arguments)?;
    let batches = WARM + arguments.batches * u64::from(arguments.repeats);
    (0..batches).for_each(|id| loader.request(lease(id, arguments)));
    take(&loader, WARM)?;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeats {
        let (begun, cpu) = (Instant::now(), cpu_seconds()?);
        take(&loader, arguments.batches)?;
        rates.push(images as f64 / begun.elapsed().as_secs_f64());
        costs.push(1e3 * (cpu_seconds()? - cpu) / images as f64);
    }
    let data = json!({
        "bench": "input", "records": records, "batch_size": arguments.batch_size, "threads": arguments.threads, "images": images,
        "images_per_s": spread(&rates), "cpu_ms_per_image": spread(&costs),
    });
    report(&serde_json::to_string(&data)?);
    Ok(())
}

/// Bytes a second of records that come one after the other.
fn sequential(arguments: &BenchInputArgs) -> anyhow::Result<()> {
    let files = pattern::expand(&arguments.input_path)?;
    let (mut rates, mut costs, mut bytes, mut records) = (Vec::new(), Vec::new(), 0, 0_u64);
    for _ in 0..arguments.repeats {
        let (begun, cpu) = (Instant::now(), cpu_seconds()?);
        (bytes, records) = (0, 0);
        let mut record = Vec::new();
        for file in &files {
            let mut reader = Reader::open(file)?;
            while reader.read_into(&mut record)? {
                bytes += record.len();
                records += 1;
            }
        }
        rates.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        costs.push((cpu_seconds()? - cpu) / (bytes as f64 / 1e9));
    }
    let data = json!({
        "bench": "input", "records": records, "bytes": bytes,
        "mb_per_s": spread(&rates), "cpu_s_per_gb": spread(&costs),
    });
    report(&serde_json::to_string(&data)?);
    Ok(())
}

/// Whether memory grows while a data set that no machine could hold goes by.
fn flat(records: Arc<Virtual>, arguments: &BenchInputArgs) -> anyhow::Result<()> {
    const PARTS: u64 = 10;
    let (count, bytes) = (records.count, records.bytes());
    let batches = count / arguments.batch_size as u64;
    ensure!(
        batches >= PARTS,
        "{count} records are too few\nhint: ask for more with --virtual_gb"
    );
    let loader = loader(records, arguments)?;
    let mut resident = Vec::new();
    let mut next = 0;
    for part in 0..PARTS {
        let upto = batches * (part + 1) / PARTS;
        while next < upto {
            // A few at a time: the list of requests is no part of what is measured.
            let some = (upto - next).min(64);
            (next..next + some).for_each(|id| loader.request(lease(id, arguments)));
            take(&loader, some)?;
            next += some;
        }
        resident.push(resident_mb()?);
    }
    let growth = resident.last().copied().unwrap_or(0.0) - resident.first().copied().unwrap_or(0.0);
    let data = json!({
        "bench": "input", "virtual_records": count, "virtual_gb": bytes / 1e9, "batches": batches,
        "resident_mb": resident, "growth_mb": growth,
    });
    report(&serde_json::to_string(&data)?);
    Ok(())
}

fn loader<R: Records + 'static>(records: Arc<R>, arguments: &BenchInputArgs) -> anyhow::Result<Loader> {
    let options = Options {
        height: 300,
        width: 300,
        augmentations: vec![
            RandomHorizontalFlip::new(0.5).into(),
            SsdRandomCrop(ssd_operations()).into(),
        ],
        example: example::Options {
            classes: Classes::numbered(1000),
            strict: false,
        },
        decode: decode::Options {
            scaled: arguments.scaled_decode,
            ..decode::Options::default()
        },
        threads: arguments.threads,
        prefetch: arguments.threads + 2,
        ..Options::default()
    };
    Ok(Loader::new(records, options)?)
}

fn lease(id: u64, arguments: &BenchInputArgs) -> Lease {
    Lease {
        id,
        first_position: id * arguments.batch_size as u64,
        count: arguments.batch_size,
    }
}

/// Takes that many batches and gives their memory back, as training does.
fn take(loader: &Loader, batches: u64) -> anyhow::Result<()> {
    for _ in 0..batches {
        let (_, batch) = loader.next(Instant::now() + Duration::from_secs(60))?;
        loader.recycle(batch.images);
    }
    Ok(())
}

/// Of all threads of this process.
fn cpu_seconds() -> anyhow::Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?).as_secs_f64())
}

/// Memory of this process now.
fn resident_mb() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("/proc/self/status cannot be read")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let Some(kilobytes) = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()) else {
        bail!("/proc/self/status has no VmRSS");
    };
    Ok(kilobytes * 1024.0 / 1e6)
}

/// A data set as large as one likes: the images of a small one, over and over.
struct Virtual {
    stored: Vec<Vec<u8>>,
    count: u64,
}

impl Virtual {
    fn new(source: &Source, gigabytes: f64) -> anyhow::Result<Self> {
        let some = source.record_count().min(512);
        let stored = (0..some)
            .map(|record| Ok(source.read(record)?))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mean = stored.iter().map(Vec::len).sum::<usize>() as f64 / stored.len() as f64;
        Ok(Self {
            stored,
            count: (gigabytes * 1e9 / mean) as u64,
        })
    }

    fn bytes(&self) -> f64 {
        self.stored.iter().map(Vec::len).sum::<usize>() as f64 / self.stored.len() as f64 * self.count as f64
    }
}

impl Records for Virtual {
    fn record_count(&self) -> u64 {
        self.count
    }

    fn read(&self, record: u64) -> Result<Vec<u8>, String> {
        let stored = self.stored.get((record % self.stored.len() as u64) as usize);
        stored
            .cloned()
            .ok_or_else(|| format!("{} does not exist", self.location(record)))
    }

    fn location(&self, record: u64) -> String {
        format!("virtual record {record}")
    }
}
