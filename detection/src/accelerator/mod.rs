//! Networks on libtorch: on a GPU, or on the CPU to see that a GPU would compute the same.
//!
//! libtorch costs every process that links it 0.4 s at start and 110 MB, parameter servers and CPU replicas included. So `coati` does not: the
//! package `coati-torch` links it and is opened as `libcoati_torch.so` by the processes that compute on a GPU. Only parameters, images, raw
//! predictions and gradients cross the border ([`abi`]); losses stay here.

pub mod abi;
mod device;

use std::error::Error as _;
use std::ffi::c_void;
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::network::{self, Mode, Network, NetworkConfig, Outputs};
use abi::{Api, Message};
pub use device::{Device, VARIABLE};

/// The library's file name.
const FILE: &str = "libcoati_torch.so";

/// Why a network does not run on the device asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A word that names no device.
    #[error("{VARIABLE} is {value:?}, which is no device\nhint: auto, cpu, cuda, cuda:1 or torch-cpu")]
    Unknown {
        /// What was given.
        value: String,
    },
    /// The library cannot be opened.
    #[error(
        "device {device} needs {FILE}, which cannot be opened: {why}\nhint: build it with `cargo build --release -p coati-torch`, or set {VARIABLE}=cpu"
    )]
    Library {
        /// The device asked for.
        device: Device,
        /// The places tried, or the loader's complaint.
        why: String,
    },
    /// libtorch complains.
    #[error("device {device}: {why}\nhint: {VARIABLE}=cpu computes on the CPU")]
    Torch {
        /// The device.
        device: Device,
        /// In libtorch's words.
        why: String,
    },
}

/// A network on libtorch.
#[derive(Debug)]
pub struct Accelerator {
    api: &'static Api,
    session: *mut c_void,
    device: Device,
    columns: usize,
    anchors: usize,
    image: usize,
    elements: usize,
    /// Images of the last forward pass in training mode.
    batch: Option<usize>,
}

// SAFETY: a session has no ties to a thread, and every use of it goes through `&mut self`.
unsafe impl Send for Accelerator {}
// SAFETY: nothing of the session can be reached through `&self`.
unsafe impl Sync for Accelerator {}

impl Accelerator {
    /// Puts the network of `config` on `device`; `None`: it stays with our own kernels. With [`Device::Auto`] that is also the answer to a GPU
    /// that cannot be used, after a warning.
    pub fn open(device: Device, config: &NetworkConfig, network: &Network) -> Result<Option<Self>, Error> {
        match device {
            Device::Cpu => Ok(None),
            Device::Auto if !Device::gpu_in_sight() => Ok(None),
            Device::Auto => match Self::on(Device::Cuda(0), config, network) {
                Ok(opened) => Ok(Some(opened)),
                Err(error) => {
                    tracing::warn!(%error, "there is a GPU, but this replica computes on the CPU");
                    Ok(None)
                }
            },
            Device::Cuda(_) | Device::TorchCpu => Self::on(device, config, network).map(Some),
        }
    }

    fn on(device: Device, config: &NetworkConfig, network: &Network) -> Result<Self, Error> {
        let api = load(device)?;
        let torch = |why: String| Error::Torch { device, why };
        let json = serde_json::to_string(config).map_err(|error| torch(error.to_string()))?;
        let mut message = Message::default();
        // SAFETY: the texts live until the call returns.
        let session = unsafe {
            (api.open)(
                json.as_str().into(),
                device.to_string().as_str().into(),
                network.threads(),
                &raw mut message,
            )
        };
        if session.is_null() {
            return Err(torch(message.text()));
        }
        let anchors = network.anchors();
        Ok(Self {
            api,
            session,
            device,
            columns: network.class_columns(),
            anchors,
            image: config.image_height * config.image_width * config.image_channels,
            elements: network.elements(),
            batch: None,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// As [`Network::set_key`].
    pub fn set_key(&mut self, key: u64) {
        // SAFETY: the session is open.
        unsafe { (self.api.set_key)(self.session, key) }
    }

    /// As [`Network::forward`].
    pub fn forward(&mut self, params: &[f32], images: &[f32], mode: Mode) -> Result<Outputs, network::Error> {
        let batch = (images.len() / self.image).max(1);
        expect("params", params.len(), self.elements)?;
        expect("images", images.len(), batch * self.image)?;
        let mut outputs = Outputs {
            box_encodings: vec![0.0; batch * self.anchors * 4],
            class_logits: vec![0.0; batch * self.anchors * self.columns],
        };
        let (boxes, classes) = (&mut outputs.box_encodings[..], &mut outputs.class_logits[..]);
        let mut message = Message::default();
        let training = mode == Mode::Train;
        self.batch = None;
        // SAFETY: the session is open, and the slices live until the call returns.
        let done = unsafe {
            (self.api.forward)(
                self.session,
                params.into(),
                images.into(),
                training,
                boxes.into(),
                classes.into(),
                &raw mut message,
            )
        };
        self.check(done, &message)?;
        self.batch = training.then_some(batch);
        Ok(outputs)
    }

    /// As [`Network::backward`], for the forward pass just before.
    pub fn backward(&mut self, d_box: &[f32], d_class: &[f32], grads: &mut [f32]) -> Result<(), network::Error> {
        let batch = self.batch.take().ok_or(network::Error::NoForward)?;
        expect("d_box", d_box.len(), batch * self.anchors * 4)?;
        expect("d_class", d_class.len(), batch * self.anchors * self.columns)?;
        expect("grads", grads.len(), self.elements)?;
        let mut message = Message::default();
        // SAFETY: as above.
        let done = unsafe {
            (self.api.backward)(
                self.session,
                d_box.into(),
                d_class.into(),
                grads.into(),
                &raw mut message,
            )
        };
        self.check(done, &message)
    }

    fn check(&self, done: bool, message: &Message) -> Result<(), network::Error> {
        if done {
            return Ok(());
        }
        Err(network::Error::Accelerator(Error::Torch {
            device: self.device,
            why: message.text(),
        }))
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        // SAFETY: nobody uses the session after this.
        unsafe { (self.api.close)(self.session) }
    }
}

fn expect(what: &'static str, found: usize, expected: usize) -> Result<(), network::Error> {
    network::expect(what, found, expected, "what the network's configuration asks for")
}

/// Beside the program, above it (tests lie in a folder below), or in `lib` next to its folder.
fn places() -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(&program).to_owned();
    let above = folder.parent().unwrap_or(&folder).to_owned();
    vec![folder.join(FILE), above.join("lib").join(FILE), above.join(FILE)]
}

fn load(device: Device) -> Result<&'static Api, Error> {
    let failed = |why: String| Error::Library { device, why };
    let places = places();
    let Some(path) = places.iter().find(|path| path.exists()) else {
        let tried: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(failed(format!("it is at none of {}", tried.join(", "))));
    };
    // SAFETY: the library is ours; its initialisers are libtorch's.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    // The loader's own words are one level down.
    let cause = |error: &libloading::Error| error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let library = library.map_err(|error| failed(cause(&error)))?;
    // SAFETY: the entry's type is part of the version, which every library has in the same place.
    let api: &'static Api = unsafe {
        let entry = library.get::<abi::Entry>(abi::ENTRY);
        &*entry.map_err(|error| failed(error.to_string()))?()
    };
    // libtorch cannot be unloaded.
    std::mem::forget(library);
    if api.version != abi::VERSION {
        let (found, wanted) = (api.version, abi::VERSION);
        return Err(failed(format!(
            "{} has version {found} of the interface, this program wants {wanted}",
            path.display()
        )));
    }
    Ok(api)
}
