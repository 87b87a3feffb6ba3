//! SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"). With σ the logistic function:
//!
//! ```text
//! forward   act   = g σ(g) · u
//! backward  du    = dact · g σ(g)
//!           dg    = dact · u · σ(g) · (1 + g (1 − σ(g)))
//! ```

use super::cpu::ROWS_PER_TASK;
use super::cpu::element::{Element, by_format, with_buffers};
use super::cpu::vector::{sigmoid, vectorised};
use super::{Cpu, Region};
use rayon::prelude::*;

/// Multiplies the up projection by the gate's SiLU. All tensors have one format.
pub trait Swiglu {
    /// gate_up `(T, 2·width)`, the gate first → act `(T, width)`.
    fn swiglu_forward(&mut self, gate_up: Region, act: Region, width: usize);

    /// dact `(T, width)` → dgate_up `(T, 2·width)`, and act `(T, width)` again for the gradient of
    /// the down projection, so that the forward need not keep it.
    fn swiglu_backward(
        &mut self,
        gate_up: Region,
        dact: Region,
        dgate_up: Region,
        act: Region,
        width: usize,
    );
}

impl Swiglu for Cpu {
    fn swiglu_forward(&mut self, gate_up: Region, act: Region, width: usize) {
        let ([gate_up], [], [act]) = self.arena.views([gate_up], [], [act]);
        let pool = &self.pool;
        by_format!(act.dtype, T => {
            pool.install(|| forward(gate_up.of::<T>(), act.of(), width))
        });
    }

    fn swiglu_backward(
        &mut self,
        gate_up: Region,
        dact: Region,
        dgate_up: Region,
        act: Region,
        width: usize,
    ) {
        let ([gate_up, dact], [], [dgate_up, act]) =
            self.arena.views([gate_up, dact], [], [dgate_up, act]);
        let pool = &self.pool;
        by_format!(act.dtype, T => {
            let (gate_up, dact) = (gate_up.of::<T>(), dact.of());
            pool.install(|| backward(gate_up, dact, dgate_up.of(), act.of(), width))
        });
    }
}

fn forward<T: Element>(gate_up: &[T], act: &mut [T], width: usize) {
    act.par_chunks_mut(ROWS_PER_TASK * width)
        .zip(gate_up.par_chunks(ROWS_PER_TASK * 2 * width))
        .for_each(|(act, gate_up)| {
            with_buffers(|[a, b, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = act
                            .chunks_exact_mut(width)
                            .zip(gate_up.chunks_exact(2 * width));
                        for (act, gate_up) in rows {
                            let gate_up = T::read(gate_up, a);
                            T::write(
                                act,
                                b,
                                #[inline(always)]
                                |act| forward_row(gate_up, act),
                            );
                        }
                    },
                );
            });
        });
}

fn backward<T: Element>(
    gate_up: &[T],
    dact: &[T],
    dgate_up: &mut [T],
    act: &mut [T],
    width: usize,
) {
    let (piece, wide) = (ROWS_PER_TASK * width, ROWS_PER_TASK * 2 * width);
    act.par_chunks_mut(piece)
        .zip(dact.par_chunks(piece))
        .zip(gate_up.par_chunks(wide))
        .zip(dgate_up.par_chunks_mut(wide))
        .for_each(|(((act, dact), gate_up), dgate_up)| {
            with_buffers(|[a, b, c, d, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = act.chunks_exact_mut(width).zip(dact.chunks_exact(width));
                        let wide_rows = gate_up
                            .chunks_exact(2 * width)
                            .zip(dgate_up.chunks_exact_mut(2 * width));
                        for ((act, dact), (gate_up, dgate_up)) in rows.zip(wide_rows) {
                            let (gate_up, dact) = (T::read(gate_up, a), T::read(dact, b));
                            T::write(
                                dgate_up,
                                c,
                                #[inline(always)]
                                |dgate_up| {
                                    T::write(
                                        act,
                                        d,
                                        #[inline(always)]
                                        |act| backward_row(gate_up, dact, dgate_up, act),
                                    );
                                },
                            );
                        }
                    },
                );
            });
        });
}

#[inline(always)]
fn forward_row(gate_up: &[f32], act: &mut [f32]) {
    let (gate, up) = gate_up.split_at(act.len());
    for ((act, &g), &u) in act.iter_mut().zip(gate).zip(up) {
        *act = g * sigmoid(g) * u;
    }
}

#[inline(always)]
fn backward_row(gate_up: &[f32], dact: &[f32], dgate_up: &mut [f32], act: &mut [f32]) {
    let width = act.len();
    let (gate, up) = gate_up.split_at(width);
    let (dgate, dup) = dgate_up.split_at_mut(width);
    let (up, dact, dup) = (&up[..width], &dact[..width], &mut dup[..width]);
    for i in 0..width {
        let (g, u, d) = (gate[i], up[i], dact[i]);
        let s = sigmoid(g);
        let silu = g * s;
        act[i] = silu * u;
        dup[i] = d * silu;
        dgate[i] = d * u * s * (1.0 + g * (1.0 - s));
    }
}
