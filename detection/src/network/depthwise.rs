//! Depthwise convolutions of feature maps, forward and backward. Windows are square.

use super::backward::{Coefficients, Sink, penalise};
use super::blocks::ImageBlocks;
use super::buffers::{Buffers, grow};
use super::forward::Context;
use super::plan::{Layer, Source};
use super::ring::Ring;
use crate::kernels::Isa;
use crate::kernels::depthwise::{self, LARGEST};
use crate::kernels::parallel::{Shared, line, scratch};
use crate::kernels::patches::Window;
use crate::kernels::rows::{Activation, activate, gradient, statistics};

/// Rows under a window; those past its last are null.
type Held = [*const f32; LARGEST];

/// A layer's input, row by row as its windows read it: activated, with zeros before and after.
#[derive(Clone, Copy)]
struct Input {
    isa: Isa,
    window: Window,
    channels: usize,
    y: Shared,
    at: usize,
    act: Activation,
}

impl Input {
    fn new(context: &Context, layer: &Layer, source: usize, buffers: &Buffers) -> Self {
        Self {
            isa: context.isa,
            window: layer.window,
            channels: layer.padded_outputs(),
            y: Shared::of(&buffers.y),
            at: buffers.y_at[source],
            act: buffers.norms[source].activation(context.plan.layers[source].activation),
        }
    }

    /// Columns of a row with its zeros.
    fn columns(&self) -> usize {
        let window = &self.window;
        ((window.output.1 - 1) * window.stride + window.kernel.1).max(window.before.1 + window.input.1)
    }

    /// The rows under the windows of output row `oy` of image `n`.
    ///
    /// # Safety
    /// The input is complete.
    unsafe fn rows(&self, ring: &mut Ring, n: usize, oy: usize) -> Held {
        let (height, width) = self.window.input;
        let first = (oy * self.window.stride) as isize - self.window.before.0 as isize;
        let (channels, left, columns) = (self.channels, self.window.before.1, self.columns());
        let mut rows = [std::ptr::null(); LARGEST];
        for (k, row) in rows.iter_mut().enumerate().take(self.window.kernel.0) {
            *row = ring.row(first + k as isize, height, |iy, to| {
                let len = width * channels;
                // SAFETY: the caller's promise; `to` holds a row with its zeros.
                unsafe {
                    let from = self.y.at(self.at + (n * height + iy) * len, len);
                    to.write_bytes(0, left * channels);
                    let inner = to.add(left * channels);
                    activate(self.isa, width, channels, from, channels, self.act, inner, channels);
                    to.add((left + width) * channels)
                        .write_bytes(0, (columns - left - width) * channels);
                }
            });
        }
        rows
    }
}

/// A layer's gradient before its normalisation, row by row, with columns of zeros on either side.
#[derive(Clone, Copy)]
struct Gradient {
    isa: Isa,
    window: Window,
    channels: usize,
    dz: Shared,
    y: Shared,
    at: usize,
    k: Coefficients,
    /// Columns before a row, and columns with them and those after.
    before: usize,
    columns: usize,
}

impl Gradient {
    /// Row `oy` of image `n`, the zeros before it included.
    ///
    /// # Safety
    /// The gradient is complete.
    unsafe fn row(&self, ring: &mut Ring, n: usize, oy: isize) -> *const f32 {
        let (oh, ow) = self.window.output;
        let channels = self.channels;
        ring.row(oy, oh, |oy, to| {
            let (start, len) = ((n * oh + oy) * ow * channels, ow * channels);
            // SAFETY: the caller's promise; `to` holds a row with its zeros.
            unsafe {
                to.write_bytes(0, self.before * channels);
                let (dz, y) = (self.dz.at(start, len), self.y.at(self.at + start, len));
                let inner = to.add(self.before * channels);
                gradient(self.isa, ow, channels, dz, y, self.k.get(), inner, channels);
                inner
                    .add(len)
                    .write_bytes(0, (self.columns - self.before - ow) * channels);
            }
        })
    }
}

impl Context<'_> {
    pub(crate) fn depthwise(&self, i: usize, layer: &Layer, buffers: &mut Buffers) {
        let Source::Layer(source) = layer.source else { return };
        let channels = layer.padded_outputs();
        self.dense_taps(layer, buffers, false);
        let window = layer.window;
        let (kernel, (oh, ow)) = (window.kernel.0, window.output);
        let blocks = ImageBlocks::new(self.batch, oh);
        buffers.blocks[i] = blocks.count();
        grow(&mut buffers.sums[i], blocks.count() * 2 * channels);
        let statistics_wanted = self.takes_statistics(layer);
        let sums = Shared::new(&mut buffers.sums[i]);
        let (y, y_at) = (Shared::new(&mut buffers.y), buffers.y_at[i]);
        let input = Input::new(self, layer, source, buffers);
        let row = input.columns() * channels;
        let taps = Shared::of(&buffers.dense);
        self.pool.each(blocks.count(), |task| {
            let (n, rows) = blocks.at(task);
            scratch(Ring::elements(kernel, row), |memory| {
                // SAFETY: tasks write disjoint rows of `y` and slots of `sums`; the input is complete.
                unsafe {
                    let slot = sums.at(task * 2 * channels, 2 * channels);
                    slot.write_bytes(0, 2 * channels);
                    let weights = taps.at(0, window.area() * channels);
                    let mut ring = Ring::new(memory.as_mut_ptr(), kernel, row);
                    for oy in rows {
                        let held = input.rows(&mut ring, n, oy);
                        let out = y.at(y_at + (n * oh + oy) * ow * channels, ow * channels);
                        depthwise::row(
                            self.isa,
                            kernel,
                            window.stride,
                            ow,
                            channels,
                            &held[..kernel],
                            weights,
                            out,
                        );
                        if statistics_wanted {
                            statistics(self.isa, ow, channels, out, channels, slot);
                        }
                    }
                }
            });
        });
    }

    /// Copies a depthwise layer's weights to `buffers.dense` as `[window, stored channels]`, mirrored if asked.
    fn dense_taps(&self, layer: &Layer, buffers: &mut Buffers, mirrored: bool) {
        let (channels, area) = (layer.padded_outputs(), layer.window.area());
        grow(&mut buffers.dense, area * channels);
        let dense = &mut buffers.dense[..area * channels];
        dense.fill(0.0);
        let Some(weights) = layer.weights.first() else { return };
        for tap in 0..area {
            let read = if mirrored { area - 1 - tap } else { tap };
            let from = weights.offset + read * layer.outputs;
            dense[tap * channels..tap * channels + layer.outputs]
                .copy_from_slice(&self.params[from..from + layer.outputs]);
        }
    }

    pub(crate) fn depthwise_backward(&self, i: usize, layer: &Layer, buffers: &mut Buffers, grads: &mut [f32]) {
        let Source::Layer(source) = layer.source else { return };
        let window = layer.window;
        let (kernel, stride) = (window.kernel.0, window.stride);
        // In these cases an output row's neighbourhood is enough to finish input rows, so everything is read once.
        let one_sweep = stride == 1 && window.output == window.input || (kernel, stride) == (3, 2);
        self.dense_taps(layer, buffers, one_sweep && stride == 1);
        let blocks = ImageBlocks::new(self.batch, window.output.0);
        grow(
            &mut buffers.partials,
            blocks.count() * window.area() * layer.padded_outputs(),
        );
        let inputs = ImageBlocks::new(self.batch, window.input.0);
        let slots = if one_sweep { blocks.count() } else { inputs.count() };
        let sink = self.sink_of(i, layer, buffers, slots);
        let input = Input::new(self, layer, source, buffers);
        // Mirrored windows of stride 1 reach so many columns beyond a gradient row; those of stride 2 one.
        let before = if stride == 1 { kernel - 1 - window.before.1 } else { 1 };
        let output = Gradient {
            isa: self.isa,
            window,
            channels: layer.padded_outputs(),
            dz: Shared::of(&buffers.dz[buffers.dz_of[i]]),
            y: Shared::of(&buffers.y),
            at: buffers.y_at[i],
            k: Coefficients(buffers.norms[i].gradient()),
            before,
            columns: if stride == 1 {
                window.input.1 + kernel - 1
            } else {
                before + window.output.1 + 1
            },
        };
        let (taps, partials) = (Shared::of(&buffers.dense), Shared::new(&mut buffers.partials));
        self.sweep_outputs(blocks, input, output, (taps, partials), one_sweep.then_some(sink));
        if !one_sweep {
            self.sweep_inputs(inputs, output, taps, sink);
        }
        self.taps_from(layer, &buffers.partials, blocks.count(), grads);
    }

    /// Sums the weights' gradient over the output rows; with a sink, passes on the gradient of the input rows as well.
    fn sweep_outputs(
        &self,
        blocks: ImageBlocks,
        input: Input,
        output: Gradient,
        (taps, partials): (Shared, Shared),
        sink: Option<Sink>,
    ) {
        let (window, channels) = (output.window, output.channels);
        let (kernel, stride) = (window.kernel.0, window.stride);
        let (h, w) = window.input;
        let (oh, ow) = window.output;
        let (input_row, output_row) = (input.columns() * channels, output.columns * channels);
        let len = window.area() * channels;
        self.pool.each(blocks.count(), |task| {
            let (n, range) = blocks.at(task);
            let sizes = [
                line(Ring::elements(kernel, input_row)),
                line(Ring::elements(kernel, output_row)),
                w * channels,
            ];
            scratch(sizes.iter().sum(), |memory| {
                let (inputs, rest) = memory.split_at_mut(sizes[0]);
                let (outputs, da) = rest.split_at_mut(sizes[1]);
                let da = da.as_mut_ptr();
                // SAFETY: tasks have their own rows of `dz`, partial gradients and slots.
                unsafe {
                    if let Some(sink) = sink {
                        sink.begin(task);
                    }
                    let weights = taps.at(0, len).cast_const();
                    let partial = partials.at(task * len, len);
                    partial.write_bytes(0, len);
                    let mut inputs = Ring::new(inputs.as_mut_ptr(), kernel, input_row);
                    let mut outputs = Ring::new(outputs.as_mut_ptr(), kernel, output_row);
                    let last = range.end;
                    for oy in range {
                        let held = input.rows(&mut inputs, n, oy);
                        let here = output.row(&mut outputs, n, oy as isize);
                        let dy = here.add(output.before * channels);
                        let rows = &held[..kernel];
                        depthwise::weights_gradient(self.isa, kernel, stride, ow, channels, rows, dy, partial);
                        let Some(sink) = sink else { continue };
                        let pixel = |iy: usize| (n * h + iy) * w;
                        if stride == 1 {
                            let first = oy as isize + window.before.0 as isize - (kernel as isize - 1);
                            let mut held = [std::ptr::null(); LARGEST];
                            for (k, row) in held.iter_mut().enumerate().take(kernel) {
                                *row = output.row(&mut outputs, n, first + k as isize);
                            }
                            depthwise::row(self.isa, kernel, 1, w, channels, &held[..kernel], weights, da);
                            sink.take(self.isa, task, (pixel(oy), w), da, channels);
                            continue;
                        }
                        // With stride 2 row `2 oy - top` is reached by taps 0 of `oy` and 2 of `oy - 1`, the next by tap 1 of `oy`. Past
                        // the last output row there may be one more input row, reached by tap 2 alone.
                        let before = if oy > 0 {
                            output.row(&mut outputs, n, oy as isize - 1)
                        } else {
                            std::ptr::null()
                        };
                        let tap = |ky: usize| weights.add(ky * 3 * channels);
                        let none = (std::ptr::null(), std::ptr::null());
                        let first = (oy * stride) as isize - window.before.0 as isize;
                        let steps = [
                            (first, (here, tap(0)), (before, tap(2))),
                            (first + 1, (here, tap(1)), none),
                            (first + 2, none, (here, tap(2))),
                        ];
                        let count = if oy + 1 == oh && oy + 1 == last { 3 } else { 2 };
                        for (iy, one, two) in steps.into_iter().take(count) {
                            if iy >= 0 && (iy as usize) < h {
                                let iy = iy as usize;
                                let left = window.before.1;
                                depthwise::input_gradient_stride2(self.isa, w, left, channels, one, two, da);
                                sink.take(self.isa, task, (pixel(iy), w), da, channels);
                            }
                        }
                    }
                }
            });
        });
    }

    /// Passes on the gradient of the input rows, each from the output rows that it reached.
    fn sweep_inputs(&self, blocks: ImageBlocks, output: Gradient, taps: Shared, sink: Sink) {
        let (window, channels) = (output.window, output.channels);
        let (kernel, stride) = (window.kernel.0, window.stride);
        let ((h, w), (oh, ow)) = (window.input, window.output);
        let row = output.columns * channels;
        self.pool.each(blocks.count(), |task| {
            let (n, range) = blocks.at(task);
            let sizes = [line(Ring::elements(kernel, row)), w * channels];
            scratch(sizes.iter().sum(), |memory| {
                let (outputs, da) = memory.split_at_mut(sizes[0]);
                // SAFETY: tasks have their own rows and slots; `dz` is complete.
                unsafe {
                    sink.begin(task);
                    let weights = taps.at(0, window.area() * channels).cast_const();
                    let mut outputs = Ring::new(outputs.as_mut_ptr(), kernel, row);
                    for iy in range {
                        let mut reached = [(std::ptr::null(), std::ptr::null()); LARGEST];
                        let mut count = 0;
                        for ky in 0..kernel {
                            let Some(y) = (iy + window.before.0).checked_sub(ky) else {
                                continue;
                            };
                            if !y.is_multiple_of(stride) || y / stride >= oh {
                                continue;
                            }
                            let dy = output.row(&mut outputs, n, (y / stride) as isize);
                            let inner = dy.add(output.before * channels);
                            reached[count] = (inner, weights.add(ky * kernel * channels));
                            count += 1;
                        }
                        let (left, rows, da) = (window.before.1, &reached[..count], da.as_mut_ptr());
                        depthwise::input_gradient(self.isa, (kernel, stride), (w, ow), left, channels, rows, da);
                        sink.take(self.isa, task, ((n * h + iy) * w, w), da, channels);
                    }
                }
            });
        });
    }

    /// Sums the tasks' parts of the weights' gradient and writes them in the variable's layout.
    fn taps_from(&self, layer: &Layer, partials: &[f32], tasks: usize, grads: &mut [f32]) {
        let Some(weights) = layer.weights.first() else { return };
        let (channels, area) = (layer.padded_outputs(), layer.window.area());
        for tap in 0..area {
            let at = weights.offset + tap * layer.outputs;
            let out = &mut grads[at..at + layer.outputs];
            let mut totals = vec![0.0_f64; layer.outputs];
            for task in 0..tasks {
                let from = (task * area + tap) * channels;
                let partial = &partials[from..from + layer.outputs];
                totals
                    .iter_mut()
                    .zip(partial)
                    .for_each(|(total, &x)| *total += f64::from(x));
            }
            for (out, total) in out.iter_mut().zip(totals) {
                *out = total as f32 + if weights.adds { *out } else { 0.0 };
            }
            penalise(weights.regularizer, &self.params[at..at + layer.outputs], out);
        }
    }
}
