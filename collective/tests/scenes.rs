//! What the started processes do.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coati_collective::buckets::Reducer;
use coati_collective::nccl::{DeviceBucket, Gpus, Libraries};
use coati_collective::shm::Shared;
use coati_collective::tcp::{Mesh, Secret};
use coati_collective::{Communicator, Error, Identity, Options, Wire, sums};

use crate::ranks::{await_file, put};

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("RANKS_{name}")).ok()
}

fn number(name: &str, otherwise: u64) -> u64 {
    setting(name).map_or(otherwise, |text| text.parse().unwrap())
}

fn folder() -> PathBuf {
    setting("FOLDER").unwrap().into()
}

pub(crate) fn play() {
    let Some(scene) = setting("SCENE") else { return };
    let rank = number("RANK", 0) as usize;
    let scenes = |mut ranks: Box<dyn Communicator>| match scene.as_str() {
        "sums" => sums_of(ranks.as_mut()),
        "background" => background(ranks),
        "sizes" => sizes(ranks.as_mut()),
        "operations" => operations(ranks.as_mut()),
        "silent" => silent(ranks.as_mut()),
        "panics" => panics(ranks),
        _ => panic!("no scene {scene}"),
    };
    let played = match scene.as_str() {
        "device" => options().and_then(|options| gpus(&options)).and_then(on_the_device),
        _ => join().and_then(scenes),
    };
    let text = played.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
    put(&folder().join(format!("end-{rank}")), &text);
}

fn options() -> Result<Options, Error> {
    let (rank, world) = (number("RANK", 0) as usize, number("WORLD", 1) as usize);
    let version = setting("VERSION").unwrap_or_else(|| "1.0".to_owned());
    let mut options = Options::new(Identity::here(rank, world, &version, [number("DIGEST", 1) as u8; 32]))?;
    options.rendezvous_timeout = Duration::from_millis(number("COME_MS", 120_000));
    options.timeout = Duration::from_millis(number("WAIT_MS", 120_000));
    options.watch.silence = Duration::from_millis(number("SILENCE_MS", 120_000));
    // Connections are seen to by themselves.
    options.local_sockets = setting("TRANSPORT").unwrap() == "local";
    Ok(options)
}

fn join() -> Result<Box<dyn Communicator>, Error> {
    let options = options()?;
    if setting("TRANSPORT").unwrap() == "shm" {
        // Small slices, so that there are many rounds.
        return Ok(Box::new(Shared::join(
            &folder().join("ranks"),
            &options,
            number("SLICE", 64) as usize,
        )?));
    }
    if ["tcp", "local"].contains(&&setting("TRANSPORT").unwrap()[..]) {
        return Ok(Box::new(mesh(&options)?));
    }
    Ok(Box::new(gpus(&options)?))
}

fn gpus(options: &Options) -> Result<Gpus, Error> {
    let rank = number("RANK", 0);
    let mesh = Box::new(mesh(options)?);
    let folders = setting("LIBRARIES").unwrap();
    let folders: Vec<_> = folders
        .split(':')
        .filter(|place| !place.is_empty())
        .map(Path::new)
        .collect();
    let libraries = Libraries::open(&folders)?;
    let device = number("DEVICE", rank) as i32;
    Gpus::start(Arc::new(libraries), mesh, device, options.timeout)
}

fn mesh(options: &Options) -> Result<Mesh, Error> {
    let rank = number("RANK", 0);
    let secret = Secret::new([number("TOKEN", 5) as u8; 32]);
    let place = folder().join("address");
    if rank == 0 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        put(&place, &address.to_string());
        return Mesh::join(address, Some(listener), &secret, options);
    }
    let address = await_file(&place).parse().unwrap();
    Mesh::join(address, None, &secret, options)
}

/// Values whose sum depends on its order.
pub(crate) fn values(rank: usize, count: usize, seed: u64) -> Vec<f32> {
    let value = |i: usize| {
        let mixed = (i as u64 + 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add((rank as u64 + seed) << 7);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed >> 40) as f32 * 10f32.powi((mixed % 13) as i32 - 9) * if mixed & 1 << 20 == 0 { 1.0 } else { -1.0 }
    };
    (0..count).map(value).collect()
}

fn expected(world: usize, count: usize, seed: u64, wire: Wire) -> Vec<f32> {
    let inputs: Vec<Vec<f32>> = (0..world).map(|rank| values(rank, count, seed)).collect();
    sums::reference(&inputs, wire)
}

fn same(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// As [`same`], or, where sums have another order, as near as the largest of the sums allows.
fn summed(found: &[f32], expected: &[f32], wire: Wire) -> bool {
    if number("EXACT", 1) == 1 {
        return same(found, expected);
    }
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let near = largest * if wire == Wire::F32 { 1e-5 } else { 3e-2 };
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= near)
}

/// Buckets that lie on the device, begun one after the other as a backward pass completes them. Only for the stand-in, whose memory is the
/// host's.
fn on_the_device(mut ranks: Gpus) -> Result<(), Error> {
    let (rank, world) = (ranks.rank(), ranks.world_size());
    for step in 0..3 {
        let counts = [5000, 1, 700];
        let mut whole: Vec<Vec<f32>> = counts.iter().map(|&count| values(rank, count, step)).collect();
        // Integers that bfloat16 has, and so have their sums.
        let half = |value: usize| ((value as f32).to_bits() >> 16) as u16;
        let mut halves: Vec<u16> = (0..40).map(|i| half(rank + i)).collect();
        for part in &mut whole {
            let bucket = DeviceBucket {
                address: part.as_mut_ptr().cast(),
                count: part.len(),
                wire: Wire::F32,
            };
            // SAFETY: the values stay until all is summed.
            unsafe { ranks.begin(&[bucket], std::ptr::null_mut())? };
        }
        let bucket = DeviceBucket {
            address: halves.as_mut_ptr().cast(),
            count: halves.len(),
            wire: Wire::Bf16,
        };
        // SAFETY: as above.
        unsafe { ranks.begin(&[bucket], std::ptr::null_mut())? };
        // What ranks tell each other meanwhile goes by the host.
        assert_eq!(ranks.all_gather(&[rank as u8])?.len(), world);
        ranks.finish()?;
        for (found, count) in whole.iter().zip(counts) {
            assert!(
                same(found, &expected(world, count, step, Wire::F32)),
                "rank {rank} of {world}"
            );
        }
        let others = world * (world - 1) / 2;
        assert!(
            halves
                .iter()
                .zip(0..)
                .all(|(&found, i)| found == half(world * i + others))
        );
    }
    ranks.close()
}

fn sums_of(ranks: &mut dyn Communicator) -> Result<(), Error> {
    let (rank, world) = (ranks.rank(), ranks.world_size());
    for (seed, count) in [0, 1, 7, 64, 129, 1000, 40_000, 700_001].into_iter().enumerate() {
        for wire in [Wire::F32, Wire::Bf16] {
            let mut sums = values(rank, count, seed as u64);
            ranks.all_reduce_sum(&mut sums, wire)?;
            assert!(
                summed(&sums, &expected(world, count, seed as u64, wire), wire),
                "{count} {wire:?} on rank {rank}"
            );
        }
    }
    let counts = [1, 0, 700, 40_001];
    let mut parts = ranks.parts(&counts)?;
    for (seed, wire) in [(20, Wire::F32), (30, Wire::Bf16), (40, Wire::F32)] {
        for (part, &count) in parts.iter_mut().zip(&counts) {
            part.copy_from_slice(&values(rank, count, seed));
        }
        // Not in their order, and each by itself.
        for (part, &count) in parts.iter_mut().zip(&counts).rev() {
            ranks.all_reduce(part, wire)?;
            assert!(
                summed(part, &expected(world, count, seed, wire), wire),
                "{count} {wire:?} in place"
            );
        }
    }
    for root in 0..world {
        let mut told = values(rank, 1000 * root + 1, 3);
        ranks.broadcast(root, &mut told)?;
        assert!(
            same(&told, &values(root, 1000 * root + 1, 3)),
            "from {root} on rank {rank}"
        );
    }
    // Lengths from nothing to several rounds.
    let text = |rank: usize| vec![rank as u8 + 1; rank * 5000];
    let all = ranks.all_gather(&text(rank))?;
    assert_eq!(all, (0..world).map(text).collect::<Vec<_>>());
    assert!(ranks.all_gather(&vec![0; sums::GATHER_LIMIT + 1]).is_err() && ranks.broadcast(world, &mut []).is_err());
    ranks.barrier()?;
    ranks.check()?;
    assert_eq!(ranks.members()[rank].pid, std::process::id());
    ranks.close()?;
    assert!(ranks.barrier().is_err(), "it is closed");
    Ok(())
}

/// Buckets become ready in another order on each rank.
fn background(ranks: Box<dyn Communicator>) -> Result<(), Error> {
    let (rank, world) = (ranks.rank(), ranks.world_size());
    let mut reducer = Reducer::start(ranks, Duration::from_secs(200))?;
    let counts = [1000, 1, 5000, 20];
    for step in 0..3_u64 {
        let mut handles = Vec::new();
        for place in 0..counts.len() {
            let bucket = (place * (2 * rank + 1) + rank) % counts.len();
            let number = step * counts.len() as u64 + bucket as u64;
            handles.push((
                bucket,
                number,
                reducer.submit(number, values(rank, counts[bucket], number), Wire::F32),
            ));
        }
        for (bucket, number, handle) in handles {
            assert!(same(
                &handle.wait()?,
                &expected(world, counts[bucket], number, Wire::F32)
            ));
        }
    }
    reducer.finish().unwrap().close()
}

fn sizes(ranks: &mut dyn Communicator) -> Result<(), Error> {
    let odd = usize::from(ranks.rank() == 1);
    ranks.barrier()?;
    ranks.all_reduce_sum(&mut vec![1.0; 300_000 + odd], Wire::F32)
}

fn operations(ranks: &mut dyn Communicator) -> Result<(), Error> {
    if ranks.rank() == 1 {
        return ranks.barrier();
    }
    ranks.all_reduce_sum(&mut [1.0; 10], Wire::F32)
}

/// The last rank says that it is there and nothing more; what becomes of it is the test's.
fn silent(ranks: &mut dyn Communicator) -> Result<(), Error> {
    ranks.barrier()?;
    if ranks.rank() + 1 == ranks.world_size() {
        put(&folder().join("silent"), "");
        loop {
            std::thread::park();
        }
    }
    ranks.all_reduce_sum(&mut vec![1.0; 300_000], Wire::F32)
}

fn panics(ranks: Box<dyn Communicator>) -> Result<(), Error> {
    let mut ranks = ranks;
    ranks.barrier()?;
    if ranks.rank() == 1 {
        drop(ranks);
        return Ok(());
    }
    ranks.all_reduce_sum(&mut [1.0; 10], Wire::F32)
}
