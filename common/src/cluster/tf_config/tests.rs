use super::{Address, ClusterSpec, TfConfig};
use crate::cluster::{TaskId, TaskType};

const THREE: &str = r#"{"cluster": {"master": ["h0:1"], "worker": ["h1:1", "h2:1"], "ps": ["h3:1"]}, "task": {"type": "worker", "index": 1}}"#;

fn error(text: &str) -> String {
    TfConfig::parse(text).expect_err(text).to_string()
}

fn cluster(cluster: &str) -> String {
    error(&format!(
        r#"{{"cluster": {cluster}, "task": {{"type": "master", "index": 0}}}}"#
    ))
}

fn task(task: &str) -> String {
    error(&format!(
        r#"{{"cluster": {{"master": ["h0:1"], "worker": ["h1:1", "h2:1"]}}, "task": {task}}}"#
    ))
}

#[test]
fn a_full_one_is_read() {
    let config = TfConfig::parse(THREE).unwrap().unwrap();
    assert_eq!(config.task, TaskId::new(TaskType::Worker, 1));
    assert_eq!(config.cluster.replicas(), 3);
    assert_eq!(config.cluster.address(config.task).unwrap().to_string(), "h2:1");
    assert_eq!(config.cluster.address(TaskId::new(TaskType::Ps, 1)), None);
    let tasks: Vec<String> = config
        .cluster
        .tasks()
        .map(|(task, address)| format!("{task}={address}"))
        .collect();
    assert_eq!(tasks, ["master=h0:1", "worker-0=h1:1", "worker-1=h2:1", "ps-0=h3:1"]);
}

#[test]
fn what_is_written_is_read_back() {
    let address = |port| Address {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let mut config = TfConfig::new(
        ClusterSpec {
            master: address(1),
            workers: vec![address(2)],
            ps: vec![address(3)],
            evaluators: vec![address(4)],
        },
        TaskId::new(TaskType::Ps, 0),
    );
    assert_eq!(
        config.to_json(),
        r#"{"cluster":{"master":["127.0.0.1:1"],"worker":["127.0.0.1:2"],"ps":["127.0.0.1:3"],"evaluator":["127.0.0.1:4"]},"task":{"type":"ps","index":0}}"#
    );
    assert_eq!(TfConfig::parse(&config.to_json()), Ok(Some(config.clone())));
    config.chief = true;
    config.task = TaskId::MASTER;
    config.environment = Some("cloud".to_owned());
    config.job = Some(serde_json::json!({"args": ["--a"]}));
    assert!(config.to_json().contains(r#""chief":["127.0.0.1:1"]"#));
    assert_eq!(TfConfig::parse(&config.to_json()), Ok(Some(config)));
}

#[test]
fn a_process_alone_has_no_cluster() {
    for text in [
        "",
        "  ",
        "{}",
        r#"{"cluster": {}}"#,
        r#"{"cluster": null, "task": {"type": "master", "index": 0}}"#,
    ] {
        assert_eq!(TfConfig::parse(text), Ok(None), "{text:?}");
    }
    let text = r#"{"task": {"type": "worker", "index": 0}}"#;
    assert!(error(text).starts_with("TF_CONFIG: `cluster` is missing\nhint: "));
}

#[test]
fn chief_is_master_and_an_evaluator_may_stand_outside() {
    let text = r#"{"cluster": {"chief": ["h0:1"]}, "task": {"type": "chief", "index": "0"}, "rpc_layer": "grpc"}"#;
    let config = TfConfig::parse(text).unwrap().unwrap();
    assert_eq!((config.task, config.chief), (TaskId::MASTER, true));
    let text = r#"{"cluster": {"chief": ["h0:1"]}, "task": {"type": "evaluator", "index": 0}}"#;
    assert_eq!(
        TfConfig::parse(text).unwrap().unwrap().task,
        TaskId::new(TaskType::Evaluator, 0)
    );
}

#[test]
fn clusters_that_cannot_be_are_refused() {
    assert!(
        error("{").starts_with("TF_CONFIG is not valid JSON: EOF while parsing an object at line 1 column 1\nhint: ")
    );
    assert_eq!(error("[]"), "TF_CONFIG: `TF_CONFIG` must be an object, found []");
    assert_eq!(
        cluster(r#"{"worker": ["h1:1"]}"#),
        "TF_CONFIG: `cluster.master` is missing\nhint: one task must be the master (or `chief`): it coordinates the job and trains too"
    );
    assert_eq!(
        cluster(r#"{"master": ["h1:1"], "chief": ["h2:1"]}"#),
        "TF_CONFIG: `cluster` lists both a chief and a master\nhint: they are two names of the same task; keep one"
    );
    assert_eq!(
        cluster(r#"{"chief": ["h1:1", "h2:1"]}"#),
        "TF_CONFIG: `cluster.chief` must list exactly one address, found 2"
    );
    assert_eq!(
        cluster(r#"{"master": []}"#),
        "TF_CONFIG: `cluster.master` must list exactly one address, found 0"
    );
    assert_eq!(
        cluster(r#"{"master": ["h1:1"], "wroker": []}"#),
        "TF_CONFIG: unknown task type `wroker` in `cluster`\nhint: did you mean `worker`?"
    );
    assert_eq!(
        cluster(r#"{"master": "h1:1"}"#),
        "TF_CONFIG: `cluster.master` must be a list of addresses (host:port), found \"h1:1\""
    );
    assert_eq!(
        cluster(r#"{"master": ["h1:1"], "ps": ["h2:1", "h1:1"]}"#),
        "TF_CONFIG: master and ps-1 have the same address h1:1"
    );
}

#[test]
fn addresses_need_a_host_and_a_port() {
    let hint = "\nhint: write host:port, as in `10.0.0.3:2222` or `[::1]:2222`";
    for (address, reason) in [
        ("h1", "it has no port"),
        ("h1:", "the port is not a number from 1 to 65535"),
        ("h1:0", "the port is not a number from 1 to 65535"),
        ("h1:65536", "the port is not a number from 1 to 65535"),
        (":2222", "the host is not a name or an address"),
        ("::1:2222", "an IPv6 address must stand in brackets"),
        ("[::1]2222", "it has no port"),
        ("[::1", "the bracket is not closed"),
        ("grpc://h1:1", "it is a URL"),
    ] {
        let text = cluster(&format!(r#"{{"master": ["h0:1"], "ps": ["h2:1", "{address}"]}}"#));
        assert_eq!(
            text,
            format!("TF_CONFIG: `{address}` in `cluster.ps[1]` is no address: {reason}{hint}")
        );
    }
    let six: Address = "[::1]:2222".parse().unwrap();
    assert_eq!((six.host.as_str(), six.to_string().as_str()), ("::1", "[::1]:2222"));
}

#[test]
fn tasks_that_are_not_in_the_cluster_are_refused() {
    assert_eq!(
        task(r#"{"type": "worker", "index": 2}"#),
        "TF_CONFIG: task is worker 2, but `cluster.worker` lists 2, with indices 0 to 1"
    );
    assert_eq!(
        task(r#"{"type": "ps", "index": 0}"#),
        "TF_CONFIG: task is ps 0, but `cluster.ps` lists none"
    );
    assert_eq!(
        task(r#"{"type": "master", "index": 1}"#),
        "TF_CONFIG: task is master 1, but `cluster.master` lists 1, whose index is 0"
    );
    assert_eq!(
        task(r#"{"type": "worker", "index": -1}"#),
        "TF_CONFIG: `task.index` must be a whole number from 0, found -1"
    );
    assert!(task(r#"{"type": "worker"}"#).starts_with("TF_CONFIG: `task.index` is missing"));
    assert!(task("{}").starts_with("TF_CONFIG: `task.type` is missing"));
    assert_eq!(
        task(r#"{"type": "parameter_server", "index": 0}"#),
        "TF_CONFIG: unknown task type `parameter_server` in `task.type`\nhint: known are master, chief, worker, ps, evaluator"
    );
    assert!(error(r#"{"cluster": {"master": ["h0:1"]}}"#).starts_with("TF_CONFIG: `task` is missing"));
}
