//! Buckets on this machine: moto's S3 server, and a proxy that misbehaves before it.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::or_panic;

/// For the server to listen.
const STARTS: Duration = Duration::from_secs(60);

/// A server that speaks S3, with one empty bucket `coati`. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it; none, with a message, without a Python that has moto.
    pub fn start() -> Option<Self> {
        let Some(python) = std::env::var_os("COATI_TEST_PYTHON") else {
            println!("skipped: COATI_TEST_PYTHON is not set (scripts/test sets it)");
            return None;
        };
        let has_moto = Command::new(&python)
            .args(["-c", "import moto.server"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !has_moto {
            println!("skipped: {} has no moto", python.to_string_lossy());
            return None;
        }
        // The port is free until somebody else of this machine takes it, which the wait below would notice.
        let free = or_panic(TcpListener::bind("127.0.0.1:0"), "no free port");
        let address = or_panic(free.local_addr(), "no free port");
        drop(free);
        let child = Command::new(python)
            .args([
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                &address.port().to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut server = Self {
            child: or_panic(child, "cannot start moto"),
            address,
        };
        server.await_listening();
        let made = exchange(
            address,
            b"PUT /coati HTTP/1.1\r\nHost: s3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
        let made = or_panic(made, "cannot make a bucket");
        assert!(made.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&made));
        Some(server)
    }

    fn await_listening(&mut self) {
        let deadline = Instant::now() + STARTS;
        while TcpStream::connect(self.address).is_err() {
            let ended = or_panic(self.child.try_wait(), "moto");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "moto does not listen: {ended:?}"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The environment in which `s3://coati` is its bucket.
    pub fn s3(&self) -> Vec<(String, String)> {
        s3_at(self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The environment in which `s3://` leads to this address.
pub fn s3_at(address: SocketAddr) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    named(&[
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ])
}

/// The environment in which `gs://` leads to this address. The server takes a token for the credentials of another protocol, where it
/// looks for the name of the service.
pub fn gs_at(address: SocketAddr) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    named(&[
        ("STORAGE_EMULATOR_HOST", &endpoint),
        (
            "GOOGLE_OAUTH_ACCESS_TOKEN",
            "Credential=test/20260101/us-east-1/s3/aws4_request",
        ),
    ])
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// How a proxy misbehaves: which part of its requests, in turns, are not answered as they should be.
#[derive(Clone, Copy, Debug)]
pub enum Faults {
    /// Never.
    None,
    /// One request of so many, by 429, 503, a reset before the answer, a reset after it was carried out, or half an answer.
    OneOf(u64),
    /// All, by this status.
    Always(u16),
}

/// A proxy before a server. It also translates the one precondition of Google's protocol that S3 spells otherwise.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    faults: Faults,
    requests: AtomicU64,
    faulty: AtomicU64,
    stop: AtomicBool,
}

impl Proxy {
    /// Starts one.
    pub fn start(server: &Server, faults: Faults) -> Self {
        let listener = or_panic(TcpListener::bind("127.0.0.1:0"), "no free port");
        let address = or_panic(listener.local_addr(), "no free port");
        let shared = Arc::new(Shared {
            upstream: server.address,
            faults,
            requests: AtomicU64::new(0),
            faulty: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if own.stop.load(Ordering::Relaxed) {
                    return;
                }
                let own = Arc::clone(&own);
                thread::spawn(move || own.serve(client));
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests were not answered as they should be.
    pub fn faulty(&self) -> u64 {
        self.shared.faulty.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    Status(u16),
    /// The connection ends at once.
    Reset,
    /// It is carried out, and the answer lost.
    Lost,
    Half,
}

impl Shared {
    fn fate(&self) -> Fate {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fate = match self.faults {
            Faults::None => Fate::Answered,
            Faults::Always(status) => Fate::Status(status),
            Faults::OneOf(n) if number % n != n - 1 => Fate::Answered,
            Faults::OneOf(n) => match number / n % 5 {
                0 => Fate::Status(503),
                1 => Fate::Half,
                2 => Fate::Lost,
                3 => Fate::Status(429),
                _ => Fate::Reset,
            },
        };
        if fate != Fate::Answered {
            self.faulty.fetch_add(1, Ordering::Relaxed);
        }
        fate
    }

    /// One request a connection. What goes wrong here looks like one more fault.
    fn serve(&self, client: TcpStream) {
        let _ = self.serve_one(client);
    }

    fn serve_one(&self, mut client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
            match lower.trim_end() {
                "x-goog-if-generation-match: 0" => head.push_str("If-None-Match: *\r\n"),
                text if text.starts_with("connection:") => {}
                _ => head.push_str(&line),
            }
        }
        let mut request = (head + "Connection: close\r\n\r\n").into_bytes();
        reader.take(length).read_to_end(&mut request)?;
        match self.fate() {
            Fate::Reset => Ok(()),
            Fate::Status(status) => {
                let body = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
                let length = body.len();
                write!(
                    client,
                    "HTTP/1.1 {status} Slow Down\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )
            }
            fate => {
                let answer = exchange(self.upstream, &request)?;
                match fate {
                    Fate::Lost => Ok(()),
                    Fate::Half => client.write_all(&answer[..answer.len() / 2]),
                    _ => client.write_all(&answer),
                }
            }
        }
    }
}

/// Sends a request that closes its connection, and reads the answer to its end.
fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(address)?;
    server.write_all(request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}
