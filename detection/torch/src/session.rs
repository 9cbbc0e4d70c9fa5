//! A network's plan, executed by libtorch with channels last; gradients by automatic differentiation.
//!
//! In bfloat16 and float16 it does as `torch.autocast` does: convolutions have inputs and weights of that kind, what lies between them (batch norm
//! with float32 statistics and coefficients, activations, sums) follows its input, and predictions leave as float32. Variables are float32 and
//! rounded at each use; their gradients are float32 from the convolution on.

use std::ops::Range;

use coati_common::variables::VariableKind;
use coati_detection::accelerator::Arithmetic;
use coati_detection::accelerator::abi::{Opening, Scaling};
use coati_detection::accelerator::loss::DeviceLoss;
use coati_detection::accelerator::numerics::{Hardware, choose};
use coati_detection::accelerator::resident::{Residence, Role};
use coati_detection::network::NetworkConfig;
use coati_detection::network::plan::{Layer, Plan, plan};
use tch::{Device, Kind, Tensor};

use crate::ahead::Ahead;
use crate::error::Error;
use crate::gradient::{BatchValues, Gradient};
use crate::loss::{self, Targets};
use crate::pass::{Frame, Pass, Sum};
use crate::resident::{Brought, Resident};
use crate::segments::{Cuts, Segments};
use crate::transfer::{self, Upload, length};
use crate::{context, cuda, scaling};

/// A network on a device, and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct Session {
    config: NetworkConfig,
    plan: Plan,
    device: Device,
    arithmetic: Arithmetic,
    loss: Option<DeviceLoss>,
    columns: i64,
    image: [i64; 3],
    /// The offsets of [`Plan::input`] on the device.
    offset: Tensor,
    starts: Vec<usize>,
    /// Of the variables: which have gradients, and which are in the gradient at all.
    trainable: Vec<bool>,
    written: Vec<bool>,
    segments: Segments,
    /// Where they are cut.
    cuts: Cuts,
    gradient: Gradient,
    /// The variables, where they live on the device.
    resident: Option<Resident>,
    /// What is dropped depends on it.
    key: u64,
    uploads: Uploads,
    pending: Option<Pending>,
    leaving: Option<Leaving>,
    /// The next step's images, on their way.
    staged: Option<Tensor>,
    /// How they get there beside a step.
    ahead: Option<Ahead>,
    /// The device may still read what was sent to it.
    busy: bool,
    /// Bytes of activations beyond which the CPU pretends to have no memory left.
    limit: Option<u64>,
}

/// Sets [`Session::limit`], so that tests see a device that runs out of memory; a CPU that does so takes the process with it.
const LIMIT: &str = "COATI_TEST_TORCH_CPU_BYTES";

/// What a step sends.
#[derive(Debug, Default)]
struct Uploads {
    params: Upload,
    /// In turns: one may still be read while the next step's leave.
    images: [Upload; 2],
    turn: bool,
    targets: [Upload; 4],
    slopes: [Upload; 2],
}

impl Uploads {
    fn next_images(&mut self) -> &mut Upload {
        self.turn = !self.turn;
        &mut self.images[usize::from(self.turn)]
    }
}

/// Between a forward pass in training mode and its backward pass.
#[derive(Debug)]
struct Pending {
    params: Tensor,
    /// Whether those are the variables on the device, so that gradients stay there.
    resident: bool,
    pass: Pass,
}

/// A step whose gradients are on their way to the host, or wait on the device.
#[derive(Debug)]
struct Leaving {
    /// None where they stay.
    gradients: Option<Tensor>,
    /// Sums of losses of each image, on the device; none where the host computed them.
    sums: Option<Tensor>,
    /// What it takes to do the backward pass again with a smaller scale.
    again: Option<Again>,
}

#[derive(Debug)]
struct Again {
    pending: Pending,
    slopes: [Tensor; 2],
    scale: Tensor,
    /// Whether all gradients were finite (1 or 0), and the scale.
    verdict: Tensor,
}

/// Is told of elements of the gradient that lie where they are summed and will not change.
pub(crate) type Ready<'a> = &'a mut dyn FnMut(Range<usize>);

/// Height, width and channels.
fn image(config: &NetworkConfig) -> [i64; 3] {
    [config.image_height, config.image_width, config.image_channels].map(|side| side as i64)
}

impl Session {
    pub(crate) fn open(opening: &str) -> Result<Self, Error> {
        let opening: Opening = serde_json::from_str(opening)?;
        let wrong = || Error::Device(opening.device.clone());
        let (device, hardware) = match opening.device.strip_prefix("cuda:") {
            Some(index) => {
                let (device, gpu) = cuda::device(index.parse().map_err(|_| wrong())?)?;
                (device, Hardware::Gpu(gpu))
            }
            None if opening.device == "torch-cpu" => (Device::Cpu, Hardware::TorchCpu),
            None => return Err(wrong()),
        };
        let arithmetic = choose(opening.numerics, &hardware).map_err(Error::Refused)?;
        context::allow_tf32(opening.numerics.tf32);
        tch::set_num_threads(i32::try_from(opening.threads).unwrap_or(1));
        let config = opening.network;
        let plan = plan(&config)?;
        let (mut starts, mut start) = (Vec::new(), 0);
        for spec in &plan.variables {
            starts.push(start);
            start += spec.elements();
        }
        let kinds = plan.variables.iter().map(|spec| spec.kind);
        let trainable: Vec<bool> = kinds.clone().map(|kind| kind == VariableKind::Trainable).collect();
        let written: Vec<bool> = kinds.map(|kind| kind != VariableKind::Constant).collect();
        let segments = Segments::cut(&plan, &starts, Cuts::default())?;
        let gradient = Gradient::new(&plan, &segments, &starts, &written, device)?;
        let offset = Tensor::f_from_slice(&plan.input.1)?.f_to_device(device)?.f_view([
            1,
            config.image_channels as i64,
            1,
            1,
        ])?;
        Ok(Self {
            columns: config.num_classes as i64 + 1,
            image: image(&config),
            config,
            plan,
            device,
            arithmetic,
            loss: opening.loss,
            offset,
            starts,
            trainable,
            written,
            segments,
            cuts: Cuts::default(),
            gradient,
            resident: None,
            key: 0,
            uploads: Uploads::default(),
            pending: None,
            leaving: None,
            staged: None,
            ahead: None,
            busy: false,
            limit: std::env::var(LIMIT).ok().and_then(|text| text.parse().ok()),
        })
    }

    /// Lays the network out for images of (height, width) pixels. A step that was started is forgotten.
    pub(crate) fn lay_out(&mut self, size: (usize, usize)) -> Result<(), Error> {
        let (config, plan) = self.plan.of_size(&self.config, size)?;
        self.forget();
        self.image = image(&config);
        (self.config, self.plan) = (config, plan);
        Ok(())
    }

    /// Sets what the next forward passes drop.
    pub(crate) fn set_key(&mut self, key: u64) {
        self.key = key;
    }

    /// libtorch's error where a batch's activations are more than [`Session::limit`].
    fn within_limit(&self, batch: usize) -> Result<(), Error> {
        let each = |layer: &Layer| (layer.window.output.0 * layer.window.output.1 * layer.outputs * 4) as u64;
        let bytes = batch as u64 * self.plan.layers.iter().map(each).sum::<u64>();
        match self.limit {
            Some(limit) if self.on_host() && bytes > limit => Err(Error::Panic(format!(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate {bytes} bytes. Error code 12 (Cannot allocate memory)"
            ))),
            _ => Ok(()),
        }
    }

    /// What it trains with.
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Whether it computes on the CPU.
    pub(crate) fn on_host(&self) -> bool {
        self.device == Device::Cpu
    }

    /// Keeps the variables on the device from now on.
    pub(crate) fn reside(&mut self, residence: &str, brought: &Brought<'_>) -> Result<(), Error> {
        let residence: Residence = serde_json::from_str(residence)?;
        self.forget();
        self.resident = None;
        let sums = residence.sums;
        let resident = Resident::new(residence, &self.lengths(), brought, self.device)?;
        let roles = &resident.residence.variables;
        self.trainable = roles
            .iter()
            .map(|role| matches!(role, Role::Trainable | Role::Bias))
            .collect();
        self.written = roles.iter().map(|role| *role != Role::Constant).collect();
        // Where gradients are not final before the last, cutting has no use.
        let early = resident.sums_early() && self.arithmetic != Arithmetic::Fp16;
        self.cuts.bytes = sums.filter(|_| early).map(|sums| sums.bucket_bytes);
        self.resident = Some(resident);
        self.ahead = self.ahead.take().or_else(|| Ahead::open(self.device));
        self.cut()
    }

    /// The variables on the device.
    pub(crate) fn resident(&mut self) -> Result<(&mut Resident, &Tensor), Error> {
        let resident = self.resident.as_mut().ok_or(Error::NotResident)?;
        Ok((resident, &self.gradient.flat))
    }

    fn lengths(&self) -> Vec<usize> {
        self.plan.variables.iter().map(|spec| spec.elements()).collect()
    }

    /// Lays out the backward pass.
    fn cut(&mut self) -> Result<(), Error> {
        self.segments = Segments::cut(&self.plan, &self.starts, self.cuts)?;
        self.gradient = Gradient::new(&self.plan, &self.segments, &self.starts, &self.written, self.device)?;
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
        self.leaving = None;
        self.staged = None;
    }

    /// Sends images and has the forward pass computed in training mode; parameters as well, unless they are on the device. No images: those
    /// that were [staged](Self::stage).
    pub(crate) fn start(&mut self, params: &[f32], images: &[f32], sum: Option<Sum<'_>>) -> Result<(), Error> {
        if self.cuts.together != sum.is_some() {
            self.cuts.together = sum.is_some();
            self.cut()?;
        }
        let images = match self.staged.take() {
            Some(staged) if images.is_empty() => {
                self.forget();
                self.busy = true;
                self.receive(&staged)?
            }
            _ => self.send_images(images)?,
        };
        let (params, resident) = match &self.resident {
            Some(resident) if params.is_empty() => (resident.params.shallow_clone(), true),
            _ => (self.send_params(params)?, false),
        };
        let kind = match self.arithmetic {
            Arithmetic::Float32 => Kind::Float,
            Arithmetic::Bf16 => Kind::BFloat16,
            Arithmetic::Fp16 => Kind::Half,
        };
        let pass = self.pass(&params, &images, (true, kind), sum)?;
        self.pending = Some(Pending { params, resident, pass });
        Ok(())
    }

    /// Sends the images of the next step, beside this one where there is a way.
    pub(crate) fn stage(&mut self, images: &[f32]) -> Result<(), Error> {
        self.staged = None;
        self.batch_of(images)?;
        self.staged = Some(match &mut self.ahead {
            Some(ahead) => ahead.send(images)?,
            None => self.uploads.next_images().send(images, self.device)?,
        });
        Ok(())
    }

    /// What was staged, as the network takes it.
    fn receive(&self, staged: &Tensor) -> Result<Tensor, Error> {
        let Some(ahead) = &self.ahead else {
            return self.as_input(staged);
        };
        ahead.arrive()?;
        let images = self.as_input(staged)?;
        ahead.leave()?;
        Ok(images)
    }

    /// Fills `boxes` (`[batch, anchors, 4]`) and `classes` (`[batch, anchors, columns]`) with what the step predicts.
    pub(crate) fn predictions(&mut self, boxes: &mut [f32], classes: &mut [f32]) -> Result<(), Error> {
        let pass = &self.pending.as_ref().ok_or(Error::NoForward)?.pass;
        let found = (transfer::fetch(&pass.boxes)?, transfer::fetch(&pass.classes)?);
        transfer::wait(self.device)?;
        transfer::read("boxes", &found.0, boxes)?;
        transfer::read("classes", &found.1, classes)
    }

    /// As [`Session::start`] and [`Session::predictions`], in inference mode and float32.
    pub(crate) fn infer(
        &mut self,
        params: &[f32],
        images: &[f32],
        boxes: &mut [f32],
        classes: &mut [f32],
    ) -> Result<(), Error> {
        let images = self.send_images(images)?;
        let params = self.send_params(params)?;
        let pass = tch::no_grad(|| self.pass(&params, &images, (false, Kind::Float), None))?;
        let found = (transfer::fetch(&pass.boxes)?, transfer::fetch(&pass.classes)?);
        transfer::wait(self.device)?;
        self.busy = false;
        transfer::read("boxes", &found.0, boxes)?;
        transfer::read("classes", &found.1, classes)
    }

    fn pass(
        &self,
        params: &Tensor,
        images: &Tensor,
        (training, kind): (bool, Kind),
        sum: Option<Sum<'_>>,
    ) -> Result<Pass, Error> {
        let frame = Frame {
            plan: &self.plan,
            segments: &self.segments,
            starts: &self.starts,
            trainable: &self.trainable,
            columns: self.columns,
            key: self.key,
            training,
            kind,
        };
        Pass::forward(&frame, params, images, sum)
    }

    fn send_params(&mut self, params: &[f32]) -> Result<Tensor, Error> {
        length("params", params.len(), self.plan.elements)?;
        self.uploads.params.send(params, self.device)
    }

    /// How many images these are.
    fn batch_of(&self, images: &[f32]) -> Result<usize, Error> {
        let pixels = self.image.iter().product::<i64>() as usize;
        let batch = images.len() / pixels;
        length("images", images.len(), batch.max(1) * pixels)?;
        Ok(batch)
    }

    /// The beginning of a pass. What was staged is left alone.
    fn send_images(&mut self, images: &[f32]) -> Result<Tensor, Error> {
        self.pending = None;
        self.leaving = None;
        if std::mem::replace(&mut self.busy, true) {
            // A step that nobody collected.
            transfer::wait(self.device)?;
        }
        let batch = self.batch_of(images)?;
        self.within_limit(batch)?;
        let sent = self.uploads.next_images().send(images, self.device)?;
        self.as_input(&sent)
    }

    /// Pixel by pixel in memory, which libtorch calls channels last.
    fn as_input(&self, images: &Tensor) -> Result<Tensor, Error> {
        let [height, width, channels] = self.image;
        Ok(images
            .f_view([-1, height, width, channels])?
            .f_permute([0, 3, 1, 2])?
            .f_mul_scalar(f64::from(self.plan.input.0))?
            .f_add(&self.offset)?)
    }

    /// Losses and gradients of the step, from what it should predict.
    pub(crate) fn train(
        &mut self,
        targets: [&[f32]; 4],
        (class_factor, box_factor): (f32, f32),
        ready: Ready<'_>,
        sum: Option<Sum<'_>>,
    ) -> Result<(), Error> {
        let loss = self.loss.ok_or(Error::NoLoss)?;
        let pending = self.pending.take().ok_or(Error::NoForward)?;
        let size = pending.pass.boxes.size();
        let anchors = [size[0], size[1]];
        let mut sent = Vec::with_capacity(targets.len());
        for (upload, values) in self.uploads.targets.iter_mut().zip(targets) {
            sent.push(upload.send(values, self.device)?);
        }
        let [columns, class_weights, codes, box_weights] = &sent[..] else {
            return Err(Error::NoLoss);
        };
        let targets = Targets {
            columns: columns.f_view(anchors)?,
            class_weights: class_weights.f_view(anchors)?,
            codes: codes.f_view(&size[..])?,
            box_weights: box_weights.f_view(anchors)?,
            class_factor: f64::from(class_factor),
            box_factor: f64::from(box_factor),
        };
        let found = loss::losses(&loss, &targets, &pending.pass.boxes, &pending.pass.classes)?;
        self.propagate(pending, found.slopes, Some(found.sums), ready, sum)
    }

    /// Gradients of the step, from the loss's slopes by its predictions.
    pub(crate) fn backward(
        &mut self,
        d_box: &[f32],
        d_class: &[f32],
        ready: Ready<'_>,
        sum: Option<Sum<'_>>,
    ) -> Result<(), Error> {
        let pending = self.pending.take().ok_or(Error::NoForward)?;
        let (boxes, classes) = (&pending.pass.boxes, &pending.pass.classes);
        length("box gradients", d_box.len(), boxes.numel())?;
        length("class gradients", d_class.len(), classes.numel())?;
        let [to_boxes, to_classes] = &mut self.uploads.slopes;
        let slopes = [
            to_boxes.send(d_box, self.device)?.f_view_as(boxes)?,
            to_classes.send(d_class, self.device)?.f_view_as(classes)?,
        ];
        self.propagate(pending, slopes, None, ready, sum)
    }

    /// Has the gradients computed, and sent to the host unless they stay.
    fn propagate(
        &mut self,
        pending: Pending,
        slopes: [Tensor; 2],
        sums: Option<Tensor>,
        ready: Ready<'_>,
        sum: Option<Sum<'_>>,
    ) -> Result<(), Error> {
        if self.arithmetic == Arithmetic::Fp16 {
            let scale = scaling::first(&[&slopes[0], &slopes[1]])?;
            self.leaving = Some(self.scaled(pending, slopes, scale, sums)?);
            return Ok(());
        }
        let own = self.resident.as_ref().filter(|_| pending.resident);
        let early = own.filter(|resident| resident.sums_early());
        self.gradients(&pending, &slopes, (None, sum), &mut |elements| {
            if let Some(resident) = early {
                resident.bring(&self.gradient.flat, &elements)?;
                ready(elements);
            }
            Ok(())
        })?;
        if let Some(resident) = own {
            resident.clip(&self.gradient.flat)?;
        }
        self.leaving = Some(Leaving {
            gradients: self.leaving_gradients(&pending)?,
            sums,
            again: None,
        });
        Ok(())
    }

    /// The gradients, on their way to the host.
    fn leaving_gradients(&self, pending: &Pending) -> Result<Option<Tensor>, Error> {
        if pending.resident {
            return Ok(None);
        }
        transfer::fetch(&self.gradient.flat).map(Some)
    }

    /// In float16: gradients, and whether they are finite, which nobody waits for here.
    fn scaled(
        &self,
        pending: Pending,
        slopes: [Tensor; 2],
        scale: Tensor,
        sums: Option<Tensor>,
    ) -> Result<Leaving, Error> {
        self.gradients(&pending, &slopes, (Some(&scale), None), &mut |_| Ok(()))?;
        let finite = self.gradient.flat.f_isfinite()?.f_all()?.f_to_kind(Kind::Float)?;
        let verdict = transfer::fetch(&Tensor::f_stack(&[&finite, &scale], 0)?)?;
        Ok(Leaving {
            gradients: self.leaving_gradients(&pending)?,
            sums,
            again: Some(Again {
                pending,
                slopes,
                scale,
                verdict,
            }),
        })
    }

    /// Of trainable variables the gradient with the regularisers', of moving statistics the batch's own values.
    fn gradients(
        &self,
        pending: &Pending,
        slopes: &[Tensor; 2],
        (scale, sum): (Option<&Tensor>, Option<Sum<'_>>),
        written: &mut dyn FnMut(Range<usize>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [boxes, classes] = slopes;
        let slopes = match scale {
            Some(scale) => [boxes.f_mul(scale)?, classes.f_mul(scale)?],
            None => [boxes.shallow_clone(), classes.shallow_clone()],
        };
        let (gradient, batch) = (&self.gradient, BatchValues::new(&pending.pass.statistics));
        // Where it may have to be done again, the graph stays.
        pending.pass.backward(
            &self.segments,
            &slopes,
            scale.is_some(),
            sum,
            &mut |segment, gradients| {
                tch::no_grad(|| {
                    for elements in gradient.write(segment, gradients, &batch, &pending.params, scale)? {
                        if let Some(resident) = self.resident.as_ref().filter(|_| pending.resident) {
                            resident.multiply_biases(&gradient.flat, &elements)?;
                        }
                        written(elements)?;
                    }
                    Ok(())
                })
            },
        )
    }

    /// Waits for the step. Fills `grads` unless they stay on the device, `sums` after [`Session::train`], and `penalty`, the regularisers',
    /// where variables are there.
    pub(crate) fn collect(
        &mut self,
        grads: &mut [f32],
        sums: &mut [f32],
        penalty: Option<&mut f32>,
    ) -> Result<Scaling, Error> {
        let mut leaving = self.leaving.take().ok_or(Error::NoForward)?;
        let mut scaling = Scaling { scale: 1.0, repeats: 0 };
        while let Some(again) = leaving.again.take() {
            let mut verdict = [0.0; 2];
            transfer::wait(self.device)?;
            transfer::read("verdict", &again.verdict, &mut verdict)?;
            scaling.scale = verdict[1];
            if verdict[0] == 1.0 || scaling.repeats == scaling::MOST_REPEATS {
                if let Some(resident) = self.resident.as_ref().filter(|_| again.pending.resident) {
                    resident.clip(&self.gradient.flat)?;
                }
                break;
            }
            scaling.repeats += 1;
            let scale = scaling::smaller(&again.scale)?;
            leaving = self.scaled(again.pending, again.slopes, scale, leaving.sums)?;
        }
        if leaving.gradients.is_some() {
            transfer::wait(self.device)?;
        }
        let found = match &leaving.sums {
            Some(sums) => sums.shallow_clone(),
            None => Tensor::f_empty([0], (Kind::Float, self.device))?,
        };
        let own = match (&self.resident, &penalty) {
            (Some(resident), Some(_)) => self.gradient.penalty(&resident.params)?.f_view([1])?,
            _ => Tensor::f_empty([0], (Kind::Float, self.device))?,
        };
        // This waits for all that was given to the device before, and not for sums over ranks, which are on their way in a stream of their own.
        let all = Tensor::f_cat(&[&found, &own], 0)?.f_to_device(Device::Cpu)?;
        self.busy = false;
        if let (Some(penalty), true) = (penalty, own.numel() == 1) {
            *penalty = all.f_double_value(&[found.numel() as i64])? as f32;
        }
        if !sums.is_empty() || found.numel() > 0 {
            transfer::read("sums", &all.f_narrow(0, 0, found.numel() as i64)?, sums)?;
        }
        if let Some(gradients) = &leaving.gradients {
            transfer::read("grads", gradients, grads)?;
        }
        Ok(scaling)
    }

    /// The address of the sums' first element on the device, once variables are there.
    pub(crate) fn sums_address(&self) -> usize {
        let sums = self.resident.as_ref().and_then(|resident| resident.sums.as_ref());
        sums.map_or(0, |sums| sums.data_ptr() as usize)
    }
}
