//! Out of memory on a device: what libtorch says of it, and which batch would have fitted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Device;

/// What libtorch's allocator says when it has nothing left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Bytes asked for.
    pub asked: Option<u64>,
    /// Bytes that are free.
    pub free: Option<u64>,
    /// Bytes that the device has.
    pub total: Option<u64>,
}

impl Shortage {
    /// Reads libtorch's message; `None`: it is about something else.
    pub fn read(words: &str) -> Option<Self> {
        const SIGNS: [&str; 6] = [
            "out of memory",
            "can't allocate memory",
            "not enough memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_ALLOC_FAILED",
            "std::bad_alloc",
        ];
        SIGNS.into_iter().any(|sign| words.contains(sign)).then(|| Self {
            // `Tried to allocate 2.00 GiB`, or the CPU's `you tried to allocate 2147483648 bytes`.
            asked: after(words, "ried to allocate "),
            // `… of which 1.20 GiB is free`; earlier `1.20 GiB free;`.
            free: after(words, "of which ").or_else(|| before(words, " free;")),
            total: after(words, "total capacity of ").or_else(|| before(words, " total capacity;")),
        })
    }
}

/// The amount that follows `sign`.
fn after(words: &str, sign: &str) -> Option<u64> {
    let (_, rest) = words.split_once(sign)?;
    let mut parts = rest.split_whitespace();
    amount(parts.next()?, parts.next()?)
}

/// The amount that ends where `sign` begins.
fn before(words: &str, sign: &str) -> Option<u64> {
    let (head, _) = words.split_once(sign)?;
    let mut parts = head.split_whitespace().rev();
    let unit = parts.next()?;
    amount(parts.next()?, unit)
}

fn amount(number: &str, unit: &str) -> Option<u64> {
    let unit = unit.trim_end_matches(['.', ';', ',', ')']);
    let factor = ["bytes", "KiB", "MiB", "GiB", "TiB"]
        .iter()
        .position(|&known| known == unit)?;
    let number: f64 = number.trim_start_matches('(').parse().ok()?;
    (number >= 0.0 && number.is_finite()).then(|| (number * 1024_f64.powi(factor as i32)) as u64)
}

/// `2.00 GiB`
pub fn amount_of(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "bytes" {
        format!("{bytes} bytes")
    } else {
        format!("{value:.2} {unit}")
    }
}

/// Bytes that programs on this machine can still have.
pub fn available_on_host() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The largest number below `failed` that fits, found by halving; 0: none does. An error of `fits` ends the search.
pub fn largest<E>(failed: usize, mut fits: impl FnMut(usize) -> Result<bool, E>) -> Result<usize, E> {
    let (mut good, mut bad) = (0, failed);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good)
}

/// A step that did not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Where.
    pub device: Device,
    /// Images of the batch.
    pub batch: usize,
    /// (height, width) of each.
    pub image: (usize, usize),
    /// Whether gradients were to be computed.
    pub training: bool,
    /// What libtorch says.
    pub shortage: Shortage,
    /// The largest batch that ran; `None`: not tried.
    pub largest: Option<usize>,
    /// Whether convolutions have fewer bits than float32 already.
    pub low_precision: bool,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let what = if self.training {
            "a training step"
        } else {
            "a forward pass"
        };
        let (height, width) = self.image;
        let images = if self.batch == 1 { "image" } else { "images" };
        write!(
            f,
            "device {}: out of memory in {what} of {} {images} of {height} x {width}",
            self.device, self.batch
        )?;
        let Shortage { asked, free, total } = self.shortage;
        let mut facts = Vec::new();
        facts.extend(asked.map(|asked| format!("{} were asked for", amount_of(asked))));
        facts.extend(free.map(|free| match total {
            Some(total) => format!("{} of {} are free", amount_of(free), amount_of(total)),
            None => format!("{} are free", amount_of(free)),
        }));
        facts.extend(self.largest.map(|largest| match largest {
            0 => "not even one image fits".to_owned(),
            largest => format!("the largest batch that fits is {largest} (tried)"),
        }));
        if !facts.is_empty() {
            write!(f, ": {}", facts.join(", "))?;
        }
        let batch = if self.training {
            "train_config.batch_size"
        } else {
            "eval_config.batch_size"
        };
        f.write_str("\nhint: ")?;
        match self.largest {
            Some(0) => f.write_str("use smaller images (image_resizer)")?,
            Some(largest) => write!(f, "set {batch} to {largest} or less, or use smaller images")?,
            None => write!(f, "use a smaller {batch} or smaller images")?,
        }
        match self.device {
            Device::Cuda(_) if !self.low_precision && self.training => {
                f.write_str("; coati.precision: bf16 takes less; other programs on this GPU are listed by `nvidia-smi`")
            }
            Device::Cuda(_) => f.write_str("; other programs on this GPU are listed by `nvidia-smi`"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// As libtorch 2.11 on CUDA writes it.
    const CUDA: &str = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.25 GiB is free. \
        Including non-PyTorch memory, this process has 77.99 GiB memory in use. Of the allocated memory 76.50 GiB is allocated by PyTorch, \
        and 512.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting \
        PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.";

    #[test]
    fn what_libtorch_says_of_memory_is_read() {
        let read = Shortage::read(CUDA).unwrap();
        assert_eq!(read.asked, Some(2560 * MIB));
        assert_eq!(read.free, Some(1280 * MIB));
        assert_eq!(read.total, Some((79.25 * 1024.0) as u64 * MIB));
        let older = "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 15.75 GiB total capacity; 14.50 GiB already allocated; \
            11.00 MiB free; 14.75 GiB reserved in total by PyTorch)";
        let read = Shortage::read(older).unwrap();
        let total = Some(15 * 1024 * MIB + 768 * MIB);
        assert_eq!(
            (read.asked, read.free, read.total),
            (Some(20 * MIB), Some(11 * MIB), total)
        );
        let cpu = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate \
            1048576000 bytes. Error code 12 (Cannot allocate memory)";
        let read = Shortage::read(cpu).unwrap();
        assert_eq!((read.asked, read.free, read.total), (Some(1_048_576_000), None, None));
        let runtime = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported";
        assert_eq!(Shortage::read(runtime), Some(Shortage::default()));
        assert_eq!(
            Shortage::read("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            Some(Shortage::default())
        );
        assert_eq!(
            Shortage::read("Sizes of tensors must match except in dimension 1"),
            None
        );
        assert_eq!(
            Shortage::read("out of memory. Tried to allocate x.y GiB"),
            Some(Shortage::default())
        );
    }

    #[test]
    fn the_largest_batch_is_found_by_halving() {
        for limit in 0..17 {
            let mut tries = 0;
            let found = largest(17, |batch| {
                tries += 1;
                Ok::<_, ()>(batch <= limit)
            });
            assert_eq!((found, tries <= 5), (Ok(limit), true), "{limit}");
        }
        assert_eq!(largest(1, |_| Ok::<_, ()>(true)), Ok(0), "nothing is left to try");
        assert_eq!(largest(0, |_| Ok::<_, ()>(true)), Ok(0));
        assert_eq!(largest(8, |_| Err("broken")), Err("broken"));
    }

    #[test]
    fn the_message_says_how_much_and_what_to_do() {
        let mut error = OutOfMemory {
            device: Device::Cuda(1),
            batch: 16,
            image: (640, 640),
            training: true,
            shortage: Shortage::read(CUDA).unwrap(),
            largest: Some(11),
            low_precision: false,
        };
        assert_eq!(
            error.to_string(),
            "device cuda:1: out of memory in a training step of 16 images of 640 x 640: 2.50 GiB were asked for, 1.25 GiB of 79.25 GiB are \
             free, the largest batch that fits is 11 (tried)\nhint: set train_config.batch_size to 11 or less, or use smaller images; \
             coati.precision: bf16 takes less; other programs on this GPU are listed by `nvidia-smi`"
        );
        error = OutOfMemory {
            device: Device::TorchCpu,
            batch: 1,
            largest: Some(0),
            shortage: Shortage::default(),
            ..error
        };
        assert_eq!(
            error.to_string(),
            "device torch-cpu: out of memory in a training step of 1 image of 640 x 640: not even one image fits\nhint: use smaller images \
             (image_resizer)"
        );
        error = OutOfMemory {
            training: false,
            largest: None,
            batch: 2,
            ..error
        };
        assert_eq!(
            error.to_string(),
            "device torch-cpu: out of memory in a forward pass of 2 images of 640 x 640\nhint: use a smaller eval_config.batch_size or smaller images"
        );
    }

    #[test]
    fn amounts_are_written_as_libtorch_writes_them() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.50 KiB"),
            (5 << 40, "5.00 TiB"),
            (1 << 53, "8192.00 TiB"),
        ] {
            assert_eq!(amount_of(bytes), text);
        }
        assert_eq!(available("MemTotal: 1 kB\nMemAvailable:   2048 kB\n"), Some(2 * MIB));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
