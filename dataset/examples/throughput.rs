//! Measures how many images a second the input pipeline prepares:
//! `cargo run --release -p coati-dataset --example throughput -- 'PATTERN' [threads] [batches] [runs]`.
//!
//! Batches of 8, flipped at random, cropped with the stock `ssd_random_crop`, resized to 300 x 300.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_dataset::augment::{RandomHorizontalFlip, SsdRandomCrop, ssd_operations};
use coati_dataset::batch::{Lease, Loader, Options};
use coati_dataset::example::{self, Classes};
use coati_dataset::shards::Source;

const BATCH: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let pattern = arguments
        .next()
        .ok_or("usage: throughput PATTERN [threads] [batches] [runs]")?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (threads, batches, runs) = (number(2)?, number(150)?, number(5)?);

    let source = Arc::new(Source::open(&[pattern])?);
    let crop = SsdRandomCrop(ssd_operations()).into();
    let options = Options {
        augmentations: vec![RandomHorizontalFlip::new(0.5).into(), crop],
        example: example::Options {
            classes: Classes::numbered(100),
            strict: false,
        },
        threads: threads as usize,
        prefetch: 4,
        ..Options::default()
    };
    println!("{} records, {threads} threads", source.record_count());
    for run in 0..runs {
        let loader = Loader::new(Arc::clone(&source), options.clone())?;
        let lease = |id: u64| Lease {
            id,
            first_position: id * BATCH as u64,
            count: BATCH,
        };
        // Warm: files in the page cache, buffers made.
        (0..8 + batches).for_each(|id| loader.request(lease(id)));
        let take = || -> Result<(), Box<dyn Error>> {
            let (_, batch) = loader.next(Instant::now() + Duration::from_secs(60))?;
            loader.recycle(batch.images);
            Ok(())
        };
        (0..8).try_for_each(|_| take())?;
        let began = Instant::now();
        (0..batches).try_for_each(|_| take())?;
        let seconds = began.elapsed().as_secs_f64();
        println!("run {run}: {:.0} images/s", (batches * BATCH as u64) as f64 / seconds);
    }
    Ok(())
}
