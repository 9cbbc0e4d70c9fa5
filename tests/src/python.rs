//! Other people's programs, as judges.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::Value;

/// Runs a script of `tests/python` and returns the JSON that it prints; `None`, with a message, without a Python for it.
pub fn judge<S: AsRef<OsStr>>(script: &str, arguments: &[S]) -> Option<Value> {
    let Some(python) = std::env::var_os("COATI_TEST_PYTHON") else {
        println!("skipped: COATI_TEST_PYTHON is not set (scripts/test sets it)");
        return None;
    };
    let path = crate::repository().join("tests/python").join(script);
    let output = Command::new(python)
        .arg(&path)
        .args(arguments)
        .env("TF_CPP_MIN_LOG_LEVEL", "3")
        .output();
    let output = crate::or_panic(output, format!("cannot run {}", path.display()));
    assert!(
        output.status.success(),
        "{script} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(crate::or_panic(
        serde_json::from_slice(&output.stdout),
        format!("{script} did not print JSON"),
    ))
}
