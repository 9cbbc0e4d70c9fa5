//! The binary `coati-ps`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use coati_common::rpc::security::Sources;
use coati_param_server::PsClient;
use tokio::process::{Child, Command};

use crate::cluster::{LIMIT, job};

fn start(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
    Sources::of_job(folder).make().unwrap();
    Command::new(env!("CARGO_BIN_EXE_coati-ps"))
        .args(arguments)
        .arg("--credentials")
        .arg(folder.join("tls"))
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
    let folder = tempfile::tempdir().unwrap();
    let child = start(folder.path(), &[], &[("TF_CONFIG", &config)]);
    let security = Sources::of_job(folder.path()).load(Duration::ZERO).unwrap();
    let client = PsClient::connect_as(&security, 1, &address, job(1), LIMIT)
        .await
        .unwrap();
    let status = client.status(LIMIT).await.unwrap();
    assert_eq!(status.task.unwrap().index, 1);
    assert_eq!(Some(status.pid), child.id().map(u64::from));
    assert!(status.resident_bytes > 1 << 20);
    client.shutdown("done", LIMIT).await.unwrap();
    assert_eq!(outcome(child).await.0, Some(0));
}

#[tokio::test]
async fn it_leaves_when_nobody_calls() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--orphan-timeout", "1"];
    let (code, text) = outcome(start(folder.path(), &arguments, &[])).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("the job is gone"), "{text}");
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = outcome(start(folder.path(), &["--listen", &address], &[])).await;
    assert_eq!(code, Some(2));
    assert!(
        text.contains(&format!("cannot listen on {address}")) && text.contains("hint: "),
        "{text}"
    );
}

#[tokio::test]
async fn another_tasks_role_is_refused() {
    let config = r#"{"cluster": {}, "task": {"type": "worker", "index": 0}}"#;
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = outcome(start(folder.path(), &[], &[("TF_CONFIG", config)])).await;
    assert_eq!(code, Some(2));
    assert!(text.contains("role worker"), "{text}");
}

#[tokio::test]
async fn without_credentials_it_says_what_to_give() {
    let child = Command::new(env!("CARGO_BIN_EXE_coati-ps"))
        .args(["--listen", "127.0.0.1:0"])
        .env_remove("COATI_CREDENTIALS")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (code, text) = outcome(child).await;
    assert_eq!(code, Some(2));
    assert!(
        text.contains("no credentials of the job") && text.contains("--credentials <model_dir>/tls"),
        "{text}"
    );
}
