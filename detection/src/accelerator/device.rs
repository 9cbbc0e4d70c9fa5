//! Where a network computes, and who says so.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::Error;

/// The variable that chooses the device: `auto`, `cpu`, `cuda`, `cuda:N`, `torch-cpu`.
pub const VARIABLE: &str = "COATI_DEVICE";

/// Where a network computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if there is one that can be used, otherwise the CPU.
    #[default]
    Auto,
    /// Our own kernels.
    Cpu,
    /// A GPU, counted among those that are visible.
    Cuda(usize),
    /// libtorch's kernels on the CPU: what runs on a GPU, where there is none.
    TorchCpu,
}

impl Device {
    /// What [`VARIABLE`] says; `Auto` when it is not set.
    pub fn from_environment() -> Result<Self, Error> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.trim().is_empty() => text.trim().parse(),
            _ => Ok(Self::Auto),
        }
    }

    /// Whether this machine has a GPU's driver and this process may see a GPU. Costs nothing, unlike asking libtorch.
    pub(super) fn gpu_in_sight() -> bool {
        gpu_visible(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
            && ["/dev/nvidiactl", "/proc/driver/nvidia/version"]
                .iter()
                .any(|path| Path::new(path).exists())
    }
}

impl Device {
    /// Why [`Device::Auto`] means the CPU, as the end of a sentence.
    pub(super) fn why_no_gpu() -> &'static str {
        why_no_gpu(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
    }
}

fn why_no_gpu(list: Option<&str>) -> &'static str {
    if gpu_visible(list) {
        ": no GPU is in sight (this machine has no NVIDIA driver)"
    } else {
        ": CUDA_VISIBLE_DEVICES hides all GPUs"
    }
}

/// As CUDA reads it: an empty list, or one that begins with an invalid entry, hides every GPU.
fn gpu_visible(list: Option<&str>) -> bool {
    list.is_none_or(|list| !list.trim().is_empty() && !list.trim().starts_with('-'))
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::Unknown { value: text.to_owned() };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "torch-cpu" => Ok(Self::TorchCpu),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::TorchCpu => f.write_str("torch-cpu"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [
            Device::Auto,
            Device::Cpu,
            Device::Cuda(0),
            Device::Cuda(7),
            Device::TorchCpu,
        ] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:-1", "CPU", ""] {
            let error = wrong.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("hint: ") && error.contains("torch-cpu"), "{error}");
        }
    }

    #[test]
    fn an_empty_list_hides_the_gpus() {
        assert!(gpu_visible(None) && gpu_visible(Some("0")) && gpu_visible(Some("GPU-1,2")));
        assert!(why_no_gpu(Some("-1")).contains("CUDA_VISIBLE_DEVICES hides"));
        assert!(why_no_gpu(Some("0")).contains("no NVIDIA driver"));
        assert!(!gpu_visible(Some("")) && !gpu_visible(Some("-1")) && !gpu_visible(Some(" ")));
    }
}
