//! Rotary position embedding (Su et al. 2021, "RoFormer"), in the half-split layout of Hugging Face
//! models: pair i of a head is (xᵢ, xᵢ₊ᴰ⸝₂), turned by the angle θᵢ = position · inv_freqᵢ.
//!
//! ```text
//! forward   x′ᵢ = xᵢ cos θᵢ − xᵢ₊ᴰ⸝₂ sin θᵢ      x′ᵢ₊ᴰ⸝₂ = xᵢ₊ᴰ⸝₂ cos θᵢ + xᵢ sin θᵢ
//! backward  the same rotation by −θᵢ
//! ```

use super::cpu::ROWS_PER_TASK;
use super::cpu::element::{Element, by_format, with_buffers};
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

/// Rotates query and key heads by their position. The rows may be in half precision, the tables are
/// float32.
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
        rotate_rows(self, shape, positions, [cos, sin], qkv, 1.0);
    }

    fn rope_backward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        dqkv: Region,
    ) {
        rotate_rows(self, shape, positions, [cos, sin], dqkv, -1.0);
    }
}

/// Rotates by `direction` times the angle.
fn rotate_rows(
    cpu: &mut Cpu,
    shape: RopeShape,
    positions: Indices,
    tables: [Region; 2],
    x: Region,
    direction: f32,
) {
    let (tables, [positions], [x]) = cpu.arena.views(tables, [positions], [x]);
    let [cos, sin] = tables.map(|table| table.f32());
    let pool = &cpu.pool;
    by_format!(x.dtype, T => {
        pool.install(|| rotate(shape, positions, [cos, sin], x.of::<T>(), direction))
    });
}

fn rotate<T: Element>(
    shape: RopeShape,
    positions: &[i32],
    [cos, sin]: [&[f32]; 2],
    x: &mut [T],
    direction: f32,
) {
    let half = shape.head_dim / 2;
    let rotated = shape.rotated_heads * shape.head_dim;
    x.par_chunks_mut(ROWS_PER_TASK * shape.row)
        .zip(positions.par_chunks(ROWS_PER_TASK))
        .for_each(|(x, positions)| {
            with_buffers(|[buffer, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (row, &position) in x.chunks_exact_mut(shape.row).zip(positions) {
                            let cos = &cos[position as usize * half..][..half];
                            let sin = &sin[position as usize * half..][..half];
                            T::update(
                                &mut row[..rotated],
                                buffer,
                                #[inline(always)]
                                |heads| {
                                    for head in heads.chunks_exact_mut(shape.head_dim) {
                                        rotate_head(head, cos, sin, direction);
                                    }
                                },
                            );
                        }
                    },
                );
            });
        });
}

#[inline(always)]
fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    let pairs = first.iter_mut().zip(second);
    for ((a, b), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
        let sin = direction * sin;
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
