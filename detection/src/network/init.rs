//! First values of the variables: a function of each variable's name and the seed, whatever the order or number of threads.

use coati_common::variables::VariableSpec;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::config::{FanMode, Initializer};
use super::plan::{Initial, Plan};

/// The flat vector of first values.
pub(crate) fn values(plan: &Plan, seed: u64) -> Vec<f32> {
    let all: Vec<_> = plan.variables.iter().zip(&plan.initial).collect();
    let parts: Vec<Vec<f32>> = all
        .par_iter()
        .map(|(spec, initial)| one(spec, **initial, seed))
        .collect();
    parts.concat()
}

fn one(spec: &VariableSpec, initial: Initial, seed: u64) -> Vec<f32> {
    let initializer = match initial {
        Initial::Constant(value) => return vec![value; spec.elements()],
        Initial::Random(initializer) => initializer,
    };
    let mut rng = generator(&spec.name, seed);
    let mut draw: Box<dyn FnMut() -> f32> = match initializer {
        Initializer::TruncatedNormal { mean, stddev } => Box::new(move || mean + stddev * truncated(&mut rng)),
        Initializer::RandomNormal { mean, stddev } => Box::new(move || mean + stddev * normal(&mut rng)),
        Initializer::VarianceScaling { factor, uniform, mode } => {
            let n = fan(&spec.shape, mode);
            if uniform {
                let limit = (3.0 * f64::from(factor) / n).sqrt() as f32;
                Box::new(move || limit * (2.0 * rng.random::<f32>() - 1.0))
            } else {
                // 1.3 makes up for the truncation, as slim has it.
                let stddev = (1.3 * f64::from(factor) / n).sqrt() as f32;
                Box::new(move || stddev * truncated(&mut rng))
            }
        }
    };
    (0..spec.elements()).map(|_| draw()).collect()
}

/// A generator of its own for each variable: the name's FNV-1a hash beside the seed.
fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Box and Muller's method.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

fn truncated(rng: &mut ChaCha8Rng) -> f32 {
    loop {
        let x = normal(rng);
        if x.abs() < 2.0 {
            return x;
        }
    }
}

/// slim counts the window's area into both fans.
fn fan(shape: &[i64], mode: FanMode) -> f64 {
    let (window, ends) = shape.split_at(shape.len().saturating_sub(2));
    let area: f64 = window.iter().map(|&d| d as f64).product();
    let fan_in = ends.first().map_or(1.0, |&d| d as f64) * area;
    let fan_out = ends.last().map_or(1.0, |&d| d as f64) * area;
    match mode {
        FanMode::FanIn => fan_in.max(1.0),
        FanMode::FanOut => fan_out.max(1.0),
        FanMode::FanAvg => (f64::midpoint(fan_in, fan_out)).max(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::NetworkConfig;
    use crate::network::plan::plan;

    #[test]
    fn values_depend_on_name_and_seed_alone() {
        let small = NetworkConfig {
            depth_multiplier: 0.25,
            min_depth: 8,
            ..NetworkConfig::ssd_mobilenet_v1(3)
        };
        let six = plan(&small).unwrap();
        let two = plan(&NetworkConfig {
            anchors_per_location: vec![3, 6],
            ..small
        })
        .unwrap();
        let (a, b) = (values(&six, 7), values(&two, 7));
        assert_eq!(a, values(&six, 7));
        assert_ne!(a, values(&six, 8));
        let of = |plan: &Plan, values: &[f32], name: &str| {
            let at = plan.variables.iter().position(|v| v.name == name).unwrap();
            let start: usize = plan.variables[..at].iter().map(VariableSpec::elements).sum();
            values[start..start + plan.variables[at].elements()].to_vec()
        };
        let name = "BoxPredictor_1/ClassPredictor/weights";
        assert_eq!(of(&six, &a, name), of(&two, &b, name));
    }

    #[test]
    fn truncated_normal_has_its_moments_and_limits() {
        let mut rng = generator("x", 1);
        let draws: Vec<f64> = (0..200_000).map(|_| f64::from(truncated(&mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.01, "{mean}");
        // Standard deviation of a normal truncated at two: 0.8796.
        assert!((variance.sqrt() - 0.8796).abs() < 0.01, "{variance}");
        assert!(draws.iter().all(|x| x.abs() < 2.0));
    }
}
