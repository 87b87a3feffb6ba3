//! Launches of `kernels/rms_norm.cu`.

use super::geometry::{WARP, is_grouped};
use super::{Arg, Cuda, Launch, kernel};
use crate::ops::{Region, RmsNorm};

/// Threads of a block, and of a multiprocessor at a time.
const MAX_THREADS: usize = 1024;

/// Neighbours that move at once, and numbers of a row that a thread holds.
const GROUP: usize = 4;
const COLUMNS: usize = 8;

/// Rows that a block of the forward has on their way at a time.
const ROWS: usize = 2;

/// Threads of a block for rows of any width.
const ANY_THREADS: usize = 512;

/// Threads and columns of a block that adds the rows of a matrix.
const SUM_THREADS: usize = 512;
const SUM_COLUMNS: usize = WARP;

/// Threads that hold a row of `width` numbers, if a block can.
fn threads_of_row(width: usize, tensors: &[Region]) -> Option<usize> {
    let threads = width.div_ceil(COLUMNS).next_multiple_of(WARP);
    (threads <= MAX_THREADS && is_grouped(GROUP, width, tensors)).then_some(threads)
}

impl Cuda {
    /// `out += the sum of the rows of partials`, in their order: partials `(count, width)` float32,
    /// out `(width)`.
    pub(super) fn add_column_sums(&mut self, partials: Region, out: Region) {
        let (width, count) = (out.len, partials.len / out.len);
        let arguments = [
            self.address(partials),
            self.address(out),
            Arg::U32(count as u32),
            Arg::U32(width as u32),
        ];
        let launch = Launch::blocks(width.div_ceil(SUM_COLUMNS), SUM_THREADS as u32);
        self.launch("column_sum_f32", launch, &arguments);
    }
}

impl RmsNorm for Cuda {
    fn rms_norm_forward(
        &mut self,
        x: Region,
        weight: Region,
        y: Region,
        inv_rms: Region,
        eps: f32,
    ) {
        let (width, rows) = (weight.len, x.len / weight.len);
        assert_eq!(
            (x.len, y.len, inv_rms.len),
            (rows * width, rows * width, rows),
            "lengths of a normalisation"
        );
        let (name, launch) = match threads_of_row(width, &[x, weight, y]) {
            Some(threads) => {
                let blocks = self.resident_blocks(threads, MAX_THREADS);
                let launch = Launch::blocks(blocks.min(rows.div_ceil(ROWS)), threads as u32);
                (kernel!(y.dtype, "rms_norm_forward"), launch)
            }
            None => {
                let blocks = self.resident_blocks(ANY_THREADS, MAX_THREADS);
                let launch = Launch::blocks(blocks.min(rows), ANY_THREADS as u32);
                (kernel!(y.dtype, "rms_norm_forward_any"), launch)
            }
        };
        let arguments = [
            self.address(x),
            self.address(weight),
            self.address(y),
            self.address(inv_rms),
            Arg::U64(rows as u64),
            Arg::U32(width as u32),
            Arg::F32(eps),
        ];
        self.launch(name, launch, &arguments);
    }

    fn rms_norm_backward(
        &mut self,
        x: Region,
        weight: Region,
        inv_rms: Region,
        dy: Region,
        dx: Region,
        dweight: Region,
    ) {
        let (width, rows) = (weight.len, x.len / weight.len);
        assert_eq!(
            (x.len, dy.len, dx.len, inv_rms.len, dweight.len),
            (rows * width, rows * width, rows * width, rows, width),
            "lengths of a normalisation's gradient"
        );
        if rows == 0 {
            return;
        }
        let (rows_argument, width_argument) = (Arg::U64(rows as u64), Arg::U32(width as u32));
        let [x_address, dy_address] = [self.address(x), self.address(dy)];
        let [inv_rms_address, dx_address] = [self.address(inv_rms), self.address(dx)];
        let threads = threads_of_row(width, &[x, weight, dy, dx]);
        let blocks = self.resident_blocks(threads.unwrap_or(ANY_THREADS), MAX_THREADS);
        // Each block's part of dweight is a row of the workspace.
        let blocks = self.workspace_rows(blocks.min(rows), width);
        let partials = self.workspace.first(blocks * width);
        let partials_address = self.address(partials);
        let weight_address = self.address(weight);
        if let Some(threads) = threads {
            let arguments = [
                x_address,
                weight_address,
                inv_rms_address,
                dy_address,
                dx_address,
                partials_address,
                rows_argument,
                width_argument,
            ];
            let launch = Launch::blocks(blocks, threads as u32);
            self.launch(kernel!(dy.dtype, "rms_norm_backward"), launch, &arguments);
        } else {
            let arguments = [
                x_address,
                inv_rms_address,
                dy_address,
                partials_address,
                rows_argument,
                width_argument,
            ];
            let mut launch = Launch::blocks(width.div_ceil(ANY_THREADS), ANY_THREADS as u32);
            launch.grid[1] = blocks as u32;
            let name = kernel!(dy.dtype, "rms_norm_backward_weight_any");
            self.launch(name, launch, &arguments);
            let arguments = [
                x_address,
                weight_address,
                inv_rms_address,
                dy_address,
                dx_address,
                rows_argument,
                width_argument,
            ];
            let launch = Launch::blocks(blocks, ANY_THREADS as u32);
            let name = kernel!(dy.dtype, "rms_norm_backward_any");
            self.launch(name, launch, &arguments);
        }
        self.add_column_sums(partials, dweight);
    }
}
