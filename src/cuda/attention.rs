//! Launches of `kernels/attention.cu`.

use super::Cuda;
use crate::ops::{Attention, AttentionShape, Indices, Region};

impl Attention for Cuda {
    fn attention_forward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
    ) {
        unimplemented!()
    }

    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
        dout: Region,
        dqkv: Region,
    ) {
        unimplemented!()
    }

    fn attention_cache(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
    ) {
        unimplemented!()
    }

    fn attention_decode(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
        out: Region,
    ) {
        unimplemented!()
    }
}
