//! SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"). With σ the logistic function:
//!
//! ```text
//! forward   act   = g σ(g) · u
//! backward  du    = dact · g σ(g)
//!           dg    = dact · u · σ(g) · (1 + g (1 − σ(g)))
//! ```

use super::cpu::ROWS_PER_TASK;
use super::cpu::vector::{sigmoid, vectorised};
use super::{Cpu, Region};
use rayon::prelude::*;

/// Multiplies the up projection by the gate's SiLU.
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
        let ([gate_up], [act]) = self.arena.split([gate_up], [act]);
        self.pool.install(|| {
            act.par_chunks_mut(ROWS_PER_TASK * width)
                .zip(gate_up.par_chunks(ROWS_PER_TASK * 2 * width))
                .for_each(|(act, gate_up)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let rows = act
                                .chunks_exact_mut(width)
                                .zip(gate_up.chunks_exact(2 * width));
                            for (act, gate_up) in rows {
                                let (gate, up) = gate_up.split_at(width);
                                for ((act, &g), &u) in act.iter_mut().zip(gate).zip(up) {
                                    *act = g * sigmoid(g) * u;
                                }
                            }
                        },
                    );
                });
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
        let ([gate_up, dact], [dgate_up, act]) = self.arena.split([gate_up, dact], [dgate_up, act]);
        let (piece, wide) = (ROWS_PER_TASK * width, ROWS_PER_TASK * 2 * width);
        self.pool.install(|| {
            act.par_chunks_mut(piece)
                .zip(dact.par_chunks(piece))
                .zip(gate_up.par_chunks(wide))
                .zip(dgate_up.par_chunks_mut(wide))
                .for_each(|(((act, dact), gate_up), dgate_up)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let rows = act.chunks_exact_mut(width).zip(dact.chunks_exact(width));
                            let wide_rows = gate_up
                                .chunks_exact(2 * width)
                                .zip(dgate_up.chunks_exact_mut(2 * width));
                            for ((act, dact), (gate_up, dgate_up)) in rows.zip(wide_rows) {
                                backward_row(gate_up, dact, dgate_up, act);
                            }
                        },
                    );
                });
        });
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
