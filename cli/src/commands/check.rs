//! `coati check`: everything that can be wrong with a job's files, before anything starts.

use anyhow::Context as _;
use coati_checkpoint::restore::Verdict;
use coati_common::cluster::{ClusterFile, ClusterPlan, GradientCompression, WeightCompression};
use coati_common::config::PipelineConfig;
use coati_common::config::supported::{self, Mode};
use coati_worker::best::KeepBest;
use coati_worker::input::{self, Which};
use coati_worker::{fine_tune, model};
use serde_json::json;

use crate::args::{CheckArgs, Format};
use crate::console::{report, say};
use crate::failure::Failure;

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let config = PipelineConfig::load(&args.pipeline_config_path)?;
    let plan = args.cluster.as_deref().map(ClusterFile::load).transpose()?;
    let support = supported::survey(&config, Mode::TrainAndEval)?;
    let mut problems: Vec<String> = support.refused.iter().map(ToString::to_string).collect();
    let mut warnings = support.warnings.clone();
    warnings.extend(plan.iter().flat_map(|plan| plan.warnings.clone()));
    warnings.extend(plan.iter().flat_map(|plan| consistency_warnings(&config, plan)));
    problems.extend(plan.as_ref().and_then(all_reduce_problem));

    let mut data = serde_json::Map::new();
    for (name, which) in [("train", Which::Train), ("eval", Which::Eval)] {
        match input::describe(&config, which) {
            Ok(found) => {
                data.insert(name.to_owned(), json!({"records": found.records, "files": found.files}));
            }
            Err(error) => problems.push(format!("{name}_input_reader: {error}")),
        }
    }
    problems.extend(plan.as_ref().and_then(|plan| kept(&config, plan)));
    let fine_tune = fine_tuning(&config).unwrap_or_else(|error| {
        problems.push(error.to_string());
        None
    });
    if let Some(model_dir) = &args.model_dir
        && let Err(error) = coati_worker::job::check_model_dir(model_dir, &config)
    {
        problems.push(error.to_string());
    }

    match args.format {
        Format::Json => {
            let result = json!({
                "ok": problems.is_empty(),
                "problems": problems,
                "warnings": warnings,
                "ignored": ignored(&support.ignored, plan.as_ref()),
                "data": data,
                "fine_tune": fine_tune,
                "cluster": plan,
                "pipeline": config.effective_json(),
            });
            report(&serde_json::to_string(&result).context("the check's report")?);
        }
        Format::Text => {
            report(&config.effective_text());
            if let Some(plan) = &plan {
                report(&cluster_text(plan));
            }
            for (name, found) in &data {
                report(&format!(
                    "# {name}: {} records in {} file(s)",
                    found["records"], found["files"]
                ));
            }
            if let Some(found) = &fine_tune {
                report(&format!(
                    "# fine_tune_checkpoint: {} of {} variables are restored",
                    found["restored"], found["variables"]
                ));
            }
            let ignored = ignored(&support.ignored, plan.as_ref());
            if !ignored.is_empty() {
                say(&format!("accepted without effect: {}", ignored.join(", ")));
            }
            for warning in &warnings {
                say(&format!("warning: {warning}"));
            }
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Failure::user(problems.join("\n")).into())
    }
}

/// What is wrong with the figure that decides which checkpoint is kept. A reader that cannot be opened is told of elsewhere.
fn kept(config: &PipelineConfig, plan: &ClusterPlan) -> Option<String> {
    let wanted = KeepBest::new(plan.keep_best.clone()?);
    let input = input::open(config, Which::Eval).ok()?;
    let error = wanted.check(config, &input::categories(&input.labels)).err()?;
    Some(format!("{}: {error}", plan.path.display()))
}

/// What training would begin with. What is wrong with the model is said elsewhere.
fn fine_tuning(config: &PipelineConfig) -> Result<Option<serde_json::Value>, fine_tune::Error> {
    let Some(source) = fine_tune::open(config)? else {
        return Ok(None);
    };
    let Ok(ssd) = model::build(config, None) else {
        return Ok(None);
    };
    let plan = source.plan(ssd.variables())?;
    Ok(Some(json!({
        "prefix": source.prefix(),
        "type": plan.kind,
        "restored": plan.restored(),
        "variables": plan.rows.len(),
        "skipped": plan.rows.iter().filter(|row| row.verdict != Verdict::Restored).collect::<Vec<_>>(),
    })))
}

/// What of the pipeline's and the cluster file's choices does not go together well.
pub(crate) fn consistency_warnings(config: &PipelineConfig, plan: &ClusterPlan) -> Vec<String> {
    if plan.is_all_reduce() {
        return without_servers(config, plan);
    }
    dropped_replicas(config, plan)
        .into_iter()
        .chain(asynchronous_only(config, plan))
        .collect()
}

/// What a job without parameter servers cannot do.
pub(crate) fn all_reduce_problem(plan: &ClusterPlan) -> Option<String> {
    let sends_some = plan.is_all_reduce() && plan.compression.gradients == GradientCompression::TopK;
    sends_some.then(|| {
        format!(
            "{}: coati.compression.gradients is topk, but without parameter servers all elements are summed\nhint: bf16 halves the bytes",
            plan.path.display()
        )
    })
}

/// Settings that mean nothing where all replicas make each step together.
fn without_servers(config: &PipelineConfig, plan: &ClusterPlan) -> Vec<String> {
    let train = config.train_config();
    let used = u32::try_from(train.replicas_to_aggregate()).unwrap_or(0);
    let mut without_effect = Vec::new();
    if !train.sync_replicas() && train.sync_replicas.is_some() {
        without_effect.push("sync_replicas: false".to_owned());
    }
    if train.replicas_to_aggregate.is_some() && used != plan.replicas() && used > 0 {
        without_effect.push(format!("replicas_to_aggregate: {used}"));
    }
    if plan.compression.weights != WeightCompression::None {
        without_effect.push("coati.compression.weights".to_owned());
    }
    if !plan.consistency.asynchronous_keys().is_empty() {
        without_effect.push("coati.consistency".to_owned());
    }
    if without_effect.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "without parameter servers all {} replicas make each step together: {} has no effect",
        plan.replicas(),
        without_effect.join(", ")
    )]
}

/// Settings for stale gradients in a job that has none.
fn asynchronous_only(config: &PipelineConfig, plan: &ClusterPlan) -> Option<String> {
    let keys = plan.consistency.asynchronous_keys();
    (config.train_config().sync_replicas() && !keys.is_empty()).then(|| {
        format!(
            "{}: coati.consistency.{} has no effect: {} sets sync_replicas: true, and a synchronous gradient is never stale",
            plan.path.display(),
            keys.join(", coati.consistency."),
            config.name()
        )
    })
}

/// `replicas_to_aggregate` is 1 unless it is set, as in the reference: easily overlooked.
fn dropped_replicas(config: &PipelineConfig, plan: &ClusterPlan) -> Option<String> {
    let (train, replicas) = (config.train_config(), plan.replicas());
    let used = u32::try_from(train.replicas_to_aggregate()).unwrap_or(0);
    (train.sync_replicas() && (1..replicas).contains(&used)).then(|| {
        format!(
            "{}: replicas_to_aggregate is {used}, the cluster has {replicas} training replicas: each step drops the slowest \
             {}, and no two runs are equal\nhint: set replicas_to_aggregate: {replicas} to use them all",
            config.name(),
            replicas - used
        )
    })
}

fn ignored(pipeline: &[String], plan: Option<&ClusterPlan>) -> Vec<String> {
    pipeline
        .iter()
        .cloned()
        .chain(plan.iter().flat_map(|plan| plan.ignored.clone()))
        .collect()
}

fn cluster_text(plan: &ClusterPlan) -> String {
    format!(
        "# cluster {}: 1 master, {} worker(s), {} parameter server(s), {} evaluator(s): {} training replicas, {:?} placement",
        plan.path.display(),
        plan.workers.count,
        plan.parameter_servers.count,
        plan.evaluators.count,
        plan.replicas(),
        plan.placement
    )
}
