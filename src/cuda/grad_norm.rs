//! Launches of `kernels/grad_norm.cu`.

use super::{Arg, Cuda, Launch};
use crate::ops::{GradNorm, Region};

const THREADS: u32 = 256;
const FINISH_THREADS: u32 = 1024;

/// Elements whose squares one block adds up.
const PIECE: usize = 65_536;

impl GradNorm for Cuda {
    fn grad_norm(&mut self, gradients: Region, unscale: f32, max_norm: f32, clip: Region) {
        let pieces = gradients.len.div_ceil(PIECE);
        // Float64 partial sums in two of the workspace's float32 each.
        assert!(
            pieces * 2 <= self.workspace.len,
            "the workspace holds too few partial sums for a gradient of {} numbers",
            gradients.len
        );
        let partials = self.address(self.workspace.first(pieces * 2));
        let arguments = [
            self.address(gradients),
            Arg::U64(gradients.len as u64),
            partials,
        ];
        let launch = Launch::blocks(pieces, THREADS);
        self.launch("grad_norm_partial_f32", launch, &arguments);
        let arguments = [
            partials,
            Arg::U32(pieces as u32),
            Arg::F32(unscale),
            Arg::F32(max_norm),
            self.address(clip),
        ];
        let launch = Launch::blocks(1, FINISH_THREADS);
        self.launch("grad_norm_finish_f32", launch, &arguments);
    }
}
