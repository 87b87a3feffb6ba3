//! Launches of `kernels/embedding.cu`.

use super::Cuda;
use crate::ops::{Embedding, Indices, Region};

impl Embedding for Cuda {
    fn embedding_forward(&mut self, table: Region, ids: Indices, out: Region, hidden: usize) {
        unimplemented!()
    }

    fn embedding_backward(&mut self, dout: Region, ids: Indices, dtable: Region, hidden: usize) {
        unimplemented!()
    }
}
