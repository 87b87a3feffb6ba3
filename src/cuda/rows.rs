//! Launches of `kernels/rows.cu`.

use super::geometry::{THREADS, WARP, is_grouped, warps};
use super::{Arg, Call, Cuda, Launch};
use crate::ops::{Embedding, Indices, Region, Rows};

/// Groups of columns that a lane moves.
const GROUPS: usize = 4;

/// Neighbours that move at once where rows are whole groups of them.
const COLUMNS: usize = 4;

impl Rows for Cuda {
    fn rows_forward(&mut self, x: Region, rows: Indices, out: Region, hidden: usize) {
        // Rows of a matrix by number, as a table's by token id.
        self.embedding_forward(x, rows, out, hidden);
    }

    fn rows_backward(&mut self, dout: Region, rows: Indices, dx: Region, hidden: usize) {
        assert_eq!(dout.len, rows.len * hidden, "length of the rows' gradient");
        let tokens = dx.len / hidden;
        assert!(
            tokens <= self.workspace.len,
            "the workspace is too small to place {tokens} rows"
        );
        let places = self.pointer(self.workspace.first(tokens));
        self.ask(Call::Fill32 {
            to: places,
            bits: u32::MAX,
            count: tokens,
        });
        let places = Arg::Address(places);
        let arguments = [self.index_address(rows), places, Arg::U64(rows.len as u64)];
        let launch = Launch::blocks(rows.len.div_ceil(THREADS), THREADS as u32);
        self.launch("rows_places_i32", launch, &arguments);

        let (name, columns) = match is_grouped(COLUMNS, hidden, &[dout, dx]) {
            true => ("rows_backward_f32", COLUMNS),
            false => ("rows_backward_scalar_f32", 1),
        };
        let arguments = [
            self.address(dout),
            places,
            self.address(dx),
            Arg::U64(tokens as u64),
            Arg::U32(hidden as u32),
        ];
        let launch = warps(tokens, hidden, GROUPS * WARP * columns);
        self.launch(name, launch, &arguments);
    }
}
