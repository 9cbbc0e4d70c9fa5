//! `coati status`

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use coati_common::rpc::security::Sources;
use coati_common::rpc::{self, Peer};
use coati_coordinator::launcher::control;
use coati_coordinator::launcher::progress::Progress;
use coati_coordinator::launcher::report::{Report, Task, TaskState};
use coati_proto::coati::v1;
use coati_proto::coati::v1::coordinator_client::CoordinatorClient;
use serde_json::json;

use crate::args::{Format, StatusArgs};
use crate::console::{report, say};
use crate::failure::Failure;

/// For the coordinator to answer.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let job_dir = coati_storage::local_side(&args.model_dir);
    let found = Report::read(&job_dir).map_err(|error| Failure::user(error.to_string()))?;
    let alive = control::is_alive(&found);
    // The coordinator speaks to the job's own only.
    let sources = Sources::of_job(&job_dir);
    if alive && let Ok(security) = sources.load(Duration::ZERO) {
        security.install();
    }
    // Replicas that sum among themselves have no coordinator to ask.
    let served = found.tasks.iter().any(|task| task.task.starts_with("ps-"));
    let progress = match (alive, served) {
        (false, _) => Ok(None),
        (true, true) => ask(&found),
        (true, false) => Ok(Progress::read(&job_dir).map(noted)),
    };
    let (progress, problem) = match progress {
        Ok(progress) => (progress, None),
        Err(problem) => (None, Some(problem)),
    };
    match args.format {
        Format::Json => report(&json(&found, alive, progress.as_ref(), problem.as_deref())?),
        Format::Text => {
            report(&text(&found, alive, progress.as_ref()));
            if let Some(problem) = problem {
                say(&format!("warning: {problem}"));
            }
        }
    }
    Ok(())
}

/// What the coordinator says of the job's progress.
fn ask(found: &Report) -> Result<Option<v1::JobStatusReply>, String> {
    let Some(master) = found.tasks.first() else {
        return Ok(None);
    };
    let peer = Peer::new(master.task.as_str(), master.address.as_str());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let asked = runtime.block_on(async {
        let mut client = CoordinatorClient::new(rpc::connect(&peer, PATIENCE).await?);
        rpc::call(
            &peer,
            "the job's status",
            PATIENCE,
            client.job_status(v1::JobStatusRequest {}),
        )
        .await
    });
    asked.map(Some).map_err(|error| error.to_string())
}

/// What rank 0 has written down.
fn noted(progress: Progress) -> v1::JobStatusReply {
    v1::JobStatusReply {
        version: progress.step,
        num_steps: progress.num_steps,
        state: "training".to_owned(),
        records_seen: progress.records_seen,
        epoch: progress.epoch,
        last_checkpoint: progress.last_checkpoint,
        ..Default::default()
    }
}

fn json(
    found: &Report,
    alive: bool,
    progress: Option<&v1::JobStatusReply>,
    problem: Option<&str>,
) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(found).context("the report")?;
    value["alive"] = alive.into();
    value["problem"] = problem.into();
    value["progress"] = progress.map_or(serde_json::Value::Null, |progress| {
        let tasks: Vec<serde_json::Value> = progress
            .tasks
            .iter()
            .map(|task| {
                json!({
                    "task": name(task),
                    "address": task.address,
                    "activity": task.activity,
                    "seconds_since_heartbeat": task.seconds_since_heartbeat,
                })
            })
            .collect();
        json!({
            "state": progress.state,
            "step": progress.version,
            "num_steps": progress.num_steps,
            "records_seen": progress.records_seen,
            "epoch": progress.epoch,
            "last_checkpoint": progress.last_checkpoint,
            "copies": progress.copies,
            "tasks": tasks,
        })
    });
    serde_json::to_string(&value).context("the report")
}

fn name(task: &v1::TaskStatus) -> String {
    task.task.as_ref().map_or_else(String::new, |task| {
        if task.r#type == "master" {
            task.r#type.clone()
        } else {
            format!("{}-{}", task.r#type, task.index)
        }
    })
}

fn text(found: &Report, alive: bool, progress: Option<&v1::JobStatusReply>) -> String {
    let mut text = match (&found.ended, alive) {
        (Some(ended), _) => format!("{}: ended: {}", found.job_id, ended.reason),
        (None, true) => format!("{}: running, launcher pid {}", found.job_id, found.launcher_pid),
        (None, false) => format!(
            "{}: its launcher (pid {}) is gone, and its tasks with it; the same `coati train` goes on from the newest checkpoint",
            found.job_id, found.launcher_pid
        ),
    };
    let width = found.tasks.iter().map(|task| task.task.len()).max().unwrap_or_default();
    for task in &found.tasks {
        let _ = write!(text, "\n  {:width$}  {}", task.task, line(task, alive, progress));
    }
    if let Some(progress) = progress {
        let _ = write!(
            text,
            "\nstep {} of {}: {}; epoch {}, {} records seen, ",
            progress.version, progress.num_steps, progress.state, progress.epoch, progress.records_seen,
        );
        match progress.last_checkpoint {
            0 => text += "no checkpoint yet",
            step => text += &format!("last checkpoint {step}"),
        }
        if !progress.copies.is_empty() {
            let _ = write!(text, "; copies of the parameter servers: {}", progress.copies);
        }
    }
    text
}

/// `127.0.0.1:2222  pid 123  running, computing  started again twice`
fn line(task: &Task, alive: bool, progress: Option<&v1::JobStatusReply>) -> String {
    let mut line = task.address.clone();
    if let Some(pid) = task.pid.filter(|_| alive) {
        let _ = write!(line, "  pid {pid}");
    }
    line += match task.state {
        _ if !alive => "  not running",
        TaskState::Starting => "  starting",
        TaskState::Running => "  running",
        TaskState::Restarting => "  crashed, starts again",
        TaskState::Leaving => "  leaving",
        TaskState::Ended => "  ended",
    };
    let member = progress.and_then(|progress| progress.tasks.iter().find(|member| name(member) == task.task));
    if let Some(member) = member.filter(|member| !member.activity.is_empty()) {
        let _ = write!(line, ", {}", member.activity.replace('_', " "));
    }
    if let Some(exit) = &task.exit {
        let _ = write!(line, " ({exit})");
    }
    match task.restarts {
        0 => {}
        1 => line += "  started again once",
        count => {
            let _ = write!(line, "  started again {count} times");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use coati_coordinator::launcher::report::{Ended, VERSION};

    use super::*;

    fn found() -> Report {
        let task = |task: &str, state, restarts| Task {
            task: task.to_owned(),
            address: "127.0.0.1:2222".to_owned(),
            pid: Some(7),
            state,
            restarts,
            exit: None,
            log: None,
        };
        Report {
            version: VERSION,
            job_id: "job-7".to_owned(),
            launcher_pid: 12,
            control: None,
            ended: None,
            written_unix_ms: 1,
            tasks: vec![
                task("master", TaskState::Running, 0),
                task("worker-0", TaskState::Running, 2),
            ],
        }
    }

    fn progress() -> v1::JobStatusReply {
        v1::JobStatusReply {
            version: 120,
            num_steps: 1000,
            state: "training".to_owned(),
            tasks: vec![v1::TaskStatus {
                task: Some(v1::Task {
                    r#type: "worker".to_owned(),
                    index: 0,
                }),
                activity: "waiting_for_input".to_owned(),
                ..Default::default()
            }],
            records_seen: 960,
            epoch: 3,
            last_checkpoint: 100,
            copies: "not yet of ps-1".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_running_job_in_a_few_lines() {
        assert_eq!(
            text(&found(), true, Some(&progress())),
            "job-7: running, launcher pid 12\n  master    127.0.0.1:2222  pid 7  running\n  \
             worker-0  127.0.0.1:2222  pid 7  running, waiting for input  started again 2 times\n\
             step 120 of 1000: training; epoch 3, 960 records seen, last checkpoint 100; \
             copies of the parameter servers: not yet of ps-1"
        );
    }

    #[test]
    fn a_job_without_a_checkpoint_says_so() {
        let young = v1::JobStatusReply {
            last_checkpoint: 0,
            ..progress()
        };
        assert!(text(&found(), true, Some(&young)).contains("960 records seen, no checkpoint yet; copies"));
    }

    #[test]
    fn jobs_that_ended_or_were_killed_show_no_processes() {
        let gone = text(&found(), false, None);
        assert!(gone.starts_with("job-7: its launcher (pid 12) is gone"), "{gone}");
        assert!(!gone.contains("pid 7"), "{gone}");
        let mut ended = found();
        ended.ended = Some(Ended {
            exit_code: 0,
            reason: "the job is done".to_owned(),
        });
        assert!(text(&ended, false, None).starts_with("job-7: ended: the job is done\n"));
    }

    #[test]
    fn the_json_holds_the_file_and_what_the_coordinator_says() {
        let text = json(&found(), true, Some(&progress()), None).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["job_id"], &value["alive"]), (&json!("job-7"), &json!(true)));
        assert_eq!(value["progress"]["step"], json!(120));
        assert_eq!(value["progress"]["tasks"][0]["task"], json!("worker-0"));
        let silent = json(&found(), true, None, Some("master did not answer")).unwrap();
        assert!(
            silent.contains(r#""problem":"master did not answer","progress":null"#),
            "{silent}"
        );
    }
}
