use std::path::Path;
use std::time::Duration;

use super::{ClusterFile, Error};
use crate::cluster::{
    ClusterPlan, Compression, Consistency, DelayCompensation, DelayCompensationKind, Devices, GradientCompression,
    Numerics, OnNan, Placement, Precision, TaskType, Transport, WeightCompression,
};

const LOCAL: &str = "\
trainingInput:
  scaleTier: CUSTOM
  masterType: standard
  workerCount: 2
  workerType: standard
  parameterServerCount: 3
  parameterServerType: standard
";

fn parse(text: &str) -> Result<ClusterPlan, Error> {
    ClusterFile::parse(Path::new("c.yaml"), text)
}

fn plan(text: &str) -> ClusterPlan {
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn error(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// The error of a CUSTOM cluster with these further lines in `trainingInput`.
fn custom(lines: &str) -> String {
    error(&format!(
        "trainingInput:\n  scaleTier: CUSTOM\n  masterType: standard\n  {lines}\n"
    ))
}

/// The error of the local cluster with this `coati:` section.
fn coati(section: &str) -> String {
    error(&format!("{LOCAL}coati: {section}\n"))
}

/// The message and the hint, without the place.
fn message(error: &str) -> (String, Option<String>) {
    let mut lines = error.lines();
    let first = lines.next().unwrap_or_default();
    let text = first.splitn(4, ':').nth(3).unwrap_or_default().trim().to_owned();
    (
        text,
        lines.find_map(|line| line.strip_prefix("hint: ")).map(str::to_owned),
    )
}

#[test]
fn the_masters_replica_counts_too() {
    let plan = plan(LOCAL);
    assert_eq!(
        (plan.replicas(), plan.count(TaskType::Ps), plan.is_single()),
        (3, 3, false)
    );
    let tasks: Vec<String> = plan.tasks().iter().map(ToString::to_string).collect();
    assert_eq!(tasks, ["master", "worker-0", "worker-1", "ps-0", "ps-1", "ps-2"]);
    assert_eq!(plan.placement, Placement::Balanced);
    assert!(plan.warnings.is_empty() && plan.ignored.is_empty(), "{plan:?}");
}

#[test]
fn every_file_that_is_shipped_loads() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster-configs"));
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
        {
            continue;
        }
        let plan = ClusterFile::load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert!(plan.warnings.is_empty(), "{}: {:?}", path.display(), plan.warnings);
        let gpus = plan.master.accelerators + plan.workers.accelerators * plan.workers.count;
        seen.push((
            path.file_name().unwrap().to_string_lossy().into_owned(),
            plan.workers.count,
            plan.parameter_servers.count,
            gpus,
        ));
    }
    seen.sort();
    let expected = [
        ("asynchronous.yaml", 2, 3, 0),
        ("cloud.yml", 9, 3, 10),
        ("evaluator.yaml", 1, 1, 0),
        ("local.yaml", 2, 3, 0),
        ("one-master.yaml", 0, 0, 0),
        ("pets.yaml", 5, 3, 6),
    ];
    assert_eq!(
        seen,
        expected.map(|(name, workers, ps, gpus)| (name.to_owned(), workers, ps, gpus))
    );
}

/// Every documented key, in camelCase.
const EVERYTHING: &str = r#"
jobId: pets_1
labels: {owner: me, phase: 2}
state: QUEUED
trainingInput:
  scaleTier: CUSTOM
  masterType: n1-standard-8
  masterConfig:
    acceleratorConfig: {count: "2", type: NVIDIA_TESLA_T4}
    imageUri: gcr.io/p/i:latest
    containerCommand: [python]
    containerArgs: [-m, trainer]
    diskConfig: {bootDiskType: pd-ssd, bootDiskSizeGb: 100}
    tpuTfVersion: 1.15
  workerType: n1-standard-8
  workerConfig: {acceleratorConfig: {count: 1, type: NVIDIA_TESLA_T4}}
  workerCount: "2"
  parameterServerType: n1-highmem-8
  parameterServerConfig: {imageUri: gcr.io/p/ps}
  parameterServerCount: 3
  evaluatorType: n1-standard-4
  evaluatorConfig: {imageUri: gcr.io/p/e}
  evaluatorCount: 1
  packageUris: ["gs://b/p.tar.gz"]
  pythonModule: object_detection.model_main
  args: [--model_dir=gs://b/m, --pipeline-config-path, gs://b/p.config, --num_train_steps, 2000]
  hyperparameters:
    goal: MAXIMIZE
    maxTrials: 4
    maxParallelTrials: 2
    maxFailedTrials: 1
    hyperparameterMetricTag: mAP
    resumePreviousJobId: other
    enableTrialEarlyStopping: true
    algorithm: GRID_SEARCH
    params: [{parameterName: lr, type: DOUBLE, minValue: 0.1, maxValue: 0.2, scaleType: UNIT_LOG_SCALE}]
  region: us-central1
  jobDir: gs://b/job
  runtimeVersion: 1.10
  pythonVersion: "3.7"
  encryptionConfig: {kmsKeyName: k}
  scheduling: {maxRunningTime: 7200s, maxWaitTime: 1800s, priority: 5}
  network: n
  serviceAccount: a
  useChiefInTfConfig: true
  enableWebAccess: false
"#;

#[test]
fn the_whole_schema_is_read_and_what_means_nothing_here_is_listed_once() {
    let plan = plan(EVERYTHING);
    assert_eq!(plan.job_id.as_deref(), Some("pets_1"));
    let roles = [&plan.master, &plan.workers, &plan.parameter_servers, &plan.evaluators];
    assert_eq!(
        roles.map(|role| (role.count, role.accelerators)),
        [(1, 2), (2, 1), (3, 0), (1, 0)]
    );
    assert_eq!(plan.max_running_time, Some(Duration::from_secs(7200)));
    assert!(plan.use_chief_in_tf_config);
    assert_eq!(plan.args.last().map(String::as_str), Some("2000"));
    assert_eq!(plan.model_dir(), Some("gs://b/m"));
    assert_eq!(plan.pipeline_config_path(), Some("gs://b/p.config"));
    assert_eq!(plan.arg("num-train-steps"), Some("2000"));
    assert_eq!(plan.job_dir.as_deref(), Some("gs://b/job"));
    let mut ignored = plan.ignored.clone();
    assert_eq!(
        ignored.join(" "),
        "labels state packageUris pythonModule hyperparameters region runtimeVersion pythonVersion \
        encryptionConfig scheduling.maxWaitTime scheduling.priority network serviceAccount enableWebAccess masterConfig.imageUri \
        masterConfig.containerCommand masterConfig.containerArgs masterConfig.diskConfig masterConfig.tpuTfVersion \
        parameterServerConfig.imageUri evaluatorConfig.imageUri"
    );
    ignored.sort();
    ignored.dedup();
    assert_eq!(ignored.len(), plan.ignored.len());
    assert_eq!(plan.warnings.len(), 1);
    assert!(plan.warnings[0].starts_with("`hyperparameters`: tuning over several trials is not built"));
}

#[test]
fn snake_case_says_the_same_as_camel_case() {
    // Keys alone change: values such as `pd-ssd` and flags stay.
    let snake: String = EVERYTHING
        .split_inclusive(['{', ',', ':', '\n', '[', ']', '}', '"', ' '])
        .map(|word| {
            if word.ends_with(':') {
                crate::cluster::suggest::snake_case(word)
            } else {
                word.to_owned()
            }
        })
        .collect();
    assert!(
        snake.contains("use_chief_in_tf_config: true") && snake.contains("boot_disk_size_gb"),
        "{snake}"
    );
    assert_eq!(plan(&snake), plan(EVERYTHING));
}

#[test]
fn tiers_stand_for_their_clusters() {
    for (tier, workers, ps, gpus) in [
        ("BASIC", 0, 0, 0),
        ("BASIC_GPU", 0, 0, 1),
        ("STANDARD_1", 4, 3, 0),
        ("PREMIUM_1", 19, 11, 0),
    ] {
        let plan = plan(&format!("trainingInput: {{scaleTier: {tier}}}\n"));
        assert_eq!(
            (
                plan.workers.count,
                plan.parameter_servers.count,
                plan.master.accelerators
            ),
            (workers, ps, gpus),
            "{tier}"
        );
    }
    assert!(plan("trainingInput: {region: us}\n").is_single());
    assert_eq!(
        plan("training_input: {scale_tier: PREMIUM_1}\n")
            .parameter_servers
            .machine_type
            .as_deref(),
        Some("large_model")
    );
}

#[test]
fn a_fixed_tier_leaves_nothing_to_choose() {
    assert_eq!(
        error("trainingInput:\n  scaleTier: STANDARD_1\n  workerCount: 5\n"),
        "c.yaml:3:3: `workerCount` can only be set when scaleTier is CUSTOM; STANDARD_1 has 4 workers\n  \
         3 |   workerCount: 5\n    |   ^^^^^^^^^^^\n\
         hint: write `scaleTier: CUSTOM` to choose machines and their number"
    );
    let (text, _) = message(&error(
        "trainingInput: {scaleTier: BASIC_GPU, masterType: standard_gpu}\n",
    ));
    assert_eq!(
        text,
        "`masterType` can only be set when scaleTier is CUSTOM; BASIC_GPU fixes the master to standard_gpu"
    );
    let (text, _) = message(&error("trainingInput: {workerCount: 5, workerType: standard}\n"));
    assert_eq!(
        text,
        "`workerType` can only be set when scaleTier is CUSTOM, and scaleTier is missing"
    );
    let (text, hint) = message(&error("trainingInput: {scaleTier: BASIC_TPU}\n"));
    assert_eq!(
        text,
        "scale tier `BASIC_TPU` is not supported: Coati trains on CPUs and NVIDIA GPUs"
    );
    assert_eq!(
        hint.as_deref(),
        Some("use BASIC, BASIC_GPU, STANDARD_1, PREMIUM_1 or CUSTOM")
    );
}

#[test]
fn a_custom_tier_needs_a_type_for_each_machine() {
    assert_eq!(
        error("trainingInput:\n  scaleTier: CUSTOM\n"),
        "c.yaml:2:14: scaleTier CUSTOM needs `masterType`\n  2 |   scaleTier: CUSTOM\n    |              ^^^^^^\n\
         hint: add `masterType: standard` (or another machine type)"
    );
    let (text, hint) = message(&custom("workerCount: 2"));
    assert_eq!(text, "`workerCount` is 2, so `workerType` is needed");
    assert_eq!(
        hint.as_deref(),
        Some("add `workerType: standard` (or another machine type)")
    );
    let (text, _) = message(&custom("parameterServerCount: 3"));
    assert_eq!(text, "`parameterServerCount` is 3, so `parameterServerType` is needed");
    // A count of zero needs none.
    assert!(
        plan("trainingInput: {scaleTier: CUSTOM, masterType: standard, workerCount: 0, parameterServerCount: 0}")
            .is_single()
    );
}

#[test]
fn machine_types_are_checked_one_by_one_and_together() {
    let (text, hint) = message(&custom("workerType: standart"));
    assert_eq!(text, "unknown machine type `standart`");
    assert_eq!(hint.as_deref(), Some("did you mean `standard`?"));
    let (text, _) = message(&custom("workerType: n1-standard-8"));
    assert_eq!(
        text,
        "`workerType` `n1-standard-8` is a Compute Engine machine type and `masterType` `standard` a legacy one: they cannot be mixed"
    );
    let (text, _) = message(&custom(
        "masterConfig: {acceleratorConfig: {count: 1, type: NVIDIA_TESLA_T4}}",
    ));
    assert!(
        text.starts_with("machine type `standard` takes no acceleratorConfig"),
        "{text}"
    );
    let (text, _) = message(&custom("masterConfig: {acceleratorConfig: {count: 1}}"));
    assert_eq!(text, "`masterConfig.acceleratorConfig` needs `type`");
}

#[test]
fn unknown_keys_are_shown_in_their_line_with_the_nearest_name() {
    assert_eq!(
        error("trainingInput:\n  scaleTier: CUSTOM\n  masterType: standard\n  workerCout: 3\n"),
        "c.yaml:4:3: unknown key `workerCout` in `trainingInput`\n  4 |   workerCout: 3\n    |   ^^^^^^^^^^\nhint: did you mean `workerCount`?"
    );
    assert_eq!(
        message(&custom("worker_cout: 3")).1.as_deref(),
        Some("did you mean `worker_count`?")
    );
    assert_eq!(
        message(&custom("placement: balanced")).1.as_deref(),
        Some("`placement` belongs under `coati:`")
    );
    assert_eq!(
        message(&error("scaleTier: BASIC\n")),
        (
            "unknown key `scaleTier`".to_owned(),
            Some("`scaleTier` belongs under `trainingInput:`".to_owned())
        )
    );
    assert_eq!(
        message(&custom("scheduling: {maxRuningTime: 1s}")).1.as_deref(),
        Some("did you mean `maxRunningTime`?")
    );
    assert_eq!(
        message(&coati("{placment: balanced}")).1.as_deref(),
        Some("did you mean `placement`?")
    );
    assert_eq!(
        message(&coati("{sync_replicas: true}")).1.as_deref(),
        Some("`sync_replicas` belongs under `train_config (of the pipeline configuration):`")
    );
    assert_eq!(
        message(&custom("worker_count: 3\n  workerCount: 3")).0,
        "`workerCount` is given twice, in two spellings"
    );
}

#[test]
fn values_have_their_types() {
    for (lines, text) in [
        (
            "workerCount: -1",
            "`workerCount` must be a whole number from 0 to 1000, found `-1`",
        ),
        (
            "workerCount: two",
            "`workerCount` must be a whole number from 0 to 1000, found `two`",
        ),
        (
            "workerCount: 2.5",
            "`workerCount` must be a whole number from 0 to 1000, found `2.5`",
        ),
        (
            "workerCount: 1001",
            "`workerCount` must be a whole number from 0 to 1000, found `1001`",
        ),
        (
            "workerCount: [2]",
            "`workerCount` must be a whole number from 0 to 1000, found a list",
        ),
        (
            "workerCount: true",
            "`workerCount` must be a whole number from 0 to 1000, found `true`",
        ),
        ("workerType: [standard]", "`workerType` must be text, found a list"),
        (
            "args: --model_dir=m",
            "`args` must be a list of texts, found `--model_dir=m`",
        ),
        ("args: [{a: b}]", "`args[]` must be text, found a mapping"),
        (
            "useChiefInTfConfig: maybe",
            "`useChiefInTfConfig` must be true or false, found `maybe`",
        ),
        ("masterConfig: image", "`masterConfig` must be a mapping, found `image`"),
        (
            "scheduling: {maxRunningTime: 7200}",
            "`scheduling.maxRunningTime` must be a duration above zero, found `7200`",
        ),
        (
            "scheduling: {maxRunningTime: 0s}",
            "`scheduling.maxRunningTime` must be a duration above zero, found `0s`",
        ),
        (
            "scheduling: {priority: 2000}",
            "`scheduling.priority` must be a whole number from 0 to 1000, found `2000`",
        ),
    ] {
        assert_eq!(message(&custom(lines)).0, text);
    }
    assert_eq!(
        message(&error("trainingInput: 3\n")).0,
        "`trainingInput` must be a mapping, found `3`"
    );
}

#[test]
fn an_even_number_of_servers_is_refused_under_round_robin_alone() {
    let servers = |count: u32, placement: &str| {
        let text = LOCAL.replace("parameterServerCount: 3", &format!("parameterServerCount: {count}"));
        parse(&format!("{text}coati: {{placement: {placement}}}\n"))
    };
    assert_eq!(
        servers(4, "round_robin").unwrap_err().to_string(),
        "c.yaml:6:25: `parameterServerCount` is 4, which is even, under round-robin placement: weights and biases alternate in a \
         model, so an even number of servers gives one server all weights and its neighbour all biases\n  \
         6 |   parameterServerCount: 4\n    |                         ^\n\
         hint: use 3 or 5 parameter servers, or `placement: balanced` under `coati:`"
    );
    assert_eq!(
        servers(4, "balanced").unwrap().warnings,
        [
            "`parameterServerCount` is 4, which is even: fine under balanced placement, but the same file is refused under \
          `placement: round_robin`; 3 or 5 work under both"
        ]
    );
    for count in [1, 3, 5] {
        assert!(servers(count, "round_robin").unwrap().warnings.is_empty());
    }
    assert!(servers(2, "round_robin").is_err());
}

#[test]
fn workers_without_a_parameter_server_sum_their_gradients() {
    let without = LOCAL.replace("parameterServerCount: 3", "parameterServerCount: 0");
    assert!(plan(&without).is_all_reduce() && !plan(LOCAL).is_all_reduce());
    let (text, hint) = message(&error(&format!("{without}coati: {{local_reduce: true}}\n")));
    assert!(text.contains("sum all gradients among themselves anyway"), "{text}");
    assert_eq!(hint.as_deref(), Some("leave it out"));
    // A master alone may have servers.
    let alone = LOCAL.replace("workerCount: 2", "workerCount: 0");
    assert_eq!(plan(&alone).replicas(), 1);
    assert!(!plan(&alone).is_all_reduce());
}

#[test]
fn our_own_section_is_read() {
    let text = format!(
        "{LOCAL}coati:\n  launcher: local\n  hosts: [localhost]\n  placement: round_robin\n  consistency: {{max_staleness: 8}}\n  \
         replication: 1\n  compression: none\n  security: {{tls: off, token_file: secret}}\n  on_nan: skip\n  threads_per_replica: 2\n  heartbeat_interval: 500ms\n  \
         heartbeat_timeout: 1m30s\n  restart: {{max: 3, window: 2m}}\n  devices: [1, 0]\n  \
         bucket_size: 25MB\n  transport: tcp\n  local_reduce: true\n  precision: fp16\n  tf32: off\n  keep_best: DetectionBoxes_Precision/mAP@.50IOU\n"
    );
    let plan = plan(&text);
    assert_eq!(plan.placement, Placement::RoundRobin);
    assert!(plan.replication);
    assert_eq!(plan.consistency.max_staleness, Some(8));
    assert_eq!((plan.security.tls, plan.security.own), (false, None));
    assert_eq!(plan.security.token_file, Some("secret".into()));
    assert_eq!(plan.on_nan, OnNan::Skip);
    assert_eq!(plan.threads_per_replica.map(u32::from), Some(2));
    assert_eq!(
        (plan.heartbeat.interval, plan.heartbeat.timeout),
        (Duration::from_millis(500), Duration::from_secs(90))
    );
    assert_eq!((plan.restart.max, plan.restart.window), (3, Duration::from_secs(120)));
    assert_eq!(plan.devices, Devices::GpuList(vec![1, 0]));
    assert_eq!(plan.all_reduce.bucket_bytes, 25_000_000);
    assert_eq!(plan.all_reduce.transport, Transport::Tcp);
    assert!(plan.local_reduce);
    assert_eq!(plan.keep_best.as_deref(), Some("DetectionBoxes_Precision/mAP@.50IOU"));
    assert_eq!((plan.numerics.precision, plan.numerics.tf32), (Precision::Fp16, false));
}

#[test]
fn a_job_has_one_evaluator() {
    let with = |count: u32| format!("{LOCAL}  evaluatorType: standard\n  evaluatorCount: {count}\n");
    assert_eq!(plan(&with(1)).evaluators.count, 1);
    let (message, hint) = message(&error(&with(2)));
    assert!(
        message.starts_with("`evaluatorCount` is 2: a job has one evaluator"),
        "{message}"
    );
    assert!(hint.is_some_and(|hint| hint.contains("set it to 1")));
}

#[test]
fn a_switch_without_effect_is_said() {
    let plan = |section: &str| plan(&format!("{LOCAL}coati: {section}\n"));
    assert_eq!(plan("{}").numerics, Numerics::default());
    let both = plan("{precision: bf16, tf32: on}");
    assert!(both.numerics.tf32);
    assert_eq!(
        both.warnings,
        [
            "`coati.tf32` has no effect beside `precision: bf16`: no product is left in float32 when convolutions are in bf16"
        ]
    );
    assert!(plan("{precision: float32, tf32: true}").warnings.is_empty());
}

#[test]
fn crashed_tasks_are_started_again_unless_the_file_says_otherwise() {
    let plan = |section: &str| plan(&format!("{LOCAL}coati: {section}\n")).restart;
    let usual = plan("{}");
    assert_eq!((usual.max, usual.window), (10, Duration::from_secs(600)));
    assert_eq!(plan("{restart: {max: 0}}").max, 0);
    assert_eq!(plan("{restart: {window: 1h}}").max, 10);
    for (section, text) in [
        (
            "{restart: {max: -1}}",
            "`coati.restart.max` must be a whole number from 0 to 1000000, found `-1`",
        ),
        (
            "{restart: {window: 0s}}",
            "`coati.restart.window` must be a duration above zero, found `0s`",
        ),
        ("{restart: {maximum: 3}}", "unknown key `maximum` in `coati.restart`"),
        ("{restart: 3}", "`coati.restart` must be a mapping, found `3`"),
    ] {
        assert_eq!(message(&coati(section)).0, text);
    }
}

#[test]
fn what_is_done_about_stale_gradients_is_read() {
    let read = |section: &str| plan(&format!("{LOCAL}coati:\n  consistency: {section}\n")).consistency;
    assert_eq!(read("{}"), Consistency::default());
    let constant = read("{max_staleness: 4, scale_learning_rate: true, delay_compensation: constant}");
    assert!(constant.scale_learning_rate);
    assert_eq!(
        constant.delay_compensation,
        Some(DelayCompensation {
            kind: DelayCompensationKind::Constant,
            lambda: 0.04
        })
    );
    assert_eq!(
        constant.asynchronous_keys(),
        ["max_staleness", "scale_learning_rate", "delay_compensation"]
    );
    let adaptive = read("{delayCompensation: adaptive, delayCompensationLambda: 1.5}");
    assert_eq!(
        adaptive.delay_compensation,
        Some(DelayCompensation {
            kind: DelayCompensationKind::Adaptive,
            lambda: 1.5
        })
    );
    assert_eq!(read("{delay_compensation: none}").asynchronous_keys(), [""; 0]);
}

#[test]
fn mistakes_about_stale_gradients_are_named() {
    let refused = |section: &str| message(&coati(&format!("{{consistency: {section}}}")));
    for (section, text, hint) in [
        (
            "{delay_compensation: adaptiv}",
            "unknown value `adaptiv` of `coati.consistency.delay_compensation`",
            "did you mean `adaptive`?",
        ),
        (
            "{delay_compensation_lambda: 0.1}",
            "`delay_compensation_lambda` is set, but delays are not compensated",
            "add `delay_compensation: constant` (or `adaptive`), or leave the lambda out",
        ),
        (
            "{scale_learning_rates: true}",
            "unknown key `scale_learning_rates` in `coati.consistency`",
            "did you mean `scale_learning_rate`?",
        ),
    ] {
        assert_eq!(refused(section), (text.to_owned(), Some(hint.to_owned())), "{section}");
    }
    for section in [
        "{scale_learning_rate: 1}",
        "{delay_compensation: constant, delay_compensation_lambda: much}",
        "{delay_compensation: constant, delay_compensation_lambda: 1e39}",
    ] {
        assert!(
            refused(section).0.contains("must be"),
            "{section}: {:?}",
            refused(section)
        );
    }
    assert_eq!(
        refused("{delay_compensation: constant, delay_compensation_lambda: -1}").0,
        "`coati.consistency.delay_compensation_lambda` must be a number above 0, found `-1`"
    );
}

#[test]
fn who_may_take_part_and_broken_gradients_have_safe_defaults() {
    let default = plan(LOCAL);
    assert!(default.security.tls && default.security.own.is_none() && default.security.token_file.is_none());
    assert_eq!(default.on_nan, OnNan::Stop);
    let text = format!("{LOCAL}coati:\n  security: {{tls: on, ca: a, cert: b, key: c}}\n  on_nan: apply\n");
    let given = plan(&text);
    let own = given.security.own.unwrap();
    assert_eq!((own.ca, own.cert, own.key), ("a".into(), "b".into(), "c".into()));
    assert_eq!(given.on_nan, OnNan::Apply);
}

#[test]
fn compression_is_off_unless_it_is_asked_for() {
    let of = |section: &str| plan(&format!("{LOCAL}coati: {section}\n")).compression;
    let off = Compression::default();
    assert_eq!(
        (off.gradients, off.weights),
        (GradientCompression::None, WeightCompression::None)
    );
    for section in [
        "{}",
        "{compression: none}",
        "{compression: false}",
        "{compression: {gradients: none}}",
    ] {
        assert_eq!(of(section), off, "{section}");
    }
    let both = of("{compression: {gradients: bf16, weights: bf16}}");
    assert_eq!(
        (both.gradients, both.weights),
        (GradientCompression::Bf16, WeightCompression::Bf16)
    );
    let slow = of("{compression: {gradients: topk, topk_fraction: 0.05}}");
    assert_eq!((slow.gradients, slow.topk_fraction), (GradientCompression::TopK, 0.05));
    assert_eq!(of("{compression: {gradients: topk}}").topk_fraction, 0.01);
}

#[test]
fn what_is_not_built_is_refused_by_name_with_what_is() {
    for (section, text, hint) in [
        (
            "{launcher: ssh}",
            "launcher `ssh` is not built yet",
            "supported today: local",
        ),
        (
            "{launcher: kubernetes}",
            "launcher `kubernetes` is not built yet",
            "supported today: local",
        ),
        (
            "{launcher: locl}",
            "unknown value `locl` of `coati.launcher`",
            "did you mean `local`?",
        ),
        (
            "{hosts: [a, b]}",
            "starting tasks on another host (`a`) is not built yet",
            "supported today: localhost, which needs no list",
        ),
        (
            "{replication: 2}",
            "`coati.replication: 2` is not built yet",
            "supported today: 1 (every parameter server has a copy on the next one) and 0",
        ),
        (
            "{compression: fp16}",
            "unknown value `fp16` of `coati.compression`",
            "write `none`, or a section such as {gradients: bf16, weights: bf16}",
        ),
        (
            "{compression: {gradients: top_k}}",
            "unknown value `top_k` of `coati.compression.gradients`",
            "did you mean `topk`?",
        ),
        (
            "{compression: {weights: topk}}",
            "unknown value `topk` of `coati.compression.weights`",
            "known are none, bf16",
        ),
        (
            "{compression: {gradients: topk, topk_fraction: 0}}",
            "`coati.compression.topk_fraction` must be above 0 and at most 1, found `0`",
            "0.01 sends one element of a hundred",
        ),
        (
            "{compression: {gradients: bf16, topk_fraction: 0.1}}",
            "`coati.compression.topk_fraction` without `gradients: topk`",
            "add `gradients: topk`, or leave it out",
        ),
        (
            "{security: tls}",
            "`coati.security` must be a mapping",
            "write `security: {tls: off}` to switch TLS off, or leave it out",
        ),
        (
            "{security: {tls: of}}",
            "unknown value `of` of `coati.security.tls`",
            "did you mean `off`?",
        ),
        (
            "{security: {certs: a}}",
            "unknown key `certs` in `coati.security`",
            "did you mean `cert`?",
        ),
        (
            "{security: {ca: a, key: b}}",
            "`coati.security` has `ca` and `key` without `cert`",
            "give all three (authority, certificate, private key, each a PEM file), or none for files that coati makes",
        ),
        (
            "{on_nan: skipp}",
            "unknown value `skipp` of `coati.on_nan`",
            "did you mean `skip`?",
        ),
        (
            "{placement: balance}",
            "unknown value `balance` of `coati.placement`",
            "did you mean `balanced`?",
        ),
        (
            "{precision: float16}",
            "unknown value `float16` of `coati.precision`",
            "did you mean `fp16`?",
        ),
        (
            "{precision: exact}",
            "unknown value `exact` of `coati.precision`",
            "known are auto, float32, bf16, fp16",
        ),
        (
            "{precision: bf16, devices: cpu}",
            "`coati.precision: bf16` with `devices: cpu`: the kernels for CPUs compute in float32",
            "leave `precision` out, or `devices`",
        ),
        (
            "{tf32: on, devices: cpu}",
            "`coati.tf32: on` with `devices: cpu`: the kernels for CPUs compute in float32",
            "leave `tf32` out, or `devices`",
        ),
        (
            "{devices: tensor}",
            "unknown value `tensor` of `coati.devices`",
            "known are auto, cpu, cpu:2, gpu",
        ),
        (
            "{transport: tpc}",
            "unknown value `tpc` of `coati.transport`",
            "did you mean `tcp`?",
        ),
        (
            "{bucket_size: 1}",
            "`coati.bucket_size`: `1` is no size of a bucket: write at least 1KiB, such as 4MiB or 25MB",
            "gradients are summed in buckets of this size while the backward pass goes on",
        ),
        (
            "{devices: []}",
            "`coati.devices` lists no GPU",
            "write `cpu` to train without GPUs",
        ),
    ] {
        assert_eq!(
            message(&coati(section)),
            (text.to_owned(), Some(hint.to_owned())),
            "{section}"
        );
    }
    assert_eq!(
        message(&coati("{heartbeat_interval: 20s}")).0,
        "`coati.heartbeat_timeout` (30s) must be at least twice `coati.heartbeat_interval` (20s)"
    );
    assert_eq!(
        message(&coati("{threads_per_replica: 0}")).0,
        "`coati.threads_per_replica` must be a whole number from 1 to 1024, found `0`"
    );
}

#[test]
fn broken_files_are_shown_where_they_break() {
    assert_eq!(
        error("trainingInput:\n  scaleTier: BASIC\n  scaleTier: CUSTOM\n"),
        "c.yaml:3:3: duplicate mapping key: scaleTier\n  3 |   scaleTier: CUSTOM\n    |   ^"
    );
    assert!(error("trainingInput:\n\tscaleTier: BASIC\n").starts_with("c.yaml:2:2: tabs disallowed"));
    assert!(error("trainingInput: [1\nb: 2\n").starts_with("c.yaml:2:2: "));
    for text in ["", "# nothing\n", "---\n"] {
        let error = error(text);
        assert!(
            error.contains("the cluster file is empty") && error.contains("\nhint: "),
            "{error}"
        );
    }
    assert_eq!(
        message(&error("coati: {launcher: local}\n")).0,
        "`trainingInput` is missing"
    );
    assert_eq!(message(&error("trainingInput:\n")).0, "`trainingInput` is missing");
    assert!(error("- 1\n").contains("must be a mapping, found a list"));
    assert!(
        message(&error("predictionInput: {a: b}\n"))
            .0
            .contains("prediction job")
    );
    // A byte-order mark is no part of the first key.
    assert!(parse("\u{feff}trainingInput: {scaleTier: BASIC}\n").is_ok());
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = ClusterFile::load(Path::new("/nonexistent/c.yaml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot read cluster file /nonexistent/c.yaml: "),
        "{error}"
    );
    assert!(error.contains("\nhint: samples are in cluster-configs/"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_makes_the_reader_panic(key in "[a-zA-Z]{1,12}", value in "\\PC{0,40}") {
        let _ = parse(&format!("trainingInput:\n  scaleTier: CUSTOM\n  {key}: {value}\n"));
        let _ = parse(&format!("{LOCAL}coati:\n  {key}: {value}\n"));
    }
}
