//! The CUDA runtime, opened when it is needed, and streams of work beside the one that computes.
//!
//! Signatures and constants are those of `cuda_runtime_api.h`.

mod lane;

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::Error;
use crate::dynamic::{functions, open, words};
pub use lane::Lane;

/// `cudaStream_t`; null is the stream in which everybody computes who makes none, libtorch among them.
pub type Stream = *mut c_void;
/// `cudaEvent_t`.
type Event = *mut c_void;
/// `cudaError_t`.
type Code = c_int;

const SUCCESS: Code = 0;
/// `cudaErrorNotReady`.
const NOT_READY: Code = 600;
/// `cudaStreamNonBlocking`: it does not wait for what others give to the default stream.
const NON_BLOCKING: c_uint = 1;
/// `cudaEventDisableTiming`
const NO_TIMING: c_uint = 2;
/// `cudaMemcpyDefault`: the addresses tell the direction.
const COPY_DEFAULT: c_int = 4;

functions! {
    /// What is called of the CUDA runtime.
    Calls {
        driver_version: "cudaDriverGetVersion"(*mut c_int) -> Code;
        runtime_version: "cudaRuntimeGetVersion"(*mut c_int) -> Code;
        device_count: "cudaGetDeviceCount"(*mut c_int) -> Code;
        set_device: "cudaSetDevice"(c_int) -> Code;
        malloc: "cudaMalloc"(*mut *mut c_void, usize) -> Code;
        free: "cudaFree"(*mut c_void) -> Code;
        mem_info: "cudaMemGetInfo"(*mut usize, *mut usize) -> Code;
        copy: "cudaMemcpyAsync"(*mut c_void, *const c_void, usize, c_int, Stream) -> Code;
        stream_create: "cudaStreamCreateWithFlags"(*mut Stream, c_uint) -> Code;
        stream_query: "cudaStreamQuery"(Stream) -> Code;
        stream_synchronize: "cudaStreamSynchronize"(Stream) -> Code;
        stream_destroy: "cudaStreamDestroy"(Stream) -> Code;
        stream_wait: "cudaStreamWaitEvent"(Stream, Event, c_uint) -> Code;
        event_create: "cudaEventCreateWithFlags"(*mut Event, c_uint) -> Code;
        event_record: "cudaEventRecord"(Event, Stream) -> Code;
        event_destroy: "cudaEventDestroy"(Event) -> Code;
        error_string: "cudaGetErrorString"(Code) -> *const c_char;
    }
}

/// The library; it stays loaded until the process ends, since it cannot be unloaded safely.
pub struct Runtime {
    calls: Calls,
}

impl Runtime {
    /// Opens it from `folders` first and then from where the loader looks.
    ///
    /// # Errors
    /// What is missing, and what to install.
    pub fn open(folders: &[&std::path::Path]) -> Result<Self, Error> {
        const HINT: &str = "install the CUDA runtime of NCCL's CUDA version (PyPI: nvidia-cuda-runtime) and put its folder into LD_LIBRARY_PATH";
        let library = open(folders, &["libcudart.so.13", "libcudart.so.12", "libcudart.so"], HINT)?;
        // SAFETY: the library is the CUDA runtime.
        let calls = unsafe { Calls::find(&library) };
        std::mem::forget(library);
        let calls = calls.map_err(|why| Error::Gpu(format!("libcudart cannot be used: {why}\nhint: {HINT}")))?;
        Ok(Self { calls })
    }

    /// Sees that the driver is there, is as new as the runtime, and shows GPU `index`.
    ///
    /// # Errors
    /// What is not so.
    pub fn check_device(&self, index: i32) -> Result<(), Error> {
        let (mut driver, mut runtime, mut count) = (0, 0, 0);
        // SAFETY: each writes one number.
        let codes = unsafe {
            [
                (self.calls.driver_version)(&raw mut driver),
                (self.calls.runtime_version)(&raw mut runtime),
                (self.calls.device_count)(&raw mut count),
            ]
        };
        let release = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
        if driver == 0 {
            return Err(Error::Gpu(
                "there is no NVIDIA driver on this machine\nhint: install one, or reduce on CPUs".to_owned(),
            ));
        }
        if driver / 1000 < runtime / 1000 {
            return Err(Error::Gpu(format!(
                "the driver knows CUDA {}, the runtime library is of CUDA {}\nhint: install a newer driver, or libraries of CUDA {}",
                release(driver),
                release(runtime),
                driver / 1000
            )));
        }
        let visible = std::env::var("CUDA_VISIBLE_DEVICES")
            .map_or(String::new(), |list| format!(", CUDA_VISIBLE_DEVICES is \"{list}\""));
        if codes[2] != SUCCESS || index < 0 || index >= count {
            let why = if codes[2] == SUCCESS {
                String::new()
            } else {
                format!(" ({})", self.words(codes[2]))
            };
            return Err(Error::Gpu(format!(
                "GPU {index} was asked for; this process sees {count}{why}{visible}\nhint: GPUs are counted from 0 among those that are visible"
            )));
        }
        Ok(())
    }

    fn words(&self, code: Code) -> String {
        // SAFETY: CUDA's own table of texts.
        words(unsafe { (self.calls.error_string)(code) })
    }
}
