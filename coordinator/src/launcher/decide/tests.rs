use std::time::{Duration, Instant};

use coati_common::cluster::{Restart, TaskId, TaskType};
use coati_common::exit::ExitCode;

use super::scale::{self, Change};
use super::{Cause, Decision, Exit, Limits, Signal, State, TaskState, decide};

const MASTER: usize = 0;
const WORKER: usize = 1;
const PS: usize = 2;

/// A job of one master, one worker and one parameter server on a made-up clock.
struct Job {
    zero: Instant,
    state: State,
    limits: Limits,
}

impl Job {
    fn new() -> Self {
        let zero = Instant::now();
        let task = |kind: TaskType| TaskState {
            id: TaskId::new(kind, 0),
            address: "127.0.0.1:2222".to_owned(),
            probed: kind.serves(),
            started: zero,
            ready: Some(zero),
            exit: None,
            told: None,
            restarts: Vec::new(),
            leaving: None,
            returns: false,
        };
        let tasks = vec![task(TaskType::Master), task(TaskType::Worker), task(TaskType::Ps)];
        let seconds = Duration::from_secs;
        let limits = Limits {
            ready: seconds(100),
            notice: seconds(10),
            stop: seconds(60),
            failure: seconds(20),
            drain: seconds(10),
            evaluate: seconds(1000),
            kill: seconds(5),
            leave: seconds(30),
            max_running: None,
            restart: Restart {
                max: 0,
                window: seconds(600),
            },
        };
        Self {
            zero,
            state: State {
                started: zero,
                tasks,
                stops: Vec::new(),
                asked_by: "Ctrl-C".to_owned(),
            },
            limits,
        }
    }

    fn at(&self, second: u64) -> Instant {
        self.zero + Duration::from_secs(second)
    }

    fn exits(&mut self, second: u64, task: usize, exit: Exit) -> &mut Self {
        self.state.tasks[task].exit = Some((self.at(second), exit));
        self
    }

    fn stop(&mut self, second: u64) -> &mut Self {
        self.state.stops.push(self.at(second));
        self
    }

    fn decide(&self, second: u64) -> Decision {
        decide(self.at(second), &self.state, &self.limits)
    }

    /// Decides and carries the orders out; returns them.
    fn step(&mut self, second: u64) -> Vec<(usize, Signal)> {
        let decision = self.decide(second);
        for order in &decision.orders {
            self.state.tasks[order.task].told = Some(order.signal);
        }
        decision.orders.iter().map(|order| (order.task, order.signal)).collect()
    }

    fn wakes_at(&self, second: u64) -> Option<u64> {
        self.decide(second)
            .wake_at
            .map(|at| at.duration_since(self.zero).as_secs())
    }

    fn end(&self, second: u64) -> Option<ExitCode> {
        self.decide(second).exit
    }
}

#[test]
fn a_job_that_runs_is_left_alone() {
    let mut job = Job::new();
    assert!(job.step(1_000_000).is_empty());
    assert_eq!(job.wakes_at(5), None);
    // A worker that was sent home early is no failure.
    job.exits(5, WORKER, Exit::Code(0));
    assert!(job.step(6).is_empty());
    assert_eq!(job.decide(6).cause, None);
}

#[test]
fn after_the_master_the_others_have_a_while_to_leave() {
    let mut job = Job::new();
    job.exits(50, MASTER, Exit::Code(0)).exits(51, WORKER, Exit::Code(0));
    assert!(job.step(52).is_empty());
    assert_eq!(job.wakes_at(52), Some(60));
    assert_eq!(job.step(60), [(PS, Signal::Terminate)]);
    assert!(job.step(61).is_empty(), "one SIGTERM is enough");
    assert_eq!(job.wakes_at(61), Some(65));
    assert_eq!(job.step(65), [(PS, Signal::Kill)]);
    assert_eq!(job.end(65), None);
    job.exits(66, PS, Exit::Signal(9));
    assert_eq!(job.end(66), Some(ExitCode::Success));
    assert_eq!(job.decide(66).reason, "the job is done");
}

#[test]
fn nobody_waits_for_the_master_of_a_job_that_was_done_already() {
    let mut job = Job::new();
    job.state.tasks[MASTER].ready = None;
    job.exits(1, MASTER, Exit::Code(0));
    assert_eq!(job.step(1), [(WORKER, Signal::Terminate), (PS, Signal::Terminate)]);
    job.exits(2, WORKER, Exit::Code(130)).exits(2, PS, Exit::Code(0));
    assert_eq!(job.end(2), Some(ExitCode::Success));
}

#[test]
fn the_masters_own_orderly_end_is_the_jobs() {
    for (code, exit) in [(130, ExitCode::Interrupted), (124, ExitCode::TimeLimit)] {
        let mut job = Job::new();
        job.exits(5, MASTER, Exit::Code(code))
            .exits(5, WORKER, Exit::Code(0))
            .exits(6, PS, Exit::Code(0));
        assert_eq!(job.end(6), Some(exit));
    }
}

#[test]
fn a_failed_worker_lets_the_master_write_a_checkpoint_first() {
    let mut job = Job::new();
    job.exits(5, WORKER, Exit::Code(1));
    assert_eq!(job.step(5), [(MASTER, Signal::Terminate)]);
    job.exits(8, MASTER, Exit::Code(130));
    assert_eq!(job.step(8), [(PS, Signal::Terminate)]);
    job.exits(9, PS, Exit::Code(0));
    let decision = job.decide(9);
    assert_eq!(decision.cause.map(|(_, cause)| cause), Some(Cause::Failed(WORKER)));
    assert_eq!(decision.exit, Some(ExitCode::JobFailure));
    assert_eq!(
        decision.reason,
        "worker-0 exited with code 1 (job failure): stopping the other tasks"
    );
}

#[test]
fn a_failed_server_stops_everybody_and_the_stubborn_are_killed() {
    let mut job = Job::new();
    job.exits(5, PS, Exit::Signal(11));
    assert_eq!(job.step(5), [(MASTER, Signal::Terminate), (WORKER, Signal::Terminate)]);
    assert_eq!(job.wakes_at(5), Some(25));
    job.exits(6, WORKER, Exit::Code(1));
    assert!(job.step(24).is_empty());
    assert_eq!(job.step(25), [(MASTER, Signal::Kill)]);
    job.exits(25, MASTER, Exit::Signal(9));
    assert_eq!(
        job.decide(25).reason,
        "ps-0 was killed by SIGSEGV: stopping the other tasks"
    );
    assert_eq!(job.end(25), Some(ExitCode::JobFailure));
}

#[test]
fn the_first_failure_is_the_cause_whoever_fails_later() {
    let mut job = Job::new();
    job.exits(7, MASTER, Exit::Code(1))
        .exits(6, WORKER, Exit::Code(1))
        .exits(5, PS, Exit::Code(3));
    assert_eq!(job.decide(10).cause.map(|(_, cause)| cause), Some(Cause::Failed(PS)));
}

#[test]
fn a_task_that_refuses_its_input_makes_a_user_error() {
    let mut job = Job::new();
    job.exits(1, MASTER, Exit::Code(2))
        .exits(2, WORKER, Exit::Signal(15))
        .exits(2, PS, Exit::Signal(15));
    assert_eq!(job.end(2), Some(ExitCode::UserError));
}

#[test]
fn a_request_to_stop_goes_to_the_master_alone() {
    let mut job = Job::new();
    job.stop(10);
    assert_eq!(job.step(10), [(MASTER, Signal::Terminate)]);
    assert_eq!(job.wakes_at(10), Some(70));
    assert!(
        job.decide(10)
            .reason
            .starts_with("Ctrl-C: the master writes a checkpoint and ends the job (at most 1m;")
    );
    // Its servers leave by the coordinator's word; those that do not are told.
    job.exits(20, MASTER, Exit::Code(130)).exits(20, WORKER, Exit::Code(0));
    assert!(job.step(29).is_empty());
    assert_eq!(job.step(30), [(PS, Signal::Terminate)]);
    job.exits(31, PS, Exit::Code(0));
    assert_eq!(job.end(31), Some(ExitCode::Interrupted));
}

#[test]
fn everybody_is_killed_when_stopping_takes_too_long() {
    let mut job = Job::new();
    job.stop(10);
    job.step(10);
    assert!(job.step(69).is_empty());
    assert_eq!(
        job.step(70),
        [(MASTER, Signal::Kill), (WORKER, Signal::Kill), (PS, Signal::Kill)]
    );
    assert!(job.step(71).is_empty(), "one SIGKILL is enough");
    for task in [MASTER, WORKER, PS] {
        job.exits(71, task, Exit::Signal(9));
    }
    assert_eq!(job.end(71), Some(ExitCode::Interrupted));
}

#[test]
fn a_second_request_kills_at_once() {
    let mut job = Job::new();
    job.stop(10);
    job.step(10);
    job.stop(12);
    assert_eq!(
        job.step(12),
        [(MASTER, Signal::Kill), (WORKER, Signal::Kill), (PS, Signal::Kill)]
    );
    assert_eq!(job.decide(12).reason, "asked to stop again: killing every task");
}

#[test]
fn one_request_kills_what_a_failure_is_already_stopping() {
    let mut job = Job::new();
    job.exits(5, PS, Exit::Code(1));
    job.step(5);
    job.stop(6);
    assert_eq!(job.step(6), [(MASTER, Signal::Kill), (WORKER, Signal::Kill)]);
}

#[test]
fn a_request_after_the_master_only_hurries_the_others() {
    let mut job = Job::new();
    job.exits(5, MASTER, Exit::Code(0));
    job.step(5);
    job.stop(6);
    assert_eq!(job.step(6), [(WORKER, Signal::Terminate), (PS, Signal::Terminate)]);
    job.exits(7, WORKER, Exit::Signal(15)).exits(7, PS, Exit::Signal(15));
    assert_eq!(job.end(7), Some(ExitCode::Success));
}

#[test]
fn a_master_that_crashes_while_stopping_failed() {
    let mut job = Job::new();
    job.stop(10);
    job.step(10);
    job.exits(11, MASTER, Exit::Code(1))
        .exits(12, WORKER, Exit::Code(0))
        .exits(12, PS, Exit::Code(0));
    assert_eq!(job.end(12), Some(ExitCode::JobFailure));
    // Stopped before it could install its handler: nothing was lost, as nothing had begun.
    job.exits(11, MASTER, Exit::Signal(15));
    assert_eq!(job.end(12), Some(ExitCode::Interrupted));
}

#[test]
fn the_time_limit_stops_in_order_with_its_own_code() {
    let mut job = Job::new();
    job.limits.max_running = Some(Duration::from_secs(3600));
    assert_eq!(job.wakes_at(5), Some(3600));
    assert!(job.step(3599).is_empty());
    assert_eq!(job.step(3600), [(MASTER, Signal::Terminate)]);
    assert!(
        job.decide(3600)
            .reason
            .starts_with("maxRunningTime of 1h is over: the master writes a checkpoint")
    );
    job.exits(3605, MASTER, Exit::Code(130))
        .exits(3605, WORKER, Exit::Code(0))
        .exits(3605, PS, Exit::Code(0));
    assert_eq!(job.end(3605), Some(ExitCode::TimeLimit));
}

#[test]
fn a_task_that_does_not_answer_is_named() {
    let mut job = Job::new();
    job.state.tasks[PS].ready = None;
    assert_eq!((job.wakes_at(5), job.decide(5).reason.as_str()), (Some(10), "running"));
    assert_eq!(job.wakes_at(10), Some(100));
    assert_eq!(
        job.decide(10).reason,
        "waiting for ps-0 on 127.0.0.1:2222 to answer (at most 1m40s from its start)"
    );
    assert!(job.step(99).is_empty());
    assert_eq!(
        job.step(100),
        [
            (MASTER, Signal::Terminate),
            (WORKER, Signal::Terminate),
            (PS, Signal::Terminate)
        ]
    );
    assert_eq!(
        job.decide(100).reason,
        "ps-0 did not answer on 127.0.0.1:2222 within 1m40s: stopping every task"
    );
    // It stays the cause when the task ends or answers later.
    job.state.tasks[PS].ready = Some(job.at(101));
    job.exits(102, PS, Exit::Signal(15))
        .exits(102, MASTER, Exit::Code(130))
        .exits(102, WORKER, Exit::Code(0));
    assert_eq!(job.end(102), Some(ExitCode::JobFailure));
}

/// A job that starts tasks again, at most `max` times within a minute each.
fn restarting(max: u32) -> Job {
    let mut job = Job::new();
    job.limits.restart = Restart {
        max,
        window: Duration::from_secs(60),
    };
    job
}

impl Job {
    /// Which tasks are started again now; does it.
    fn starts(&mut self, second: u64) -> Vec<usize> {
        let (now, decision) = (self.at(second), self.decide(second));
        for (index, counts) in &decision.restarts {
            let task = &mut self.state.tasks[*index];
            (task.started, task.exit, task.told, task.ready) = (now, None, None, Some(now));
            if *counts {
                task.restarts.push(now);
            }
        }
        decision.restarts.iter().map(|(index, _)| *index).collect()
    }

    /// Somebody asks for this number of workers.
    fn wants(&mut self, second: u64, workers: u32) {
        let now = self.at(second);
        scale::change(&self.state, workers).apply(&mut self.state, now);
    }

    fn kills(&mut self, second: u64, task: usize) -> &mut Self {
        self.exits(second, task, Exit::Signal(9))
    }
}

#[test]
fn a_crashed_task_is_started_again_at_once_and_the_others_are_left_alone() {
    for task in [MASTER, WORKER, PS] {
        for exit in [Exit::Signal(9), Exit::Signal(11), Exit::Code(101), Exit::Unstarted] {
            let mut job = restarting(3);
            job.exits(5, task, exit);
            assert_eq!((job.step(5), job.decide(5).cause), (Vec::new(), None));
            assert_eq!(job.starts(5), [task], "{exit}");
            assert!(job.starts(6).is_empty());
        }
    }
}

#[test]
fn ends_that_were_decided_upon_are_not_repeated() {
    for (task, code) in [(MASTER, 1), (MASTER, 2), (WORKER, 2), (PS, 2), (WORKER, 130), (PS, 124)] {
        let mut job = restarting(3);
        job.exits(5, task, Exit::Code(code));
        assert!(job.starts(60).is_empty(), "{task} {code}");
        assert_eq!(
            job.decide(60).cause,
            Some((job.at(5), Cause::Failed(task))),
            "{task} {code}"
        );
    }
    let mut job = restarting(3);
    job.exits(5, WORKER, Exit::Code(0));
    assert!(job.starts(60).is_empty());
    job.exits(7, MASTER, Exit::Code(0));
    assert!(job.starts(60).is_empty());
}

#[test]
fn a_task_that_gave_up_waits_for_the_masters_word_that_the_job_failed() {
    let mut job = restarting(3);
    job.exits(5, WORKER, Exit::Code(1));
    assert!(job.starts(5).is_empty());
    assert_eq!(job.wakes_at(5), Some(6));
    assert_eq!(job.starts(6), [WORKER]);
    job.exits(8, WORKER, Exit::Code(1)).exits(8, MASTER, Exit::Code(1));
    assert!(job.starts(20).is_empty());
    assert_eq!(job.decide(20).cause, Some((job.at(8), Cause::Failed(MASTER))));
}

#[test]
fn new_starts_wait_longer_and_longer() {
    let mut job = restarting(100);
    let mut now = job.zero;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        job.state.tasks[PS].exit = Some((now, Exit::Signal(9)));
        let decision = decide(now, &job.state, &job.limits);
        let at = if decision.restarts.is_empty() {
            decision.wake_at.unwrap()
        } else {
            now
        };
        let before = at.checked_sub(Duration::from_millis(1)).unwrap();
        assert!(at == now || decide(before, &job.state, &job.limits).restarts.is_empty());
        assert_eq!(decide(at, &job.state, &job.limits).restarts, [(PS, true)]);
        job.state.tasks[PS].restarts.push(at);
        pauses.push(at.duration_since(now).as_millis());
        now = at;
    }
    assert_eq!(pauses, [0, 250, 500, 1000, 2000, 4000, 5000, 5000]);
}

#[test]
fn one_crash_more_than_allowed_ends_the_job_and_old_ones_are_forgotten() {
    let mut job = restarting(2);
    job.kills(5, PS);
    assert_eq!(job.starts(5), [PS]);
    job.kills(10, PS);
    assert_eq!(job.starts(11), [PS]);
    // The start of second 5 is as old as the window.
    job.kills(65, PS);
    assert_eq!(job.starts(66), [PS]);
    job.kills(70, PS);
    assert!(job.starts(80).is_empty());
    let decision = job.decide(80);
    assert_eq!(decision.cause, Some((job.at(70), Cause::Failed(PS))));
    assert_eq!(
        decision.reason,
        "ps-0 was killed by SIGKILL (perhaps because memory ran out), after 2 new starts within 1m: stopping the other tasks"
    );
    // Each task has its own count.
    let mut job = restarting(1);
    job.kills(5, PS).kills(5, WORKER).kills(5, MASTER);
    assert_eq!(job.starts(5), [MASTER, WORKER, PS]);
}

#[test]
fn nothing_is_started_while_the_job_ends() {
    let mut job = restarting(5);
    job.stop(4).kills(5, WORKER);
    assert!(job.starts(6).is_empty());
    let mut job = restarting(5);
    job.exits(4, MASTER, Exit::Code(0)).kills(5, PS);
    assert!(job.starts(6).is_empty());
    // A start that is due is called off.
    let mut job = restarting(5);
    job.exits(4, WORKER, Exit::Code(1)).stop(4);
    assert!(job.starts(10).is_empty());
    assert_eq!(job.decide(10).cause, Some((job.at(4), Cause::Interrupted)));
}

#[test]
fn a_master_that_is_down_when_asked_to_stop_has_written_nothing() {
    let mut job = restarting(5);
    job.kills(4, MASTER).starts(4);
    job.kills(5, MASTER).stop(5);
    job.state.stops[0] += Duration::from_millis(100);
    job.exits(8, WORKER, Exit::Code(0)).exits(8, PS, Exit::Code(0));
    let decision = job.decide(8);
    assert_eq!(decision.cause.map(|(_, cause)| cause), Some(Cause::Interrupted));
    assert_eq!(decision.exit, Some(ExitCode::JobFailure));
}

#[test]
fn those_whom_a_dead_master_had_sent_home_are_called_back_for_the_next() {
    let mut job = restarting(5);
    job.exits(5, WORKER, Exit::Code(0));
    assert!(job.starts(6).is_empty());
    job.kills(7, MASTER);
    assert_eq!(job.starts(7), [MASTER]);
    assert_eq!(job.decide(7).restarts, [(WORKER, false)], "it is not to blame");
    // With new starts switched off nobody is called back.
    job.limits.restart.max = 0;
    assert!(job.starts(8).is_empty());
    job.limits.restart.max = 1;
    assert_eq!(job.starts(8), [WORKER]);
}

#[test]
fn a_new_process_has_as_long_to_answer_as_the_first_one() {
    let mut job = restarting(5);
    job.kills(500, PS);
    assert_eq!(job.starts(500), [PS]);
    job.state.tasks[PS].ready = None;
    assert_eq!(
        (job.wakes_at(501), job.decide(501).reason.as_str()),
        (Some(510), "running")
    );
    assert_eq!(
        job.decide(510).reason,
        "waiting for ps-0 on 127.0.0.1:2222 to answer (at most 1m40s from its start)"
    );
    assert_eq!(job.decide(599).cause, None);
    assert_eq!(job.decide(600).cause, Some((job.at(600), Cause::NotReady(PS))));
}

/// A job with workers 0 to `count - 1` in places 0, 2 and so on: servers stand between them.
fn of_workers(count: u32) -> Job {
    let mut job = restarting(3);
    let server = job.state.tasks.pop().unwrap();
    let worker = job.state.tasks.pop().unwrap();
    for index in 0..count {
        let id = TaskId::new(TaskType::Worker, index);
        job.state.tasks.push(TaskState { id, ..worker.clone() });
    }
    job.state.tasks.push(server);
    job
}

#[test]
fn the_highest_workers_leave_and_the_lowest_free_indices_come() {
    let mut job = of_workers(3);
    assert_eq!(scale::change(&job.state, 3), Change::default());
    let more = scale::change(&job.state, 5);
    assert_eq!(
        (more.new.as_slice(), more.back.len(), more.leave.len()),
        (&[3, 4][..], 0, 0)
    );
    let fewer = scale::change(&job.state, 1);
    assert_eq!((fewer.leave.as_slice(), fewer.new.len()), (&[2, 3][..], 0));
    job.wants(10, 1);
    assert_eq!(scale::workers(&job.state), 1);
    assert_eq!(scale::change(&job.state, 1), Change::default(), "said twice, done once");
    let again = scale::change(&job.state, 4);
    assert_eq!((again.back.as_slice(), again.new.as_slice()), (&[2, 3][..], &[3][..]));
    assert_eq!(scale::change(&job.state, 0).leave, [1]);
}

#[test]
fn a_worker_that_is_not_wanted_leaves_and_its_end_is_no_failure() {
    for exit in [Exit::Code(0), Exit::Code(1), Exit::Signal(15), Exit::Signal(9)] {
        let mut job = of_workers(2);
        job.wants(10, 1);
        assert_eq!(job.step(10), [(2, Signal::Terminate)]);
        assert!(job.step(39).is_empty());
        assert_eq!(job.wakes_at(39), Some(40));
        job.exits(39, 2, exit);
        assert!(job.starts(100).is_empty());
        assert_eq!((job.step(100), job.decide(100).cause), (Vec::new(), None), "{exit}");
    }
    let mut job = of_workers(2);
    job.wants(10, 1);
    job.step(10);
    assert_eq!(job.step(40), [(2, Signal::Kill)]);
}

#[test]
fn a_worker_that_is_wanted_again_comes_when_the_old_one_has_left() {
    let mut job = of_workers(2);
    job.wants(10, 1);
    job.step(10);
    job.wants(11, 2);
    assert!(job.starts(12).is_empty(), "one process an index");
    job.exits(13, 2, Exit::Code(0));
    assert_eq!(job.decide(13).restarts, [(2, false)]);
    // Unless somebody changes his mind once more.
    job.wants(14, 1);
    assert!(job.starts(15).is_empty());
}

#[test]
fn those_who_leave_are_ended_with_the_job() {
    let mut job = of_workers(2);
    job.wants(10, 1);
    job.step(10);
    job.exits(11, MASTER, Exit::Code(0))
        .exits(11, 1, Exit::Code(0))
        .exits(11, 3, Exit::Code(0));
    assert_eq!(job.end(11), None);
    assert!(job.step(25).is_empty(), "one SIGTERM is enough");
    assert_eq!(job.wakes_at(25), Some(26));
    assert_eq!(job.step(26), [(2, Signal::Kill)]);
    job.exits(26, 2, Exit::Signal(9));
    assert_eq!(job.end(26), Some(ExitCode::Success));
}

const EVALUATOR: usize = 3;

/// A job with an evaluator, whose tasks are started again once.
fn evaluated() -> Job {
    let mut job = restarting(1);
    let mut task = job.state.tasks[WORKER].clone();
    (task.id, task.probed) = (TaskId::new(TaskType::Evaluator, 0), false);
    job.state.tasks.push(task);
    job
}

#[test]
fn the_evaluator_may_finish_the_last_checkpoint_of_a_job_that_is_done() {
    let mut job = evaluated();
    for task in [MASTER, WORKER, PS] {
        job.exits(50, task, Exit::Code(0));
    }
    assert!(
        job.step(900).is_empty(),
        "others have seconds, the evaluator has longer"
    );
    let reason = job.decide(900).reason;
    assert!(
        reason.starts_with("the job is done; waiting for evaluator-0 to evaluate its last checkpoint (at most 16m40s"),
        "{reason}"
    );
    // It dies over it, and is started again.
    job.kills(901, EVALUATOR);
    assert_eq!((job.starts(901), job.end(901)), (vec![EVALUATOR], None));
    assert_eq!(job.step(1050), [(EVALUATOR, Signal::Terminate)]);
    assert_eq!(job.step(1055), [(EVALUATOR, Signal::Kill)]);
    job.kills(1055, EVALUATOR);
    assert_eq!(job.end(1055), Some(ExitCode::Success));
}

#[test]
fn nobody_in_a_hurry_waits_for_the_evaluator() {
    let mut job = evaluated();
    for task in [MASTER, WORKER, PS] {
        job.exits(50, task, Exit::Code(0));
    }
    job.step(50);
    job.stop(60);
    assert_eq!(job.step(60), [(EVALUATOR, Signal::Terminate)]);
    job.exits(60, EVALUATOR, Exit::Code(130));
    assert!(job.starts(61).is_empty());
    assert_eq!(job.end(61), Some(ExitCode::Success));
    // A job that is stopped itself has no last checkpoint to wait for.
    let mut job = evaluated();
    job.stop(10);
    assert_eq!(
        job.step(10),
        [(MASTER, Signal::Terminate), (EVALUATOR, Signal::Terminate)]
    );
}

#[test]
fn an_evaluator_that_dies_is_started_again_and_never_ends_the_job() {
    for exit in [Exit::Signal(9), Exit::Code(1), Exit::Code(101)] {
        let mut job = evaluated();
        job.exits(5, EVALUATOR, exit);
        assert_eq!(job.starts(6), [EVALUATOR], "{exit}");
        job.exits(7, EVALUATOR, exit);
        assert!(job.starts(20).is_empty() && job.step(20).is_empty());
        assert_eq!(job.decide(20).cause, None, "{exit}");
        for task in [MASTER, WORKER, PS] {
            job.exits(30, task, Exit::Code(0));
        }
        assert_eq!(job.end(30), Some(ExitCode::Success), "{exit}");
    }
    // Refused input, and one that has seen enough: neither is started again.
    for code in [2, 0] {
        let mut job = evaluated();
        job.exits(5, EVALUATOR, Exit::Code(code));
        assert!(job.starts(20).is_empty());
        assert_eq!(job.decide(20).cause, None);
        job.state.tasks[MASTER].started = job.at(10);
        assert!(job.starts(20).is_empty(), "nor for a new master");
    }
}
