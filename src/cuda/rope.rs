//! Launches of `kernels/rope.cu`.

use super::Cuda;
use crate::ops::{Indices, Region, Rope, RopeShape};

impl Rope for Cuda {
    fn rope_forward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        qkv: Region,
    ) {
        unimplemented!()
    }

    fn rope_backward(
        &mut self,
        shape: RopeShape,
        positions: Indices,
        cos: Region,
        sin: Region,
        dqkv: Region,
    ) {
        unimplemented!()
    }
}
