//! Time of one training step of `ssd_mobilenet_v1` with made-up data: `cargo run --release -p coati-detection --example step -- --threads 2`.

use std::collections::BTreeMap;
use std::time::Instant;

use coati_detection::kernels::Isa;
use coati_detection::network::{Mode, Network, NetworkConfig};

struct Options {
    threads: usize,
    batch: usize,
    steps: usize,
    repeats: usize,
    depth_multiplier: f64,
    size: usize,
    isa: usize,
    layers: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = parse()?;
    let config = NetworkConfig {
        threads: Some(options.threads),
        depth_multiplier: options.depth_multiplier,
        image_height: options.size,
        image_width: options.size,
        ..NetworkConfig::ssd_mobilenet_v1(3)
    };
    let isa = Isa::available()
        .get(options.isa)
        .copied()
        .ok_or("no such instruction set")?;
    let mut network = Network::with_isa(&config, isa)?;
    let mut params = network.init_values(1);
    let mut velocity = vec![0.0_f32; params.len()];
    let mut grads = vec![0.0_f32; params.len()];
    let images: Vec<f32> = (0..options.batch * options.size * options.size * 3)
        .map(|i| (i as u64 * 2_654_435_761 % 256) as f32)
        .collect();
    let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, (f64, f64, u64, u64)> = BTreeMap::new();
    let mut layers = Vec::new();
    for repeat in 0..=options.repeats {
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..options.steps {
            let start = Instant::now();
            let outputs = network.forward(&params, &images, Mode::Train)?;
            let forward = start.elapsed().as_secs_f64();
            // A stand-in for the loss, with the gradient of half the sum of squares.
            let scale = 1.0 / outputs.class_logits.len() as f32;
            let d_box: Vec<f32> = outputs.box_encodings.iter().map(|x| x * scale).collect();
            let d_class: Vec<f32> = outputs.class_logits.iter().map(|x| x * scale).collect();
            let begin = Instant::now();
            network.backward(&params, &d_box, &d_class, &mut grads)?;
            let backward = begin.elapsed().as_secs_f64();
            let begin = Instant::now();
            for ((p, v), g) in params.iter_mut().zip(&mut velocity).zip(&grads) {
                *v = 0.9 * *v + g;
                *p -= 0.0004 * *v;
            }
            let update = begin.elapsed().as_secs_f64();
            for (list, value) in times
                .iter_mut()
                .zip([forward, backward, update, start.elapsed().as_secs_f64()])
            {
                list.push(value);
            }
        }
        // The first repeat warms up.
        if repeat == 0 {
            continue;
        }
        for (name, list) in ["forward", "backward", "update", "total"].into_iter().zip(&mut times) {
            phases.entry(name).or_default().push(median(list));
        }
        layers = network.layer_times().to_vec();
    }
    for layer in &layers {
        let kind = kinds.entry(layer.kind).or_default();
        kind.0 += layer.forward_s;
        kind.1 += layer.backward_s;
        kind.2 += layer.multiply_adds * options.batch as u64;
        kind.3 += layer.outputs * options.batch as u64;
        if options.layers {
            let gflop = 2e-9 * (layer.multiply_adds * options.batch as u64) as f64;
            let name = layer.name.trim_start_matches("FeatureExtractor/MobilenetV1/");
            print_row(
                &format!("  {name}"),
                &[
                    1e3 * layer.forward_s,
                    1e3 * layer.backward_s,
                    gflop / layer.forward_s,
                    2.0 * gflop / layer.backward_s,
                ],
            );
        }
    }
    say(&format!(
        "{isa:?}, {} threads, batch {}, {} x {1}",
        network.threads(),
        options.batch,
        options.size
    ));
    for name in ["forward", "backward", "update", "total"] {
        let Some(list) = phases.get_mut(name) else { continue };
        let middle = median(list);
        let (least, most) = (
            list.first().copied().unwrap_or(0.0),
            list.last().copied().unwrap_or(0.0),
        );
        say(&format!(
            "{name:9} {:7.1} ms ({:.1} to {:.1})",
            1e3 * middle,
            1e3 * least,
            1e3 * most
        ));
    }
    say("kind            forward ms  backward ms     GFLOP  forward+backward GFLOP/s   output MB");
    for (kind, (forward, backward, macs, outputs)) in kinds {
        let gflop = 2e-9 * macs as f64;
        print_row(
            kind,
            &[
                1e3 * forward,
                1e3 * backward,
                gflop,
                3.0 * gflop / (forward + backward),
                4e-6 * outputs as f64,
            ],
        );
    }
    Ok(())
}

#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}

fn print_row(name: &str, figures: &[f64]) {
    let figures: Vec<String> = figures.iter().map(|x| format!("{x:10.2}")).collect();
    say(&format!("{name:60} {}", figures.join(" ")));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn parse() -> Result<Options, Box<dyn std::error::Error>> {
    let mut options = Options {
        threads: 2,
        batch: 8,
        steps: 10,
        repeats: 5,
        depth_multiplier: 1.0,
        size: 300,
        isa: 0,
        layers: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--layers" {
            options.layers = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--threads" => options.threads = value.parse()?,
            "--batch" => options.batch = value.parse()?,
            "--steps" => options.steps = value.parse()?,
            "--repeats" => options.repeats = value.parse()?,
            "--depth-multiplier" => options.depth_multiplier = value.parse()?,
            "--size" => options.size = value.parse()?,
            "--isa" => options.isa = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(options)
}
