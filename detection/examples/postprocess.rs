//! How long post-processing takes: 1917 anchors, 90 classes, 100 detections; `cargo run --release -p coati-detection --example postprocess`.
//!
//! Logits are as a trained detector's: nearly all far below 0, a few objects well above.

#![allow(clippy::print_stdout, reason = "this is its output")]

use std::time::{Duration, Instant};

use coati_detection::box_coder::FasterRcnn;
use coati_detection::postprocess::{Calibration, MulticlassNms, PostProcessor, ScoreConverter};
use coati_detection::ssd_loss::Predictions;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const ANCHORS: usize = 1917;
const CLASSES: usize = 90;
const RUNS: usize = 200;

fn main() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let anchors: Vec<[f32; 4]> = (0..ANCHORS)
        .map(|_| {
            let (y, x, side) = (
                random.random::<f32>() * 0.8,
                random.random::<f32>() * 0.8,
                random.random::<f32>() * 0.4,
            );
            [y, x, y + side, x + side]
        })
        .collect();
    let codes: Vec<f32> = (0..ANCHORS * 4).map(|_| random.random::<f32>() - 0.5).collect();
    for (name, spread) in [
        ("a trained detector's scores", 2.0_f32),
        ("scores of an untrained one", 0.1),
    ] {
        let mut logits: Vec<f32> = (0..ANCHORS * (CLASSES + 1))
            .map(|_| -5.0 + spread * (random.random::<f32>() + random.random::<f32>() - 1.0))
            .collect();
        for _ in 0..60 {
            let at = random.random_range(0..logits.len());
            logits[at] = 2.0 + spread * random.random::<f32>();
        }
        let predictions = Predictions {
            box_encodings: &codes,
            class_logits: &logits,
            columns: CLASSES + 1,
            num_classes: CLASSES,
        };
        for (kind, score_threshold, soft_nms_sigma) in [
            ("threshold 1e-8", 1e-8, 0.0),
            ("threshold 0.3", 0.3, 0.0),
            ("soft, threshold 0.01", 0.01, 0.5),
        ] {
            let post = PostProcessor {
                coder: FasterRcnn::default().into(),
                score_converter: ScoreConverter::Sigmoid,
                logit_scale: 1.0,
                calibration: Calibration::None,
                background: true,
                nms: MulticlassNms {
                    score_threshold,
                    soft_nms_sigma,
                    ..MulticlassNms::default()
                },
            };
            let mut times: Vec<Duration> = (0..RUNS)
                .map(|_| {
                    let begun = Instant::now();
                    let found = post.run(&anchors, predictions).map_or(0, |found| found[0].len());
                    assert!(found <= 100);
                    begun.elapsed()
                })
                .collect();
            times.sort_unstable();
            println!(
                "{name}, {kind}: median {:.2?}, least {:.2?} an image",
                times[RUNS / 2],
                times[0]
            );
        }
    }
}
