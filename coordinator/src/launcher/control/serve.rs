//! The launcher's end of the socket.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{LONGEST_LINE, Reply, Request};

/// The socket's name in the job's directory.
const NAME: &str = "control.sock";
/// Bytes in a socket's address, with the zero at its end (`sockaddr_un.sun_path` is 108 on Linux and 104 elsewhere).
const LONGEST_PATH: usize = 103;
/// Conversations at a time; further ones wait.
const CALLERS: usize = 16;
/// A caller who says nothing for so long is hung up on.
const SILENCE: Duration = Duration::from_secs(10);

/// A request and where its answer goes.
pub(in crate::launcher) type Call = (Request, oneshot::Sender<Reply>);

/// The right to run a job in a directory: no other launcher has it until this is dropped or the process ends.
pub(in crate::launcher) struct Claim(#[allow(dead_code, reason = "held for its lock")] Option<Flock<File>>);

impl Claim {
    /// Claims the directory of the job's logs. `None` if another launcher has it.
    pub(in crate::launcher) fn take(logs: &Path) -> io::Result<Option<Self>> {
        match Flock::lock(File::open(logs)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(Some(lock)))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            // Some file systems of other machines know no locks.
            Err(_) => Ok(Some(Self(None))),
        }
    }
}

/// A listening socket. Dropping it hangs up and removes it.
pub(in crate::launcher) struct Control {
    path: PathBuf,
    /// A directory made for the socket alone.
    own: Option<PathBuf>,
    /// Dropping it ends all conversations.
    serving: JoinSet<()>,
}

impl Control {
    /// Listens in the job's directory, which must be claimed; where its path is too long, in a new directory for temporary files.
    pub(in crate::launcher) fn listen(job_dir: &Path, calls: mpsc::Sender<Call>) -> io::Result<Self> {
        let mut path = std::path::absolute(job_dir)?.join(NAME);
        let mut own = None;
        if path.as_os_str().as_bytes().len() > LONGEST_PATH {
            let directory = private_directory()?;
            path = directory.join(NAME);
            own = Some(directory);
        }
        // What a killed launcher left behind.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let mut control = Self {
            path,
            own,
            serving: JoinSet::new(),
        };
        std::fs::set_permissions(&control.path, Permissions::from_mode(0o600))?;
        let own = std::fs::metadata(&control.path)?.uid();
        control.serving.spawn(serve(listener, own, calls));
        Ok(control)
    }

    pub(in crate::launcher) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nobody is there to hear of an error, and a socket without a listener harms nobody.
        let _ = std::fs::remove_file(&self.path);
        if let Some(directory) = &self.own {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// A directory that is this user's alone, whoever else writes where temporary files are.
fn private_directory() -> io::Result<PathBuf> {
    let mut last = io::Error::other("no name is free");
    for attempt in 0..100 {
        let name = format!("coati-{}-{attempt}", std::process::id());
        let path = std::env::temp_dir().join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Talks to processes of the user `own` (and to the system's administrator).
async fn serve(listener: UnixListener, own: u32, calls: mpsc::Sender<Call>) {
    let mut callers = JoinSet::new();
    loop {
        while callers.len() >= CALLERS {
            callers.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let user = stream.peer_cred().map(|credentials| credentials.uid());
                    if user.is_ok_and(|user| user == own || user == 0) {
                        callers.spawn(converse(stream, calls.clone()));
                    }
                }
                // No more open files, say: that passes.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = callers.join_next() => {}
        }
    }
}

/// Answers line by line until the caller hangs up, is silent for too long or talks nonsense.
async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>) {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reading).take(LONGEST_LINE);
        match timeout(SILENCE, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(bytes)) if bytes > 0 => {}
            _ => return,
        }
        let (reply, again) = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => (answer(request, &calls).await, true),
            Err(error) => (
                Reply::refused(format!(
                    "not understood: {error}\nhint: write one line of JSON, {{\"command\": \"scale\", \"workers\": 4}}"
                )),
                false,
            ),
        };
        let Ok(mut text) = serde_json::to_vec(&reply) else {
            return;
        };
        text.push(b'\n');
        let written = timeout(SILENCE, writing.write_all(&text)).await;
        if !again || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

async fn answer(request: Request, calls: &mpsc::Sender<Call>) -> Reply {
    let (sender, answer) = oneshot::channel();
    let ended = || Reply::refused("the job has just ended");
    match calls.send((request, sender)).await {
        Ok(()) => answer.await.unwrap_or_else(|_| ended()),
        Err(_) => ended(),
    }
}
