//! Group normalisation (arXiv:1803.08494), an image at a time: the layer's values are normalised, scale and offset follow where they are read.

use super::blocks::ImageBlocks;
use super::buffers::{Buffers, grow};
use super::forward::Context;
use super::plan::Layer;
use crate::kernels::parallel::{Shared, line, scratch};
use crate::kernels::rows::statistics;

/// Adds the channels of each group of `size` channels up.
fn by_group(channels: &[f64], groups: usize, size: usize) -> Vec<f64> {
    channels[..groups * size]
        .chunks_exact(size)
        .map(|group| group.iter().sum())
        .collect()
}

impl Context<'_> {
    pub(crate) fn group_norm(&self, i: usize, layer: &Layer, buffers: &mut Buffers, (groups, epsilon): (usize, f32)) {
        let inputs = self.inputs(layer, buffers);
        let Some(&input) = inputs.first() else { return };
        let (stored, (height, width)) = (layer.padded_outputs(), layer.window.output);
        let size = layer.outputs / groups;
        grow(&mut buffers.notes[i], self.batch * groups);
        let (y, y_at) = (Shared::new(&mut buffers.y), buffers.y_at[i]);
        let notes = Shared::new(&mut buffers.notes[i]);
        self.pool.each(self.batch, |n| {
            let row = width * stored;
            let mut totals = vec![0.0_f64; 2 * stored];
            let mut sums = vec![0.0_f32; 2 * stored];
            // SAFETY: each task has its own image; the input is complete.
            unsafe {
                let image = y.at(y_at + n * height * row, height * row);
                for oy in 0..height {
                    let out = image.add(oy * row);
                    input.row(self, (n, oy), out);
                    sums.fill(0.0);
                    statistics(self.isa, width, stored, out, stored, sums.as_mut_ptr());
                    totals
                        .iter_mut()
                        .zip(&sums)
                        .for_each(|(total, &sum)| *total += f64::from(sum));
                }
                let count = (height * width * size) as f64;
                let (first, second) = totals.split_at(stored);
                let (mut means, mut inverses) = (vec![0.0_f32; stored], vec![0.0_f32; stored]);
                let notes = std::slice::from_raw_parts_mut(notes.at(n * groups, groups), groups);
                let both = by_group(first, groups, size)
                    .into_iter()
                    .zip(by_group(second, groups, size));
                for (group, ((sum, square), note)) in both.zip(notes).enumerate() {
                    let mean = sum / count;
                    let variance = (square / count - mean * mean).max(0.0);
                    *note = (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32;
                    means[group * size..(group + 1) * size].fill(mean as f32);
                    inverses[group * size..(group + 1) * size].fill(*note);
                }
                for pixel in std::slice::from_raw_parts_mut(image, height * row).chunks_exact_mut(stored) {
                    let each = pixel.iter_mut().zip(means.iter().zip(&inverses));
                    each.for_each(|(x, (mean, inverse))| *x = (*x - mean) * inverse);
                }
            }
        });
    }

    pub(crate) fn group_norm_backward(&self, i: usize, layer: &Layer, buffers: &mut Buffers, groups: usize) {
        let (Some(source), Some(affine)) = (layer.sources().next(), layer.affine) else {
            return;
        };
        let (stored, (height, width)) = (layer.padded_outputs(), layer.window.output);
        let size = layer.outputs / groups;
        // One task an image: its groups' sums are needed before anything is passed on.
        let blocks = ImageBlocks::whole(self.batch, height);
        let sink = self.sink(i, source, buffers, blocks.count());
        let (y, y_at) = (Shared::of(&buffers.y), buffers.y_at[i]);
        let dz = Shared::of(&buffers.dz[buffers.dz_of[i]]);
        let notes = Shared::of(&buffers.notes[i]);
        let gamma = &self.params[affine.gamma..affine.gamma + layer.outputs];
        let row = width * stored;
        self.pool.each(blocks.count(), |n| {
            scratch(line(row), |memory| {
                // SAFETY: each task has its own image and slot.
                unsafe {
                    sink.begin(n);
                    let (start, len) = (n * height * row, height * row);
                    let y = std::slice::from_raw_parts(y.at(y_at + start, len).cast_const(), len);
                    let dz = std::slice::from_raw_parts(dz.at(start, len).cast_const(), len);
                    let mut totals = vec![0.0_f64; 2 * stored];
                    let (sums, products) = totals.split_at_mut(stored);
                    for (y, dz) in y.chunks_exact(row).zip(dz.chunks_exact(row)) {
                        let (mut sum, mut product) = (vec![0.0_f32; stored], vec![0.0_f32; stored]);
                        for (y, dz) in y.chunks_exact(stored).zip(dz.chunks_exact(stored)) {
                            for c in 0..stored {
                                sum[c] += dz[c];
                                product[c] += dz[c] * y[c];
                            }
                        }
                        for c in 0..layer.outputs {
                            sums[c] += f64::from(gamma[c]) * f64::from(sum[c]);
                            products[c] += f64::from(gamma[c]) * f64::from(product[c]);
                        }
                    }
                    let count = (height * width * size) as f64;
                    let inverses = std::slice::from_raw_parts(notes.at(n * groups, groups).cast_const(), groups);
                    // dx = (gamma dz - mean(gamma dz) - y mean(gamma dz y)) / deviation
                    let (mut k1, mut k2, mut k3) = (vec![0.0; stored], vec![0.0; stored], vec![0.0; stored]);
                    let both = by_group(sums, groups, size)
                        .into_iter()
                        .zip(by_group(products, groups, size));
                    for (group, ((sum, product), &inverse)) in both.zip(inverses).enumerate() {
                        for c in group * size..(group + 1) * size {
                            k1[c] = gamma[c] * inverse;
                            k2[c] = (-product / count) as f32 * inverse;
                            k3[c] = (-sum / count) as f32 * inverse;
                        }
                    }
                    for oy in 0..height {
                        let (y, dz) = (&y[oy * row..(oy + 1) * row], &dz[oy * row..(oy + 1) * row]);
                        let pixels = y.chunks_exact(stored).zip(dz.chunks_exact(stored));
                        for ((y, dz), to) in pixels.zip(memory.chunks_exact_mut(stored)) {
                            for c in 0..stored {
                                to[c] = k1[c] * dz[c] + k2[c] * y[c] + k3[c];
                            }
                        }
                        sink.take(self.isa, n, ((n * height + oy) * width, width), memory.as_ptr(), stored);
                    }
                }
            });
        });
    }
}
