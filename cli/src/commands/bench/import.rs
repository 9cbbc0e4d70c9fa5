//! How many images a second of one core's time an import takes.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use coati_common::label_map::LabelMap;
use coati_dataset::import::{Output, voc};
use coati_dataset::synth;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::console::{report, say};

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    #[arg(long, default_value_t = 10_000)]
    images: usize,
    /// Width and height in pixels.
    #[arg(long, default_value_t = 256)]
    image_size: u32,
    #[arg(long, default_value_t = 10)]
    num_shards: u32,
    /// Where the images are made (kept if they are there) and the records written.
    #[arg(long, value_name = "FOLDER")]
    work_dir: PathBuf,
    /// Decode every image, too.
    #[arg(long)]
    decode_images: bool,
}

/// User and system time of this process.
fn cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let data_dir = args.work_dir.join(format!("voc-{}-{}", args.images, args.image_size));
    let list = data_dir.join("ImageSets/Main/val.txt");
    if !list.is_file() {
        say(&format!("making {} images in {}", args.images, data_dir.display()));
        synth::generate(&synth::Options {
            output_dir: data_dir.clone(),
            num_train: args.images,
            num_val: 0,
            image_size: args.image_size,
            seed: 1,
        })?;
    }
    let labels = LabelMap::load(&data_dir.join("label_map.pbtxt"))?;
    let options = voc::Options {
        data_dir,
        year: None,
        set: Some("train".to_owned()),
        annotations_dir: None,
        ignore_difficult_instances: false,
        output: Output {
            num_shards: Some(args.num_shards),
            images: coati_dataset::import::picture::Images::Unchanged {
                decode: args.decode_images,
            },
            ..Output::to(args.work_dir.join("out/bench.record"))
        },
    };
    let (begun, before) = (Instant::now(), cpu()?);
    let done = voc::import(&options, &labels, &|_, _| {})?;
    let (wall, cpu) = (begun.elapsed(), cpu()?.saturating_sub(before));
    let bytes = done
        .files
        .iter()
        .map(|file| Ok(std::fs::metadata(file)?.len()))
        .sum::<std::io::Result<u64>>()
        .context("the records' size")?;
    let images = done.images as f64;
    report(&serde_json::to_string(&json!({
        "images": done.images,
        "bytes": bytes,
        "seconds": wall.as_secs_f64(),
        "cpu_seconds": cpu.as_secs_f64(),
        "images_per_s": images / wall.as_secs_f64(),
        "images_per_cpu_s": images / cpu.as_secs_f64(),
        "cores": std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
    }))?);
    Ok(())
}
