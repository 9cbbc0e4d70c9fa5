//! What people see while a job runs: a bar on a terminal, plain lines elsewhere. All of it on stderr.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use coati_worker::observe::{EvalReport, Observer, Started, StepRecord, Summary, Tally};
use indicatif::{ProgressBar, ProgressStyle};

/// A plain line at least this often …
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Prints a job's progress.
pub(crate) struct Console {
    bar: Option<ProgressBar>,
    tally: Tally,
    begun: Instant,
    num_steps: u64,
    last_line: Option<Instant>,
}

impl Console {
    /// A bar when stderr is a terminal.
    pub(crate) fn new() -> Self {
        use std::io::IsTerminal as _;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar
        });
        Self {
            bar,
            tally: Tally::default(),
            begun: Instant::now(),
            num_steps: 0,
            last_line: None,
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

/// One line on stderr.
#[allow(clippy::print_stderr, reason = "this is where the command line talks to people")]
pub(crate) fn say(text: &str) {
    eprintln!("{}", harmless(text));
}

/// Names and values out of files are shown as they are, but not as commands to the terminal.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_command) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| {
        if is_command(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    Cow::Owned(text.chars().map(shown).collect())
}

/// One line on stdout: data, not talk.
#[allow(clippy::print_stdout, reason = "reports go to stdout")]
pub(crate) fn report(text: &str) {
    use std::io::Write as _;
    // A reader that went away (`| head`) is no error.
    let _ = writeln!(std::io::stdout(), "{text}");
}

impl Observer for Console {
    fn started(&mut self, started: &Started) {
        self.num_steps = started.num_steps;
        if let Some(prefix) = &started.resumed_from {
            self.line(&format!(
                "resuming from step {} ({})",
                started.start_step,
                prefix.display()
            ));
        }
        let servers = match started.parameter_servers {
            0 => "no parameter server".to_owned(),
            1 => "1 parameter server".to_owned(),
            n => format!("{n} parameter servers"),
        };
        self.line(&format!(
            "training from step {} to {}: {} replica{} x batch {}, {servers}, {} records, {:.2} million parameters",
            started.start_step,
            started.num_steps,
            started.replicas,
            if started.replicas == 1 { "" } else { "s" },
            started.batch_size,
            started.records,
            started.parameters as f64 / 1e6
        ));
        if let Some(bar) = &self.bar {
            bar.set_length(started.num_steps);
            bar.set_position(started.start_step);
        }
    }

    fn step(&mut self, record: &StepRecord) {
        let now = Instant::now();
        self.tally.add(record, now - self.begun);
        let left = self.num_steps.saturating_sub(record.step) as f64 * self.tally.seconds_a_step();
        let text = step_text(record, self.tally.rate(), left);
        if let Some(bar) = &self.bar {
            bar.set_position(record.step);
            bar.set_message(text);
        } else if self.last_line.is_none_or(|last| now - last >= LINE_EVERY) || record.step == self.num_steps {
            self.last_line = Some(now);
            say(&format!("step {}/{}  {text}", record.step, self.num_steps));
        }
    }

    fn saved(&mut self, prefix: &str, _step: u64) {
        self.line(&format!("checkpoint {prefix}"));
    }

    fn evaluated(&mut self, report: &EvalReport) {
        self.line(&format!(
            "evaluation at step {}: {} on {} images ({:.1} s)",
            report.global_step,
            headline(report),
            report.images,
            report.seconds
        ));
        for note in &report.notes {
            self.warning(note);
        }
    }

    fn note(&mut self, text: &str) {
        self.line(text);
    }

    fn warning(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    fn finished(&mut self, summary: &Summary) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if summary.steps > 0 {
            say(&format!(
                "finished at step {}: {:.1} images/s; of a step {:.0} % compute, {:.0} % exchange, {:.0} % waiting for input",
                summary.step,
                summary.samples as f64 / summary.seconds.max(1e-9),
                summary.compute * 100.0,
                summary.exchange * 100.0,
                summary.input * 100.0
            ));
            if summary.bytes_pushed_per_step > 0.0 {
                say(&format!(
                    "moved in a step: {:.1} MB of gradients to the parameter servers, {:.1} MB of variables from them",
                    summary.bytes_pushed_per_step / 1e6,
                    summary.bytes_pulled_per_step / 1e6
                ));
            }
        }
    }
}

/// The overall figure of each metric: `AP 0.434, AP50 0.812, PascalBoxes mAP@0.5IOU 0.805`.
fn headline(report: &EvalReport) -> String {
    let value = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
    let figures = report.metrics.iter().filter_map(|(name, figure)| {
        let short = match name.as_str() {
            "DetectionBoxes_Precision/mAP" => "AP".to_owned(),
            "DetectionBoxes_Precision/mAP@.50IOU" => "AP50".to_owned(),
            other => {
                let (family, rest) = other.split_once("_Precision/mAP@")?;
                if family == "DetectionBoxes" {
                    return None;
                }
                format!("{family} mAP@{rest}")
            }
        };
        Some(format!("{short} {:.3}", value(figure)))
    });
    figures.collect::<Vec<_>>().join(", ")
}

/// `loss 5.31 (classification 3.90, localization 1.21, regularization 0.20)  lr 0.00400  48.1 images/s  1:32 left`
fn step_text(record: &StepRecord, rate: f64, seconds_left: f64) -> String {
    let parts: Vec<String> = record
        .losses
        .iter()
        .filter(|(name, _)| name != "Loss/total_loss")
        .map(|(name, value)| {
            format!(
                "{} {value:.3}",
                name.trim_start_matches("Loss/").trim_end_matches("_loss")
            )
        })
        .collect();
    let mut text = format!(
        "loss {:.3} ({})  lr {:.5}",
        record.total_loss(),
        parts.join(", "),
        record.learning_rate
    );
    if rate > 0.0 {
        text += &format!("  {rate:.1} images/s  {} left", clock(seconds_left));
    }
    text
}

fn clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_say_does_not_command_the_terminal() {
        assert_eq!(harmless("a\tb\nhint: ä"), "a\tb\nhint: ä");
        assert_eq!(
            harmless("class `\u{1b}[2Jcat\0` is not\r in the label map"),
            "class `\\u{1b}[2Jcat\\u{0}` is not\\r in the label map"
        );
    }

    #[test]
    fn a_step_in_one_line() {
        let record = StepRecord {
            step: 7,
            losses: vec![
                ("Loss/classification_loss".into(), 3.9),
                ("Loss/total_loss".into(), 5.1),
            ],
            learning_rate: 0.004,
            ..Default::default()
        };
        assert_eq!(
            step_text(&record, 48.06, 92.0),
            "loss 5.100 (classification 3.900)  lr 0.00400  48.1 images/s  1:32 left"
        );
        assert_eq!(clock(3725.0), "1:02:05");
    }
}
