//! Launches of `kernels/swiglu.cu`.

use super::{Arg, Cuda, Launch, kernel};
use crate::ops::{Region, Swiglu};

const THREADS: usize = 256;

/// Blocks along y take the rows in turn; there may be no more of them.
const MAX_GRID_Y: usize = 65_535;

/// Blocks along x share a row, 16 bytes a thread.
fn grid(rows: usize, width: usize, element: usize) -> Launch {
    let mut launch = Launch::blocks((width * element).div_ceil(16 * THREADS), THREADS as u32);
    launch.grid[1] = rows.min(MAX_GRID_Y) as u32;
    launch
}

impl Swiglu for Cuda {
    fn swiglu_forward(&mut self, gate_up: Region, act: Region, width: usize) {
        let rows = act.len / width;
        assert_eq!(
            (gate_up.len, act.len),
            (2 * rows * width, rows * width),
            "lengths of swiglu"
        );
        let arguments = [
            self.address(gate_up),
            self.address(act),
            Arg::U64(rows as u64),
            Arg::U32(width as u32),
        ];
        let launch = grid(rows, width, act.dtype.size());
        self.launch(kernel!(act.dtype, "swiglu_forward"), launch, &arguments);
    }

    fn swiglu_backward(
        &mut self,
        gate_up: Region,
        dact: Region,
        dgate_up: Region,
        act: Region,
        width: usize,
    ) {
        let rows = act.len / width;
        assert_eq!(
            (gate_up.len, dact.len, dgate_up.len, act.len),
            (
                2 * rows * width,
                rows * width,
                2 * rows * width,
                rows * width
            ),
            "lengths of swiglu"
        );
        let arguments = [
            self.address(gate_up),
            self.address(dact),
            self.address(dgate_up),
            self.address(act),
            Arg::U64(rows as u64),
            Arg::U32(width as u32),
        ];
        let launch = grid(rows, width, act.dtype.size());
        self.launch(kernel!(act.dtype, "swiglu_backward"), launch, &arguments);
    }
}
