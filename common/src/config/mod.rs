//! `pipeline.config`: the Object Detection API's configuration of a model, its training and its evaluation.
//!
//! [`PipelineConfig::load`] reads it and reports every mistake at its place; [`supported`] then says which parts of a
//! valid configuration are not built yet.

mod effective;
mod paths;
pub(crate) mod schema;
pub mod supported;
pub mod text;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use coati_proto::object_detection::protos::{
    DetectionModel, EvalConfig, InputReader, Ssd, TrainConfig, TrainEvalPipelineConfig, detection_model,
};
use sha2::{Digest as _, Sha256};

/// Why a configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), coati_storage::hint_or(source, "\nhint: --pipeline_config_path takes the path of a pipeline.config"))]
    Read {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not text.
    #[error("{0}")]
    Encoding(String),
    /// The text does not fit the schema.
    #[error(transparent)]
    Text(#[from] text::Problems),
    /// A flaw of this program: its own schema does not hold together.
    #[error("the built-in schema is broken: {0}")]
    Schema(String),
}

static NO_TRAIN_CONFIG: LazyLock<TrainConfig> = LazyLock::new(TrainConfig::default);
static NO_EVAL_CONFIG: LazyLock<EvalConfig> = LazyLock::new(EvalConfig::default);
static NO_READER: LazyLock<InputReader> = LazyLock::new(InputReader::default);

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// The message as read, overrides included; getters of the generated types give the defaults.
    pub proto: TrainEvalPipelineConfig,
    name: String,
    folder: PathBuf,
    lines: HashMap<String, usize>,
}

impl PipelineConfig {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = coati_storage::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let name = path.display().to_string();
        let mut config = Self::parse(&text::decode(bytes, &name).map_err(Error::Encoding)?, &name)?;
        config.folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(config)
    }

    /// Reads protobuf text; `name` stands for the file in errors. Relative paths resolve against the current folder only.
    pub fn parse(source: &str, name: &str) -> Result<Self, Error> {
        let parsed = text::parse(source, name, &schema::message("TrainEvalPipelineConfig")?)?;
        Ok(Self {
            proto: schema::generated(&parsed.message)?,
            name: name.to_owned(),
            folder: PathBuf::new(),
            lines: parsed.lines,
        })
    }

    /// The file as the user named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `model`
    pub fn model(&self) -> Option<&DetectionModel> {
        self.proto.model.as_ref()
    }

    /// `model.ssd`, if the model is one.
    pub fn ssd(&self) -> Option<&Ssd> {
        match self.model()?.model.as_ref()? {
            detection_model::Model::Ssd(ssd) => Some(ssd),
            _ => None,
        }
    }

    /// `train_config`; all defaults if the file has none.
    pub fn train_config(&self) -> &TrainConfig {
        self.proto.train_config.as_ref().unwrap_or(&NO_TRAIN_CONFIG)
    }

    /// `train_input_reader`; all defaults (and no input) if the file has none.
    pub fn train_input_reader(&self) -> &InputReader {
        self.proto.train_input_reader.as_ref().unwrap_or(&NO_READER)
    }

    /// `eval_config`; all defaults if the file has none.
    pub fn eval_config(&self) -> &EvalConfig {
        self.proto.eval_config.as_ref().unwrap_or(&NO_EVAL_CONFIG)
    }

    /// Each `eval_input_reader`, in order. Older files have one, newer ones any number; the text looks the same.
    pub fn eval_input_readers(&self) -> &[InputReader] {
        &self.proto.eval_input_reader
    }

    /// The first `eval_input_reader`; all defaults (and no input) if the file has none.
    pub fn eval_input_reader(&self) -> &InputReader {
        self.proto.eval_input_reader.first().unwrap_or(&NO_READER)
    }

    /// The line (from 1) that sets a field, by path: `model.ssd.num_classes`, `eval_input_reader[0].shuffle`.
    pub fn line(&self, field_path: &str) -> Option<usize> {
        self.lines.get(field_path).copied()
    }

    /// `--num_train_steps`: replaces `train_config.num_steps`.
    pub fn set_num_train_steps(&mut self, steps: u32) {
        self.proto.train_config.get_or_insert_default().num_steps = Some(steps);
    }

    /// `--sample_1_of_n_eval_examples`: replaces `sample_1_of_n_examples` of every evaluation reader.
    pub fn set_sample_1_of_n_eval_examples(&mut self, n: u32) {
        for reader in &mut self.proto.eval_input_reader {
            reader.sample_1_of_n_examples = Some(n);
        }
    }

    /// `--eval_training_data`: evaluates on the training input (unshuffled, once), as the reference does.
    pub fn evaluate_training_data(&mut self) {
        let mut reader = self.train_input_reader().clone();
        reader.shuffle = Some(false);
        reader.num_epochs = Some(1);
        self.proto.eval_input_reader = vec![reader];
    }

    /// The configuration as protobuf text with the defaults filled in; the same text for the same configuration.
    pub fn effective_text(&self) -> String {
        self.dynamic()
            .map(|message| effective::text(&message))
            .unwrap_or_default()
    }

    /// The same as a JSON object.
    pub fn effective_json(&self) -> serde_json::Value {
        self.dynamic()
            .map(|message| effective::json(&message))
            .unwrap_or_default()
    }

    /// SHA-256 (hex) of [`Self::effective_text`]: equal on replicas that run the same configuration, however it is spelled.
    pub fn digest(&self) -> String {
        crate::hex(&Sha256::digest(self.effective_text()))
    }

    fn dynamic(&self) -> Result<prost_reflect::DynamicMessage, Error> {
        schema::dynamic(&self.proto, schema::message("TrainEvalPipelineConfig")?)
    }
}

#[cfg(test)]
mod tests;
