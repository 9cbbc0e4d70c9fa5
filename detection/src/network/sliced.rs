//! Convolutions with a stride of 1 whose weights do not stay in a core's cache from one block of rows to the next.
//!
//! The matrix of patches `[rows, window * channels]` is cut into slices of columns: a place of the window and some of the channels. For a slice,
//! the rows are the input's own pixels, shifted, so a block of many rows and a slice of the weights lie in the cache together, and each weight is
//! fetched once for some hundred rows. The gradient of the input is a convolution of the output's gradient in the same way: no gradient of
//! patches is ever written.

use std::ops::Range;

use super::backward::{Coefficients, OutputGradients, Sink, head_biases};
use super::blocks::{Slice, leading, slice_rows, slices};
use super::buffers::{Buffers, grow};
use super::forward::{Context, Outputs};
use super::plan::{Layer, Source};
use crate::kernels::gemm::{self, Depth};
use crate::kernels::parallel::{Shared, line, scratch};
use crate::kernels::patches::{activate_shifted, copy_shifted};
use crate::kernels::rows::{gradient, statistics};

/// Rows of a block of a weight gradient: as many as leave a panel of the output's gradient in the first-level cache.
const GRADIENT_ROWS: usize = 256;
/// Tasks wanted for a weight gradient.
const GRADIENT_TASKS: usize = 32;
/// Elements of all partial weight gradients of a layer together.
const PARTIAL_ELEMENTS: usize = 4 * 1024 * 1024;
/// Weights from which slices pay.
const LARGE: usize = 32 * 1024;

/// The layer that a layer reads, if this is to be computed in slices.
pub(crate) fn source(layer: &Layer) -> Option<usize> {
    match layer.source {
        Source::Layer(source) if layer.dense() && layer.window.stride == 1 => {
            (layer.patch() * layer.padded_outputs() >= LARGE).then_some(source)
        }
        _ => None,
    }
}

/// Tasks of equal size that share `rows`, `limit` of them at most each.
fn blocks(rows: usize, limit: usize) -> impl Fn(usize) -> Range<usize> + Copy {
    move |task| (task * limit).min(rows)..((task + 1) * limit).min(rows)
}

impl Context<'_> {
    /// The forward pass.
    pub(crate) fn sliced(&self, (i, source): (usize, usize), layer: &Layer, buffers: &mut Buffers, outputs: Outputs) {
        let (columns, channels) = (layer.padded_outputs(), layer.padded_inputs());
        let depth = layer.patch();
        self.pack(layer, buffers, false);
        let rows = self.batch * layer.window.outputs();
        let slices = slices(layer.window.area(), channels);
        let width = slices.iter().map(Slice::len).max().unwrap_or(0);
        let limit = slice_rows(rows, width + columns);
        let (tasks, block) = (rows.div_ceil(limit), blocks(rows, limit));
        buffers.blocks[i] = tasks;
        grow(&mut buffers.sums[i], tasks * 2 * columns);
        let wanted = self.takes_statistics(layer);
        let sums = Shared::new(&mut buffers.sums[i]);
        let (y, y_at) = (Shared::new(&mut buffers.y), buffers.y_at[i]);
        let (from, act) = self.features(source, buffers);
        let packed = Shared::of(&buffers.packed);
        let lda = leading(width);
        let placed = if layer.head.is_some() { limit * columns } else { 0 };
        self.pool.each(tasks, |task| {
            scratch(line(limit * lda) + placed, |memory| {
                let (a, rest) = memory.split_at_mut(line(limit * lda));
                let range = block(task);
                let (first, count) = (range.start, range.len());
                // SAFETY: tasks have their own rows of `y` and slots of `sums`; the input was written by earlier layers.
                unsafe {
                    let slot = sums.at(task * 2 * columns, 2 * columns);
                    slot.write_bytes(0, 2 * columns);
                    let out = if layer.head.is_some() {
                        rest.as_mut_ptr()
                    } else {
                        y.at(y_at + first * columns, count * columns)
                    };
                    let b = packed.at(0, depth * columns);
                    for (n, slice) in slices.iter().enumerate() {
                        let features = y.at(from, self.batch * layer.window.inputs() * channels);
                        activate_shifted(
                            self.isa,
                            &layer.window,
                            (first, count),
                            channels,
                            (slice.place, slice.channels.clone()),
                            features,
                            act,
                            a.as_mut_ptr(),
                            lda,
                        );
                        let part = Depth {
                            first: slice.at(channels),
                            len: slice.len(),
                            all: depth,
                        };
                        gemm::nn(self.isa, count, part, columns, a.as_ptr(), lda, b, out, columns, n > 0);
                    }
                    if let Some(head) = layer.head {
                        self.place(layer, head, (first, count), rest, outputs);
                    } else if wanted {
                        statistics(self.isa, count, columns, out, columns, slot);
                    }
                }
            });
        });
    }

    /// The gradients of the weights, and of the input where something wants it.
    pub(crate) fn sliced_backward(
        &self,
        (i, source): (usize, usize),
        layer: &Layer,
        buffers: &mut Buffers,
        from: OutputGradients,
        grads: &mut [f32],
    ) {
        self.output_gradient(i, layer, buffers, from, grads);
        self.weight_gradient((i, source), layer, buffers, grads);
        self.input_gradient(i, layer, buffers);
    }

    /// Where the gradient of a layer's output lies, dense.
    fn output_gradient_of(i: usize, layer: &Layer, buffers: &mut Buffers) -> Shared {
        match layer.head {
            Some(_) => Shared::new(&mut buffers.patches),
            None => Shared::new(&mut buffers.dz[buffers.dz_of[i]]),
        }
    }

    /// Makes the gradient before the normalisation out of the one after it, in its place; a predictor's own out of the outputs'.
    fn output_gradient(
        &self,
        i: usize,
        layer: &Layer,
        buffers: &mut Buffers,
        from: OutputGradients,
        grads: &mut [f32],
    ) {
        let columns = layer.padded_outputs();
        let rows = self.batch * layer.window.outputs();
        let limit = slice_rows(rows, 2 * columns);
        let (tasks, block) = (rows.div_ceil(limit), blocks(rows, limit));
        let head = layer.head.is_some();
        if head {
            grow(&mut buffers.patches, rows * columns);
            grow(&mut buffers.sums[i], tasks * 2 * columns);
        }
        let k = Coefficients(buffers.norms[i].gradient());
        let (y, y_at) = (Shared::of(&buffers.y), buffers.y_at[i]);
        let sums = Shared::new(&mut buffers.sums[i]);
        let dy = Self::output_gradient_of(i, layer, buffers);
        self.pool.each(tasks, |task| {
            let range = block(task);
            let (first, count) = (range.start, range.len());
            let (start, len) = (first * columns, count * columns);
            // SAFETY: tasks have their own rows and slots.
            unsafe {
                let dy = dy.at(start, len);
                if head {
                    let slot = sums.at(task * 2 * columns, 2 * columns);
                    slot.write_bytes(0, 2 * columns);
                    self.head_rows(layer, (first, count), from, dy, columns);
                    statistics(self.isa, count, columns, dy, columns, slot);
                } else {
                    gradient(
                        self.isa,
                        count,
                        columns,
                        dy,
                        y.at(y_at + start, len),
                        k.get(),
                        dy,
                        columns,
                    );
                }
            }
        });
        if head {
            head_biases(layer, &buffers.sums[i], tasks, grads);
        }
    }

    fn weight_gradient(&self, (i, source): (usize, usize), layer: &Layer, buffers: &mut Buffers, grads: &mut [f32]) {
        let (columns, channels) = (layer.padded_outputs(), layer.padded_inputs());
        let depth = layer.patch();
        let rows = self.batch * layer.window.outputs();
        let slices = slices(layer.window.area(), channels);
        let width = slices.iter().map(Slice::len).max().unwrap_or(0);
        let groups = GRADIENT_TASKS
            .div_ceil(slices.len())
            .min(rows.div_ceil(GRADIENT_ROWS))
            .min(PARTIAL_ELEMENTS / (depth * columns))
            .max(1);
        let group = rows.div_ceil(groups).next_multiple_of(4);
        // Blocks of a group are as good as equal.
        let step = group.div_ceil(group.div_ceil(GRADIENT_ROWS)).next_multiple_of(4);
        grow(&mut buffers.partials, groups * depth * columns);
        let dy = Self::output_gradient_of(i, layer, buffers);
        let y = Shared::of(&buffers.y);
        let (from, act) = self.features(source, buffers);
        let partials = Shared::new(&mut buffers.partials);
        let (lda, ldd) = (leading(width), leading(columns));
        self.pool.each(groups * slices.len(), |task| {
            let (n, slice) = (task / slices.len(), &slices[task % slices.len()]);
            let range = blocks(rows, group)(n);
            scratch(line(step * lda) + step * ldd, |memory| {
                let (a, dys) = memory.split_at_mut(line(step * lda));
                // SAFETY: tasks have their own parts of the partial gradients.
                unsafe {
                    let partial = partials.at((n * depth + slice.at(channels)) * columns, slice.len() * columns);
                    if range.is_empty() {
                        partial.write_bytes(0, slice.len() * columns);
                    }
                    for first in range.clone().step_by(step) {
                        let count = step.min(range.end - first);
                        let features = y.at(from, self.batch * layer.window.inputs() * channels);
                        activate_shifted(
                            self.isa,
                            &layer.window,
                            (first, count),
                            channels,
                            (slice.place, slice.channels.clone()),
                            features,
                            act,
                            a.as_mut_ptr(),
                            lda,
                        );
                        let own = dy.at(first * columns, count * columns);
                        for row in 0..count {
                            std::ptr::copy_nonoverlapping(
                                own.add(row * columns),
                                dys.as_mut_ptr().add(row * ldd),
                                columns,
                            );
                        }
                        let more = first > range.start;
                        gemm::tn(
                            self.isa,
                            count,
                            slice.len(),
                            columns,
                            a.as_ptr(),
                            lda,
                            dys.as_ptr(),
                            ldd,
                            partial,
                            columns,
                            more,
                        );
                    }
                }
            });
        });
        self.weights_from(layer, &buffers.partials, groups, grads);
    }

    fn input_gradient(&self, i: usize, layer: &Layer, buffers: &mut Buffers) {
        let (columns, channels) = (layer.padded_outputs(), layer.padded_inputs());
        let depth = layer.window.area() * columns;
        let rows = self.batch * layer.window.inputs();
        let slices = slices(layer.window.area(), columns);
        let width = slices.iter().map(Slice::len).max().unwrap_or(0);
        let limit = slice_rows(rows, width + channels);
        let (tasks, block) = (rows.div_ceil(limit), blocks(rows, limit));
        self.pack_turned(layer, buffers);
        let sink: Sink = self.sink_of(i, layer, buffers, tasks);
        let dy = Self::output_gradient_of(i, layer, buffers);
        let packed = Shared::of(&buffers.packed);
        let lda = leading(width);
        let ldd = leading(channels);
        self.pool.each(tasks, |task| {
            let range = block(task);
            let (first, count) = (range.start, range.len());
            scratch(line(limit * lda) + limit * ldd, |memory| {
                let (a, da) = memory.split_at_mut(line(limit * lda));
                // SAFETY: tasks have their own rows and slots of the sink.
                unsafe {
                    sink.begin(task);
                    let dy = dy.at(0, self.batch * layer.window.outputs() * columns);
                    let b = packed.at(0, depth * channels);
                    for (n, slice) in slices.iter().enumerate() {
                        copy_shifted(
                            &layer.window,
                            (first, count),
                            columns,
                            (slice.place, slice.channels.clone()),
                            dy,
                            a.as_mut_ptr(),
                            lda,
                        );
                        let part = Depth {
                            first: slice.at(columns),
                            len: slice.len(),
                            all: depth,
                        };
                        gemm::nn(
                            self.isa,
                            count,
                            part,
                            channels,
                            a.as_ptr(),
                            lda,
                            b,
                            da.as_mut_ptr(),
                            ldd,
                            n > 0,
                        );
                    }
                    sink.take(self.isa, task, (first, count), da.as_ptr(), ldd);
                }
            });
        });
    }
}
