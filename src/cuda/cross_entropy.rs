//! Launches of `kernels/cross_entropy.cu`.

use super::{Arg, Cuda, Launch, kernel};
use crate::ops::{CrossEntropy, Indices, Region};

const THREADS: u32 = 512;

impl Cuda {
    /// The forward, and with a `scale` the backward. One kernel, so that both see the same bits.
    fn cross_entropy(
        &mut self,
        logits: Region,
        labels: Indices,
        stats: Region,
        scale: Option<f32>,
    ) {
        let vocab = logits.len / labels.len.max(1);
        let arguments = [
            self.address(logits),
            self.index_address(labels),
            self.address(stats),
            Arg::U32(vocab as u32),
            Arg::F32(scale.unwrap_or(0.0)),
            Arg::U32(u32::from(scale.is_some())),
        ];
        self.launch(
            kernel!(logits.dtype, "cross_entropy"),
            Launch::blocks(labels.len, THREADS),
            &arguments,
        );
    }
}

impl CrossEntropy for Cuda {
    fn cross_entropy_forward(&mut self, logits: Region, labels: Indices, stats: Region) {
        self.cross_entropy(logits, labels, stats, None);
    }

    fn cross_entropy_forward_backward(
        &mut self,
        logits: Region,
        labels: Indices,
        stats: Region,
        scale: f32,
    ) {
        self.cross_entropy(logits, labels, stats, Some(scale));
    }
}
