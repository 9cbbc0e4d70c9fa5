//! Measures how fast an object is read from its first byte to its last, beside a plain client that asks for one range after the other
//! over one connection: `cargo run --release -p coati-storage --example sequential -- s3://BUCKET/KEY [runs]`.
//!
//! The plain client signs nothing, so it needs a server that does not ask (moto's) at `AWS_ENDPOINT_URL=http://HOST:PORT`. An object that is
//! not there is made, 64 MiB of noise. Both are measured in turns; CPU seconds are this process's.

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::error::Error;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use coati_storage::{File, Location};

/// What the plain client asks for at a time; as large as the package's own requests.
const RANGE: u64 = 8 << 20;
const NOISE: usize = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("usage: sequential s3://BUCKET/KEY [runs]")?;
    let runs: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let path = Path::new(&url);
    let location = Location::parse(path)?;
    let endpoint = std::env::var("AWS_ENDPOINT_URL")?;
    let address = endpoint
        .strip_prefix("http://")
        .ok_or("AWS_ENDPOINT_URL must begin with http://")?;
    if !coati_storage::is_file(path) {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(NOISE)
        .collect();
        coati_storage::put(path, &noise)?;
    }
    let bytes = coati_storage::stat(path)?.bytes;
    let key = format!("/{}/{}", location.bucket, location.key);
    println!("client      MB/s   CPU s/GB   ({} MB)", bytes / 1_000_000);
    let mut shares = Vec::new();
    for _ in 0..runs {
        let plain = measure("plain", bytes, || plain(address, &key, bytes))?;
        let own = measure("coati", bytes, || own(path))?;
        shares.push(own / plain);
    }
    shares.sort_by(f64::total_cmp);
    println!("coati / plain: {:.2} (median of {runs})", shares[shares.len() / 2]);
    Ok(())
}

/// MB/s of reading `bytes` bytes, whose sum is returned so that somebody looks at them.
fn measure(name: &str, bytes: u64, read: impl Fn() -> Result<u64, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let count = read()?;
    assert_eq!(count, bytes, "{name} read {count} bytes");
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let rate = bytes as f64 / 1e6 / seconds;
    println!("{name:<8} {rate:>7.0} {:>10.2}", cpu / (bytes as f64 / 1e9));
    Ok(rate)
}

fn own(path: &Path) -> Result<u64, Box<dyn Error>> {
    let mut stream = File::open(path)?.sequential()?;
    drain(&mut stream)
}

fn drain(stream: &mut dyn Read) -> Result<u64, Box<dyn Error>> {
    let mut buffer = vec![0; 1 << 18];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(count),
            read => count += read as u64,
        }
    }
}

fn plain(address: &str, key: &str, bytes: u64) -> Result<u64, Box<dyn Error>> {
    let connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(1 << 18, connection.try_clone()?);
    let mut writer = connection;
    let mut count = 0;
    while count < bytes {
        let last = (count + RANGE).min(bytes) - 1;
        write!(
            writer,
            "GET {key} HTTP/1.1\r\nHost: {address}\r\nRange: bytes={count}-{last}\r\n\r\n"
        )?;
        let mut length = 0;
        let mut closes = false;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            closes |= lower.starts_with("connection: close") || lower.starts_with("http/1.0");
            if line.trim().is_empty() {
                break;
            }
        }
        let got = drain(&mut (&mut reader).take(length))?;
        if got == 0 {
            return Err("the server sent nothing".into());
        }
        count += got;
        if closes {
            writer = TcpStream::connect(address)?;
            reader = BufReader::with_capacity(1 << 18, writer.try_clone()?);
        }
    }
    Ok(count)
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .split(' ')
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / 100.0
}
