//! NCCL, opened when it is needed.
//!
//! Signatures and constants are those of NCCL's `nccl.h` (2.18 and later).

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use crate::Error;
use crate::cuda::{Runtime, Stream};
use crate::dynamic::{functions, open, words};

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;
/// `ncclResult_t`.
pub(super) type Code = c_int;

pub(super) const SUCCESS: Code = 0;
/// `ncclInProgress`: of a communicator that does not block.
pub(super) const IN_PROGRESS: Code = 7;
pub(super) const FLOAT32: c_int = 7;
pub(super) const BFLOAT16: c_int = 9;
pub(super) const SUM: c_int = 0;
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

/// Both libraries; they stay loaded until the process ends, since neither can be unloaded safely.
pub struct Libraries {
    pub(super) nccl: Nccl,
    cuda: Arc<Runtime>,
    version: c_int,
}

impl Libraries {
    /// Opens `libnccl.so.2` and the CUDA runtime, from `folders` first and then from where the loader looks.
    ///
    /// # Errors
    /// What is missing or too old, and what to install.
    pub fn open(folders: &[&std::path::Path]) -> Result<Self, Error> {
        const NCCL: &str = "install NCCL 2.18 or later (Debian, Ubuntu: libnccl2; PyPI: nvidia-nccl-cu13 or -cu12) and put the folder of libnccl.so.2 into LD_LIBRARY_PATH";
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
        let cuda = Arc::new(Runtime::open(folders)?);
        Ok(Self { nccl, cuda, version })
    }

    /// NCCL's version, such as `2.28.9`.
    pub fn version(&self) -> String {
        shown(self.version)
    }

    /// The CUDA runtime.
    pub fn cuda(&self) -> &Arc<Runtime> {
        &self.cuda
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
