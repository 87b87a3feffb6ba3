//! RMSNorm on each query and key head (Qwen3), between the projection and the rotation.
//!
//! The formulas are those of [`rms_norm`](super::RmsNorm), with one head as a row and one weight for
//! all query heads, another for all key heads. Value heads pass unchanged.

use super::cpu::ROWS_PER_TASK;
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
}

/// Normalises query and key heads.
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
        let ([raw, q_weight, k_weight], [out, inv_rms]) = self.arena.split(reads, [out, inv_rms]);
        let (row, normed, d) = (shape.row(), shape.normed(), shape.head_dim);
        self.pool.install(|| {
            out.par_chunks_mut(ROWS_PER_TASK * row)
                .zip(raw.par_chunks(ROWS_PER_TASK * row))
                .zip(inv_rms.par_chunks_mut(ROWS_PER_TASK * normed))
                .for_each(|((out, raw), inv_rms)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let rows = out.chunks_exact_mut(row).zip(raw.chunks_exact(row));
                            for ((out, raw), inv_rms) in rows.zip(inv_rms.chunks_exact_mut(normed))
                            {
                                for (head, r) in inv_rms.iter_mut().enumerate() {
                                    let weight = if head < shape.heads {
                                        q_weight
                                    } else {
                                        k_weight
                                    };
                                    let columns = head * d..(head + 1) * d;
                                    let (x, y) = (&raw[columns.clone()], &mut out[columns]);
                                    *r = forward_row(x, weight, y, eps);
                                }
                                out[normed * d..].copy_from_slice(&raw[normed * d..]);
                            }
                        },
                    );
                });
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
        let ([raw, q_weight, k_weight, inv_rms], [dqkv, dq_weight, dk_weight]) =
            self.arena.split(reads, [dqkv, dweights.0, dweights.1]);
        let (row, normed, d) = (shape.row(), shape.normed(), shape.head_dim);
        // The weights are as short as one head: one pass in row order, before dqkv is overwritten.
        vectorised(
            #[inline(always)]
            || {
                let rows = raw.chunks_exact(row).zip(dqkv.chunks_exact(row));
                for ((raw, dqkv), inv_rms) in rows.zip(inv_rms.chunks_exact(normed)) {
                    for (head, &r) in inv_rms.iter().enumerate() {
                        let columns = head * d..(head + 1) * d;
                        let dweight = if head < shape.heads {
                            &mut *dq_weight
                        } else {
                            &mut *dk_weight
                        };
                        add_weight_gradient(&raw[columns.clone()], &dqkv[columns], r, dweight);
                    }
                }
            },
        );
        self.pool.install(|| {
            dqkv.par_chunks_mut(ROWS_PER_TASK * row)
                .zip(raw.par_chunks(ROWS_PER_TASK * row))
                .zip(inv_rms.par_chunks(ROWS_PER_TASK * normed))
                .for_each(|((dqkv, raw), inv_rms)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let rows = dqkv.chunks_exact_mut(row).zip(raw.chunks_exact(row));
                            for ((dqkv, raw), inv_rms) in rows.zip(inv_rms.chunks_exact(normed)) {
                                for (head, &r) in inv_rms.iter().enumerate() {
                                    let weight = if head < shape.heads {
                                        q_weight
                                    } else {
                                        k_weight
                                    };
                                    let columns = head * d..(head + 1) * d;
                                    let (x, dy) = (&raw[columns.clone()], &mut dqkv[columns]);
                                    let slope = row_slope(x, weight, dy, r);
                                    for ((dy, &x), &w) in dy.iter_mut().zip(x).zip(weight) {
                                        *dy = r * w * *dy - x * slope;
                                    }
                                }
                            }
                        },
                    );
                });
        });
    }
}
