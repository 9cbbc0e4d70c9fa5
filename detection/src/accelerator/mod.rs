//! Networks on libtorch: on a GPU, or on the CPU to see that a GPU would compute the same.
//!
//! libtorch costs every process that links it 0.4 s at start and 110 MB, parameter servers and CPU replicas included. So `coati` does not: the
//! package `coati-torch` links it and is opened as `libcoati_torch.so` by the processes that compute on a GPU. Parameters, images, targets and
//! gradients cross the border ([`abi`]). Losses are computed on the device where it can ([`loss`]); otherwise raw predictions come out, and
//! their gradients go in.
//!
//! A step is begun, fed and collected by separate calls, of which only the last one waits for the device: while that computes, the host finds the
//! targets and the weights' penalty. Batch norm with everybody's statistics waits in each, for the device and for all other replicas.
//!
//! Where variables [reside](resident) on the device, neither they nor gradients cross the border.

pub mod abi;
mod device;
pub mod driver;
pub mod loss;
pub mod memory;
pub mod numerics;
pub mod resident;
mod session;

use std::error::Error as _;
use std::ffi::c_void;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use coati_common::cluster::Numerics;

use crate::network::{self, Hook, Mode, Network, NetworkConfig, Outputs, Together};
use abi::{About, Api, Calls, Message, Opening, Scaling};
pub use device::{Device, VARIABLE};
use loss::{BatchTargets, DeviceLoss, Sums};
use memory::{OutOfMemory, Shortage};
pub use numerics::Arithmetic;
use resident::{Residence, Resident, Vectors};
use session::Session;

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
    /// The kernels for CPUs are asked for what only an accelerator has.
    #[error(
        "{what} is asked for, but this replica computes on the CPU, where the kernels know float32 alone{why}\nhint: leave it out, or \
         ask for a GPU with {VARIABLE}=cuda"
    )]
    NeedsAccelerator {
        /// `precision bf16`, `tf32`, …
        what: String,
        /// Why it does, if it was not asked to.
        why: String,
    },
    /// The device or its driver does not do what is asked for. Ends in a hint.
    #[error("device {device}: {why}")]
    Refused {
        /// The device asked for.
        device: Device,
        /// With a hint.
        why: String,
    },
    /// A batch that is too large.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
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
    session: Arc<Session>,
    device: Device,
    /// Whether the next step's images are.
    staged: bool,
    /// The other replicas, where batch norm has everybody's statistics.
    hook: Hook,
    arithmetic: Arithmetic,
    loss: bool,
    columns: usize,
    anchors: usize,
    image: (usize, usize),
    channels: usize,
    elements: usize,
    /// Images of the step that was started.
    batch: Option<usize>,
    scaling: Scaling,
}

/// What a network is opened with beside its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// Where.
    pub device: Device,
    /// What training computes with.
    pub numerics: Numerics,
    /// The losses, where a device can compute them.
    pub loss: Option<DeviceLoss>,
}

/// Refuses what no device of this machine can do, as far as that is known without asking one: before anything starts.
pub fn preflight(device: Device, numerics: Numerics) -> Result<(), Error> {
    match device {
        Device::Cpu => on_cpu(numerics, ""),
        Device::Auto if !Device::gpu_in_sight() => on_cpu(numerics, Device::why_no_gpu()),
        Device::Auto | Device::Cuda(_) | Device::TorchCpu => Ok(()),
    }
}

fn on_cpu(numerics: Numerics, why: &str) -> Result<(), Error> {
    match numerics.needs_accelerator() {
        None => Ok(()),
        Some(what) => Err(Error::NeedsAccelerator {
            what,
            why: why.to_owned(),
        }),
    }
}

impl Accelerator {
    /// Puts the network of `config` on a device; `None`: it stays with our own kernels. With [`Device::Auto`] that is also the answer to a
    /// GPU that cannot be used, after a warning, unless something is asked for that only a GPU does.
    pub fn open(settings: Settings, config: &NetworkConfig, network: &Network) -> Result<Option<Self>, Error> {
        preflight(settings.device, settings.numerics)?;
        match settings.device {
            Device::Cpu => Ok(None),
            Device::Auto if !Device::gpu_in_sight() => Ok(None),
            Device::Auto => {
                let first = Settings {
                    device: Device::Cuda(0),
                    ..settings
                };
                match Self::on(first, config, network) {
                    Err(error) if settings.numerics.needs_accelerator().is_none() => {
                        tracing::warn!(%error, "there is a GPU, but this replica computes on the CPU");
                        Ok(None)
                    }
                    opened => opened.map(Some),
                }
            }
            Device::Cuda(_) | Device::TorchCpu => Self::on(settings, config, network).map(Some),
        }
    }

    fn on(settings: Settings, config: &NetworkConfig, network: &Network) -> Result<Self, Error> {
        let Settings { device, numerics, loss } = settings;
        let api = load(device)?;
        let opening = Opening {
            network: config.clone(),
            device: device.to_string(),
            threads: network.threads(),
            numerics,
            loss,
        };
        let torch = |why: String| Error::Torch { device, why };
        let json = serde_json::to_string(&opening).map_err(|error| torch(error.to_string()))?;
        let (mut message, mut code) = (Message::default(), u32::MAX);
        // SAFETY: the text lives until the call returns.
        let session = unsafe { (api.open)(json.as_str().into(), &raw mut code, &raw mut message) };
        if session.is_null() {
            return Err(match message.about {
                About::Refusal => Error::Refused {
                    device,
                    why: message.text(),
                },
                About::Memory | About::Other => torch(message.text()),
            });
        }
        let arithmetic = Arithmetic::from_code(code).unwrap_or_default();
        tracing::info!(%device, precision = %arithmetic.precision(), tf32 = numerics.tf32, "computing by libtorch");
        Ok(Self {
            session: Arc::new(Session::new(api, session, device)),
            device,
            staged: false,
            hook: Hook::default(),
            arithmetic,
            loss: loss.is_some(),
            columns: network.class_columns(),
            anchors: network.anchors(),
            image: (config.image_height, config.image_width),
            channels: config.image_channels,
            elements: network.elements(),
            batch: None,
            scaling: Scaling::default(),
        })
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// As [`Network::lay_out`]; the network then has so many anchors. A step that was started is forgotten.
    pub fn lay_out(&mut self, size: (usize, usize), anchors: usize) -> Result<(), network::Error> {
        (self.batch, self.staged) = (None, false);
        self.training(1, false, |api, session, message| {
            // SAFETY: the session is open.
            unsafe { (api.lay_out)(session, size.0, size.1, message) }
        })?;
        (self.image, self.anchors) = (size, anchors);
        Ok(())
    }

    /// Brings variables to the device, where they and their slots stay. From now on steps that are started without parameters compute from them,
    /// and gradients stay there. What was there before is given up.
    ///
    /// # Errors
    /// No memory; vectors that do not fit.
    pub fn reside(&mut self, residence: &Residence, vectors: &Vectors) -> Result<Resident, network::Error> {
        (self.batch, self.staged) = (None, false);
        let json = serde_json::to_string(residence).map_err(|error| {
            network::Error::Accelerator(Error::Torch {
                device: self.device,
                why: error.to_string(),
            })
        })?;
        let (params, slots, averages) = (&vectors.params[..], &vectors.slots[..], &vectors.averages[..]);
        self.session.call(|api, session, message| {
            // SAFETY: the session is open, and the slices live until the call returns.
            unsafe {
                (api.reside)(
                    session,
                    json.as_str().into(),
                    params.into(),
                    slots.into(),
                    averages.into(),
                    message,
                )
            }
        })?;
        // SAFETY: as above.
        let sums = self.session.with(|api, session| unsafe { (api.sums)(session) });
        Ok(Resident {
            session: Arc::clone(&self.session),
            elements: self.elements,
            slots: residence.rule.slots().len(),
            averages: residence.moving_average_decay.is_some(),
            sums: (sums != 0).then_some(sums),
            summing: residence.sums,
        })
    }

    /// As [`Network::set_together`].
    pub fn set_together(&mut self, together: Option<Box<dyn Together>>) {
        self.hook = Hook::new(together);
    }

    /// Whether other replicas' batches count in this one's statistics, and its in theirs.
    pub(crate) fn is_together(&self) -> bool {
        self.hook.is_set()
    }

    /// Begins a step with statistics of its own, as if no other replicas were there: to explain something that they do not take part in.
    pub(crate) fn alone<T>(&mut self, begin: impl FnOnce(&mut Self) -> T) -> T {
        let apart = self.part();
        let done = begin(self);
        self.join(apart);
        done
    }

    /// Steps until [`Accelerator::join`] are made without the other replicas.
    pub(crate) fn part(&mut self) -> Apart {
        Apart(std::mem::take(&mut self.hook))
    }

    /// The end of [`Accelerator::part`].
    pub(crate) fn join(&mut self, apart: Apart) {
        self.hook = apart.0;
    }

    /// As [`Network::set_key`].
    pub fn set_key(&mut self, key: u64) {
        // SAFETY: the session is open.
        self.session.with(|api, session| unsafe { (api.set_key)(session, key) });
    }

    /// What it trains with.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Whether it was opened with losses, for [`Accelerator::train`].
    pub fn computes_losses(&self) -> bool {
        self.loss
    }

    /// How the last step's gradients were scaled.
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// As [`Network::forward`]. In inference mode it computes in float32, whatever it trains with.
    pub fn forward(&mut self, params: &[f32], images: &[f32], mode: Mode) -> Result<Outputs, network::Error> {
        if mode == Mode::Train {
            self.start(params, images)?;
            return self.predictions();
        }
        let batch = self.check_inputs(params, images)?;
        self.batch = None;
        let mut outputs = self.room(batch);
        let (boxes, classes) = (&mut outputs.box_encodings[..], &mut outputs.class_logits[..]);
        self.training(batch, false, |api, session, message| {
            // SAFETY: the session is open, and the slices live until the call returns.
            unsafe {
                (api.infer)(
                    session,
                    params.into(),
                    images.into(),
                    boxes.into(),
                    classes.into(),
                    message,
                )
            }
        })?;
        Ok(outputs)
    }

    /// Begins a step: sends parameters and images, and has the forward pass computed in training mode. Does not wait for it.
    pub fn start(&mut self, params: &[f32], images: &[f32]) -> Result<(), network::Error> {
        let batch = self.check_inputs(params, images)?;
        self.begin(params, images, batch)
    }

    /// The same with the variables on the device, and with these images or as many that were [staged](Self::stage).
    pub fn start_resident(&mut self, images: Images<'_>) -> Result<(), network::Error> {
        let (images, batch) = match images {
            Images::Given(images) => (images, self.batch_of(images)?),
            Images::Staged(batch) => (&[][..], batch),
        };
        self.begin(&[], images, batch)
    }

    fn begin(&mut self, params: &[f32], images: &[f32], batch: usize) -> Result<(), network::Error> {
        (self.batch, self.staged) = (None, false);
        self.calling(batch, &mut |_| {}, |api, session, calls, message| {
            // SAFETY: as above, and `calls` are good until the call returns.
            unsafe { (api.start)(session, params.into(), images.into(), calls, message) }
        })?;
        self.batch = Some(batch);
        Ok(())
    }

    /// Sends the images of the next step, which the device takes while it computes this one: after [`Accelerator::train`] or
    /// [`Accelerator::backward_resident`].
    pub fn stage(&mut self, images: &[f32]) -> Result<(), network::Error> {
        let batch = self.batch_of(images)?;
        self.training(batch, true, |api, session, message| {
            // SAFETY: as above.
            unsafe { (api.stage)(session, images.into(), message) }
        })?;
        self.staged = true;
        Ok(())
    }

    /// Whether images wait on the device for the next step: another size, and variables that are brought there anew, make it forget them.
    pub fn has_staged(&self) -> bool {
        self.staged
    }

    /// What the step that was started predicts. Waits for it.
    pub fn predictions(&mut self) -> Result<Outputs, network::Error> {
        let batch = self.batch.ok_or(network::Error::NoForward)?;
        let mut outputs = self.room(batch);
        let (boxes, classes) = (&mut outputs.box_encodings[..], &mut outputs.class_logits[..]);
        self.training(batch, true, |api, session, message| {
            // SAFETY: as above.
            unsafe { (api.predictions)(session, boxes.into(), classes.into(), message) }
        })?;
        Ok(outputs)
    }

    /// Has losses and gradients of the step that was started computed. Does not wait: [`Accelerator::collect`] does. Where gradients are
    /// summed over ranks, `progress` is told of parts that lie where that is done, the last ones first.
    pub fn train(&mut self, targets: &BatchTargets, progress: OnDevice<'_>) -> Result<(), network::Error> {
        let batch = self.batch.ok_or(network::Error::NoForward)?;
        for (what, found, each) in [
            ("class targets", &targets.columns, 1),
            ("class weights", &targets.class_weights, 1),
            ("box targets", &targets.codes, 4),
            ("box weights", &targets.box_weights, 1),
        ] {
            expect(what, found.len(), batch * self.anchors * each)?;
        }
        let crossing = abi::Targets::from(targets);
        self.calling(batch, progress, |api, session, calls, message| {
            // SAFETY: as above.
            unsafe { (api.train)(session, &raw const crossing, calls, message) }
        })
    }

    /// As [`Network::backward`], for the step that was started.
    pub fn backward(&mut self, d_box: &[f32], d_class: &[f32], grads: &mut [f32]) -> Result<(), network::Error> {
        expect("grads", grads.len(), self.elements)?;
        let batch = self.propagate(d_box, d_class, &mut |_| {})?;
        self.gather(grads, &mut [], None, batch)
    }

    /// The same for variables on the device, without waiting: [`Accelerator::collect_resident`] does.
    pub fn backward_resident(
        &mut self,
        d_box: &[f32],
        d_class: &[f32],
        progress: OnDevice<'_>,
    ) -> Result<(), network::Error> {
        self.propagate(d_box, d_class, progress).map(|_| ())
    }

    fn propagate(&mut self, d_box: &[f32], d_class: &[f32], progress: OnDevice<'_>) -> Result<usize, network::Error> {
        let batch = self.batch.ok_or(network::Error::NoForward)?;
        expect("d_box", d_box.len(), batch * self.anchors * 4)?;
        expect("d_class", d_class.len(), batch * self.anchors * self.columns)?;
        self.calling(batch, progress, |api, session, calls, message| {
            // SAFETY: as above.
            unsafe { (api.backward)(session, d_box.into(), d_class.into(), calls, message) }
        })?;
        Ok(batch)
    }

    /// Waits for the step of [`Accelerator::train`]; fills the gradients and returns each image's sums of losses.
    pub fn collect(&mut self, grads: &mut [f32]) -> Result<Vec<Sums>, network::Error> {
        let batch = self.batch.ok_or(network::Error::NoForward)?;
        expect("grads", grads.len(), self.elements)?;
        let mut sums = vec![0.0; batch * 2];
        self.gather(grads, &mut sums, None, batch)?;
        Ok(paired(&sums, batch))
    }

    /// Waits for the step of variables on the device: each image's sums of losses, if the device `computed` them, and the penalty on weights.
    pub fn collect_resident(&mut self, computed: bool) -> Result<(Vec<Sums>, f32), network::Error> {
        let batch = self.batch.ok_or(network::Error::NoForward)?;
        let (mut sums, mut penalty) = (vec![0.0; if computed { batch * 2 } else { 0 }], 0.0);
        self.gather(&mut [], &mut sums, Some(&mut penalty), batch)?;
        Ok((if computed { paired(&sums, batch) } else { Vec::new() }, penalty))
    }

    fn gather(
        &mut self,
        grads: &mut [f32],
        sums: &mut [f32],
        penalty: Option<&mut f32>,
        batch: usize,
    ) -> Result<(), network::Error> {
        self.batch = None;
        let mut scaling = Scaling::default();
        let penalty = penalty.map_or(std::ptr::null_mut(), std::ptr::from_mut);
        let place = &raw mut scaling;
        self.training(batch, true, |api, session, message| {
            // SAFETY: as above.
            unsafe { (api.collect)(session, grads.into(), sums.into(), penalty, place, message) }
        })?;
        if scaling.repeats > 0 {
            tracing::debug!(
                scale = scaling.scale,
                repeats = scaling.repeats,
                "gradients left float16's range; repeated with a smaller scale"
            );
        }
        self.scaling = scaling;
        Ok(())
    }

    fn batch_of(&self, images: &[f32]) -> Result<usize, network::Error> {
        let image = self.image.0 * self.image.1 * self.channels;
        let batch = (images.len() / image).max(1);
        expect("images", images.len(), batch * image)?;
        Ok(batch)
    }

    fn check_inputs(&self, params: &[f32], images: &[f32]) -> Result<usize, network::Error> {
        expect("params", params.len(), self.elements)?;
        self.batch_of(images)
    }

    fn room(&self, batch: usize) -> Outputs {
        Outputs {
            box_encodings: vec![0.0; batch * self.anchors * 4],
            class_logits: vec![0.0; batch * self.anchors * self.columns],
        }
    }

    /// A call that calls back: tells `progress` of parts of the gradient, and sums batch norm's statistics.
    fn calling(
        &mut self,
        batch: usize,
        progress: OnDevice<'_>,
        call: impl FnOnce(&Api, *mut c_void, Calls, *mut Message) -> bool,
    ) -> Result<(), network::Error> {
        let together = self.hook.is_set();
        let mut back = Back {
            progress,
            hook: std::mem::take(&mut self.hook),
            lost: None,
        };
        let calls = Calls {
            context: (&raw mut back).cast(),
            ready: Some(ready),
            sum: if together { Some(sum) } else { None },
        };
        let done = self.training(batch, true, |api, session, message| call(api, session, calls, message));
        self.hook = back.hook;
        match back.lost {
            Some(why) => Err(network::Error::Together(why)),
            None => done,
        }
    }

    /// A call whose memory depends on the batch.
    fn training(
        &self,
        batch: usize,
        training: bool,
        call: impl FnOnce(&Api, *mut c_void, *mut Message) -> bool,
    ) -> Result<(), network::Error> {
        let mut message = Message::default();
        if self.session.with(|api, session| call(api, session, &raw mut message)) {
            return Ok(());
        }
        let (device, why) = (self.device, message.text());
        let shortage = || serde_json::from_str::<Shortage>(&why).unwrap_or_default();
        Err(network::Error::Accelerator(match message.about {
            About::Memory => Error::OutOfMemory(Box::new(OutOfMemory {
                device,
                batch,
                image: self.image,
                training,
                shortage: shortage(),
                largest: None,
                low_precision: self.arithmetic != Arithmetic::Float32,
            })),
            About::Refusal => Error::Refused { device, why },
            About::Other => Error::Torch { device, why },
        }))
    }
}

/// What a step with variables on the device computes from.
#[derive(Clone, Copy, Debug)]
pub enum Images<'a> {
    /// These.
    Given(&'a [f32]),
    /// So many, which are there already.
    Staged(usize),
}

/// Is told of elements of the gradient that lie where they are summed.
pub type OnDevice<'a> = &'a mut (dyn FnMut(Range<usize>) + 'a);

/// The other replicas, while an accelerator computes without them.
pub(crate) struct Apart(Hook);

/// What the library calls back for.
struct Back<'a> {
    progress: OnDevice<'a>,
    hook: Hook,
    /// Why sums failed.
    lost: Option<String>,
}

unsafe extern "C" fn ready(context: *mut c_void, start: usize, len: usize) {
    // SAFETY: `Accelerator::calling` put it there, and waits for the call that calls this.
    let back = unsafe { &mut *context.cast::<Back<'_>>() };
    (back.progress)(start..start + len);
}

unsafe extern "C" fn sum(context: *mut c_void, values: *mut f64, len: usize) -> bool {
    // SAFETY: as above; the library has so many values there.
    let (back, values) = unsafe {
        (
            &mut *context.cast::<Back<'_>>(),
            std::slice::from_raw_parts_mut(values, len),
        )
    };
    match back.hook.sum(values) {
        Ok(()) => true,
        Err(why) => {
            back.lost = Some(why);
            false
        }
    }
}

fn paired(sums: &[f32], batch: usize) -> Vec<Sums> {
    let (classes, boxes) = sums.split_at(batch);
    classes.iter().copied().zip(boxes.iter().copied()).collect()
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
