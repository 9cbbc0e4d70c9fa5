//! The backward pass, layer by layer from the predictors to the image.
//!
//! Each layer makes, in one sweep over its rows, the gradient of its weights and the gradient `dz` of the layer that it reads (through that
//! layer's activation), together with the sums that the gradient of that layer's normalisation needs.

use super::blocks::{ImageBlocks, RowBlocks, leading};
use super::buffers::{Buffers, grow};
use super::config::Regularizer;
use super::error::Error;
use super::forward::{Context, weight_rows};
use super::norm;
use super::plan::{Layer, Part, Source};
use super::sliced;
use super::together::Hook;
use crate::kernels::Isa;
use crate::kernels::gemm::{self, Depth};
use crate::kernels::parallel::{Shared, line, scratch};
use crate::kernels::patches::gather_row;
use crate::kernels::rows::{Activation, NormGradient, gradient, mask, statistics};

/// Gradients of the outputs.
#[derive(Clone, Copy)]
pub(crate) struct OutputGradients<'a> {
    pub(crate) boxes: &'a [f32],
    pub(crate) classes: &'a [f32],
    pub(crate) columns: usize,
}

/// Where the gradient of a layer's input goes.
#[derive(Clone, Copy)]
pub(crate) enum Sink {
    /// The images need none.
    Nowhere,
    /// Kept until the input's other readers have added theirs; whether it is the first.
    Kept { dz: Shared, channels: usize, first: bool },
    /// Through the input's activation, together with what is kept.
    Through {
        through: Through,
        kept: bool,
        dz: Shared,
        sums: Shared,
    },
}

/// The layer whose activation a gradient passes.
#[derive(Clone, Copy)]
pub(crate) struct Through {
    y: Shared,
    at: usize,
    channels: usize,
    act: Activation,
    mean: *const f32,
}

// SAFETY: the pointers are only read while tasks run.
unsafe impl Send for Through {}
unsafe impl Sync for Through {}

impl Sink {
    /// Begins the sums of block `slot`.
    ///
    /// # Safety
    /// One task a slot.
    pub(crate) unsafe fn begin(&self, slot: usize) {
        if let Self::Through { through, sums, .. } = self {
            let channels = through.channels;
            unsafe { sums.at(slot * 2 * channels, 2 * channels).write_bytes(0, 2 * channels) };
        }
    }

    /// Takes the gradient of input pixels `first..first + count`, rows of `ldd`.
    ///
    /// # Safety
    /// One task a slot and pixel.
    pub(crate) unsafe fn take(
        &self,
        isa: Isa,
        slot: usize,
        (first, count): (usize, usize),
        da: *const f32,
        ldd: usize,
    ) {
        match self {
            Self::Nowhere => {}
            Self::Kept {
                dz,
                channels,
                first: true,
            } => unsafe {
                let to = dz.at(first * channels, count * channels);
                for row in 0..count {
                    std::ptr::copy_nonoverlapping(da.add(row * ldd), to.add(row * channels), *channels);
                }
            },
            Self::Kept { dz, channels, .. } => unsafe {
                let to = dz.at(first * channels, count * channels);
                for row in 0..count {
                    let from = std::slice::from_raw_parts(da.add(row * ldd), *channels);
                    let to = std::slice::from_raw_parts_mut(to.add(row * channels), *channels);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                }
            },
            Self::Through {
                through,
                kept,
                dz,
                sums,
            } => {
                let channels = through.channels;
                let (start, len) = (first * channels, count * channels);
                unsafe {
                    let dz = dz.at(start, len);
                    let side = if *kept { dz.cast_const() } else { std::ptr::null() };
                    let y = through.y.at(through.at + start, len);
                    let sums = sums.at(slot * 2 * channels, 2 * channels);
                    mask(
                        isa,
                        count,
                        channels,
                        da,
                        ldd,
                        side,
                        y,
                        through.act,
                        through.mean,
                        dz,
                        sums,
                    );
                }
            }
        }
    }
}

impl Context<'_> {
    /// Computes the gradients of layer `i`'s variables and passes the gradient on to its input.
    pub(crate) fn layer_backward(
        &self,
        i: usize,
        buffers: &mut Buffers,
        from: OutputGradients,
        grads: &mut [f32],
        hook: &mut Hook,
    ) -> Result<(), Error> {
        let layer = &self.plan.layers[i];
        if layer.idle() {
            self.no_gradient(i, layer, buffers);
        }
        if layer.head.is_none() {
            let count = self.batch * layer.window.outputs();
            let (sums, blocks) = (&buffers.sums[i], buffers.blocks[i]);
            let state = &mut buffers.norms[i];
            norm::backward(layer, self.params, sums, blocks, count, state, grads, hook).map_err(Error::Together)?;
        }
        if let Some(source) = sliced::source(layer) {
            self.sliced_backward((i, source), layer, buffers, from, grads);
        } else if layer.dense() {
            self.convolution_backward(i, layer, buffers, from, grads);
        } else if layer.weights.is_empty() {
            self.junction_backward(i, layer, buffers);
        } else {
            self.depthwise_backward(i, layer, buffers, grads);
        }
        Ok(())
    }

    /// Where the gradient that layer `i` passes on to its first input goes.
    pub(crate) fn sink_of(&self, i: usize, layer: &Layer, buffers: &mut Buffers, slots: usize) -> Sink {
        match layer.source {
            Source::Image => Sink::Nowhere,
            Source::Layer(source) => self.sink(i, source, buffers, slots),
        }
    }

    /// Where the gradient that layer `i` passes on to layer `source` goes; `slots` blocks will write its sums.
    pub(crate) fn sink(&self, i: usize, source: usize, buffers: &mut Buffers, slots: usize) -> Sink {
        let input = &self.plan.layers[source];
        let channels = input.padded_outputs();
        let len = self.batch * input.window.outputs() * channels;
        // Later layers come first on the way back, so the first reader is the last to contribute.
        if input.readers.first() != Some(&i) {
            let place = buffers.dz_of[source];
            return Sink::Kept {
                dz: Shared::new(&mut buffers.dz[place][..len]),
                channels,
                first: input.readers.last() == Some(&i),
            };
        }
        buffers.blocks[source] = slots;
        grow(&mut buffers.sums[source], slots * 2 * channels);
        let state = &buffers.norms[source];
        let through = Through {
            y: Shared::of(&buffers.y),
            at: buffers.y_at[source],
            channels,
            act: state.activation(input.activation),
            mean: state.mean().as_ptr(),
        };
        let place = buffers.dz_of[source];
        let dz = Shared::new(&mut buffers.dz[place][..len]);
        Sink::Through {
            through,
            kept: input.readers.len() > 1,
            dz,
            sums: Shared::new(&mut buffers.sums[source]),
        }
    }

    fn convolution_backward(
        &self,
        i: usize,
        layer: &Layer,
        buffers: &mut Buffers,
        from: OutputGradients,
        grads: &mut [f32],
    ) {
        let (patch, columns, channels) = (layer.patch(), layer.padded_outputs(), layer.padded_inputs());
        let rows = self.batch * layer.window.outputs();
        let blocks = RowBlocks::backward(rows, 2 * patch + columns, patch * columns);
        grow(&mut buffers.partials, blocks.groups * patch * columns);
        let pointwise = layer.window.pointwise();
        let images = ImageBlocks::new(self.batch, layer.window.input.0);
        let wanted = layer.source != Source::Image;
        let slots = if pointwise { blocks.blocks() } else { images.count() };
        let sink = self.sink_of(i, layer, buffers, slots);
        if wanted {
            self.pack(layer, buffers, true);
            if !pointwise {
                grow(&mut buffers.patches, rows * patch);
            }
        }
        let own_sums = if layer.head.is_some() {
            grow(&mut buffers.sums[i], blocks.blocks() * 2 * columns);
            Shared::new(&mut buffers.sums[i])
        } else {
            Shared::empty()
        };
        let (y, y_at) = (Shared::of(&buffers.y), buffers.y_at[i]);
        let dz = if layer.head.is_some() {
            Shared::empty()
        } else {
            Shared::of(&buffers.dz[buffers.dz_of[i]])
        };
        let k = Coefficients(buffers.norms[i].gradient());
        let reader = self.reader(layer, buffers);
        let packed = Shared::of(&buffers.packed);
        let partials = Shared::new(&mut buffers.partials);
        let patches = Shared::new(&mut buffers.patches);
        let (lda, ldd) = (leading(patch), leading(columns));
        self.pool.each(blocks.groups, |group| {
            let sizes = [
                line(blocks.block * lda),
                line(blocks.block * ldd),
                line(blocks.block * lda),
            ];
            scratch(sizes.iter().sum(), |memory| {
                let (a, rest) = memory.split_at_mut(sizes[0]);
                let (dy, da) = rest.split_at_mut(sizes[1]);
                let (a, dy, da) = (a.as_mut_ptr(), dy.as_mut_ptr(), da.as_mut_ptr());
                // SAFETY: groups have their own rows, partial gradients and slots.
                unsafe {
                    let partial = partials.at(group * patch * columns, patch * columns);
                    for block in 0..blocks.blocks_per_group {
                        let slot = group * blocks.blocks_per_group + block;
                        let range = blocks.at(group, block);
                        let (first, count) = (range.start, range.len());
                        if pointwise {
                            sink.begin(slot);
                        }
                        if layer.head.is_some() {
                            let sums = own_sums.at(slot * 2 * columns, 2 * columns);
                            sums.write_bytes(0, 2 * columns);
                            self.head_rows(layer, (first, count), from, dy, ldd);
                            statistics(self.isa, count, columns, dy, ldd, sums);
                        } else {
                            let (start, len) = (first * columns, count * columns);
                            let (dz, y) = (dz.at(start, len), y.at(y_at + start, len));
                            gradient(self.isa, count, columns, dz, y, k.get(), dy, ldd);
                        }
                        if count == 0 {
                            if block == 0 {
                                partial.write_bytes(0, patch * columns);
                            }
                            continue;
                        }
                        reader.read(self, (first, count), a, lda);
                        gemm::tn(
                            self.isa,
                            count,
                            patch,
                            columns,
                            a,
                            lda,
                            dy,
                            ldd,
                            partial,
                            columns,
                            block > 0,
                        );
                        if !wanted {
                            continue;
                        }
                        let b = packed.at(0, patch * columns);
                        if pointwise {
                            gemm::nn(
                                self.isa,
                                count,
                                Depth::whole(columns),
                                patch,
                                dy,
                                ldd,
                                b,
                                da,
                                lda,
                                false,
                            );
                            sink.take(self.isa, slot, (first, count), da, lda);
                        } else {
                            let to = patches.at(first * patch, count * patch);
                            gemm::nn(
                                self.isa,
                                count,
                                Depth::whole(columns),
                                patch,
                                dy,
                                ldd,
                                b,
                                to,
                                patch,
                                false,
                            );
                        }
                    }
                }
            });
        });
        if wanted && !pointwise {
            let (height, width) = layer.window.input;
            self.pool.each(images.count(), |task| {
                let (image, range) = images.at(task);
                scratch(width * channels, |memory| {
                    // SAFETY: tasks have their own rows and slots.
                    unsafe {
                        sink.begin(task);
                        let all = patches.at(0, rows * patch);
                        for iy in range {
                            gather_row(&layer.window, (image, iy), channels, all, memory.as_mut_ptr());
                            let first = (image * height + iy) * width;
                            sink.take(self.isa, task, (first, width), memory.as_ptr(), channels);
                        }
                    }
                });
            });
        }
        if layer.head.is_some() {
            head_biases(layer, &buffers.sums[i], blocks.blocks(), grads);
        }
        self.weights_from(layer, &buffers.partials, blocks.groups, grads);
    }

    /// Sums the groups' partial gradients in order, adds the regulariser's, and writes them in the variables' own layout.
    pub(crate) fn weights_from(&self, layer: &Layer, partials: &[f32], groups: usize, grads: &mut [f32]) {
        let (patch, columns) = (layer.patch(), layer.padded_outputs());
        let part = patch * columns;
        for weights in &layer.weights {
            let (len, rows) = weight_rows(layer, weights);
            let rows: Vec<(usize, usize, usize)> = rows.collect();
            let params = &self.params[weights.offset..weights.offset + rows.len() * len];
            let out = Shared::new(&mut grads[weights.offset..weights.offset + rows.len() * len]);
            let step = (16_384 / len.max(1)).max(1);
            self.pool.each(rows.len().div_ceil(step), |task| {
                for &(k, at, column) in &rows[task * step..((task + 1) * step).min(rows.len())] {
                    let start = k * len;
                    // SAFETY: each row of the variable belongs to one task.
                    let out = unsafe { std::slice::from_raw_parts_mut(out.at(start, len), len) };
                    let from = at * columns + column;
                    if !weights.adds {
                        out.copy_from_slice(&partials[from..from + len]);
                    }
                    for group in usize::from(!weights.adds)..groups {
                        let from = group * part + from;
                        let partial = &partials[from..from + len];
                        out.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
                    }
                    penalise(weights.regularizer, &params[start..start + len], out);
                }
            });
        }
    }

    /// Output gradients of a predictor's pixels, as rows of its matrix.
    ///
    /// # Safety
    /// `out` holds `count` rows of `ldo`.
    pub(crate) unsafe fn head_rows(
        &self,
        layer: &Layer,
        (first, count): (usize, usize),
        from: OutputGradients,
        out: *mut f32,
        ldo: usize,
    ) {
        let Some(head) = layer.head else { return };
        let pixels = layer.window.outputs();
        let columns = layer.padded_outputs();
        for i in 0..count {
            let anchor = self.anchor(head, first + i, pixels);
            // SAFETY: the caller's promise.
            let row = unsafe { std::slice::from_raw_parts_mut(out.add(i * ldo), columns) };
            row[layer.outputs..].fill(0.0);
            for (weights, part) in layer.weights.iter().zip(head.parts) {
                let (source, width) = match part {
                    Part::Boxes => (from.boxes, 4),
                    Part::Classes => (from.classes, from.columns),
                };
                let start = anchor * width;
                row[weights.first..weights.first + weights.columns]
                    .copy_from_slice(&source[start..start + weights.columns]);
            }
        }
    }
}

/// Coefficients that tasks on other threads read.
#[derive(Clone, Copy)]
pub(crate) struct Coefficients(pub(crate) NormGradient);

impl Coefficients {
    pub(crate) fn get(&self) -> NormGradient {
        self.0
    }
}

/// Adds a regulariser's gradient.
pub(crate) fn penalise(regularizer: Regularizer, params: &[f32], grads: &mut [f32]) {
    match regularizer {
        Regularizer::None => {}
        Regularizer::L1 { weight } => {
            for (grad, &w) in grads.iter_mut().zip(params) {
                // The derivative of |w| at 0 counts as 0.
                *grad += if w == 0.0 { 0.0 } else { weight * w.signum() };
            }
        }
        Regularizer::L2 { weight } => grads.iter_mut().zip(params).for_each(|(grad, w)| *grad += weight * w),
    }
}

pub(crate) fn head_biases(layer: &Layer, sums: &[f32], blocks: usize, grads: &mut [f32]) {
    let columns = layer.padded_outputs();
    for weights in &layer.weights {
        let Some(bias) = weights.bias else { continue };
        for j in 0..weights.columns {
            let column = weights.first + j;
            let total: f64 = (0..blocks)
                .map(|block| f64::from(sums[block * 2 * columns + column]))
                .sum();
            grads[bias + j] = total as f32 + if weights.adds { grads[bias + j] } else { 0.0 };
        }
    }
}
