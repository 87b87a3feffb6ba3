//! Launches of `kernels/qk_norm.cu`.

use super::geometry::{WARP, is_grouped};
use super::{Arg, Cuda, Launch, kernel};
use crate::ops::{QkNorm, QkNormShape, Region};

const THREADS: usize = 256;

/// Threads of a multiprocessor at a time.
const RESIDENT_THREADS: usize = 768;

/// Numbers of a head that a lane holds.
const COLUMNS: usize = 8;

/// Heads that a group of lanes has on their way at a time.
const FORWARD_HEADS: usize = 4;
const BACKWARD_HEADS: usize = 2;

/// Lanes that hold a head, and whether each has neighbouring columns.
fn lanes_of_head(head_dim: usize, tensors: &[Region]) -> (usize, bool) {
    assert!(
        head_dim <= WARP * COLUMNS,
        "normalised heads of {head_dim} numbers; at most {} are supported",
        WARP * COLUMNS
    );
    match is_grouped(COLUMNS, head_dim, tensors) {
        true => ((head_dim / COLUMNS).next_power_of_two(), true),
        false => (WARP, false),
    }
}

impl Cuda {
    /// Blocks for `heads` heads, where each group of lanes has `at_a_time` on their way.
    fn blocks_for(&self, heads: usize, lanes: usize, at_a_time: usize) -> usize {
        let needed = heads.div_ceil(THREADS / lanes * at_a_time);
        needed.min(self.resident_blocks(THREADS, RESIDENT_THREADS))
    }
}

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
        let (heads, kv_heads, head_dim) = (shape.heads, shape.kv_heads, shape.head_dim);
        let all = heads + 2 * kv_heads;
        let tokens = raw.len / (all * head_dim);
        assert_eq!(
            (out.len, inv_rms.len, weights.0.len, weights.1.len),
            (raw.len, tokens * (heads + kv_heads), head_dim, head_dim),
            "lengths of a normalisation of heads"
        );
        let (lanes, grouped) = lanes_of_head(head_dim, &[raw, out, weights.0, weights.1]);
        let name = match grouped {
            true => kernel!(raw.dtype, "qk_norm_forward"),
            false => kernel!(raw.dtype, "qk_norm_forward_scalar"),
        };
        let arguments = [
            self.address(raw),
            self.address(weights.0),
            self.address(weights.1),
            self.address(out),
            self.address(inv_rms),
            Arg::U32(tokens as u32),
            Arg::U32(heads as u32),
            Arg::U32(kv_heads as u32),
            Arg::U32(head_dim as u32),
            Arg::U32(lanes as u32),
            Arg::F32(eps),
        ];
        let blocks = self.blocks_for(tokens * all, lanes, FORWARD_HEADS);
        self.launch(name, Launch::blocks(blocks, THREADS as u32), &arguments);
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
        let (heads, kv_heads, head_dim) = (shape.heads, shape.kv_heads, shape.head_dim);
        let (all, normed) = (heads + 2 * kv_heads, heads + kv_heads);
        let tokens = raw.len / (all * head_dim);
        assert_eq!(
            (dqkv.len, inv_rms.len, dweights.0.len, dweights.1.len),
            (raw.len, tokens * normed, head_dim, head_dim),
            "lengths of the gradient of a normalisation of heads"
        );
        if tokens == 0 {
            return;
        }
        let (lanes, grouped) = lanes_of_head(head_dim, &[raw, dqkv, weights.0, weights.1]);
        let name = match grouped {
            true => kernel!(raw.dtype, "qk_norm_backward"),
            false => kernel!(raw.dtype, "qk_norm_backward_scalar"),
        };
        // Query heads, then key heads: those of a launch share a weight.
        let kinds = [
            (0, heads, weights.0, dweights.0),
            (heads, kv_heads, weights.1, dweights.1),
        ];
        for (first, count, weight, dweight) in kinds {
            let blocks = self.blocks_for(tokens * count, lanes, BACKWARD_HEADS);
            let blocks = self.workspace_rows(blocks, head_dim);
            let partials = self.workspace.first(blocks * head_dim);
            let arguments = [
                self.address(raw),
                self.address(weight),
                self.address(inv_rms),
                self.address(dqkv),
                self.address(partials),
                Arg::U32(tokens as u32),
                Arg::U32(all as u32),
                Arg::U32(normed as u32),
                Arg::U32(first as u32),
                Arg::U32(count as u32),
                Arg::U32(head_dim as u32),
                Arg::U32(lanes as u32),
            ];
            self.launch(name, Launch::blocks(blocks, THREADS as u32), &arguments);
            self.add_column_sums(partials, dweight);
        }
    }
}
