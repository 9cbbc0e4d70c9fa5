//! A network of made-up hosts, each of which is a network namespace, and links between them that can be cut.
//!
//! The hosts are `10.77.0.1`, `10.77.0.2`, … on one switch (a bridge in a namespace of its own), with no way out. What is cut
//! is cut as a firewall or a broken switch does it: packets vanish, nobody is told. Neighbours are entered by hand, since a
//! neighbour that does not answer would be an error (`no route to host`) instead of silence.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the names of all our namespaces begin with; the number of the test's process follows.
const PREFIX: &str = "coati-test-";

/// Nobody's hardware address.
const NOBODY: &str = "02:00:00:00:01:00";

/// See the module. Namespaces, and the processes in them, are gone when it is dropped; those of a test that was killed, when
/// the next one begins.
#[derive(Debug)]
pub struct Network {
    /// Of the namespaces.
    name: String,
    hosts: u8,
}

/// A host of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(u8);

impl Host {
    /// Its address, without a port.
    pub fn address(self) -> String {
        format!("10.77.0.{}", self.0)
    }

    fn hardware(self) -> String {
        format!("02:00:00:00:00:{:02x}", self.0)
    }

    /// Of its end of the link on the switch.
    fn port(self) -> String {
        format!("p{}", self.0)
    }
}

impl Network {
    /// So many hosts that see each other; `None`, with a message, where namespaces cannot be made.
    pub fn new(hosts: u8) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("{PREFIX}{}-{number}", std::process::id()),
            hosts,
        };
        match network.build() {
            Ok(()) => Some(network),
            Err(why) => {
                println!("skipped: no network namespaces can be made here: {why}");
                None
            }
        }
    }

    /// Its hosts, in order.
    pub fn hosts(&self) -> Vec<Host> {
        (1..=self.hosts).map(Host).collect()
    }

    /// The words before a command that runs it on a host.
    pub(crate) fn on(&self, host: Host) -> [String; 4] {
        ["ip", "netns", "exec", &self.namespace(host)].map(str::to_owned)
    }

    /// All packets from and to a host vanish.
    pub fn isolate(&self, host: Host) {
        self.ip(&self.switch(), &format!("link set {} nomaster", host.port()));
    }

    /// Undoes [`Network::isolate`].
    pub fn reconnect(&self, host: Host) {
        self.ip(&self.switch(), &format!("link set {} master switch", host.port()));
    }

    /// Packets from one host to the other vanish; those in the other direction do not.
    pub fn block(&self, from: Host, to: Host) {
        self.ip(&self.namespace(from), &neighbour(to, NOBODY));
    }

    /// Undoes [`Network::block`].
    pub fn unblock(&self, from: Host, to: Host) {
        self.ip(&self.namespace(from), &neighbour(to, &to.hardware()));
    }

    /// Two hosts do not see each other any more; others see both.
    pub fn part(&self, one: Host, other: Host) {
        self.block(one, other);
        self.block(other, one);
    }

    /// Undoes [`Network::part`].
    pub fn join(&self, one: Host, other: Host) {
        self.unblock(one, other);
        self.unblock(other, one);
    }

    fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.name, host.0)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn ip(&self, namespace: &str, commands: &str) {
        crate::or_panic(ip(Some(namespace), commands), namespace);
    }

    fn build(&self) -> Result<(), String> {
        let switch = self.switch();
        let mut made = format!("netns add {switch}\n");
        for host in self.hosts() {
            let _ = writeln!(made, "netns add {}", self.namespace(host));
        }
        ip(None, &made)?;
        ip(Some(&switch), "link add switch type bridge\nlink set switch up")?;
        for host in self.hosts() {
            let (own, port) = (self.namespace(host), host.port());
            let hardware = host.hardware();
            ip(
                None,
                &format!("link add {port} netns {switch} type veth peer name eth0 address {hardware} netns {own}"),
            )?;
            ip(
                Some(&switch),
                &format!("link set {port} master switch\nlink set {port} up"),
            )?;
            let address = host.address();
            let mut commands = format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n");
            for other in self.hosts().into_iter().filter(|other| *other != host) {
                commands += &(neighbour(other, &other.hardware()) + "\n");
            }
            ip(Some(&own), &commands)?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts() {
            remove(&self.namespace(host));
        }
        remove(&self.switch());
    }
}

fn neighbour(host: Host, hardware: &str) -> String {
    format!(
        "neigh replace {} lladdr {hardware} dev eth0 nud permanent",
        host.address()
    )
}

/// Runs commands of `ip`, one a line, in a namespace.
fn ip(namespace: Option<&str>, commands: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]);
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().map_err(|error| format!("`ip`: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It ends at the first command that fails; what that was is in its words.
        let _ = stdin.write_all(commands.as_bytes());
    }
    let done = child.wait_with_output().map_err(|error| format!("`ip`: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!(
        "`{commands}`: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    ))
}

/// Removes a namespace, and kills who is still in it.
fn remove(namespace: &str) {
    let inside = Command::new("ip").args(["netns", "pids", namespace]).output();
    let inside = inside.map(|done| String::from_utf8_lossy(&done.stdout).into_owned());
    for pid in inside
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = ip(None, &format!("netns del {namespace}"));
}

/// Namespaces of tests that are not there any more.
fn remove_leftovers() {
    let Ok(folder) = fs::read_dir("/run/netns") else { return };
    for entry in folder.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}
