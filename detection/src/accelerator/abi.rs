//! What crosses the border to `libcoati_torch.so`: plain C, since the two are linked apart.

use std::ffi::c_void;

/// Changes whenever anything here does.
pub const VERSION: u32 = 2;
/// The name under which the library exports its [`Api`] (a function that returns a pointer to it).
pub const ENTRY: &[u8] = b"coati_torch_api\0";
/// Type of the function [`ENTRY`].
pub type Entry = unsafe extern "C" fn() -> *const Api;

/// A slice of floats that the callee reads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Floats {
    /// First element.
    pub start: *const f32,
    /// Number of elements.
    pub len: usize,
}

impl From<&[f32]> for Floats {
    fn from(values: &[f32]) -> Self {
        Self {
            start: values.as_ptr(),
            len: values.len(),
        }
    }
}

/// A slice of floats that the callee fills.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FloatsMut {
    /// First element.
    pub start: *mut f32,
    /// Number of elements.
    pub len: usize,
}

impl From<&mut [f32]> for FloatsMut {
    fn from(values: &mut [f32]) -> Self {
        Self {
            start: values.as_mut_ptr(),
            len: values.len(),
        }
    }
}

/// UTF-8 that the callee reads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// First byte.
    pub start: *const u8,
    /// Number of bytes.
    pub len: usize,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self {
            start: text.as_ptr(),
            len: text.len(),
        }
    }
}

/// Room for an error in words.
#[repr(C)]
#[derive(Debug)]
pub struct Message {
    /// UTF-8.
    pub bytes: [u8; 2048],
    /// Bytes used.
    pub len: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            bytes: [0; 2048],
            len: 0,
        }
    }
}

impl Message {
    /// Takes as much of `text` as fits.
    pub fn set(&mut self, text: &str) {
        self.len = text.len().min(self.bytes.len());
        self.bytes[..self.len].copy_from_slice(&text.as_bytes()[..self.len]);
    }

    /// The text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.len.min(self.bytes.len())]).into_owned()
    }
}

/// The library's functions. Those that return `bool` return whether they succeeded; if not, the message says why.
#[repr(C)]
#[derive(Debug)]
pub struct Api {
    /// [`VERSION`] of the library.
    pub version: u32,
    /// Makes a session: the network's configuration as JSON, the device (`cuda:N` or `torch-cpu`), threads. Null when it fails.
    pub open: unsafe extern "C" fn(Text, Text, usize, *mut Message) -> *mut c_void,
    /// Parameters, images, whether to train; boxes and classes to fill.
    pub forward: unsafe extern "C" fn(*mut c_void, Floats, Floats, bool, FloatsMut, FloatsMut, *mut Message) -> bool,
    /// Sets what the next forward passes drop: a key of [`crate::network::dropout`].
    pub set_key: unsafe extern "C" fn(*mut c_void, u64),
    /// Gradients of boxes and classes of the forward pass before; gradients of the parameters to fill.
    pub backward: unsafe extern "C" fn(*mut c_void, Floats, Floats, FloatsMut, *mut Message) -> bool,
    /// Ends a session.
    pub close: unsafe extern "C" fn(*mut c_void),
}
