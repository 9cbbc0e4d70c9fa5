//! A folder with data and a configuration, and the binary run in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::config::PIPELINE;
use crate::gate::Place;
use crate::network::{Host, Network};
use crate::{Finished, Process, coati_binary, or_panic};

/// Longest time of a command, unless a test says otherwise. A loaded machine is slow; a hang is endless.
const LIMIT: Duration = Duration::from_secs(120);

/// The checkout's folder.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// A file of `cluster-configs`.
pub fn cluster_config(name: &str) -> PathBuf {
    repository().join("cluster-configs").join(name)
}

/// A file of the data that lie beside the checkout; `None`, with a message, where they do not.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = repository().join("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    println!("skipped: there is no {}", found.display());
    None
}

/// A temporary folder with 48 made-up images to train on (three shards), 12 to evaluate on, and `pipeline.config`.
#[derive(Debug)]
pub struct Job {
    folder: TempDir,
    /// Others wait while this one runs; none for jobs that never train.
    _place: Option<Place>,
}

impl Job {
    /// One that trains. At most two of them exist at a time, the third waits; so a test makes no more than one.
    pub fn new() -> Self {
        Self::make(Some(Place::take()))
    }

    /// One that only looks at files.
    pub fn light() -> Self {
        Self::make(None)
    }

    fn make(place: Option<Place>) -> Self {
        let folder = or_panic(tempfile::tempdir(), "cannot make a temporary folder");
        let job = Self { folder, _place: place };
        let synth = "data synth --output_dir shapes --num_train 48 --num_val 12 --image_size 96 --seed 5";
        let _ = job.coati(synth.split(' ')).run().exits(0);
        for (set, further) in [("train", "--num_shards=3"), ("val", "--seed=0")] {
            let output = format!("--output_path={set}.record");
            let import = "data import voc --data_dir shapes --label_map_path shapes/label_map.pbtxt --set";
            let arguments = import.split(' ').chain([set, output.as_str(), further]);
            let _ = job.coati(arguments).run().exits(0);
        }
        job.write("pipeline.config", PIPELINE);
        job
    }

    /// The folder stays when this is dropped.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder and returns its name.
    pub fn write<'a>(&self, name: &'a str, content: impl AsRef<[u8]>) -> &'a str {
        or_panic(fs::write(self.path(name), content), name);
        name
    }

    /// Reads a text file of the folder.
    pub fn read(&self, name: &str) -> String {
        or_panic(fs::read_to_string(self.path(name)), name)
    }

    /// The configuration with parts replaced, each of which must be there; as the file `name`.
    pub fn configure<'a>(&self, name: &'a str, changes: &[(&str, &str)]) -> &'a str {
        let text = changes.iter().fold(PIPELINE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "the tests' pipeline.config has no `{from}`");
            text.replace(from, to)
        });
        self.write(name, text)
    }

    /// Writes a cluster file and returns its name.
    pub fn cluster<'a>(&self, name: &'a str, cluster: &Cluster) -> &'a str {
        self.write(name, cluster.yaml())
    }

    /// A command of the binary, in the folder.
    pub fn coati<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Coati {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        Coati {
            folder: self.folder.path().to_owned(),
            before: Vec::new(),
            arguments: arguments.collect(),
            environment: Vec::new(),
            limit: LIMIT,
        }
    }

    /// `coati train` with `pipeline.config` into the folder's `model_dir`, up to step `steps`, without evaluation.
    pub fn train(&self, model_dir: &str, steps: u64) -> Coati {
        let steps = steps.to_string();
        let fixed = [
            "train",
            "--model_dir",
            model_dir,
            "--num_train_steps",
            &steps,
            "--no_eval",
        ];
        self.coati(fixed)
    }

    /// Training on this cluster that has no end of its own, keeps all of its checkpoints, one in five steps, and has written the first.
    pub fn under_way(&self, cluster: impl AsRef<OsStr>) -> Process {
        let running = self
            .train("model", 1_000_000)
            .with("--save_checkpoints_steps 5 --keep_checkpoint_max 1000")
            .cluster(cluster)
            .start();
        running.wait_for("checkpoint model/model.ckpt-5");
        running
    }

    /// `coati eval --run_once --format json` of a model folder.
    pub fn eval(&self, model_dir: &str) -> Coati {
        let fixed = "eval --pipeline_config_path pipeline.config --run_once --format json --checkpoint_dir";
        self.coati(fixed.split(' ').chain([model_dir]))
    }
}

impl Default for Job {
    fn default() -> Self {
        Self::new()
    }
}

/// A command that is about to run.
#[derive(Clone, Debug)]
pub struct Coati {
    folder: PathBuf,
    /// Words before the binary's name.
    before: Vec<String>,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    limit: Duration,
}

impl Coati {
    /// Further arguments, separated by blanks.
    #[must_use]
    pub fn with(mut self, arguments: &str) -> Self {
        self.arguments.extend(arguments.split_whitespace().map(OsString::from));
        self
    }

    /// `--cluster FILE`
    #[must_use]
    pub fn cluster(mut self, file: impl AsRef<OsStr>) -> Self {
        self.arguments.extend(["--cluster".into(), file.as_ref().to_owned()]);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it on a host of a made-up network.
    #[must_use]
    pub fn on(mut self, network: &Network, host: Host) -> Self {
        self.before = network.on(host).into();
        self
    }

    /// When it must have ended.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Process {
        let trains = self.arguments.first().is_some_and(|name| name == "train");
        let names_its = |flag: &OsString| flag.to_string_lossy().replace('-', "_") == "__pipeline_config_path";
        if trains && !self.arguments.iter().any(names_its) {
            self = self.with("--pipeline_config_path pipeline.config");
        }
        let mut words = self.before.iter().map(OsString::from).chain([coati_binary().into()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(&self.arguments).current_dir(&self.folder);
        for name in ["TF_CONFIG", "COATI_LOG"] {
            command.env_remove(name);
        }
        command.envs(self.environment);
        Process::start(command, self.limit)
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }
}
