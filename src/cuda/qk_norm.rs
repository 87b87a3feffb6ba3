//! Launches of `kernels/qk_norm.cu`.

use super::Cuda;
use crate::ops::{QkNorm, QkNormShape, Region};

impl QkNorm for Cuda {
    fn qk_norm_forward(
        &mut self,
        shape: QkNormShape,
        raw: Region,
        weights: (Region, Region),
        out: Region,
        inv_rms: Region,
        eps: f32,
    ) {
        unimplemented!()
    }

    fn qk_norm_backward(
        &mut self,
        shape: QkNormShape,
        raw: Region,
        weights: (Region, Region),
        inv_rms: Region,
        dqkv: Region,
        dweights: (Region, Region),
    ) {
        unimplemented!()
    }
}
