//! What of a valid configuration is built, and what has to be refused before anything starts.
//!
//! The reflected message is walked against the tables in `rules`: nothing that a user sets is dropped in silence.
//! A set field is honoured, accepted without effect (and listed once), warned about, or refused; fields that stand in no
//! table are refused unless they have their default value.

mod contradictions;
mod rules;
mod walk;

use std::fmt;

use super::{Error, PipelineConfig};

pub use rules::METRICS;

/// Which parts of a configuration matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The model and its training.
    Train,
    /// The model and its evaluation.
    Eval,
    /// Training with evaluations in between.
    TrainAndEval,
}

/// A part of a configuration that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The file as the user named it.
    pub file: String,
    /// The line (from 1), if the file sets the field or the message that lacks it.
    pub line: Option<usize>,
    /// For example `model.ssd.feature_extractor.type`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What is supported.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            path,
            message,
            hint,
        } = self;
        match line {
            Some(line) => write!(f, "{file}:{line}: {path}: {message}\nhint: {hint}"),
            None => write!(f, "{file}: {path}: {message}\nhint: {hint}"),
        }
    }
}

/// Everything that keeps a configuration from being run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported(pub Vec<Refusal>);

impl std::error::Error for Unsupported {}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if index > 0 { "\n\n" } else { "" })?;
        }
        Ok(())
    }
}

/// What becomes of the fields that a configuration sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// What cannot be run, in the order of the file; at its end what the file lacks.
    pub refused: Vec<Refusal>,
    /// Paths of fields accepted without effect.
    pub ignored: Vec<String>,
    /// Sentences about what is asked for and not done.
    pub warnings: Vec<String>,
}

/// Holds a configuration against what is built.
pub fn survey(config: &PipelineConfig, mode: Mode) -> Result<Support, Error> {
    let mut support = walk::walk(config, &config.dynamic()?, mode);
    contradictions::find(config, mode, &mut support.refused);
    support
        .refused
        .sort_by_key(|refusal| refusal.line.unwrap_or(usize::MAX));
    Ok(support)
}

/// Refuses a configuration that asks for something that is not built; otherwise what it sets in vain.
pub fn check(config: &PipelineConfig, mode: Mode) -> Result<Support, Unsupported> {
    let support = survey(config, mode).unwrap_or_else(|error| Support {
        refused: vec![Refusal {
            file: config.name().to_owned(),
            line: None,
            path: "(everything)".to_owned(),
            message: error.to_string(),
            hint: "this is a fault of the program, please report it".to_owned(),
        }],
        ..Support::default()
    });
    if support.refused.is_empty() {
        Ok(support)
    } else {
        Err(Unsupported(support.refused))
    }
}

#[cfg(test)]
mod tests;
