//! Rotary position embedding (Su et al. 2021, "RoFormer"), in the half-split layout of Hugging Face
//! models: pair i of a head is (xᵢ, xᵢ₊ᴰ⸝₂), turned by the angle θᵢ = position · inv_freqᵢ.
//!
//! ```text
//! forward   x′ᵢ = xᵢ cos θᵢ − xᵢ₊ᴰ⸝₂ sin θᵢ      x′ᵢ₊ᴰ⸝₂ = xᵢ₊ᴰ⸝₂ cos θᵢ + xᵢ sin θᵢ
//! backward  the same rotation by −θᵢ
//! ```

use super::cpu::ROWS_PER_TASK;
use super::cpu::vector::vectorised;
use super::{Cpu, Indices, Region};
use rayon::prelude::*;

/// Sizes of the rows that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Heads at the start of each row that are rotated (queries and keys).
    pub rotated_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of a whole row.
    pub row: usize,
}

/// Rotates query and key heads by their position.
pub trait Rope {
    /// Rotates rows of qkv `(T, row)` in place. positions `(T)`; cos and sin `(positions, head_dim/2)`.
    fn rope_forward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        qkv: Region,
    );

    /// Rotates the gradient back, in place: dqkv `(T, row)`.
    fn rope_backward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        dqkv: Region,
    );
}

impl Rope for Cpu {
    fn rope_forward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        qkv: Region,
    ) {
        rotate(self, shape, positions, cos, sin, qkv, 1.0);
    }

    fn rope_backward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        dqkv: Region,
    ) {
        rotate(self, shape, positions, cos, sin, dqkv, -1.0);
    }
}

/// Rotates by `direction` times the angle.
fn rotate(
    cpu: &mut Cpu,
    shape: RopeShape,
    positions: Indices,
    cos: Region,
    sin: Region,
    x: Region,
    direction: f32,
) {
    let ([cos, sin], [positions], [x]) = cpu.arena.split_with_indices([cos, sin], [positions], [x]);
    let half = shape.head_dim / 2;
    cpu.pool.install(|| {
        x.par_chunks_mut(ROWS_PER_TASK * shape.row)
            .zip(positions.par_chunks(ROWS_PER_TASK))
            .for_each(|(x, positions)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (row, &position) in x.chunks_exact_mut(shape.row).zip(positions) {
                            let cos = &cos[position as usize * half..][..half];
                            let sin = &sin[position as usize * half..][..half];
                            let heads = row.chunks_exact_mut(shape.head_dim);
                            for head in heads.take(shape.rotated_heads) {
                                let (first, second) = head.split_at_mut(half);
                                let pairs = first.iter_mut().zip(second);
                                for ((a, b), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
                                    let sin = direction * sin;
                                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                                }
                            }
                        }
                    },
                );
            });
    });
}
