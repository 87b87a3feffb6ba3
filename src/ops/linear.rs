//! Matrix products with a weight, as `torch.nn.Linear` has them.
//!
//! ```text
//! forward   y   = x·Wᵀ + b (+ residual)
//! backward  dx  = dy·W
//!           dW += dyᵀ·x,   db += Σ over rows of dy
//! ```

use super::cpu::element::{Element, by_format, with_buffers};
use super::cpu::matrix::{MatMut, MatRef, Write, matmul};
use super::cpu::product::{add_product, product};
use super::cpu::vector::vectorised;
use super::{Cpu, Region};
use crate::dtype::DType;
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

/// Multiplies by a weight matrix. x, weight, y, dx and dy may be in half precision, all in the same;
/// bias, residual and the weight's gradients are float32, and so is y with a residual. Sums are
/// float32, rounded once.
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
        let none = Region::EMPTY;
        let reads = [x, weight, bias.unwrap_or(none), residual.unwrap_or(none)];
        let ([x, weight, bias, residual], [], [y]) = self.arena.views(reads, [], [y]);
        let added = Added {
            bias: bias.f32(),
            residual: residual.f32(),
            columns: shape.outputs,
        };
        self.pool.install(|| {
            by_format!(
                x.dtype,
                f32 => forward_f32(shape, x.f32(), weight.f32(), added, y.f32()),
                T => match y.dtype {
                    DType::F32 => forward(shape, x.of::<T>(), weight.of(), added, y.f32()),
                    _ => forward(shape, x.of::<T>(), weight.of(), added, y.of::<T>()),
                }
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
        let ([dy, weight], [], [dx]) = self.arena.views([dy, weight], [], [dx]);
        self.pool.install(|| {
            by_format!(
                dy.dtype,
                f32 => {
                    let [dy, weight] = shape.gradient_operands(dy.f32(), weight.f32());
                    let dx = MatMut::new(dx.f32(), shape.rows, shape.inputs);
                    matmul(dx, Write::Replace, 1.0, dy, weight, true);
                },
                T => {
                    let [dy, weight] = shape.gradient_operands::<T>(dy.of(), weight.of());
                    let dx = MatMut::new(dx.of::<T>(), shape.rows, shape.inputs);
                    product(dx, dy, weight, |_, _, _| ());
                }
            );
        });
    }

    fn linear_backward_weight(
        &mut self,
        shape: LinearShape,
        dy: Region,
        x: Region,
        dweight: Region,
        dbias: Option<Region>,
    ) {
        let writes = [dweight, dbias.unwrap_or(Region::EMPTY)];
        let ([dy, x], [], [dweight, dbias]) = self.arena.views([dy, x], [], writes);
        let (dweight, dbias) = (dweight.f32(), dbias.f32());
        let dweight = MatMut::new(dweight, shape.outputs, shape.inputs);
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        self.pool.install(|| {
            by_format!(dy.dtype, T => add_column_sums(dy.of::<T>(), outputs, dbias));
            by_format!(
                dy.dtype,
                f32 => {
                    let dy = MatRef::new(dy.f32(), rows, outputs);
                    let x = MatRef::new(x.f32(), rows, inputs);
                    matmul(dweight, Write::Add, 1.0, dy.t(), x, true);
                },
                T => {
                    let dy = MatRef::new(dy.of::<T>(), rows, outputs);
                    let x = MatRef::new(x.of::<T>(), rows, inputs);
                    add_product(dweight, dy.t(), x);
                }
            );
        });
    }
}

impl LinearShape {
    /// dy and the weight as matrices.
    fn gradient_operands<'a, T>(&self, dy: &'a [T], weight: &'a [T]) -> [MatRef<'a, T>; 2] {
        [
            MatRef::new(dy, self.rows, self.outputs),
            MatRef::new(weight, self.outputs, self.inputs),
        ]
    }
}

/// What is added to the product; empty slices for nothing.
#[derive(Clone, Copy)]
struct Added<'a> {
    bias: &'a [f32],
    residual: &'a [f32],
    columns: usize,
}

impl Added<'_> {
    /// Adds what belongs to a part of row t that starts at a column.
    fn add_to(&self, t: usize, column: usize, y: &mut [f32]) {
        if !self.bias.is_empty() {
            y.iter_mut()
                .zip(&self.bias[column..])
                .for_each(|(y, &b)| *y += b);
        }
        if !self.residual.is_empty() {
            let residual = &self.residual[t * self.columns + column..];
            y.iter_mut().zip(residual).for_each(|(y, &r)| *y += r);
        }
    }
}

fn forward<T: Element, C: Element>(
    shape: LinearShape,
    x: &[T],
    weight: &[T],
    added: Added,
    y: &mut [C],
) {
    let x = MatRef::new(x, shape.rows, shape.inputs);
    let weight = MatRef::new(weight, shape.outputs, shape.inputs);
    let y = MatMut::new(y, shape.rows, shape.outputs);
    product(y, x, weight.t(), |t, column, y| added.add_to(t, column, y));
}

/// In float32 the product is added to what y is to start from, so that nothing is passed over twice.
fn forward_f32(shape: LinearShape, x: &[f32], weight: &[f32], added: Added, y: &mut [f32]) {
    let LinearShape {
        rows,
        inputs,
        outputs,
    } = shape;
    let Added { bias, residual, .. } = added;
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
}

/// `sums[o] += Σ over rows of dy[·, o]`.
fn add_column_sums<T: Element>(dy: &[T], outputs: usize, sums: &mut [f32]) {
    sums.par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, sums)| {
            let start = task * COLUMNS_PER_TASK;
            with_buffers(|[buffer, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        for dy in dy.chunks_exact(outputs) {
                            let dy = T::read(&dy[start..start + sums.len()], buffer);
                            sums.iter_mut().zip(dy).for_each(|(sum, &dy)| *sum += dy);
                        }
                    },
                );
            });
        });
}
