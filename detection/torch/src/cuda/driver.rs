//! The few functions of NVIDIA's driver and of CUDA's runtime that say what there is.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;

use coati_detection::accelerator::numerics::Gpu;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

use super::cause;

const FILE: &str = "libcuda.so.1";
/// CUDA's runtime that libtorch is linked with.
const RUNTIME: &str = "libcudart.so.13";

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// The driver's library.
pub(super) struct Driver {
    library: Library,
}

impl Driver {
    /// Opens it; otherwise the loader's complaint.
    pub(super) fn open() -> Result<Self, String> {
        open(Path::new(FILE)).map(|library| Self { library })
    }

    /// The version of CUDA that it serves (13000 is 13.0); 0: none.
    pub(super) fn version(&self) -> i32 {
        version(&self.library, b"cuDriverGetVersion\0").unwrap_or(0)
    }

    /// The GPUs that this process sees, in order.
    pub(super) fn gpus(&self) -> Vec<Gpu> {
        self.list().unwrap_or_default()
    }

    fn list(&self) -> Option<Vec<Gpu>> {
        // SAFETY: the driver's documented interface, which has not changed since CUDA 4.
        unsafe {
            let init: Symbol<unsafe extern "C" fn(c_uint) -> c_int> = self.library.get(b"cuInit\0").ok()?;
            let count: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> =
                self.library.get(b"cuDeviceGetCount\0").ok()?;
            let get: Symbol<unsafe extern "C" fn(*mut c_int, c_int) -> c_int> =
                self.library.get(b"cuDeviceGet\0").ok()?;
            let name: Symbol<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int> =
                self.library.get(b"cuDeviceGetName\0").ok()?;
            let attribute: Symbol<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int> =
                self.library.get(b"cuDeviceGetAttribute\0").ok()?;
            let mut found = 0;
            if init(0) != 0 || count(&raw mut found) != 0 {
                return None;
            }
            let gpu = |index| {
                let (mut device, mut text, mut capability) = (0, [0 as c_char; 256], (0, 0));
                let done = get(&raw mut device, index) == 0
                    && name(text.as_mut_ptr(), text.len() as c_int - 1, device) == 0
                    && attribute(&raw mut capability.0, CAPABILITY_MAJOR, device) == 0
                    && attribute(&raw mut capability.1, CAPABILITY_MINOR, device) == 0;
                done.then(|| Gpu {
                    name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
                    capability,
                })
            };
            (0..found).map(gpu).collect()
        }
    }
}

fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: a system library without initialisers that matter here.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| cause(&error))
}

fn version(library: &Library, function: &[u8]) -> Option<i32> {
    let mut version = 0;
    // SAFETY: both functions that are called so fill an integer and return 0.
    let status = unsafe {
        let function: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> = library.get(function).ok()?;
        function(&raw mut version)
    };
    (status == 0).then_some(version)
}

/// The version of CUDA's runtime beside libtorch; it can be asked without a driver.
pub(super) fn runtime_version() -> Option<i32> {
    let beside = Path::new(env!("COATI_LIBTORCH_LIB")).join(RUNTIME);
    let library = open(Path::new(RUNTIME)).or_else(|_| open(&beside)).ok()?;
    version(&library, b"cudaRuntimeGetVersion\0").filter(|&version| version > 0)
}

/// The GPUs of this machine, visible or not; 0 where the driver keeps no list.
pub(super) fn on_machine() -> usize {
    std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_beside_libtorch_tells_its_version() {
        assert_eq!(runtime_version().map(|version| version / 1000), Some(13));
    }

    #[test]
    fn a_machine_without_a_driver_has_no_gpus() {
        if Path::new("/dev/nvidiactl").exists() {
            println!("skipped: this machine has a GPU");
            return;
        }
        assert_eq!(on_machine(), 0);
        let why = Driver::open().err().unwrap_or_default();
        assert!(why.contains(FILE), "{why}");
    }
}
