//! Launches of `kernels/swiglu.cu`.

use super::Cuda;
use crate::ops::{Region, Swiglu};

impl Swiglu for Cuda {
    fn swiglu_forward(&mut self, gate_up: Region, act: Region, width: usize) {
        unimplemented!()
    }

    fn swiglu_backward(
        &mut self,
        gate_up: Region,
        dact: Region,
        dgate_up: Region,
        act: Region,
        width: usize,
    ) {
        unimplemented!()
    }
}
