//! How evenly variables are spread: of `ssd_mobilenet_v1`, and of a made-up list of ResNet-101's size.

use coati_common::config::PipelineConfig;
use coati_common::variables::{VariableKind, VariableSpec};
use coati_param_server::{Layout, Strategy, plan};
use coati_worker::model;
use serde_json::json;

use crate::args::BenchPlacementArgs;
use crate::console::report;

pub(crate) fn run(arguments: &BenchPlacementArgs) -> anyhow::Result<()> {
    let config = PipelineConfig::load(&arguments.pipeline_config_path)?;
    let model = model::build(&config, Some(1))?;
    let models = [
        ("ssd_mobilenet_v1", model.variables().to_vec()),
        ("resnet_101", resnet_101()),
    ];
    let mut rows = Vec::new();
    for (name, variables) in &models {
        for servers in 1..=9 {
            rows.push(json!({
                "model": name, "servers": servers,
                "balanced": max_over_mean(variables, servers, Strategy::Balanced)?,
                "round_robin": max_over_mean(variables, servers, Strategy::RoundRobin)?,
            }));
        }
    }
    report(&serde_json::to_string(
        &json!({"bench": "placement", "max_over_mean_bytes": rows}),
    )?);
    Ok(())
}

fn max_over_mean(variables: &[VariableSpec], servers: u32, strategy: Strategy) -> anyhow::Result<f64> {
    let layout = Layout::new(&plan(variables, servers, strategy)?)?;
    let held = layout.servers().iter().map(|server| server.arena_len);
    let mean = layout.flat_len() as f64 / f64::from(servers);
    Ok(held.max().unwrap_or(0) as f64 / mean)
}

/// He et al. 2016, without the classifier: 42.4 million trainable parameters.
fn resnet_101() -> Vec<VariableSpec> {
    let mut variables = Vec::new();
    let mut convolution = |name: String, size: i64, from: i64, to: i64| {
        let mut add = |part: &str, shape: Vec<i64>, kind| {
            variables.push(VariableSpec {
                name: format!("resnet_v1_101/{name}/{part}"),
                shape,
                kind,
            });
        };
        add("weights", vec![size, size, from, to], VariableKind::Trainable);
        for part in ["gamma", "beta"] {
            add(&format!("BatchNorm/{part}"), vec![to], VariableKind::Trainable);
        }
        for part in ["moving_mean", "moving_variance"] {
            let kind = VariableKind::MovingStatistic { decay: 0.9997 };
            add(&format!("BatchNorm/{part}"), vec![to], kind);
        }
    };
    convolution("conv1".to_owned(), 7, 3, 64);
    let mut from = 64;
    for (block, units, width) in [(1, 3, 64), (2, 4, 128), (3, 23, 256), (4, 3, 512)] {
        for unit in 1..=units {
            let at = |part: &str| format!("block{block}/unit_{unit}/bottleneck_v1/{part}");
            if unit == 1 {
                convolution(at("shortcut"), 1, from, 4 * width);
            }
            convolution(at("conv1"), 1, from, width);
            convolution(at("conv2"), 3, width, width);
            convolution(at("conv3"), 1, width, 4 * width);
            from = 4 * width;
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_holds_its_bound_on_a_large_network() {
        let variables = resnet_101();
        let trainable = variables.iter().filter(|spec| spec.kind == VariableKind::Trainable);
        assert_eq!(trainable.map(VariableSpec::elements).sum::<usize>(), 42_500_160);
        for servers in 1..=9 {
            let found = max_over_mean(&variables, servers, Strategy::Balanced).unwrap();
            assert!((1.0..=1.05).contains(&found), "{servers} servers: {found}");
        }
    }
}
