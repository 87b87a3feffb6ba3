//! Launches of `kernels/linear.cu`.

use super::Cuda;
use crate::ops::{Linear, LinearShape, Region};

impl Linear for Cuda {
    fn linear_forward(
        &mut self,
        shape: LinearShape,
        x: Region,
        weight: Region,
        bias: Option<Region>,
        residual: Option<Region>,
        y: Region,
    ) {
        unimplemented!()
    }

    fn linear_backward_input(
        &mut self,
        shape: LinearShape,
        dy: Region,
        weight: Region,
        dx: Region,
    ) {
        unimplemented!()
    }

    fn linear_backward_weight(
        &mut self,
        shape: LinearShape,
        dy: Region,
        x: Region,
        dweight: Region,
        dbias: Option<Region>,
    ) {
        unimplemented!()
    }
}
