//! The binary `coati-ps`.

use std::process::Stdio;

use coati_param_server::PsClient;
use tokio::process::{Child, Command};

use crate::cluster::{LIMIT, job};

fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_coati-ps"))
        .args(arguments)
        .env_remove("TF_CONFIG")
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn outcome(child: Child) -> (Option<i32>, String) {
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn it_serves_where_tf_config_says_until_it_is_told_to_leave() {
    let address = free_address();
    let config = format!(r#"{{"cluster": {{"ps": ["h:1", "{address}"]}}, "task": {{"type": "ps", "index": 1}}}}"#);
    let child = start(&[], &[("TF_CONFIG", &config)]);
    let client = PsClient::connect(1, &address, job(1), LIMIT).await.unwrap();
    let status = client.status(LIMIT).await.unwrap();
    assert_eq!(status.task.unwrap().index, 1);
    assert_eq!(Some(status.pid), child.id().map(u64::from));
    assert!(status.resident_bytes > 1 << 20);
    client.shutdown("done", LIMIT).await.unwrap();
    assert_eq!(outcome(child).await.0, Some(0));
}

#[tokio::test]
async fn it_leaves_when_nobody_calls() {
    let (code, text) = outcome(start(&["--listen", "127.0.0.1:0", "--orphan-timeout", "1"], &[])).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("the job is gone"), "{text}");
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, text) = outcome(start(&["--listen", &address], &[])).await;
    assert_eq!(code, Some(2));
    assert!(
        text.contains(&format!("cannot listen on {address}")) && text.contains("hint: "),
        "{text}"
    );
}

#[tokio::test]
async fn another_tasks_role_is_refused() {
    let config = r#"{"cluster": {}, "task": {"type": "worker", "index": 0}}"#;
    let (code, text) = outcome(start(&[], &[("TF_CONFIG", config)])).await;
    assert_eq!(code, Some(2));
    assert!(text.contains("role worker"), "{text}");
}
