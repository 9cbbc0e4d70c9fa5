//! `coati train`: in this process, as the launcher of a local cluster, or as one task of a cluster.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use coati_collective::Wire;
use coati_common::cluster::{
    Address, ClusterFile, ClusterPlan, Devices, GradientCompression, MachineRole, Numerics, Placement, TaskId,
    TaskType, TfConfig,
};
use coati_common::config::PipelineConfig;
use coati_common::config::supported::{self, Mode};
use coati_common::exit::ExitCode;
use coati_common::rpc;
use coati_common::rpc::security::{FOLDER, Sources};
use coati_coordinator::launcher;
use coati_coordinator::launcher::resources::{self, Inventory};
use coati_coordinator::run::Limits;
use coati_detection::accelerator::{self, Device};
use coati_param_server::{Strategy, service};
use coati_worker::best::KeepBest;
use coati_worker::cluster::{Cluster, run_master, run_worker};
use coati_worker::evaluator::{Ended, run_evaluator};
use coati_worker::fine_tune;
use coati_worker::input::{self, Input};
use coati_worker::job;
use coati_worker::ranks::{Ranks, run_first, run_other};
use coati_worker::stop::StopFlag;
use coati_worker::train::{self, Outcome, train_here};

use crate::args::{ReducePrecision, TrainArgs};
use crate::console::{Console, say};
use crate::failure::Failure;
use crate::{LOG_VARIABLE, TASK_LOG};

/// A worker that is told to stop has so long for its step and for taking leave.
const WORKER_LEAVES: Duration = Duration::from_secs(5);

/// When the user's command started, in milliseconds since 1970: tasks are told by the launcher.
const STARTED_AT: &str = "COATI_STARTED_AT";

/// `verbose` as on the command line: without it the informative lines of a cluster's tasks are in their log files alone.
pub(crate) fn run(args: &TrainArgs, verbose: u8) -> anyhow::Result<()> {
    let task = TfConfig::from_env()?;
    let plan = plan(args)?;
    if task.is_some() {
        rpc::tolerate_silence(plan.heartbeat.timeout);
        let sources = credentials(args, &plan)?;
        // Whichever task comes first makes what is not given; all others find it.
        sources.make()?;
        sources.load(Duration::ZERO)?.install();
    }
    // A parameter server knows nothing of models: it opens nothing but the job's credentials.
    if let Some(config) = task.as_ref().filter(|config| config.task.kind == TaskType::Ps) {
        return serve(config);
    }
    let mut options = options(args, &plan)?;
    if let Some(config) = task {
        return one_task(&options, &config, &plan);
    }
    let inventory = Inventory::detect();
    let (devices, surprise) =
        resources::devices_per_replica(&plan, &inventory).map_err(|error| Failure::user(error.to_string()))?;
    if let Some(surprise) = surprise {
        say(&format!("warning: {surprise}"));
    }
    let plan = if plan.parameter_servers.count == 0 || plan.local_reduce {
        resources::with_devices(plan, devices)
    } else {
        if devices > 1 {
            say(&format!(
                "warning: each replica uses one of its {devices} devices\nhint: `coati.local_reduce: true` uses all: replicas of one host then sum among themselves"
            ));
        }
        plan
    };
    if plan.is_single() {
        options.device = device(&plan.devices, &inventory);
        return here(&options);
    }
    let sources = credentials(args, &plan)?;
    launch(&options, plan, &sources, inventory, verbose)
}

/// What the cluster file says, or a machine of its own where there is none, with the flags on top.
fn plan(args: &TrainArgs) -> anyhow::Result<ClusterPlan> {
    let mut plan = match &args.cluster {
        Some(path) => ClusterFile::load(path)?,
        None => ClusterFile::parse(Path::new("the command line"), "trainingInput: {scaleTier: BASIC}\n")?,
    };
    if let Some(devices) = &args.devices {
        plan.devices = devices.clone();
    }
    if let Some(bytes) = args.bucket_size {
        plan.all_reduce.bucket_bytes = bytes;
    }
    match args.reduce_precision {
        Some(ReducePrecision::Bf16) => plan.compression.gradients = GradientCompression::Bf16,
        Some(ReducePrecision::F32) => plan.compression.gradients = GradientCompression::None,
        None => {}
    }
    Ok(plan)
}

/// The one device of a job in this process.
fn device(devices: &Devices, inventory: &Inventory) -> Device {
    match devices {
        Devices::Auto => Device::Auto,
        Devices::Cpu | Devices::Cpus(_) => Device::Cpu,
        Devices::Gpu => Device::Cuda(0),
        Devices::GpuList(list) => {
            let wanted = list.first().map(u32::to_string);
            let place = inventory.gpus.iter().position(|gpu| Some(gpu) == wanted.as_ref());
            Device::Cuda(place.unwrap_or(0))
        }
    }
}

fn here(options: &train::Options) -> anyhow::Result<()> {
    preflight(options)?;
    on_signals(options.stop.clone())?;
    ended(train_here(options, &mut Console::new()))
}

/// Where the tasks of this job find certificates and token.
fn credentials(args: &TrainArgs, plan: &ClusterPlan) -> anyhow::Result<Sources> {
    let model_dir = args.model_dir.clone().or_else(|| plan.model_dir().map(PathBuf::from));
    let sources = plan
        .security
        .clone()
        .sources(coati_storage::local_side(&model_dir.clone().unwrap_or_default()).join(FOLDER));
    if model_dir.is_none() && sources.needs_folder() {
        return Err(Failure::user(
            "--model_dir is missing\nhint: give it on the command line, or in the cluster file's args; the job's certificates and token are kept there",
        )
        .into());
    }
    Ok(sources)
}

fn options(args: &TrainArgs, plan: &ClusterPlan) -> anyhow::Result<train::Options> {
    let from_plan = |find: fn(&ClusterPlan) -> Option<&str>| find(plan).map(PathBuf::from);
    let missing = |flag: &str| {
        Failure::user(format!(
            "--{flag} is missing\nhint: give it on the command line, or in the cluster file's args"
        ))
    };
    let path = args
        .pipeline_config_path
        .clone()
        .or_else(|| from_plan(ClusterPlan::pipeline_config_path));
    let path = path.ok_or_else(|| missing("pipeline_config_path"))?;
    let model_dir = args
        .model_dir
        .clone()
        .or_else(|| from_plan(ClusterPlan::model_dir))
        .ok_or_else(|| missing("model_dir"))?;
    if model_dir.to_string_lossy().contains("://") && !coati_storage::is_remote(&model_dir) {
        return Err(Failure::user(format!(
            "--model_dir {}: a job lives in a folder or a bucket\nhint: give a path, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER",
            model_dir.display()
        ))
        .into());
    }
    let mut config = PipelineConfig::load(&path)?;
    let steps = match args.num_train_steps {
        Some(steps) => Some(steps),
        None => plan
            .arg("num_train_steps")
            .map(|text| {
                text.parse().map_err(|_| {
                    Failure::user(format!(
                        "args of the cluster file: --num_train_steps {text} is not a number"
                    ))
                })
            })
            .transpose()?,
    };
    if let Some(steps) = steps {
        let steps = u32::try_from(steps)
            .map_err(|_| Failure::user(format!("--num_train_steps {steps} is more than {}", u32::MAX)))?;
        config.set_num_train_steps(steps);
    }
    config.set_sample_1_of_n_eval_examples(u32::try_from(args.sample_1_of_n_eval_examples).unwrap_or(u32::MAX));
    Ok(train::Options {
        config,
        model_dir,
        seed: args.seed,
        scaled_decode: args.scaled_decode,
        save_every: Duration::from_secs(args.save_checkpoints_secs.max(1)),
        save_every_steps: args.save_checkpoints_steps,
        keep: args.keep_checkpoint_max,
        eval: !args.no_eval,
        threads: None,
        stop: StopFlag::default(),
        started_at: started_at(),
        on_nan: plan.on_nan,
        device: Device::Auto,
        keep_best: args
            .keep_best
            .clone()
            .or_else(|| plan.keep_best.clone().filter(|_| !args.no_eval))
            .map(KeepBest::new),
        numerics: numerics(args, plan),
    })
}

/// The flags stand before the cluster file.
fn numerics(args: &TrainArgs, plan: &ClusterPlan) -> Numerics {
    let given = plan.numerics;
    Numerics {
        precision: args.precision.unwrap_or(given.precision),
        tf32: args.tf32 || given.tf32,
    }
}

fn started_at() -> SystemTime {
    let given = std::env::var(STARTED_AT).ok().and_then(|text| text.parse().ok());
    given.map_or_else(SystemTime::now, |millis| UNIX_EPOCH + Duration::from_millis(millis))
}

/// What can be known to be wrong before anything starts.
fn preflight(options: &train::Options) -> anyhow::Result<Vec<Input>> {
    job::check_free(&options.model_dir)?;
    let device = match options.device {
        Device::Auto => Device::from_environment()?,
        device => device,
    };
    accelerator::preflight(device, options.numerics)?;
    let support = supported::check(
        &options.config,
        if options.eval { Mode::TrainAndEval } else { Mode::Train },
    )?;
    for warning in &support.warnings {
        say(&format!("warning: {warning}"));
    }
    if !support.ignored.is_empty() {
        say(&format!("accepted without effect: {}", support.ignored.join(", ")));
    }
    job::check_model_dir(&options.model_dir, &options.config)?;
    fine_tune::open_for_job(&options.config, &options.model_dir)?;
    let mut inputs = vec![input::open_for_job(
        &options.config,
        input::Which::Train,
        &options.model_dir,
    )?];
    if options.eval && !options.config.eval_input_readers().is_empty() {
        let eval = input::open_for_job(&options.config, input::Which::Eval, &options.model_dir)?;
        if let Some(wanted) = &options.keep_best {
            wanted.check(&options.config, &input::categories(&eval.labels))?;
        }
        inputs.push(eval);
    } else if options.keep_best.is_some() {
        return Err(Failure::user(
            "keep_best: this job evaluates nothing, so no checkpoint can be the best\nhint: leave out --no_eval, and give the configuration an eval_input_reader; or leave out keep_best",
        )
        .into());
    }
    Ok(inputs)
}

fn launch(
    options: &train::Options,
    mut plan: ClusterPlan,
    sources: &Sources,
    inventory: Inventory,
    verbose: u8,
) -> anyhow::Result<()> {
    if let Some(problem) = super::check::all_reduce_problem(&plan) {
        return Err(Failure::user(problem).into());
    }
    let unfit = super::check::consistency_warnings(&options.config, &plan);
    for warning in plan.warnings.iter().chain(&unfit) {
        say(&format!("warning: {warning}"));
    }
    if !plan.ignored.is_empty() {
        say(&format!(
            "{}: accepted without effect: {}",
            plan.path.display(),
            plan.ignored.join(", ")
        ));
    }
    if plan.evaluators.count > 0 && !options.eval {
        say(&format!(
            "--no_eval: the evaluator of {} is not started",
            plan.path.display()
        ));
        plan.evaluators = MachineRole::default();
    }
    if matches!(plan.devices, Devices::Cpu | Devices::Cpus(_)) {
        accelerator::preflight(Device::Cpu, options.numerics)?;
    }
    let inputs = preflight(options)?;
    sources.make()?;
    sources.load(Duration::ZERO)?;
    if plan.evaluators.count > 0 && options.config.eval_input_readers().is_empty() {
        return Err(Failure::user(format!(
            "{}: evaluatorCount is 1, but {} has no eval_input_reader\nhint: add one, or leave evaluatorCount out",
            plan.path.display(),
            options.config.name()
        ))
        .into());
    }
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    // Ranks that sum among themselves have nothing that listens all the time.
    let probe = !plan.is_all_reduce();
    let mut launch = launcher::Options::new(plan, binary, args);
    (launch.probe, launch.inventory) = (probe, Some(inventory));
    let job_dir = coati_storage::local_side(&options.model_dir);
    if job_dir != options.model_dir {
        say(&format!(
            "logs, sockets and keys of this machine: {}",
            job_dir.display()
        ));
    }
    launch.job_dir = Some(job_dir);
    let since = options
        .started_at
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    launch.env.push((STARTED_AT.into(), since.to_string().into()));
    if verbose == 0 && std::env::var_os(LOG_VARIABLE).is_none() {
        launch.env.push((LOG_VARIABLE.into(), TASK_LOG.into()));
        launch.on_log = launcher::without_info(launcher::stderr_sink());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the launcher")?;
    // Made once, here, for all tasks.
    for input in &inputs {
        input.keep_index(&options.model_dir);
    }
    let outcome = runtime.block_on(launcher::run(launch)).map_err(|error| Failure {
        code: error.exit_code(),
        message: error.to_string(),
    })?;
    for warning in &outcome.warnings {
        say(&format!("warning: {warning}"));
    }
    let failures: Vec<String> = outcome.failures.iter().map(ToString::to_string).collect();
    match outcome.exit {
        ExitCode::Success => Ok(()),
        // What is being done about it was said when it began.
        code @ (ExitCode::Interrupted | ExitCode::TimeLimit) => Err(Failure {
            code,
            message: format!(
                "{code}\nhint: the same command goes on from the newest checkpoint in {}",
                options.model_dir.display()
            ),
        }
        .into()),
        code => Err(Failure {
            code,
            message: if failures.is_empty() {
                outcome.reason
            } else {
                failures.join("\n")
            },
        }
        .into()),
    }
}

/// The tasks that have a model.
fn one_task(options: &train::Options, config: &TfConfig, plan: &ClusterPlan) -> anyhow::Result<()> {
    supported::check(
        &options.config,
        if config.task.kind == TaskType::Evaluator {
            Mode::Eval
        } else {
            Mode::Train
        },
    )?;
    // An evaluator of its own spares the training replicas the evaluation.
    let has_evaluator = !config.cluster.evaluators.is_empty() || plan.evaluators.count > 0;
    let options = &train::Options {
        eval: options.eval && !has_evaluator,
        ..options.clone()
    };
    let limits = Limits {
        heartbeat_interval: plan.heartbeat.interval,
        heartbeat_timeout: plan.heartbeat.timeout,
        ..Limits::default()
    };
    if config.cluster.ps.is_empty() && config.task.kind != TaskType::Evaluator {
        return one_rank(options, config, plan, limits);
    }
    let cluster = Cluster {
        local_reduce: plan.local_reduce.then(|| ranks(options, config, plan, limits)),
        spec: config.cluster.clone(),
        task: config.task,
        strategy: match plan.placement {
            Placement::Balanced => Strategy::Balanced,
            Placement::RoundRobin => Strategy::RoundRobin,
        },
        consistency: plan.consistency.clone(),
        replication: plan.replication,
        on_nan: plan.on_nan,
        compression: plan.compression.to_wire(),
        limits,
    };
    match config.task.kind {
        TaskType::Master => {
            job::check_free(&options.model_dir)?;
            on_signals(options.stop.clone())?;
            ended(run_master(options, &cluster, &mut Console::new()))
        }
        TaskType::Worker => {
            leave_on_signal(options.stop.clone())?;
            run_worker(options, &cluster).map_err(failure)
        }
        TaskType::Ps => serve(config),
        TaskType::Evaluator => evaluate(options, config),
    }
}

/// The training replicas as ranks.
fn ranks(options: &train::Options, config: &TfConfig, plan: &ClusterPlan, limits: Limits) -> Ranks {
    Ranks {
        spec: config.cluster.clone(),
        task: config.task,
        model_dir: options.model_dir.clone(),
        bucket_bytes: usize::try_from(plan.all_reduce.bucket_bytes).unwrap_or(usize::MAX),
        wire: match plan.compression.gradients {
            GradientCompression::Bf16 => Wire::Bf16,
            GradientCompression::None | GradientCompression::TopK => Wire::F32,
        },
        transport: plan.all_reduce.transport,
        limits,
    }
}

/// A task of a job without parameter servers.
fn one_rank(options: &train::Options, config: &TfConfig, plan: &ClusterPlan, limits: Limits) -> anyhow::Result<()> {
    if let Some(problem) = super::check::all_reduce_problem(plan) {
        return Err(Failure::user(problem).into());
    }
    let ranks = ranks(options, config, plan, limits);
    if ranks.rank() > 0 {
        leave_on_signal(options.stop.clone())?;
        return run_other(options, &ranks).map_err(failure);
    }
    // Over TCP the ranks themselves meet at this address.
    let _here = ranks
        .one_host()
        .then(|| Here::bind(&config.cluster.master))
        .transpose()?;
    job::check_free(&options.model_dir)?;
    on_signals(options.stop.clone())?;
    let console = &mut Console::new();
    ended(if ranks.world() == 1 {
        train_here(options, console)
    } else {
        run_first(options, &ranks, console)
    })
}

fn ended(outcome: Result<Outcome, train::Error>) -> anyhow::Result<()> {
    match outcome.map_err(failure)? {
        Outcome::Completed(_) => Ok(()),
        Outcome::Interrupted(summary, reason) => {
            let written = match summary.checkpoint {
                Some(step) => format!("a checkpoint of step {step} is written"),
                None => "nothing was left to write into a checkpoint".to_owned(),
            };
            let words = format!("{reason}; {written}\nhint: the same command goes on from there");
            Err(Failure::interrupted(words).into())
        }
    }
}

pub(crate) fn failure(error: train::Error) -> anyhow::Error {
    match error {
        train::Error::User(message) => Failure::user(message),
        other => Failure::job(other.to_string()),
    }
    .into()
}

/// The address of a master that nobody else takes part with: launcher and evaluator see by it that the master is there.
struct Here {
    _listening: std::thread::JoinHandle<()>,
}

impl Here {
    fn bind(address: &Address) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((address.host.as_str(), address.port))
            .map_err(|error| Failure::job(format!("cannot listen on {address}: {error}")))?;
        let accepting = move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        };
        let listening = std::thread::Builder::new().name("here".to_owned()).spawn(accepting);
        Ok(Self {
            _listening: listening.context("cannot listen")?,
        })
    }
}

/// Evaluates checkpoints until the last one is evaluated.
fn evaluate(options: &train::Options, config: &TfConfig) -> anyhow::Result<()> {
    if config.task != TaskId::new(TaskType::Evaluator, 0) {
        return Err(Failure::user(format!(
            "{}: a job has one evaluator, which takes each checkpoint in turn\nhint: its index is 0",
            config.task
        ))
        .into());
    }
    leave_on_signal(options.stop.clone())?;
    let master = config.cluster.master.to_string();
    match run_evaluator(options, master, Limits::default().rejoin, &mut Console::new()).map_err(failure)? {
        Ended::Finished(_) => Ok(()),
        Ended::Stopped => Err(Failure::interrupted("stopped on request").into()),
    }
}

/// Serves variables until the job ends.
fn serve(config: &TfConfig) -> anyhow::Result<()> {
    let address = config
        .cluster
        .address(config.task)
        .context("TF_CONFIG names no address for this task")?
        .to_string();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(async {
        let mut options = service::Options::new(config.task.index, address);
        options.store.threads = std::num::NonZeroUsize::new(1);
        // No server gives up before those who wait for it.
        options.orphan_timeout = Limits::default().rejoin;
        let handle = service::serve(options)
            .await
            .map_err(|error| Failure::job(error.to_string()))?;
        let leaving = handle.clone();
        tokio::spawn(async move {
            if signalled().await.is_ok() {
                leaving.shutdown();
            }
        });
        let ended = handle.ended().await;
        let why = match &ended {
            service::Ended::Stopped => "stopped".to_owned(),
            service::Ended::Told(reason) | service::Ended::Failed(reason) => reason.clone(),
            service::Ended::Orphaned(silence) => format!("nobody called for {} s", silence.as_secs()),
        };
        say(&format!(
            "leaving: {why}; peak memory {:.1} MB",
            peak_memory().unwrap_or(0.0)
        ));
        match ended {
            service::Ended::Failed(reason) => Err(Failure::job(reason).into()),
            // Where the job goes on after all, the launcher starts the server again.
            service::Ended::Orphaned(_) => Err(Failure::job(format!("{why}: the job is gone")).into()),
            _ => Ok(()),
        }
    })
}

/// Of this process, in MB.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace()
        .next()?
        .parse::<f64>()
        .ok()
        .map(|kilobytes| kilobytes / 1024.0 * 1.048_576)
}

/// SIGINT or SIGTERM.
async fn signalled() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done,
        _ = terminate.recv() => Ok(()),
    }
}

/// A worker that is told to stop leaves after its current step; a replica that waits for others does not wait for long.
fn leave_on_signal(stop: StopFlag) -> anyhow::Result<()> {
    listen(async move {
        if signalled().await.is_err() {
            return;
        }
        stop.raise();
        tokio::time::sleep(WORKER_LEAVES).await;
        std::process::exit(i32::from(ExitCode::Interrupted.code()));
    })
}

/// The first signal asks to stop after the current step, a second one ends the process.
fn on_signals(stop: StopFlag) -> anyhow::Result<()> {
    listen(async move {
        if signalled().await.is_err() {
            return;
        }
        say("stopping after this step and writing a checkpoint; a second signal ends at once");
        stop.raise();
        if signalled().await.is_ok() {
            std::process::exit(i32::from(ExitCode::Interrupted.code()));
        }
    })
}

/// Waits for signals on a thread of its own.
fn listen(listening: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot listen for signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(listening))
        .context("cannot listen for signals")?;
    Ok(())
}
