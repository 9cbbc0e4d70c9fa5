//! What a chaos run found out.

use std::fmt;

use serde_json::{Value, json};

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of the faults, the job and its data.
    pub seed: u64,
    /// `coati.replication`
    pub replication: u32,
    /// Processes killed, stopped for a while, stopped for good.
    pub faults: [u64; 3],
    /// Faults by victim.
    pub victims: Vec<(String, u64)>,
    /// The step at which the job ended.
    pub steps: u64,
    /// Committed steps that are not in the weights, although nobody said so or replication is on.
    pub steps_lost: u64,
    /// Committed steps that the job went back behind, said so, and made again; without replication.
    pub steps_made_again: u64,
    /// Uses of records.
    pub records_used: u64,
    /// Records that an epoch left out.
    pub records_lost: u64,
    /// Records that an epoch used more than once.
    pub records_doubled: u64,
    /// Positions that the last checkpoint will hand out again.
    pub records_outstanding: u64,
    /// The loss with the final weights, over one epoch.
    pub final_loss: f64,
    /// The same of a run that nobody disturbed.
    pub undisturbed_loss: f64,
    /// Whether the final weights are bit for bit those that come out when the committed steps are made again in one process.
    pub weights_proven: Option<bool>,
    /// Whether they are those of the undisturbed run; asked only where no step had fewer contributors.
    pub weights_undisturbed: Option<bool>,
    /// Seconds until the cluster was whole again, ascending.
    pub recovery: Vec<f64>,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// Everything that should not have been, in words.
    pub findings: Vec<String>,
}

impl Report {
    /// Whether the job kept its promises.
    pub fn holds(&self) -> bool {
        self.findings.is_empty() && self.steps_lost == 0 && self.records_lost == 0 && self.records_doubled == 0
    }

    fn recovery(&self) -> (f64, f64) {
        let middle = self.recovery.get(self.recovery.len() / 2);
        let last = self.recovery.last();
        (middle.copied().unwrap_or_default(), last.copied().unwrap_or_default())
    }

    /// One object.
    pub fn json(&self) -> Value {
        let [killed, paused, hung] = self.faults;
        let victims: serde_json::Map<String, Value> = self
            .victims
            .iter()
            .map(|(task, count)| (task.clone(), (*count).into()))
            .collect();
        let (median, longest) = self.recovery();
        json!({
            "seed": self.seed,
            "replication": self.replication,
            "killed": killed,
            "stopped_for_a_while": paused,
            "stopped_for_good": hung,
            "victims": victims,
            "steps": self.steps,
            "steps_lost": self.steps_lost,
            "steps_made_again": self.steps_made_again,
            "records_used": self.records_used,
            "records_lost": self.records_lost,
            "records_doubled": self.records_doubled,
            "records_outstanding": self.records_outstanding,
            "final_loss": self.final_loss,
            "undisturbed_loss": self.undisturbed_loss,
            "weights_proven": self.weights_proven,
            "weights_undisturbed": self.weights_undisturbed,
            "recovery_seconds": { "median": median, "longest": longest },
            "seconds": self.seconds,
            "findings": self.findings,
            "holds": self.holds(),
        })
    }
}

fn yes(answer: Option<bool>) -> &'static str {
    match answer {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "not asked",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [killed, paused, hung] = self.faults;
        let victims: Vec<String> = self
            .victims
            .iter()
            .map(|(task, count)| format!("{task} {count}"))
            .collect();
        let (median, longest) = self.recovery();
        writeln!(
            f,
            "seed                   {}, replication {}",
            self.seed, self.replication
        )?;
        writeln!(
            f,
            "faults                 {killed} killed, {paused} stopped for a while, {hung} stopped for good ({})",
            victims.join(", ")
        )?;
        writeln!(
            f,
            "whole again after      {median:.1} s at the median, {longest:.1} s at most"
        )?;
        writeln!(f, "steps in the weights   {}", self.steps)?;
        writeln!(f, "committed steps lost   {}", self.steps_lost)?;
        if self.replication == 0 {
            writeln!(
                f,
                "steps made again       {} (without replication, after the loss of a parameter server)",
                self.steps_made_again
            )?;
        }
        writeln!(f, "records lost           {}", self.records_lost)?;
        writeln!(f, "records doubled        {}", self.records_doubled)?;
        writeln!(
            f,
            "records used           {}, {} outstanding",
            self.records_used, self.records_outstanding
        )?;
        writeln!(
            f,
            "final loss             {:.4}, undisturbed {:.4}",
            self.final_loss, self.undisturbed_loss
        )?;
        writeln!(
            f,
            "weights are the steps' {} (bit for bit, made again in one process)",
            yes(self.weights_proven)
        )?;
        writeln!(
            f,
            "weights undisturbed    {} (asked where every step had all replicas)",
            yes(self.weights_undisturbed)
        )?;
        for finding in &self.findings {
            writeln!(f, "FOUND                  {finding}")?;
        }
        write!(
            f,
            "{} in {:.0} s",
            if self.holds() {
                "all promises kept"
            } else {
                "PROMISES BROKEN"
            },
            self.seconds
        )
    }
}
