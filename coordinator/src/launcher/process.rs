//! Starting, signalling and outliving processes.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::mpsc as blocking;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// A child and the group that dies with this, in this order.
pub(super) type Started = (Group, Child);

type Request = (Command, oneshot::Sender<io::Result<Started>>);

/// A thread that starts all children and lives as long as this handle.
///
/// The kernel's "kill when the parent dies" is tied to the parent *thread*; a thread of the runtime may end at any time.
pub(super) struct Spawner {
    requests: blocking::Sender<Request>,
}

impl Spawner {
    pub(super) fn new() -> io::Result<Self> {
        let (requests, inbox) = blocking::channel::<Request>();
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("launcher-spawn".to_owned())
            .spawn(move || {
                // Children register with the runtime, which must be known to this thread.
                let _guard = runtime.enter();
                for (mut command, reply) in inbox {
                    // If nobody waits for the answer any more, dropping it kills the child with all that it started.
                    let _ = reply.send(command.spawn().and_then(Group::lead));
                }
            })?;
        Ok(Self { requests })
    }

    /// Starts the command in a process group of its own, to be killed when this process or the spawner ends.
    /// `None` if the thread is gone.
    pub(super) async fn spawn(&self, mut command: Command) -> Option<io::Result<Started>> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .process_group(0);
        die_with_parent(&mut command);
        let (reply, answer) = oneshot::channel();
        self.requests.send((command, reply)).ok()?;
        answer.await.ok()
    }
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: both calls only enter the kernel.
        let (set, now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died between fork and prctl; then no signal will come.
        if u32::try_from(now) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: `prepare` makes two system calls and neither allocates nor takes locks, as code after fork must not.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// A child's process group. Whatever is left of it is killed when this is dropped.
pub(super) struct Group {
    leader: Pid,
    /// Whether the leader may still be there. Later its number may belong to somebody else.
    alive: bool,
}

impl Group {
    fn lead(child: Child) -> io::Result<Started> {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let leader = id
            .map(Pid::from_raw)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok((Self { leader, alive: true }, child))
    }

    pub(super) fn pid(&self) -> i32 {
        self.leader.as_raw()
    }

    pub(super) fn send(&self, signal: Signal) {
        if self.alive {
            // An error means that nobody is left, which is what these signals are for.
            let _ = killpg(self.leader, signal);
        }
    }

    /// The leader has just ended: nothing that it started outlives it.
    pub(super) fn end(&mut self) {
        self.send(Signal::SIGKILL);
        self.alive = false;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.send(Signal::SIGKILL);
    }
}

/// The status of a child whose end could not be learnt: as if killed.
pub(super) fn unknown_status() -> std::process::ExitStatus {
    std::process::ExitStatus::from_raw(libc::SIGKILL)
}

/// Turns SIGINT, SIGTERM and SIGHUP into requests to stop.
pub(super) fn listen_for_signals(requests: mpsc::UnboundedSender<String>) -> io::Result<JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = interrupt.recv() => "Ctrl-C",
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = hangup.recv() => "SIGHUP",
                else => return,
            };
            if requests.send(name.to_owned()).is_err() {
                return;
            }
        }
    }))
}
