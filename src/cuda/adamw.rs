//! Launches of `kernels/adamw.cu`.

use super::Cuda;
use crate::ops::{AdamW, AdamWStep, Region};

impl AdamW for Cuda {
    fn adamw(
        &mut self,
        step: AdamWStep,
        clip: Region,
        weights: Region,
        gradients: Region,
        m: Region,
        v: Region,
        operands: Option<Region>,
    ) {
        unimplemented!()
    }
}
