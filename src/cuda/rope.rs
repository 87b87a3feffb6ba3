//! Launches of `kernels/rope.cu`.

use super::geometry::is_grouped;
use super::{Arg, Cuda, Launch, kernel};
use crate::ops::{Indices, Region, Rope, RopeShape};

const THREADS: usize = 256;

/// Heads that a thread turns.
const HEADS: usize = 4;

impl Rope for Cuda {
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
    cuda: &mut Cuda,
    shape: RopeShape,
    positions: Indices,
    cos: Region,
    sin: Region,
    x: Region,
    direction: f32,
) {
    let tokens = positions.len;
    assert_eq!(x.len, tokens * shape.row, "length of the rotated rows");
    let half = shape.head_dim / 2;
    // What 16 bytes hold. Rows must be whole pieces as well as halves of heads.
    let count = 16 / x.dtype.size();
    let grouped = is_grouped(count, half, &[x, cos, sin]) && shape.row.is_multiple_of(count);
    let (name, count) = match grouped {
        true => (kernel!(x.dtype, "rope"), count),
        false => (kernel!(x.dtype, "rope_scalar"), 1),
    };
    let sets = shape.rotated_heads.div_ceil(HEADS);
    let threads = tokens * sets * (half / count);
    assert!(
        u32::try_from(threads.next_multiple_of(THREADS)).is_ok(),
        "too many tokens in a batch: {tokens}"
    );
    let arguments = [
        cuda.index_address(positions),
        cuda.address(cos),
        cuda.address(sin),
        cuda.address(x),
        Arg::U32(tokens as u32),
        Arg::U32(shape.rotated_heads as u32),
        Arg::U32(half as u32),
        Arg::U32(shape.row as u32),
        Arg::U32(sets as u32),
        Arg::F32(direction),
    ];
    let launch = Launch::blocks(threads.div_ceil(THREADS), THREADS as u32);
    cuda.launch(name, launch, &arguments);
}
