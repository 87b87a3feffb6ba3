//! Token embedding: `out[t] = table[ids[t]]`.

use super::cpu::element::{Element, by_format};
use super::cpu::matrix::MatMut;
use super::cpu::vector::vectorised;
use super::{Cpu, Indices, Region};
use rayon::prelude::*;

/// Looks token ids up in a table. The table may be in half precision, all else is float32.
pub trait Embedding {
    /// `out[t] = table[ids[t]]`: table `(V, hidden)`, ids `(T)`, out `(T, hidden)`.
    fn embedding_forward(&mut self, table: Region, ids: Indices, out: Region, hidden: usize);

    /// `dtable[ids[t]] += dout[t]`, added in the order of t: dout `(T, hidden)`, dtable
    /// `(V, hidden)`.
    fn embedding_backward(&mut self, dout: Region, ids: Indices, dtable: Region, hidden: usize);
}

/// Columns that one task of the backward adds up.
const COLUMNS_PER_TASK: usize = 64;

impl Embedding for Cpu {
    fn embedding_forward(&mut self, table: Region, ids: Indices, out: Region, hidden: usize) {
        let ([table], [ids], [out]) = self.arena.views([table], [ids], [out]);
        let out = out.f32();
        let pool = &self.pool;
        by_format!(table.dtype, T => {
            pool.install(|| forward(table.of::<T>(), ids, out, hidden))
        });
    }

    // Each task owns some columns of the whole table and walks the tokens in order, so that equal
    // ids need no atomics and the sum's order is fixed.
    fn embedding_backward(&mut self, dout: Region, ids: Indices, dtable: Region, hidden: usize) {
        let ([dout], [ids], [dtable]) = self.arena.split_with_indices([dout], [ids], [dtable]);
        let vocab = dtable.len() / hidden;
        let mut rest = MatMut::new(dtable, vocab, hidden);
        let mut tasks = Vec::with_capacity(hidden.div_ceil(COLUMNS_PER_TASK));
        for start in (0..hidden).step_by(COLUMNS_PER_TASK) {
            let (columns, right) = rest.split_cols(COLUMNS_PER_TASK.min(hidden - start));
            rest = right;
            tasks.push((start, columns));
        }
        self.pool.install(|| {
            tasks.into_par_iter().for_each(|(start, mut columns)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (dout, &id) in dout.chunks_exact(hidden).zip(ids) {
                            let row = columns.row_mut(id as usize);
                            for (d, &g) in row.iter_mut().zip(&dout[start..]) {
                                *d += g;
                            }
                        }
                    },
                );
            });
        });
    }
}

fn forward<T: Element>(table: &[T], ids: &[i32], out: &mut [f32], hidden: usize) {
    out.par_chunks_mut(hidden)
        .zip(ids)
        .with_min_len(32)
        .for_each(|(out, &id)| {
            let row = &table[id as usize * hidden..][..hidden];
            vectorised(
                #[inline(always)]
                || T::widen(row, out),
            );
        });
}
