//! Layers without weights: sums, products, concatenations, pools and dropout, forward and backward, row by row.

use super::blocks::ImageBlocks;
use super::buffers::{Buffers, grow};
use super::dropout::Mask;
use super::forward::Context;
use super::plan::{Layer, Operation};
use super::ring::Ring;
use crate::kernels::CHANNEL_BLOCK;
use crate::kernels::parallel::{Shared, line, scratch};
use crate::kernels::patches::Window;
use crate::kernels::rows::{Activation, activate};

/// Rows that pools keep ready: each is read before the next is asked for.
const RING: usize = 3;

/// One of the maps that a layer reads.
#[derive(Clone, Copy)]
pub(crate) struct Input {
    y: Shared,
    at: usize,
    pub(crate) size: (usize, usize),
    /// Channels, and channels as stored.
    pub(crate) channels: usize,
    pub(crate) stored: usize,
    act: Activation,
}

impl Input {
    /// Writes row `row` of image `n`, activated.
    ///
    /// # Safety
    /// Nobody writes the map meanwhile; `to` holds a row.
    pub(crate) unsafe fn row(&self, context: &Context, (n, row): (usize, usize), to: *mut f32) {
        let (height, width) = self.size;
        let len = width * self.stored;
        unsafe {
            let from = self.y.at(self.at + (n * height + row) * len, len);
            activate(
                context.isa,
                width,
                self.stored,
                from,
                self.stored,
                self.act,
                to,
                self.stored,
            );
        }
    }
}

impl Context<'_> {
    pub(crate) fn inputs(&self, layer: &Layer, buffers: &Buffers) -> Vec<Input> {
        layer
            .sources()
            .map(|source| {
                let from = &self.plan.layers[source];
                Input {
                    y: Shared::of(&buffers.y),
                    at: buffers.y_at[source],
                    size: from.window.output,
                    channels: from.outputs,
                    stored: from.padded_outputs(),
                    act: buffers.norms[source].activation(from.activation),
                }
            })
            .collect()
    }

    pub(crate) fn junction(&self, i: usize, layer: &Layer, buffers: &mut Buffers) {
        if let Operation::GroupNorm { groups, epsilon } = layer.operation {
            self.group_norm(i, layer, buffers, (groups, epsilon));
            return;
        }
        let inputs = self.inputs(layer, buffers);
        let (stored, (height, width)) = (layer.padded_outputs(), layer.window.output);
        let largest = inputs
            .iter()
            .map(|input| input.size.1 * input.stored)
            .max()
            .unwrap_or(0);
        let blocks = ImageBlocks::new(self.batch, height);
        let (y, y_at) = (Shared::new(&mut buffers.y), buffers.y_at[i]);
        let keeps = self.training && layer.operation == Operation::MaxPool;
        if keeps {
            grow(&mut buffers.notes[i], self.batch * height * width * stored);
        }
        let winners = Shared::new(&mut buffers.notes[i]);
        self.pool.each(blocks.count(), |task| {
            let (n, rows) = blocks.at(task);
            scratch(line(Ring::elements(RING, largest)) + width * stored, |memory| {
                let (rings, codes) = memory.split_at_mut(line(Ring::elements(RING, largest)));
                // SAFETY: tasks have their own rows of `y` and `winners`; the inputs are complete.
                unsafe {
                    let mut ring = Ring::new(rings.as_mut_ptr(), RING, largest);
                    for oy in rows {
                        let start = (n * height + oy) * width * stored;
                        let out = std::slice::from_raw_parts_mut(y.at(y_at + start, width * stored), width * stored);
                        match layer.operation {
                            Operation::Add => self.sum_row(&inputs, (n, oy), out, rings),
                            Operation::Concat => self.concat_row(&inputs, stored, (n, oy), out, rings),
                            Operation::Gate => self.gate_row(&inputs, (n, oy), out, rings),
                            Operation::Dropout { keep } => {
                                let Some(input) = inputs.first() else { return };
                                input.row(self, (n, oy), out.as_mut_ptr());
                                if self.training {
                                    drop_row(Mask::new(self.key, i, n, keep), (layer.outputs, stored), oy, out);
                                }
                            }
                            _ => {
                                let codes = if keeps {
                                    std::slice::from_raw_parts_mut(winners.at(start, width * stored), width * stored)
                                } else {
                                    &mut codes[..width * stored]
                                };
                                let Some(input) = inputs.first() else { return };
                                let row =
                                    |row: isize| ring.row(row, input.size.0, |row, to| input.row(self, (n, row), to));
                                pool_row(layer, stored, oy, row, out, codes);
                            }
                        }
                    }
                }
            });
        });
    }

    /// # Safety
    /// The inputs are complete, `memory` holds a row of the largest.
    unsafe fn sum_row(&self, inputs: &[Input], (n, oy): (usize, usize), out: &mut [f32], memory: &mut [f32]) {
        for (k, input) in inputs.iter().enumerate() {
            if k == 0 {
                unsafe { input.row(self, (n, oy), out.as_mut_ptr()) };
                continue;
            }
            let (rows, columns) = input.size;
            let doubled = inputs[0].size != input.size;
            let row = if doubled { (oy / 2).min(rows - 1) } else { oy };
            unsafe { input.row(self, (n, row), memory.as_mut_ptr()) };
            let from = &memory[..columns * input.stored];
            if doubled {
                for (x, to) in out.chunks_exact_mut(input.stored).enumerate() {
                    let from = &from[(x / 2).min(columns - 1) * input.stored..][..input.stored];
                    add_to(to, from);
                }
            } else {
                add_to(out, from);
            }
        }
    }

    /// # Safety
    /// As above.
    unsafe fn gate_row(&self, inputs: &[Input], (n, oy): (usize, usize), out: &mut [f32], memory: &mut [f32]) {
        let [map, gate, ..] = inputs else { return };
        unsafe {
            map.row(self, (n, oy), out.as_mut_ptr());
            gate.row(self, (n, 0), memory.as_mut_ptr());
        }
        multiply(out, &memory[..gate.stored]);
    }

    /// # Safety
    /// As above.
    unsafe fn concat_row(
        &self,
        inputs: &[Input],
        stored: usize,
        place: (usize, usize),
        out: &mut [f32],
        memory: &mut [f32],
    ) {
        let mut first = 0;
        for input in inputs {
            unsafe { input.row(self, place, memory.as_mut_ptr()) };
            for (to, from) in out.chunks_exact_mut(stored).zip(memory.chunks_exact(input.stored)) {
                to[first..first + input.channels].copy_from_slice(&from[..input.channels]);
            }
            first += input.channels;
        }
        for to in out.chunks_exact_mut(stored) {
            to[first..].fill(0.0);
        }
    }

    pub(crate) fn junction_backward(&self, i: usize, layer: &Layer, buffers: &mut Buffers) {
        if let Operation::GroupNorm { groups, .. } = layer.operation {
            self.group_norm_backward(i, layer, buffers, groups);
            return;
        }
        let stored = layer.padded_outputs();
        let inputs = self.inputs(layer, buffers);
        let (height, width) = layer.window.output;
        let mut first = 0;
        for (k, source) in layer.sources().collect::<Vec<_>>().into_iter().enumerate() {
            let from = &self.plan.layers[source];
            let (rows, columns) = from.window.output;
            let (channels, own) = (from.outputs, from.padded_outputs());
            let blocks = ImageBlocks::new(self.batch, rows);
            let sink = self.sink(i, source, buffers, blocks.count());
            let dz = Shared::of(&buffers.dz[buffers.dz_of[i]]);
            let winners = Shared::of(&buffers.notes[i]);
            let doubled = layer.operation == Operation::Add && (rows, columns) != (height, width);
            let offset = first;
            first += channels;
            let inputs = &inputs;
            self.pool.each(blocks.count(), |task| {
                let (n, range) = blocks.at(task);
                scratch(line(columns * own) + width * stored, |memory| {
                    let (memory, other) = memory.split_at_mut(line(columns * own));
                    let memory = &mut memory[..columns * own];
                    let len = width * stored;
                    // SAFETY: tasks have their own rows and slots; `dz` is complete.
                    let gradient = |oy: usize| unsafe {
                        std::slice::from_raw_parts(dz.at((n * height + oy) * len, len).cast_const(), len)
                    };
                    let codes = |oy: usize| unsafe {
                        std::slice::from_raw_parts(winners.at((n * height + oy) * len, len).cast_const(), len)
                    };
                    unsafe { sink.begin(task) };
                    for row in range {
                        let take = |da: *const f32| unsafe {
                            sink.take(self.isa, task, ((n * rows + row) * columns, columns), da, own);
                        };
                        if layer.operation == Operation::Add && !doubled {
                            take(gradient(row).as_ptr());
                            continue;
                        }
                        match layer.operation {
                            Operation::Add => {
                                memory.fill(0.0);
                                for oy in (2 * row..2 * row + 2).filter(|&oy| oy < height) {
                                    for (x, from) in gradient(oy).chunks_exact(stored).enumerate() {
                                        add_to(&mut memory[x / 2 * own..][..own], from);
                                    }
                                }
                            }
                            Operation::Concat => {
                                let pixels = memory.chunks_exact_mut(own).zip(gradient(row).chunks_exact(stored));
                                for (to, from) in pixels {
                                    to[..channels].copy_from_slice(&from[offset..offset + channels]);
                                    to[channels..].fill(0.0);
                                }
                            }
                            Operation::Gate if k == 0 => {
                                memory.copy_from_slice(gradient(row));
                                // The gate is one pixel.
                                unsafe { inputs[1].row(self, (n, 0), other.as_mut_ptr()) };
                                multiply(memory, &other[..stored]);
                            }
                            Operation::Gate => {
                                memory.fill(0.0);
                                for oy in 0..height {
                                    unsafe { inputs[0].row(self, (n, oy), other.as_mut_ptr()) };
                                    add_products(memory, other, gradient(oy));
                                }
                            }
                            Operation::Dropout { keep } => {
                                memory.copy_from_slice(gradient(row));
                                if self.training {
                                    drop_row(Mask::new(self.key, i, n, keep), (channels, own), row, memory);
                                }
                            }
                            operation => {
                                memory.fill(0.0);
                                let largest = operation == Operation::MaxPool;
                                for (ky, oy) in windows(layer.window, row) {
                                    let codes = if largest { codes(oy) } else { &[] };
                                    spread_row(&layer.window, stored, (ky, oy), gradient(oy), codes, memory);
                                }
                            }
                        }
                        take(memory.as_ptr());
                    }
                });
            });
        }
    }

    /// Sets the gradient of a layer that nothing reads.
    pub(crate) fn no_gradient(&self, i: usize, layer: &Layer, buffers: &mut Buffers) {
        let len = self.batch * layer.window.outputs() * layer.padded_outputs();
        buffers.dz[buffers.dz_of[i]][..len].fill(0.0);
        buffers.blocks[i] = 0;
    }
}

/// Multiplies each pixel's channels by `factors`.
fn multiply(pixels: &mut [f32], factors: &[f32]) {
    for pixel in pixels.chunks_exact_mut(factors.len()) {
        pixel.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    }
}

/// Adds to each channel the sum over a row's pixels of `a * b`. A row is summed by itself first, so that large maps lose nothing.
fn add_products(sums: &mut [f32], a: &[f32], b: &[f32]) {
    let channels = sums.len();
    for first in (0..channels).step_by(CHANNEL_BLOCK) {
        let mut row = [0.0_f32; CHANNEL_BLOCK];
        for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
            let pair = a[first..first + CHANNEL_BLOCK]
                .iter()
                .zip(&b[first..first + CHANNEL_BLOCK]);
            row.iter_mut().zip(pair).for_each(|(sum, (a, b))| *sum += a * b);
        }
        add_to(&mut sums[first..first + CHANNEL_BLOCK], &row);
    }
}

/// Drops values of row `row` of a map of `channels` channels, stored as `stored`.
fn drop_row(mask: Mask, (channels, stored): (usize, usize), row: usize, values: &mut [f32]) {
    let width = values.len() / stored;
    for (x, pixel) in values.chunks_exact_mut(stored).enumerate() {
        let first = (row * width + x) * channels;
        for (c, value) in pixel[..channels].iter_mut().enumerate() {
            *value *= mask.factor(first + c);
        }
    }
}

fn add_to(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// The rows of windows that row `row` is in, and their output rows.
fn windows(window: Window, row: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..window.kernel.0).filter_map(move |ky| {
        let y = (row + window.before.0).checked_sub(ky)?;
        (y.is_multiple_of(window.stride) && y / window.stride < window.output.0).then_some((ky, y / window.stride))
    })
}

/// Positions from `first` on that lie inside `size`, as (tap, position).
fn inside(first: isize, kernel: usize, size: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    (0..kernel).filter_map(move |k| {
        let at = usize::try_from(first + k as isize).ok()?;
        (at < size).then_some((k, at))
    })
}

/// How many pixels of the window at output (oy, ox) lie inside the image.
fn counted(window: &Window, (oy, ox): (usize, usize)) -> f32 {
    let along = |out: usize, kernel: usize, before: usize, size: usize| {
        inside((out * window.stride) as isize - before as isize, kernel, size).count()
    };
    let rows = along(oy, window.kernel.0, window.before.0, window.input.0);
    let columns = along(ox, window.kernel.1, window.before.1, window.input.1);
    (rows * columns).max(1) as f32
}

/// One row of a pool. Notes in `codes` which pixel of the window was the largest: of equals the first, as TensorFlow does.
///
/// # Safety
/// `row` gives rows of the input, zero or not outside of it.
unsafe fn pool_row(
    layer: &Layer,
    stored: usize,
    oy: usize,
    mut row: impl FnMut(isize) -> *const f32,
    out: &mut [f32],
    codes: &mut [f32],
) {
    let window = layer.window;
    let (height, width) = window.input;
    let top = (oy * window.stride) as isize - window.before.0 as isize;
    let largest = layer.operation == Operation::MaxPool;
    out.fill(if largest { f32::NEG_INFINITY } else { 0.0 });
    codes.fill(0.0);
    for (ky, iy) in inside(top, window.kernel.0, height) {
        let from = row(iy as isize);
        // SAFETY: the caller's promise.
        let from = unsafe { std::slice::from_raw_parts(from, width * stored) };
        let pixels = out.chunks_exact_mut(stored).zip(codes.chunks_exact_mut(stored));
        for (ox, (out, codes)) in pixels.enumerate() {
            let left = (ox * window.stride) as isize - window.before.1 as isize;
            for (kx, ix) in inside(left, window.kernel.1, width) {
                let from = &from[ix * stored..][..stored];
                if largest {
                    let code = (ky * window.kernel.1 + kx) as f32;
                    for ((best, winner), &value) in out.iter_mut().zip(codes.iter_mut()).zip(from) {
                        let wins = value > *best || value.is_nan();
                        *winner = if wins { code } else { *winner };
                        *best = if wins { value } else { *best };
                    }
                } else {
                    add_to(out, from);
                }
            }
        }
    }
    if !largest {
        for (ox, out) in out.chunks_exact_mut(stored).enumerate() {
            let count = counted(&window, (oy, ox));
            for sum in out.iter_mut() {
                *sum /= count;
            }
        }
    }
}

/// Adds what row `ky` of the windows of output row `oy` passes on to an input row.
fn spread_row(
    window: &Window,
    stored: usize,
    (ky, oy): (usize, usize),
    gradient: &[f32],
    codes: &[f32],
    to: &mut [f32],
) {
    for (ox, from) in gradient.chunks_exact(stored).enumerate() {
        let left = (ox * window.stride) as isize - window.before.1 as isize;
        let share = 1.0 / counted(window, (oy, ox));
        for (kx, ix) in inside(left, window.kernel.1, window.input.1) {
            let to = &mut to[ix * stored..][..stored];
            if codes.is_empty() {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from * share);
            } else {
                let code = (ky * window.kernel.1 + kx) as f32;
                let codes = &codes[ox * stored..][..stored];
                for ((to, &from), &winner) in to.iter_mut().zip(from).zip(codes) {
                    *to += if winner == code { from } else { 0.0 };
                }
            }
        }
    }
}
