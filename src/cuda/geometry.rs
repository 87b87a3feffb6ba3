//! Sizes of launches that the kernels bound by memory share.

use super::{Arg, Cuda, Launch};
use crate::ops::Region;

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// Threads of a block of [`warps`].
pub(super) const THREADS: usize = 256;

/// A size as an argument.
pub(super) fn number(size: usize) -> Arg {
    Arg::U32(u32::try_from(size).expect("a size that fits 32 bits"))
}

/// A warp for each of `rows` and each `columns` of `width`.
pub(super) fn warps(rows: usize, width: usize, columns: usize) -> Launch {
    let mut launch = Launch::blocks(rows.div_ceil(THREADS / WARP), THREADS as u32);
    launch.grid[1] = width.div_ceil(columns) as u32;
    launch
}

impl Cuda {
    /// Blocks of `threads` that run at the same time, where registers are left for `resident` threads
    /// a multiprocessor: as many as blocks that take pieces of work in turn should be.
    pub(super) fn resident_blocks(&self, threads: usize, resident: usize) -> usize {
        self.limits.multiprocessors as usize * (resident / threads).max(1)
    }

    /// Rows of `width` numbers that fit into the workspace, at most `wanted`.
    pub(super) fn workspace_rows(&self, wanted: usize, width: usize) -> usize {
        let rows = wanted.min(self.workspace.len / width);
        assert!(
            rows > 0 || wanted == 0,
            "the workspace does not hold a row of {width} numbers"
        );
        rows
    }
}

/// Whether every row of `width` numbers of each tensor is whole groups of `count` numbers that may
/// move at once, by 16 bytes at most.
pub(super) fn is_grouped(count: usize, width: usize, tensors: &[Region]) -> bool {
    let aligned = |tensor: &Region| {
        tensor
            .offset
            .is_multiple_of((count * tensor.dtype.size()).min(16))
    };
    width.is_multiple_of(count) && tensors.iter().all(aligned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn groups_need_whole_rows_and_aligned_tensors() {
        let tensor = |offset, dtype| Region {
            offset,
            len: 64,
            dtype,
        };
        assert!(is_grouped(
            4,
            8,
            &[tensor(16, DType::F32), tensor(8, DType::BF16)]
        ));
        assert!(!is_grouped(4, 6, &[tensor(16, DType::F32)]));
        assert!(!is_grouped(4, 8, &[tensor(8, DType::F32)]));
        assert!(!is_grouped(8, 8, &[tensor(8, DType::F16)]));
        assert!(is_grouped(8, 8, &[tensor(16, DType::F32)]));
    }
}
