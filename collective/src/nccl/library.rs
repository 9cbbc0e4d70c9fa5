//! NCCL and the CUDA runtime, opened when they are needed: nothing links them, so one program serves machines with and without GPUs.
//!
//! Signatures and constants are those of NCCL's `nccl.h` (2.18 and later) and of `cuda_runtime_api.h`.

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::Error;

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;
/// `cudaStream_t`.
pub type Stream = *mut c_void;
/// `cudaEvent_t`.
pub(super) type Event = *mut c_void;
/// `ncclResult_t`, `cudaError_t`.
pub(super) type Code = c_int;

pub(super) const SUCCESS: Code = 0;
/// `ncclInProgress`: of a communicator that does not block.
pub(super) const IN_PROGRESS: Code = 7;
/// `cudaErrorNotReady`.
pub(super) const NOT_READY: Code = 600;
pub(super) const FLOAT32: c_int = 7;
pub(super) const BFLOAT16: c_int = 9;
pub(super) const SUM: c_int = 0;
/// `cudaStreamNonBlocking`: it does not wait for what others give to the default stream.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `cudaEventDisableTiming`
pub(super) const NO_TIMING: c_uint = 2;
/// `cudaMemcpyDefault`: the addresses tell the direction.
pub(super) const COPY_DEFAULT: c_int = 4;

/// Bytes of a `ncclUniqueId`.
pub const ID_BYTES: usize = 128;

/// The oldest NCCL whose non-blocking communicators these calls rely on: 2.18.
const OLDEST: c_int = 21_800;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; ID_BYTES]);

/// `ncclConfig_t` as of 2.18: a later library reads as much as `size` says and takes its defaults for the rest.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once and say `ncclInProgress`, so that waits have deadlines.
    pub(super) fn non_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST as c_uint,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

macro_rules! functions {
    ($(#[$about:meta])* $name:ident { $($field:ident: $symbol:literal ($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$about])*
        pub(super) struct $name {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $name {
            /// All of them, or the first that is missing.
            unsafe fn find(library: &Library) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the caller opened the library that declares it with this type.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol.as_bytes()) };
                        *found.map_err(|_| format!("it has no {}", $symbol))?
                    },)*
                })
            }
        }
    };
}

functions! {
    /// What is called of NCCL.
    Nccl {
        get_version: "ncclGetVersion"(*mut c_int) -> Code;
        get_unique_id: "ncclGetUniqueId"(*mut UniqueId) -> Code;
        comm_init: "ncclCommInitRankConfig"(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Code;
        comm_abort: "ncclCommAbort"(Comm) -> Code;
        comm_finalize: "ncclCommFinalize"(Comm) -> Code;
        comm_destroy: "ncclCommDestroy"(Comm) -> Code;
        async_error: "ncclCommGetAsyncError"(Comm, *mut Code) -> Code;
        error_string: "ncclGetErrorString"(Code) -> *const c_char;
        last_error: "ncclGetLastError"(Comm) -> *const c_char;
        all_reduce: "ncclAllReduce"(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> Code;
        broadcast: "ncclBroadcast"(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> Code;
        group_start: "ncclGroupStart"() -> Code;
        group_end: "ncclGroupEnd"() -> Code;
    }
}

functions! {
    /// What is called of the CUDA runtime.
    Cuda {
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

/// Both libraries; they stay loaded until the process ends, since neither can be unloaded safely.
pub struct Libraries {
    pub(super) nccl: Nccl,
    pub(super) cuda: Cuda,
    version: c_int,
}

impl Libraries {
    /// Opens `libnccl.so.2` and the CUDA runtime, from `folders` first and then from where the loader looks.
    ///
    /// # Errors
    /// What is missing or too old, and what to install.
    pub fn open(folders: &[&std::path::Path]) -> Result<Self, Error> {
        const NCCL: &str = "install NCCL 2.18 or later (Debian, Ubuntu: libnccl2; PyPI: nvidia-nccl-cu13 or -cu12) and put the folder of libnccl.so.2 into LD_LIBRARY_PATH";
        const CUDA: &str = "install the CUDA runtime of NCCL's CUDA version (PyPI: nvidia-cuda-runtime) and put its folder into LD_LIBRARY_PATH";
        let library = open(folders, &["libnccl.so.2"], NCCL)?;
        // SAFETY: the library is NCCL.
        let nccl = unsafe { Nccl::find(&library) };
        std::mem::forget(library);
        let nccl = nccl.map_err(|why| Error::Gpu(format!("libnccl.so.2 cannot be used: {why}\nhint: {NCCL}")))?;
        let mut version = 0;
        // SAFETY: writes one number.
        let code = unsafe { (nccl.get_version)(&raw mut version) };
        if code != SUCCESS || version < OLDEST {
            let found = shown(version);
            return Err(Error::Gpu(format!(
                "libnccl.so.2 is NCCL {found}; 2.18.0 is the oldest that will do\nhint: {NCCL}"
            )));
        }
        let library = open(folders, &["libcudart.so.13", "libcudart.so.12", "libcudart.so"], CUDA)?;
        // SAFETY: the library is the CUDA runtime.
        let cuda = unsafe { Cuda::find(&library) };
        std::mem::forget(library);
        let cuda = cuda.map_err(|why| Error::Gpu(format!("libcudart cannot be used: {why}\nhint: {CUDA}")))?;
        Ok(Self { nccl, cuda, version })
    }

    /// NCCL's version, such as `2.28.9`.
    pub fn version(&self) -> String {
        shown(self.version)
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
                (self.cuda.driver_version)(&raw mut driver),
                (self.cuda.runtime_version)(&raw mut runtime),
                (self.cuda.device_count)(&raw mut count),
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
                format!(" ({})", self.cuda_words(codes[2]))
            };
            return Err(Error::Gpu(format!(
                "GPU {index} was asked for; this process sees {count}{why}{visible}\nhint: GPUs are counted from 0 among those that are visible"
            )));
        }
        Ok(())
    }

    pub(super) fn cuda_words(&self, code: Code) -> String {
        // SAFETY: CUDA's own table of texts.
        words(unsafe { (self.cuda.error_string)(code) })
    }

    pub(super) fn nccl_words(&self, code: Code, comm: Comm) -> String {
        // SAFETY: NCCL's own table, and its last text; a null communicator is allowed.
        unsafe {
            let (text, last) = (
                words((self.nccl.error_string)(code)),
                words((self.nccl.last_error)(comm)),
            );
            if last.is_empty() {
                text
            } else {
                format!("{text}: {last}")
            }
        }
    }

    /// A new name for a group of ranks, which one of them makes for all.
    ///
    /// # Errors
    /// NCCL's words.
    pub fn unique_id(&self) -> Result<[u8; ID_BYTES], Error> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: writes as many bytes as it has.
        match unsafe { (self.nccl.get_unique_id)(&raw mut id) } {
            SUCCESS => Ok(id.0),
            code => Err(Error::Gpu(format!(
                "NCCL cannot begin: {}\nhint: NCCL_DEBUG=WARN tells more; NCCL_SOCKET_IFNAME chooses the network",
                self.nccl_words(code, std::ptr::null_mut())
            ))),
        }
    }
}

fn shown(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a text of the library's, which ends in zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn open(folders: &[&std::path::Path], names: &[&str], hint: &str) -> Result<Library, Error> {
    let places = folders
        .iter()
        .flat_map(|folder| names.iter().map(|name| folder.join(name)));
    let mut why = Vec::new();
    for place in places.chain(names.iter().map(Into::into)) {
        // SAFETY: NVIDIA's libraries; their initialisers need nothing of ours.
        match unsafe { Library::open(Some(&place), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok(library),
            // The loader's own words are one level down.
            Err(error) => why.push(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
        }
    }
    Err(Error::Gpu(format!(
        "{} cannot be opened: {}\nhint: {hint}",
        names[0],
        why.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_writes_them() {
        assert_eq!(shown(22_809), "2.28.9");
        assert_eq!(shown(OLDEST), "2.18.0");
    }

    #[test]
    fn the_configuration_lies_as_in_the_header() {
        // On 64 bits: size 8, four by four bytes and two, a pointer, an int and its padding.
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(std::mem::offset_of!(Config, split_share), 40);
    }
}
