//! RMSNorm (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization").
//!
//! With r = (mean(x²) + ε)^−½ for each row:
//!
//! ```text
//! forward   yᵢ   = xᵢ · r · wᵢ
//! backward  dxᵢ += r · wᵢ · dyᵢ − xᵢ · r³ / H · Σⱼ xⱼ wⱼ dyⱼ
//!           dwᵢ += Σ over rows of xᵢ · r · dyᵢ
//! ```

use super::cpu::ROWS_PER_TASK;
use super::cpu::element::{Element, by_format, with_buffers};
use super::cpu::vector::{dot, vectorised};
use super::{Cpu, Region};
use rayon::prelude::*;

/// Normalises rows by their root mean square. y and dy may be in half precision, all else is float32.
pub trait RmsNorm {
    /// x `(T, hidden)`, weight `(hidden)` → y `(T, hidden)`, inv_rms `(T)`.
    fn rms_norm_forward(&mut self, x: Region, weight: Region, y: Region, inv_rms: Region, eps: f32);

    /// dy `(T, hidden)` → dx `(T, hidden)` and dweight `(hidden)`. Both are added to: every norm of
    /// the network reads the residual stream, so dx is the residual stream's gradient.
    fn rms_norm_backward(
        &mut self,
        x: Region,
        weight: Region,
        inv_rms: Region,
        dy: Region,
        dx: Region,
        dweight: Region,
    );
}

/// Columns of dweight that one task sums.
const COLUMNS_PER_TASK: usize = 64;

impl RmsNorm for Cpu {
    fn rms_norm_forward(
        &mut self,
        x: Region,
        weight: Region,
        y: Region,
        inv_rms: Region,
        eps: f32,
    ) {
        let ([x, weight], [], [y, inv_rms]) = self.arena.views([x, weight], [], [y, inv_rms]);
        let (x, weight, inv_rms) = (x.f32(), weight.f32(), inv_rms.f32());
        let pool = &self.pool;
        by_format!(y.dtype, T => {
            pool.install(|| forward(x, weight, y.of::<T>(), inv_rms, eps))
        });
    }

    fn rms_norm_backward(
        &mut self,
        x: Region,
        weight: Region,
        inv_rms: Region,
        dy: Region,
        dx: Region,
        dweight: Region,
    ) {
        let ([x, weight, inv_rms, dy], [], [dx, dweight]) =
            self.arena
                .views([x, weight, inv_rms, dy], [], [dx, dweight]);
        let (x, weight, inv_rms) = (x.f32(), weight.f32(), inv_rms.f32());
        let (dx, dweight) = (dx.f32(), dweight.f32());
        let pool = &self.pool;
        by_format!(dy.dtype, T => pool.install(|| {
            let dy = dy.of::<T>();
            backward_x(x, weight, inv_rms, dy, dx);
            backward_weight(x, inv_rms, dy, dweight);
        }));
    }
}

fn forward<T: Element>(x: &[f32], weight: &[f32], y: &mut [T], inv_rms: &mut [f32], eps: f32) {
    let hidden = weight.len();
    y.par_chunks_mut(ROWS_PER_TASK * hidden)
        .zip(x.par_chunks(ROWS_PER_TASK * hidden))
        .zip(inv_rms.par_chunks_mut(ROWS_PER_TASK))
        .for_each(|((y, x), inv_rms)| {
            with_buffers(|[buffer, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = y.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden));
                        for ((y, x), r) in rows.zip(inv_rms) {
                            *r = T::write(
                                y,
                                buffer,
                                #[inline(always)]
                                |y| forward_row(x, weight, y, eps),
                            );
                        }
                    },
                );
            });
        });
}

fn backward_x<T: Element>(x: &[f32], weight: &[f32], inv_rms: &[f32], dy: &[T], dx: &mut [f32]) {
    let hidden = weight.len();
    let piece = ROWS_PER_TASK * hidden;
    dx.par_chunks_mut(piece)
        .zip(x.par_chunks(piece))
        .zip(dy.par_chunks(piece))
        .zip(inv_rms.par_chunks(ROWS_PER_TASK))
        .for_each(|(((dx, x), dy), inv_rms)| {
            with_buffers(|[buffer, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden));
                        for (((dx, x), dy), &r) in rows.zip(dy.chunks_exact(hidden)).zip(inv_rms) {
                            let dy = T::read(dy, buffer);
                            let slope = row_slope(x, weight, dy, r);
                            for i in 0..hidden {
                                dx[i] += r * weight[i] * dy[i] - x[i] * slope;
                            }
                        }
                    },
                );
            });
        });
}

fn backward_weight<T: Element>(x: &[f32], inv_rms: &[f32], dy: &[T], dweight: &mut [f32]) {
    let hidden = dweight.len();
    dweight
        .par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, dweight)| {
            let columns = task * COLUMNS_PER_TASK..task * COLUMNS_PER_TASK + dweight.len();
            with_buffers(|[buffer, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = x.chunks_exact(hidden).zip(dy.chunks_exact(hidden));
                        for ((x, dy), &r) in rows.zip(inv_rms) {
                            let dy = T::read(&dy[columns.clone()], buffer);
                            add_weight_gradient(&x[columns.clone()], dy, r, dweight);
                        }
                    },
                );
            });
        });
}

/// Normalises one row into `y` and returns r.
#[inline(always)]
pub(super) fn forward_row(x: &[f32], weight: &[f32], y: &mut [f32], eps: f32) -> f32 {
    let mean_square = dot(x, x) / x.len() as f32;
    let r = 1.0 / (mean_square + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
        *y = w * (x * r);
    }
    r
}

/// `r³ / H · Σⱼ xⱼ wⱼ dyⱼ`: what the normalisation takes from each xᵢ.
#[inline(always)]
pub(super) fn row_slope(x: &[f32], weight: &[f32], dy: &[f32], r: f32) -> f32 {
    let n = x.len();
    let (weight, dy) = (&weight[..n], &dy[..n]);
    let mut lanes = [0.0f32; 16];
    let whole = n - n % 16;
    for i in (0..whole).step_by(16) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let j = i + lane;
            *sum = (x[j] * weight[j]).mul_add(dy[j], *sum);
        }
    }
    let tail: f32 = (whole..n).map(|j| x[j] * weight[j] * dy[j]).sum();
    let total: f32 = lanes.iter().sum::<f32>() + tail;
    r * r * r * total / n as f32
}

/// `dw += x · r · dy` for one row.
#[inline(always)]
pub(super) fn add_weight_gradient(x: &[f32], dy: &[f32], r: f32, dweight: &mut [f32]) {
    for ((dw, &x), &dy) in dweight.iter_mut().zip(x).zip(dy) {
        *dw += x * r * dy;
    }
}
