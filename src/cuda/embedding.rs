//! Launches of `kernels/embedding.cu`.

use super::geometry::{THREADS, WARP, is_grouped, warps};
use super::{Arg, Cuda, Launch, kernel};
use crate::ops::{Embedding, Indices, Region};

/// Groups of columns that a lane of the forward moves.
const GROUPS: usize = 4;

/// Neighbours that move at once where rows are whole groups of them.
const COLUMNS: usize = 4;

/// Tokens that a block sorts.
const SORTED: usize = 2 * WARP;

impl Embedding for Cuda {
    fn embedding_forward(&mut self, table: Region, ids: Indices, out: Region, hidden: usize) {
        assert_eq!(out.len, ids.len * hidden, "length of the embedded rows");
        let (name, columns) = match is_grouped(COLUMNS, hidden, &[table, out]) {
            true => (kernel!(table.dtype, "embedding_forward"), COLUMNS),
            false => (kernel!(table.dtype, "embedding_forward_scalar"), 1),
        };
        let arguments = [
            self.address(table),
            self.index_address(ids),
            self.address(out),
            Arg::U64(ids.len as u64),
            Arg::U32(hidden as u32),
        ];
        let launch = warps(ids.len, hidden, GROUPS * WARP * columns);
        self.launch(name, launch, &arguments);
    }

    fn embedding_backward(&mut self, dout: Region, ids: Indices, dtable: Region, hidden: usize) {
        assert_eq!(dout.len, ids.len * hidden, "length of the rows' gradient");
        // Two numbers of 4 bytes for each token.
        assert!(
            2 * ids.len <= self.workspace.len,
            "the workspace is too small to sort {} tokens",
            ids.len
        );
        let order = self.address(self.workspace.first(2 * ids.len));
        let tokens = Arg::U64(ids.len as u64);
        let launch = Launch::blocks(ids.len.div_ceil(SORTED), THREADS as u32);
        let arguments = [self.index_address(ids), order, tokens];
        self.launch("embedding_order_i32", launch, &arguments);

        let (name, columns) = match is_grouped(COLUMNS, hidden, &[dout, dtable]) {
            true => ("embedding_backward_f32", COLUMNS),
            false => ("embedding_backward_scalar_f32", 1),
        };
        let arguments = [
            self.address(dout),
            order,
            self.address(dtable),
            tokens,
            Arg::U32(hidden as u32),
        ];
        let launch = warps(ids.len, hidden, WARP * columns);
        self.launch(name, launch, &arguments);
    }
}
