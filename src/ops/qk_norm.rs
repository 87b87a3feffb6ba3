//! RMSNorm on each query and key head (Qwen3), between the projection and the rotation.
//!
//! The formulas are those of [`rms_norm`](super::RmsNorm), with one head as a row and one weight for
//! all query heads, another for all key heads. Value heads pass unchanged.

use super::cpu::ROWS_PER_TASK;
use super::cpu::element::{Element, by_format, with_buffers};
use super::cpu::vector::vectorised;
use super::rms_norm::{add_weight_gradient, forward_row, row_slope};
use super::{Cpu, Region};
use rayon::prelude::*;

/// Sizes of a fused query, key and value row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNormShape {
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl QkNormShape {
    fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Heads that are normalised.
    fn normed(&self) -> usize {
        self.heads + self.kv_heads
    }

    /// 0 for a query head, 1 for a key head: the weight that it has.
    fn weight_of(&self, head: usize) -> usize {
        usize::from(head >= self.heads)
    }
}

/// Normalises query and key heads. raw, out and dqkv have one format, all else is float32.
pub trait QkNorm {
    /// raw `(T, (heads + 2·kv_heads)·head_dim)`, q_weight and k_weight `(head_dim)` → out of raw's
    /// shape and inv_rms `(T, heads + kv_heads)`.
    fn qk_norm_forward(
        &mut self,
        shape: QkNormShape,
        raw: Region,
        weights: (Region, Region),
        out: Region,
        inv_rms: Region,
        eps: f32,
    );

    /// Turns the gradient of out into the gradient of raw, in place, and adds to the gradients of
    /// q_weight and k_weight.
    fn qk_norm_backward(
        &mut self,
        shape: QkNormShape,
        raw: Region,
        weights: (Region, Region),
        inv_rms: Region,
        dqkv: Region,
        dweights: (Region, Region),
    );
}

impl QkNorm for Cpu {
    fn qk_norm_forward(
        &mut self,
        shape: QkNormShape,
        raw: Region,
        weights: (Region, Region),
        out: Region,
        inv_rms: Region,
        eps: f32,
    ) {
        let reads = [raw, weights.0, weights.1];
        let ([raw, q_weight, k_weight], [], [out, inv_rms]) =
            self.arena.views(reads, [], [out, inv_rms]);
        let weights = [q_weight.f32(), k_weight.f32()];
        let inv_rms = inv_rms.f32();
        let pool = &self.pool;
        by_format!(out.dtype, T => {
            pool.install(|| forward(shape, raw.of::<T>(), weights, out.of(), inv_rms, eps))
        });
    }

    fn qk_norm_backward(
        &mut self,
        shape: QkNormShape,
        raw: Region,
        weights: (Region, Region),
        inv_rms: Region,
        dqkv: Region,
        dweights: (Region, Region),
    ) {
        let reads = [raw, weights.0, weights.1, inv_rms];
        let ([raw, q_weight, k_weight, inv_rms], [], [dqkv, dq_weight, dk_weight]) =
            self.arena.views(reads, [], [dqkv, dweights.0, dweights.1]);
        let weights = [q_weight.f32(), k_weight.f32()];
        let dweights = [dq_weight.f32(), dk_weight.f32()];
        let inv_rms = inv_rms.f32();
        let pool = &self.pool;
        by_format!(dqkv.dtype, T => {
            let (raw, dqkv) = (raw.of::<T>(), dqkv.of());
            pool.install(|| {
                // Before dqkv is overwritten.
                backward_weights(shape, raw, inv_rms, dqkv, dweights);
                backward_raw(shape, raw, weights, inv_rms, dqkv);
            });
        });
    }
}

fn forward<T: Element>(
    shape: QkNormShape,
    raw: &[T],
    weights: [&[f32]; 2],
    out: &mut [T],
    inv_rms: &mut [f32],
    eps: f32,
) {
    let (row, normed, d) = (shape.row(), shape.normed(), shape.head_dim);
    out.par_chunks_mut(ROWS_PER_TASK * row)
        .zip(raw.par_chunks(ROWS_PER_TASK * row))
        .zip(inv_rms.par_chunks_mut(ROWS_PER_TASK * normed))
        .for_each(|((out, raw), inv_rms)| {
            with_buffers(|[a, b, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = out.chunks_exact_mut(row).zip(raw.chunks_exact(row));
                        for ((out, raw), inv_rms) in rows.zip(inv_rms.chunks_exact_mut(normed)) {
                            let (out, values) = out.split_at_mut(normed * d);
                            values.copy_from_slice(&raw[normed * d..]);
                            let raw = T::read(&raw[..normed * d], a);
                            T::write(
                                out,
                                b,
                                #[inline(always)]
                                |out| {
                                    let heads = out.chunks_exact_mut(d).zip(raw.chunks_exact(d));
                                    for (head, ((y, x), r)) in heads.zip(inv_rms).enumerate() {
                                        *r = forward_row(x, weights[shape.weight_of(head)], y, eps);
                                    }
                                },
                            );
                        }
                    },
                );
            });
        });
}

/// The weights are as short as one head: one pass in row order.
fn backward_weights<T: Element>(
    shape: QkNormShape,
    raw: &[T],
    inv_rms: &[f32],
    dqkv: &[T],
    mut dweights: [&mut [f32]; 2],
) {
    let (row, normed, d) = (shape.row(), shape.normed(), shape.head_dim);
    with_buffers(|[a, b, ..]| {
        vectorised(
            #[inline(always)]
            || {
                let rows = raw.chunks_exact(row).zip(dqkv.chunks_exact(row));
                for ((raw, dqkv), inv_rms) in rows.zip(inv_rms.chunks_exact(normed)) {
                    let (raw, dqkv) = (
                        T::read(&raw[..normed * d], a),
                        T::read(&dqkv[..normed * d], b),
                    );
                    let heads = raw.chunks_exact(d).zip(dqkv.chunks_exact(d));
                    for (head, ((x, dy), &r)) in heads.zip(inv_rms).enumerate() {
                        add_weight_gradient(x, dy, r, dweights[shape.weight_of(head)]);
                    }
                }
            },
        );
    });
}

fn backward_raw<T: Element>(
    shape: QkNormShape,
    raw: &[T],
    weights: [&[f32]; 2],
    inv_rms: &[f32],
    dqkv: &mut [T],
) {
    let (row, normed, d) = (shape.row(), shape.normed(), shape.head_dim);
    dqkv.par_chunks_mut(ROWS_PER_TASK * row)
        .zip(raw.par_chunks(ROWS_PER_TASK * row))
        .zip(inv_rms.par_chunks(ROWS_PER_TASK * normed))
        .for_each(|((dqkv, raw), inv_rms)| {
            with_buffers(|[a, b, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = dqkv.chunks_exact_mut(row).zip(raw.chunks_exact(row));
                        for ((dqkv, raw), inv_rms) in rows.zip(inv_rms.chunks_exact(normed)) {
                            let raw = T::read(&raw[..normed * d], a);
                            T::update(
                                &mut dqkv[..normed * d],
                                b,
                                #[inline(always)]
                                |dqkv| {
                                    let heads = dqkv.chunks_exact_mut(d).zip(raw.chunks_exact(d));
                                    for (head, ((dy, x), &r)) in heads.zip(inv_rms).enumerate() {
                                        let weight = weights[shape.weight_of(head)];
                                        let slope = row_slope(x, weight, dy, r);
                                        for ((dy, &x), &w) in dy.iter_mut().zip(x).zip(weight) {
                                            *dy = r * w * *dy - x * slope;
                                        }
                                    }
                                },
                            );
                        }
                    },
                );
            });
        });
}
