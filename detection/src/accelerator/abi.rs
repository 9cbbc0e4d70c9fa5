//! What crosses the border to `libcoati_torch.so`: plain C, since the two are linked apart.

use std::ffi::c_void;

use coati_common::cluster::Numerics;
use serde::{Deserialize, Serialize};

use super::loss::{BatchTargets, DeviceLoss};
use crate::network::NetworkConfig;

/// Changes whenever anything here does.
pub const VERSION: u32 = 5;
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

/// What a session is opened with; crosses the border as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opening {
    /// The network.
    pub network: NetworkConfig,
    /// `cuda:N` or `torch-cpu`
    pub device: String,
    /// Compute threads of the host.
    pub threads: usize,
    /// What training computes with.
    pub numerics: Numerics,
    /// The losses that [`Api::train`] computes, if it is to be called.
    pub loss: Option<DeviceLoss>,
}

/// What a batch should predict: [`BatchTargets`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// `[batch, anchors]`
    pub columns: Floats,
    /// `[batch, anchors]`
    pub class_weights: Floats,
    /// `[batch, anchors, 4]`
    pub codes: Floats,
    /// `[batch, anchors]`
    pub box_weights: Floats,
    /// See [`BatchTargets`].
    pub class_factor: f32,
    /// See [`BatchTargets`].
    pub box_factor: f32,
}

impl From<&BatchTargets> for Targets {
    fn from(targets: &BatchTargets) -> Self {
        Self {
            columns: targets.columns.as_slice().into(),
            class_weights: targets.class_weights.as_slice().into(),
            codes: targets.codes.as_slice().into(),
            box_weights: targets.box_weights.as_slice().into(),
            class_factor: targets.class_factor,
            box_factor: targets.box_factor,
        }
    }
}

/// What the library calls while a step is computed, in the thread of the call and before that returns. Calls that "do not wait" wait for these,
/// and before `sum` for the device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// For the functions.
    pub context: *mut c_void,
    /// Is told of elements of the gradient that lie where they are summed and will not change: the first and how many. Work on them must be
    /// queued behind what the device was given so far.
    pub ready: Option<unsafe extern "C" fn(*mut c_void, usize, usize)>,
    /// Replaces so many values by their sums over all replicas, for batch norm with everybody's statistics; false when that fails. None where
    /// each replica's are its own.
    pub sum: Option<unsafe extern "C" fn(*mut c_void, *mut f64, usize) -> bool>,
}

/// How a step is made of variables on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The learning rate.
    pub rate: f32,
    /// Adam's `beta1_power` and `beta2_power` before the step.
    pub powers: [f32; 2],
    /// What the sum is divided by to be a mean.
    pub divisor: f32,
}

/// How a step in float16 went.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scaling {
    /// What gradients were multiplied by on their way; 1 in other precisions.
    pub scale: f32,
    /// Backward passes that were repeated because of a number beyond float16's range.
    pub repeats: u32,
}

/// What a [`Message`] is about.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum About {
    /// In libtorch's words.
    #[default]
    Other = 0,
    /// A whole explanation that ends in a hint.
    Refusal = 1,
    /// JSON of [`super::memory::Shortage`].
    Memory = 2,
}

/// Room for an error in words.
#[repr(C)]
#[derive(Debug)]
pub struct Message {
    /// What it is about.
    pub about: About,
    /// UTF-8.
    pub bytes: [u8; 2048],
    /// Bytes used.
    pub len: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            about: About::Other,
            bytes: [0; 2048],
            len: 0,
        }
    }
}

impl Message {
    /// Takes as much of `text` as fits.
    pub fn set(&mut self, about: About, text: &str) {
        self.about = about;
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
    /// Makes a session of an [`Opening`]; says which [`super::Arithmetic`] it trains with. Null when it fails.
    pub open: unsafe extern "C" fn(Text, *mut u32, *mut Message) -> *mut c_void,
    /// Lays the session out for images of so many rows and columns; variables stay, a step that was started is forgotten.
    pub lay_out: unsafe extern "C" fn(*mut c_void, usize, usize, *mut Message) -> bool,
    /// Sets what the next forward passes drop: a key of [`crate::network::dropout`].
    pub set_key: unsafe extern "C" fn(*mut c_void, u64),
    /// Begins a step: parameters and images go to the device, which computes the forward pass in training mode. No parameters: those on the
    /// device. No images: those that were staged. Does not wait for it.
    pub start: unsafe extern "C" fn(*mut c_void, Floats, Floats, Calls, *mut Message) -> bool,
    /// Fills boxes and classes with what the step that was started predicts. Waits.
    pub predictions: unsafe extern "C" fn(*mut c_void, FloatsMut, FloatsMut, *mut Message) -> bool,
    /// Parameters, images; boxes and classes to fill. In inference mode and float32. Waits.
    pub infer: unsafe extern "C" fn(*mut c_void, Floats, Floats, FloatsMut, FloatsMut, *mut Message) -> bool,
    /// Losses and gradients of the step that was started, from its targets. Does not wait.
    pub train: unsafe extern "C" fn(*mut c_void, *const Targets, Calls, *mut Message) -> bool,
    /// The same from the gradients of boxes and classes that the host computed. Does not wait.
    pub backward: unsafe extern "C" fn(*mut c_void, Floats, Floats, Calls, *mut Message) -> bool,
    /// Waits for the step; fills the gradients of the parameters, unless these are on the device, and, after `train`, each image's sums of
    /// losses: all of classes, then all of boxes (otherwise the slice is empty). Where parameters are on the device, also the penalty on them
    /// (otherwise null).
    pub collect: unsafe extern "C" fn(*mut c_void, FloatsMut, FloatsMut, *mut f32, *mut Scaling, *mut Message) -> bool,
    /// Brings variables to the device, where they stay: a [`super::resident::Residence`], parameters, slots, averages.
    pub reside: unsafe extern "C" fn(*mut c_void, Text, Floats, Floats, Floats, *mut Message) -> bool,
    /// The address on the device of what is summed over ranks; 0 where nothing is.
    pub sums: unsafe extern "C" fn(*mut c_void) -> usize,
    /// Sends the images of the next step, beside this one where there is a way, else behind it. Does not wait.
    pub stage: unsafe extern "C" fn(*mut c_void, Floats, *mut Message) -> bool,
    /// Brings the own gradient, times a weight, to where it is summed. Does not wait.
    pub fill: unsafe extern "C" fn(*mut c_void, f32, *mut Message) -> bool,
    /// Whether what a step would be made of is finite. Waits.
    pub finite: unsafe extern "C" fn(*mut c_void, *mut bool, *mut Message) -> bool,
    /// Makes a step of the sum, or of the own gradient. Does not wait.
    pub apply: unsafe extern "C" fn(*mut c_void, *const Update, *mut Message) -> bool,
    /// Fills parameters, slots and averages with what the device holds. Waits.
    pub read: unsafe extern "C" fn(*mut c_void, FloatsMut, FloatsMut, FloatsMut, *mut Message) -> bool,
    /// Fills in the own gradient of the last step. Waits.
    pub gradient: unsafe extern "C" fn(*mut c_void, FloatsMut, *mut Message) -> bool,
    /// Ends a session.
    pub close: unsafe extern "C" fn(*mut c_void),
}
