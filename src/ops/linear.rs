//! Matrix products with a weight, as `torch.nn.Linear` has them.
//!
//! ```text
//! forward   y   = x·Wᵀ + b (+ residual)
//! backward  dx  = dy·W
//!           dW += dyᵀ·x,   db += Σ over rows of dy
//! ```

use super::cpu::matrix::{MatMut, MatRef, Write, matmul};
use super::cpu::vector::vectorised;
use super::{Cpu, Region};
use rayon::prelude::*;

/// Sizes of a linear layer applied to a batch of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x and of the weight.
    pub inputs: usize,
    /// Columns of y, rows of the weight.
    pub outputs: usize,
}

/// Multiplies by a weight matrix.
pub trait Linear {
    /// x `(rows, inputs)`, weight `(outputs, inputs)`, bias `(outputs)`, residual
    /// `(rows, outputs)` → y `(rows, outputs)`.
    fn linear_forward(
        &mut self,
        shape: LinearShape,
        x: Region,
        weight: Region,
        bias: Option<Region>,
        residual: Option<Region>,
        y: Region,
    );

    /// dy `(rows, outputs)` → dx `(rows, inputs)`, overwritten.
    fn linear_backward_input(&mut self, shape: LinearShape, dy: Region, weight: Region, dx: Region);

    /// dy `(rows, outputs)`, x `(rows, inputs)` → dweight `(outputs, inputs)` and dbias
    /// `(outputs)`, both added to.
    fn linear_backward_weight(
        &mut self,
        shape: LinearShape,
        dy: Region,
        x: Region,
        dweight: Region,
        dbias: Option<Region>,
    );
}

/// Columns of dbias that one task sums.
const COLUMNS_PER_TASK: usize = 64;

impl Linear for Cpu {
    fn linear_forward(
        &mut self,
        shape: LinearShape,
        x: Region,
        weight: Region,
        bias: Option<Region>,
        residual: Option<Region>,
        y: Region,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        let none = Region::EMPTY;
        let reads = [x, weight, bias.unwrap_or(none), residual.unwrap_or(none)];
        let ([x, weight, bias, residual], [y]) = self.arena.split(reads, [y]);
        self.pool.install(|| {
            let write = match (residual.is_empty(), bias.is_empty()) {
                (true, true) => Write::Replace,
                (no_residual, no_bias) => {
                    y.par_chunks_mut(outputs)
                        .enumerate()
                        .with_min_len(16)
                        .for_each(|(t, y)| {
                            match no_residual {
                                true => y.copy_from_slice(bias),
                                false => y.copy_from_slice(&residual[t * outputs..][..outputs]),
                            }
                            if !no_residual && !no_bias {
                                y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
                            }
                        });
                    Write::Add
                }
            };
            let x = MatRef::new(x, rows, inputs);
            let weight = MatRef::new(weight, outputs, inputs);
            matmul(
                MatMut::new(y, rows, outputs),
                write,
                1.0,
                x,
                weight.t(),
                true,
            );
        });
    }

    fn linear_backward_input(
        &mut self,
        shape: LinearShape,
        dy: Region,
        weight: Region,
        dx: Region,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        let ([dy, weight], [dx]) = self.arena.split([dy, weight], [dx]);
        let dy = MatRef::new(dy, rows, outputs);
        let weight = MatRef::new(weight, outputs, inputs);
        let dx = MatMut::new(dx, rows, inputs);
        self.pool
            .install(|| matmul(dx, Write::Replace, 1.0, dy, weight, true));
    }

    fn linear_backward_weight(
        &mut self,
        shape: LinearShape,
        dy: Region,
        x: Region,
        dweight: Region,
        dbias: Option<Region>,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        let writes = [dweight, dbias.unwrap_or(Region::EMPTY)];
        let ([dy, x], [dweight, dbias]) = self.arena.split([dy, x], writes);
        self.pool.install(|| {
            dbias
                .par_chunks_mut(COLUMNS_PER_TASK)
                .enumerate()
                .for_each(|(task, dbias)| {
                    let start = task * COLUMNS_PER_TASK;
                    vectorised(
                        #[inline(always)]
                        || {
                            for dy in dy.chunks_exact(outputs) {
                                dbias
                                    .iter_mut()
                                    .zip(&dy[start..])
                                    .for_each(|(db, &dy)| *db += dy);
                            }
                        },
                    );
                });
            let dy = MatRef::new(dy, rows, outputs);
            let x = MatRef::new(x, rows, inputs);
            let dweight = MatMut::new(dweight, outputs, inputs);
            matmul(dweight, Write::Add, 1.0, dy.t(), x, true);
        });
    }
}
