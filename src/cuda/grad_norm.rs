//! Launches of `kernels/grad_norm.cu`.

use super::Cuda;
use crate::ops::{GradNorm, Region};

impl GradNorm for Cuda {
    fn grad_norm(&mut self, gradients: Region, unscale: f32, max_norm: f32, clip: Region) {
        unimplemented!()
    }
}
