//! Launches of `kernels/cast.cu`.

use super::Cuda;
use crate::ops::{Cast, Region};

impl Cast for Cuda {
    fn cast(&mut self, from: Region, to: Region) {
        unimplemented!()
    }
}
