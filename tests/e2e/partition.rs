//! Hosts that do not see each other: packets vanish without a word. Those who are cut off stop and say whom they wait for, the
//! others go on or wait by name, and after healing there is one job that ends as it should.

use std::fs;
use std::time::Duration;

use coati_tests::steps::Steps;
use coati_tests::{Cluster, Coati, Host, Job, Network, Spread, tensors};
use nix::sys::signal::Signal;

use crate::recovery::records_seen;

/// Steps of a job that ends by itself; it saves every ten.
const STEPS: u64 = 60;

/// For all cuts of a test.
const LIMIT: Duration = Duration::from_secs(300);

/// A way in which two hosts do not see each other.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Both,
    /// Only what the first one sends is lost.
    There,
    /// Only what the second one sends is lost.
    Back,
}

impl Cut {
    const ALL: [Self; 3] = [Self::Both, Self::There, Self::Back];

    fn make(self, network: &Network, one: Host, other: Host) {
        match self {
            Self::Both => network.part(one, other),
            Self::There => network.block(one, other),
            Self::Back => network.block(other, one),
        }
    }
}

/// One master, two workers, three servers, who count as lost after 4 s of silence.
fn started(job: &Job, model: &str, steps: u64, save: u64) -> Coati {
    let cluster = Cluster::new()
        .coati("heartbeat_interval: 200ms")
        .coati("heartbeat_timeout: 4s");
    let file = job.cluster("cluster.yaml", &cluster);
    job.train(model, steps)
        .with(&format!("--save_checkpoints_steps {save} --keep_checkpoint_max 100"))
        .cluster(file)
        .limit(LIMIT)
}

/// A job that ends when it is stopped, and writes no checkpoint before: its log holds all steps.
fn endless(job: &Job) -> Coati {
    started(job, "model", 1_000_000, 1_000_000)
}

fn finite(job: &Job) -> Coati {
    started(job, "model", STEPS, 10)
}

/// Waits until three replicas make steps; returns how many there are then.
fn all_take_part(job: &Job) -> u64 {
    let begun = Steps::wait(&job.path("model"), "a step of three", |log| log.replicas() == [0, 1, 2]);
    let further = begun.newest() + 5;
    let later = Steps::wait(&job.path("model"), "further steps", |log| log.newest() >= further);
    later.newest()
}

/// Worker 0 does not get through: the others make steps without it, it stops, and takes part again when `heal` is done.
fn goes_on_without_worker_0(job: &Job, spread: &Spread, heal: impl FnOnce()) {
    let model = job.path("model");
    let two = |log: &Steps| log.replicas() == [0, 2];
    let without = Steps::wait(&model, "a step of two", two).newest();
    let later = Steps::wait(&model, "further steps of two", |log| log.newest() >= without + 20);
    assert!(later.by(without, 20).all(|replicas| replicas == [0, 2]), "{later:?}");
    heal();
    all_take_part(job);
    Steps::read(&model).assert_no_record_twice();
    assert!(spread.task("master").said().contains("worker-0"), "the master names it");
}

/// The number that follows these words.
fn number_after(text: &str, words: &str) -> u64 {
    let after = text.split(words).nth(1).unwrap_or_default();
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number after `{words}` in {text}"))
}

/// Stops the job; every record of its steps is one that the last checkpoint counts.
fn stop(job: &Job, spread: &mut Spread) {
    spread.task("master").signal(Signal::SIGINT);
    let master = spread.finish("master").exits(130);
    let (_, saved) = master.stderr.rsplit_once("checkpoint model/").unwrap();
    let step = number_after(saved, "model.ckpt-");
    let _ = spread.finish_all();
    let seen = records_seen(job, "model", step);
    // Twelve a step, or eight of those that were made without worker 0.
    assert!(seen < 12 * step && seen > 8 * step, "{seen} records of {step} steps");
}

/// The job has ended; an undisturbed one makes the same bits.
fn same_as_undisturbed(job: &Job) {
    let _ = started(job, "calm", STEPS, 10).run().exits(0);
    let read = |name: &str| tensors::read(&job.path(name), STEPS);
    tensors::assert_same_bits(
        &read("calm"),
        &read("model"),
        "an undisturbed run and one with a partition",
    );
    assert_eq!(records_seen(job, "model", STEPS), records_seen(job, "calm", STEPS));
}

#[test]
fn a_worker_that_is_cut_off_from_everybody_comes_back() {
    let Some(mut spread) = Spread::new(2, 3) else { return };
    let job = Job::new();
    spread.start_all(&endless(&job));
    all_take_part(&job);
    let worker = spread.host("worker-0");
    spread.network.isolate(worker);
    let stopped = spread.task("worker-0").wait_for("joining again");
    assert!(stopped.contains(&spread.address("master")), "{stopped}");
    spread.task("master").wait_for("has been silent for");
    let waits = format!("waiting for master ({}) since", spread.address("master"));
    spread.task("worker-0").wait_for(&waits);
    goes_on_without_worker_0(&job, &spread, || spread.network.reconnect(worker));
    stop(&job, &mut spread);
}

#[test]
fn a_worker_that_does_not_see_the_master_comes_back() {
    let Some(mut spread) = Spread::new(2, 3) else { return };
    let job = Job::new();
    spread.start_all(&endless(&job));
    let (worker, master) = (spread.host("worker-0"), spread.host("master"));
    for cut in Cut::ALL {
        all_take_part(&job);
        cut.make(&spread.network, worker, master);
        goes_on_without_worker_0(&job, &spread, || spread.network.join(worker, master));
    }
    stop(&job, &mut spread);
}

/// Nobody can say of a worker that does not see one server whether it is slow, but itself.
#[test]
fn a_worker_that_does_not_see_one_server_does_not_hold_up_the_others() {
    let Some(mut spread) = Spread::new(2, 3) else { return };
    let job = Job::new();
    spread.start_all(&endless(&job));
    let (worker, server) = (spread.host("worker-0"), spread.host("ps-1"));
    for cut in Cut::ALL {
        all_take_part(&job);
        cut.make(&spread.network, worker, server);
        goes_on_without_worker_0(&job, &spread, || spread.network.join(worker, server));
    }
    let named = format!("ps-1 ({})", spread.address("ps-1"));
    assert!(
        spread.task("worker-0").said().contains(&named),
        "it says whom it waits for"
    );
    stop(&job, &mut spread);
}

#[test]
fn a_server_that_the_master_does_not_see_is_waited_for_by_name() {
    let Some(mut spread) = Spread::new(2, 3) else { return };
    let job = Job::new();
    spread.start_all(&finite(&job));
    let (master, server) = (spread.host("master"), spread.host("ps-1"));
    for (cut, save) in Cut::ALL.into_iter().zip([10, 20, 30]) {
        spread.task("master").wait_for(&format!("model.ckpt-{save}"));
        cut.make(&spread.network, master, server);
        let back = format!("to step {save};");
        let said = spread.task("master").wait_for(&back);
        assert!(said.contains(&format!("ps-1 ({})", spread.address("ps-1"))), "{said}");
        spread.network.join(master, server);
    }
    let _ = spread.finish_all();
    same_as_undisturbed(&job);
}

#[test]
fn a_master_that_nobody_sees_goes_on_when_it_is_seen() {
    let Some(mut spread) = Spread::new(2, 3) else { return };
    let job = Job::new();
    spread.start_all(&finite(&job));
    spread.task("master").wait_for("model.ckpt-10");
    spread.network.isolate(spread.host("master"));
    for task in ["worker-0", "worker-1"] {
        let stopped = spread.task(task).wait_for("joining again");
        assert!(stopped.contains(&spread.address("master")), "{stopped}");
        let waits = format!("waiting for master ({}) since", spread.address("master"));
        spread.task(task).wait_for(&waits);
    }
    spread.task("master").wait_for("waiting for the parameter servers: ps-");
    // Where the first one still holds the lock, nobody else begins.
    let second = spread.command(finite(&job), &spread.spec(), "master", spread.spare());
    let _ = second
        .run()
        .exits(2)
        .says(&["another coordinator runs this job", "hint: "]);
    spread.network.reconnect(spread.host("master"));
    let ended = spread.finish_all();
    assert!(
        ended["worker-0"].stderr.contains("the job is complete"),
        "{}",
        ended["worker-0"]
    );
    same_as_undisturbed(&job);
}

/// Somebody removed the lock, as a disk that knows none: the servers go on with the second coordinator, and the first one
/// leaves everything as it is when it sees them again.
#[test]
fn a_master_that_was_replaced_while_nobody_saw_it_ends() {
    let Some(mut spread) = Spread::new(2, 3) else { return };
    let job = Job::new();
    spread.start_all(&finite(&job));
    spread.task("master").wait_for("model.ckpt-10");
    spread.network.isolate(spread.host("master"));
    spread.task("master").wait_for("to step 10;");
    fs::remove_file(job.path("model/coati-job.lock")).unwrap();

    let mut spec = spread.spec();
    spec.master.host = spread.spare().address();
    spec.workers.clear();
    let second = spread.command(started(&job, "model", 1_000_000, 100), &spec, "master", spread.spare());
    let second = second.start();
    let taken_over = number_after(&second.wait_for("resuming from step "), "resuming from step ");
    second.wait_for("checkpoint model/model.ckpt-");
    spread.network.reconnect(spread.host("master"));
    let first = spread.finish("master").exits(1);
    let first = first.says(&["another coordinator has taken this job over", "let only one run"]);
    assert_eq!(first.stderr.matches("checkpoint model/").count(), 1, "{first}");
    second.signal(Signal::SIGINT);
    let second = second.finish().exits(130);
    let (_, last) = second.stderr.rsplit_once("checkpoint model/").unwrap();
    let step = number_after(last, "model.ckpt-");
    // Three replicas made the steps before, one those after; the first master may have decided one more by itself, of a
    // contribution that had arrived.
    let (seen, expected) = (
        records_seen(&job, "model", step),
        12 * taken_over + 4 * (step - taken_over),
    );
    assert!(
        [expected, expected - 8].contains(&seen),
        "{seen} records, {expected} expected"
    );
}
