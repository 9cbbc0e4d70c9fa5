//! A network on which everything takes a random time: pushes reach the servers, and reports the coordinator, in another
//! order in each run. Synchronous training comes to the same bits.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coati_coordinator::{Outcome, run::Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::cluster::{ADAM, Job, MOMENTUM, latest, optimizer, options, servers, tensors};
use crate::replica::{Habits, Random};

/// Longest time that a packet is held, in microseconds.
const LONGEST: u64 = 3000;

/// Numbers of the connections whose bytes were passed on, in their order.
type Order = Arc<Mutex<Vec<usize>>>;

/// Passes connections on to an address and back, each packet late by a random time.
struct Proxy {
    address: String,
    order: Order,
}

impl Proxy {
    async fn start(target: &str, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let order = Order::default();
        let (target, kept) = (target.to_owned(), Arc::clone(&order));
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((near, _)) = listener.accept().await else { return };
                let Ok(far) = TcpStream::connect(&target).await else {
                    continue;
                };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let random = |way: u64| Random(seed ^ (number as u64) << 8 ^ way << 4);
                tokio::spawn(pass(near_read, far_write, random(1), Some((number, Arc::clone(&kept)))));
                tokio::spawn(pass(far_read, near_write, random(2), None));
            }
        });
        Self { address, order }
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut random: Random, order: Option<(usize, Order)>) {
    let mut buffer = vec![0; 8 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(Duration::from_micros(random.below(LONGEST))).await;
        if let Some((number, order)) = &order {
            order.lock().unwrap().push(*number);
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// As `Job::start`, with proxies in front of everybody.
async fn start(server_count: u32, mut options: Options, seed: u64) -> (Job, Vec<Order>) {
    let servers = servers(server_count).await;
    let mut ps_addresses = Vec::new();
    let mut orders = Vec::new();
    for (server, index) in servers.iter().zip(1..) {
        let proxy = Proxy::start(&server.address().to_string(), seed.wrapping_mul(31) + index).await;
        ps_addresses.push(proxy.address);
        orders.push(proxy.order);
    }
    options.ps_addresses.clone_from(&ps_addresses);
    let (sender, events) = mpsc::unbounded_channel();
    let handle = coati_coordinator::start(options, sender).await.unwrap();
    let proxy = Proxy::start(handle.address(), seed).await;
    orders.push(proxy.order);
    let job = Job {
        handle,
        events,
        servers,
        replicas: Vec::new(),
        address: proxy.address,
        ps_addresses,
    };
    (job, orders)
}

/// The tensors of a job's last checkpoint, and the orders of arrival.
type Run = (Vec<(String, Vec<u8>)>, Vec<Vec<usize>>);

/// A job of three replicas; returns its last checkpoint, and in which order bytes came to each server and the coordinator.
async fn run(folder: &Path, server_count: u32, text: &str, seed: u64) -> Run {
    println!("{server_count} servers, seed {seed}");
    let mut options = options(folder, 1);
    options.optimizer = optimizer(text);
    let (mut job, orders) = start(server_count, options, seed).await;
    job.all_replicas(&Habits::default());
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
    assert_eq!(ended.warnings(), [""; 0]);
    let (prefix, manifest) = latest(folder);
    assert_eq!(manifest.global_step, 20);
    let orders = orders.iter().map(|order| order.lock().unwrap().clone()).collect();
    (tensors(&prefix), orders)
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_delayed_at_random_give_the_same_bits() {
    for text in [MOMENTUM, ADAM] {
        let mut first: Option<Run> = None;
        for (server_count, seed) in [(3, 1), (3, 2), (3, 3), (1, 4)] {
            let folder = tempfile::tempdir().unwrap();
            let (tensors, orders) = run(folder.path(), server_count, text, seed).await;
            let Some((expected, expected_orders)) = &first else {
                first = Some((tensors, orders));
                continue;
            };
            assert_ne!(&orders, expected_orders, "the delays changed nothing");
            assert_eq!(expected.len(), tensors.len());
            for ((name, expected), (found_name, found)) in expected.iter().zip(&tensors) {
                assert_eq!(name, found_name);
                assert!(
                    expected == found,
                    "{name} differs with {server_count} servers and seed {seed}"
                );
            }
        }
    }
}
