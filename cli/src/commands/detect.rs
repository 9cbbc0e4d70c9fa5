//! `coati detect`: for people who want to look at what a model finds.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

mod files;
mod tables;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use coati_dataset::decode::Image;
use coati_detection::Detections;
use coati_evaluation::draw;
use coati_worker::detect::{self, Detector, Files};
use coati_worker::gallery::{Style, draw_detections};

use self::tables::Found;
use crate::args::Format;
use crate::console::{report, say};
use crate::failure::Failure;

/// Of the pictures, where the original is a JPEG.
const JPEG_QUALITY: u8 = 92;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct DetectArgs {
    /// Pictures: files, folders (of a video's frames, for example) or patterns; JPEG and PNG.
    #[arg(long, value_name = "FILE|FOLDER|PATTERN", required = true, num_args = 1..)]
    pub image: Vec<String>,
    /// A job's folder, or a checkpoint's prefix (`…/model.ckpt-2000`).
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: PathBuf,
    /// The model's pipeline.config; the one in --model_dir by default.
    #[arg(long, value_name = "FILE")]
    pub pipeline_config_path: Option<PathBuf>,
    /// Names of the classes; the configuration's label map by default.
    #[arg(long, value_name = "FILE")]
    pub label_map_path: Option<PathBuf>,
    /// Only detections with at least this score.
    #[arg(long, value_name = "SCORE", default_value_t = 0.5)]
    pub score_threshold: f32,
    /// No more detections of a picture than these.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_detections: usize,
    /// Folder for detections.json, detections.csv and the pictures with boxes.
    #[arg(long, value_name = "FOLDER", default_value = "detections")]
    pub output_dir: PathBuf,
    /// Write no pictures, only the lists.
    #[arg(long)]
    pub no_pictures: bool,
    /// Images that go through the network together.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch_size: u32,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

pub(crate) fn run(args: &DetectArgs) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&args.score_threshold) {
        return Err(Failure::user(format!(
            "--score_threshold is {}\nhint: scores are from 0 to 1",
            args.score_threshold
        ))
        .into());
    }
    let paths = files::pictures(&args.image)?;
    let mut detector = Detector::open(&detect::Options {
        model_dir: args.model_dir.clone(),
        pipeline_config_path: args.pipeline_config_path.clone(),
        label_map_path: args.label_map_path.clone(),
    })?;
    let channels = detector.fit().additional_channels;
    if channels > 0 {
        return Err(Failure::user(format!(
            "this model takes {channels} additional channels (num_additional_channels), which files of pictures do not have\nhint: `coati infer` reads them from records"
        ))
        .into());
    }
    for warning in detector.warnings() {
        say(&format!("warning: {warning}"));
    }
    let pictures = args.output_dir.join("pictures");
    let folder = if args.no_pictures { &args.output_dir } else { &pictures };
    coati_storage::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;

    let categories = detector.categories().to_vec();
    let style = Style {
        min_score: args.score_threshold,
        most: args.max_detections,
        skip_scores: false,
        skip_labels: false,
    };
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    let mut names = HashSet::new();
    let bar = indicatif::ProgressBar::new(paths.len() as u64);
    let read = |path: &PathBuf| {
        coati_storage::read(path)
            .map(Files::from)
            .map_err(|error| error.to_string())
    };
    let mut take = |path: PathBuf, outcome: Result<(Image, Detections), String>| -> anyhow::Result<()> {
        bar.inc(1);
        let (image, detections) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                bar.suspend(|| say(&format!("warning: {}: {error}", path.display())));
                failed.push((path, error));
                return Ok(());
            }
        };
        let [height, width] = [image.height, image.width];
        let detections = kept(detections, style);
        let mut one = Found::new(path, [height, width], &detections, &categories);
        if !args.no_pictures {
            let mut picture = image::RgbImage::from_raw(width as u32, height as u32, image.pixels)
                .context("the decoded image has another size than it says")?;
            draw_detections(&mut picture, &detections, &categories, style);
            let target = pictures.join(files::free_name(&mut names, &one.image));
            save(&picture, &target)?;
            one.picture = Some(target);
        }
        if args.format == Format::Text {
            bar.suspend(|| report(&one.line()));
        }
        found.push(one);
        Ok(())
    };
    let outcome = detector.run(
        paths.into_iter(),
        args.batch_size as usize,
        read,
        &mut |path, outcome| take(path, outcome).map_err(Stop::from),
    );
    bar.finish_and_clear();
    outcome.map_err(|Stop(error)| error)?;

    let all = tables::json(&detector, args.score_threshold, &found, &failed);
    let text = serde_json::to_string_pretty(&all).context("the detections")?;
    let json = args.output_dir.join("detections.json");
    coati_storage::write(&json, text.as_bytes()).with_context(|| format!("cannot write {}", json.display()))?;
    tables::write_csv(&args.output_dir.join("detections.csv"), &found)?;
    if args.format == Format::Json {
        report(&serde_json::to_string(&all).context("the detections")?);
    }
    say(&format!(
        "{}: {} pictures, {} detections of at least {}{}",
        args.output_dir.display(),
        found.len(),
        found.iter().map(|one| one.detections.len()).sum::<usize>(),
        args.score_threshold,
        if failed.is_empty() {
            String::new()
        } else {
            format!("; {} pictures could not be read", failed.len())
        }
    ));
    if found.is_empty() {
        return Err(Failure::user(
            "no picture could be read\nhint: JPEG and PNG files are read; of a video, a folder of its frames",
        )
        .into());
    }
    Ok(())
}

/// Ends the run: whatever went wrong.
struct Stop(anyhow::Error);

impl From<detect::Error> for Stop {
    fn from(error: detect::Error) -> Self {
        Self(error.into())
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self(error)
    }
}

/// What is shown and listed; detections come best first.
fn kept(mut found: Detections, style: Style) -> Detections {
    let count = found
        .scores
        .iter()
        .take_while(|&&score| score >= style.min_score)
        .count();
    let count = if style.most == 0 { count } else { count.min(style.most) };
    found.boxes.truncate(count);
    found.classes.truncate(count);
    found.scores.truncate(count);
    found.anchors.truncate(count);
    found
}

fn save(picture: &image::RgbImage, path: &Path) -> anyhow::Result<()> {
    let is_png = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    let bytes = if is_png {
        draw::png(picture)
    } else {
        draw::jpeg(picture, JPEG_QUALITY)
    };
    let bytes = bytes.with_context(|| format!("cannot encode {}", path.display()))?;
    coati_storage::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
}
