//! Launches of `kernels/rows.cu`.

use super::Cuda;
use crate::ops::{Indices, Region, Rows};

impl Rows for Cuda {
    fn rows_forward(&mut self, x: Region, rows: Indices, out: Region, hidden: usize) {
        unimplemented!()
    }

    fn rows_backward(&mut self, dout: Region, rows: Indices, dx: Region, hidden: usize) {
        unimplemented!()
    }
}
