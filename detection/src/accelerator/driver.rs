//! Why a GPU cannot be used, in words: its driver, what hides it, how many there are. Pure; the library asks the driver.

use super::numerics::Gpu;

/// Limits the GPUs that a process sees.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The driver releases that first knew a major version of CUDA.
const RELEASES: [(i32, u32); 3] = [(13, 580), (12, 525), (11, 450)];

/// A version as CUDA writes it: 13000 is 13.0.
fn version(code: i32) -> String {
    format!("{}.{}", code / 1000, code % 1000 / 10)
}

/// Whether a driver for CUDA `driver` runs libraries of CUDA `library`: any of the same major version does.
pub fn check(driver: i32, library: i32) -> Result<(), String> {
    if driver / 1000 >= library / 1000 {
        return Ok(());
    }
    let known = RELEASES.into_iter().find(|(major, _)| *major == library / 1000);
    let newer = known.map_or_else(
        || format!("one for CUDA {}", version(library)),
        |(major, release)| format!("release {release} or newer, which is for CUDA {major}"),
    );
    let found = if driver == 0 {
        "there is no NVIDIA driver for CUDA".to_owned()
    } else {
        format!("the NVIDIA driver is for CUDA {}", version(driver))
    };
    Err(format!(
        "{found}, libtorch needs {}\nhint: install {newer} (`nvidia-smi` shows the installed one)",
        version(library)
    ))
}

/// No library of the driver's.
pub fn missing(why: &str) -> String {
    format!("this machine has no NVIDIA driver ({why})\nhint: COATI_DEVICE=cpu computes on the CPU")
}

/// Why `cuda:index` is not among the GPUs that the process sees (`visible`); the driver knows `machine` of them (0: it does not say), and
/// `list` is what [`VISIBLE`] holds.
pub fn absent(index: usize, visible: &[Gpu], machine: usize, list: Option<&str>) -> String {
    let here = match machine {
        0 => "this machine's".to_owned(),
        1 => "this machine's one GPU".to_owned(),
        _ => format!("this machine's {machine} GPUs"),
    };
    if visible.is_empty() {
        return match list {
            Some(list) if machine > 0 => format!(
                "{VISIBLE}={list:?} hides {here}{}\nhint: unset {VISIBLE}, or set it to 0",
                broken(list, machine)
            ),
            Some(list) => format!(
                "no GPU is visible with {VISIBLE}={list:?}\nhint: unset {VISIBLE}; `nvidia-smi -L` lists the GPUs"
            ),
            None if machine > 0 => format!(
                "the driver knows {here}, but CUDA finds none\nhint: see what `nvidia-smi` says; a container is given GPUs when it starts (`--gpus all`)"
            ),
            None => "CUDA finds no GPU on this machine\nhint: COATI_DEVICE=cpu computes on the CPU".to_owned(),
        };
    }
    let names: Vec<String> = visible
        .iter()
        .enumerate()
        .map(|(index, gpu)| format!("cuda:{index} is {}", gpu.name))
        .collect();
    let names = names.join(", ");
    match list {
        Some(list) if machine != visible.len() => format!(
            "cuda:{index} is not there: {VISIBLE}={list:?} shows {} of {here} ({names}){}\nhint: the number counts the visible ones; add one to {VISIBLE}, or ask for {}",
            visible.len(),
            broken(list, machine),
            choice(visible.len())
        ),
        _ => format!(
            "cuda:{index} is not there: this machine has {} ({names})\nhint: ask for {}",
            if visible.len() == 1 {
                "one GPU".to_owned()
            } else {
                format!("{} GPUs", visible.len())
            },
            choice(visible.len())
        ),
    }
}

fn choice(count: usize) -> String {
    match count {
        1 => "cuda:0".to_owned(),
        count => format!("cuda:0 to cuda:{}", count - 1),
    }
}

/// CUDA reads the list up to the first entry that names no GPU.
fn broken(list: &str, machine: usize) -> String {
    let wrong = list.split(',').map(str::trim).find(|entry| match entry.parse::<i64>() {
        Ok(number) => machine > 0 && !(0..machine as i64).contains(&number),
        Err(_) => !(entry.starts_with("GPU-") || entry.starts_with("MIG-")),
    });
    match wrong {
        Some(entry) if !list.trim().is_empty() => {
            format!("; {entry:?} in it names no GPU, and CUDA reads no further")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(count: usize) -> Vec<Gpu> {
        let gpu = Gpu {
            name: "NVIDIA H200".to_owned(),
            capability: (9, 0),
        };
        vec![gpu; count]
    }

    fn says(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text:?}");
        }
    }

    #[test]
    fn an_older_driver_is_named_with_the_release_that_would_do() {
        assert!(check(13000, 13000).is_ok() && check(13010, 13000).is_ok() && check(14000, 13000).is_ok());
        assert!(check(13000, 13010).is_ok(), "minor versions are compatible");
        says(
            &check(12040, 13000).unwrap_err(),
            &[
                "driver is for CUDA 12.4",
                "needs 13.0",
                "hint: install release 580 or newer",
            ],
        );
        says(
            &check(0, 12010).unwrap_err(),
            &["no NVIDIA driver", "12.1", "release 525"],
        );
        says(&check(13000, 15020).unwrap_err(), &["one for CUDA 15.2"]);
    }

    #[test]
    fn what_hides_a_gpu_is_said() {
        says(
            &absent(0, &[], 4, Some("")),
            &["CUDA_VISIBLE_DEVICES=\"\" hides this machine's 4 GPUs\n", "hint: unset"],
        );
        says(
            &absent(0, &[], 1, Some("-1")),
            &["hides this machine's one GPU; \"-1\" in it names no GPU"],
        );
        says(
            &absent(2, &gpus(2), 4, Some("0,1")),
            &[
                "cuda:2 is not there: CUDA_VISIBLE_DEVICES=\"0,1\" shows 2 of this machine's 4 GPUs",
                "cuda:1 is NVIDIA H200",
                "hint: the number counts the visible ones",
                "cuda:0 to cuda:1",
            ],
        );
        says(
            &absent(1, &gpus(1), 4, Some("0,9,1")),
            &["\"9\" in it names no GPU, and CUDA reads no further"],
        );
        says(
            &absent(1, &gpus(1), 0, Some("GPU-8f3a")),
            &["shows 1 of this machine's (cuda:0"],
        );
    }

    #[test]
    fn an_index_that_is_not_there_is_said_with_what_is() {
        says(
            &absent(1, &gpus(1), 1, None),
            &[
                "cuda:1 is not there: this machine has one GPU (cuda:0 is NVIDIA H200)",
                "hint: ask for cuda:0",
            ],
        );
        says(
            &absent(8, &gpus(8), 8, Some("0,1,2,3,4,5,6,7")),
            &["this machine has 8 GPUs", "hint: ask for cuda:0 to cuda:7"],
        );
        says(&absent(0, &[], 0, None), &["no GPU", "hint: COATI_DEVICE=cpu"]);
        says(
            &absent(0, &[], 2, None),
            &[
                "the driver knows this machine's 2 GPUs",
                "hint: see what `nvidia-smi` says",
            ],
        );
    }
}
