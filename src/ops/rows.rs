//! Picking rows of a matrix, so that the LM head sees supervised positions only.

use super::{Cpu, Indices, Region};
use rayon::prelude::*;

/// Gathers and scatters rows.
pub trait Rows {
    /// `out[i] = x[rows[i]]`: x `(T, hidden)`, rows `(S)`, out `(S, hidden)`.
    fn rows_forward(&mut self, x: Region, rows: Indices, out: Region, hidden: usize);

    /// `dx[rows[i]] = dout[i]`, all other rows zero: dout `(S, hidden)`, dx `(T, hidden)`. No row
    /// appears twice.
    fn rows_backward(&mut self, dout: Region, rows: Indices, dx: Region, hidden: usize);
}

impl Rows for Cpu {
    fn rows_forward(&mut self, x: Region, rows: Indices, out: Region, hidden: usize) {
        let ([x], [rows], [out]) = self.arena.split_with_indices([x], [rows], [out]);
        self.pool.install(|| {
            out.par_chunks_mut(hidden)
                .zip(rows)
                .with_min_len(32)
                .for_each(|(out, &row)| {
                    out.copy_from_slice(&x[row as usize * hidden..][..hidden]);
                });
        });
    }

    fn rows_backward(&mut self, dout: Region, rows: Indices, dx: Region, hidden: usize) {
        let ([dout], [rows], [dx]) = self.arena.split_with_indices([dout], [rows], [dx]);
        dx.fill(0.0);
        for (dout, &row) in dout.chunks_exact(hidden).zip(rows) {
            dx[row as usize * hidden..][..hidden].copy_from_slice(dout);
        }
    }
}
