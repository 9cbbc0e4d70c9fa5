//! AWS credentials that a program hands out: a profile's `credential_process`, or AWS's own command line for profiles with single
//! sign-on or a role to assume.

use std::io::{self, Read as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use crate::error::NoKeys;

/// The program is asked again after this; it knows by itself how long its keys live, and keeps them.
const FRESH: Duration = Duration::from_secs(300);
/// For the program, which may ask a server of AWS's in turn.
const LIMIT: Duration = Duration::from_secs(60);

/// A program and what it said last.
#[derive(Debug)]
pub(crate) struct Program {
    command: String,
    hint: String,
    known: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl Program {
    /// `command` is for a shell.
    pub(crate) fn new(command: String, hint: String) -> Self {
        Self {
            command,
            hint,
            known: Mutex::default(),
        }
    }
}

#[async_trait]
impl CredentialProvider for Program {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut known = self.known.lock().await;
        if let Some((since, credential)) = &*known
            && since.elapsed() < FRESH
        {
            return Ok(Arc::clone(credential));
        }
        let command = self.command.clone();
        let said = tokio::task::spawn_blocking(move || run(&command, LIMIT)).await;
        let found = said
            .map_err(|error| error.to_string())
            .and_then(|said| said)
            .and_then(|text| read(&text));
        match found {
            Ok(credential) => {
                let credential = Arc::new(credential);
                *known = Some((Instant::now(), Arc::clone(&credential)));
                Ok(credential)
            }
            Err(what) => Err(object_store::Error::Generic {
                store: "S3",
                source: Box::new(NoKeys {
                    what: format!("there is nothing to sign requests with: `{}` {what}", self.command),
                    hint: self.hint.clone(),
                }),
            }),
        }
    }
}

/// What a program prints, or in words what went wrong.
fn run(command: &str, limit: Duration) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot be run: {error}");
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let reader = |stream: Option<Box<dyn io::Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // What can be read counts.
            let _ = stream.map(|stream| stream.take(1 << 20).read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let output = reader(child.stdout.take().map(|stream| Box::new(stream) as _));
    let errors = reader(child.stderr.take().map(|stream| Box::new(stream) as _));
    let deadline = Instant::now() + limit;
    let status: ExitStatus = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not end within {} s", limit.as_secs()));
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.success() {
        return output.join().map_err(|_| "was not understood".to_owned());
    }
    let errors = errors.join().unwrap_or_default();
    let last = errors
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no word");
    Err(format!("ended with {status}: {}", last.trim()))
}

/// `{"Version": 1, "AccessKeyId": …, "SecretAccessKey": …, "SessionToken": …}`
fn read(text: &str) -> Result<AwsCredential, String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("prints no JSON object: {error}"))?;
    let field = |name: &str| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    let need = |name: &str| field(name).ok_or_else(|| format!("prints no {name}"));
    Ok(AwsCredential {
        key_id: need("AccessKeyId")?,
        secret_key: need("SecretAccessKey")?,
        token: field("SessionToken"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(command: &str) -> object_store::Result<Arc<AwsCredential>> {
        let program = Program::new(command.to_owned(), "log in".to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let first = program.get_credential().await?;
            // Kept: the program is not asked again.
            assert!(Arc::ptr_eq(&first, &program.get_credential().await?));
            Ok(first)
        })
    }

    #[test]
    fn a_programs_keys_are_used() {
        let keys = r#"{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "S", "SessionToken": "T"}"#;
        let found = ask(&format!("echo '{keys}'")).unwrap();
        assert_eq!(
            (found.key_id.as_str(), found.secret_key.as_str(), found.token.as_deref()),
            ("A", "S", Some("T"))
        );
    }

    #[test]
    fn what_a_program_does_wrong_is_said_with_its_own_words() {
        for (command, words) in [
            (
                "echo working; echo 'the session has expired' >&2; exit 3",
                "the session has expired",
            ),
            ("echo hello", "prints no JSON object"),
            (r#"echo '{"AccessKeyId": "A"}'"#, "prints no SecretAccessKey"),
        ] {
            let error = ask(command).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(command), "{error}");
        }
        let slow = run("exec sleep 60", Duration::from_millis(50)).unwrap_err();
        assert_eq!(slow, "did not end within 0 s");
    }
}
