//! Attention's backward: the probabilities again, a block at a time, from the lse of the forward.
//!
//! A pair of a block of queries and one of keys takes two products to find P and dS and three that use
//! them: dQ of the queries, dK and dV of the keys. Tasks must not share a sum. Either one task visits all
//! pairs of a sequence and a key head, five products each; or, where these tasks are too few for the
//! threads, every block of queries is a task and then every block of keys, three products and four. Both
//! add up in the same order, so the choice does not show in the bits.

use super::{
    Operand, Products, QUERIES, heads_of_query, key_blocks, query_blocks, seen_columns, sequences,
};
use crate::ops::AttentionShape;
use crate::ops::cpu::element::{Buffer, Element, with_buffers};
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};
use crate::ops::cpu::vector::{dot, exp, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// out and dout `(tokens, heads·head_dim)`, lse `(heads, tokens)`; qkv and dqkv
/// `(tokens, (heads + 2·kv_heads)·head_dim)`.
pub fn backward<T: Element>(
    shape: AttentionShape,
    seq_starts: &[i32],
    [qkv, out, dout]: [&[T]; 3],
    lse: &[f32],
    dqkv: &mut [T],
) {
    let tokens = out.len() / shape.q_size();
    let all = Reads {
        shape,
        qkv: MatRef::new(qkv, tokens, shape.qkv_size()),
        out: MatRef::new(out, tokens, shape.q_size()),
        dout: MatRef::new(dout, tokens, shape.q_size()),
        lse,
    };
    let mut dqkv = MatMut::new(dqkv, tokens, shape.qkv_size());
    let mut written = Vec::new();
    for (sequence, start) in sequences(seq_starts) {
        let (rows, below) = dqkv.split_rows(sequence.len());
        dqkv = below;
        let (dq, dkv) = rows.split_cols(shape.q_size());
        let (dk, dv) = dkv.split_cols(shape.kv_size());
        written.push((start..start + sequence.len(), [dq, dk, dv]));
    }
    if splits(shape, written.iter().map(|(rows, _)| rows.len())) {
        for (rows, [dq, dk, dv]) in written {
            by_queries(all, &rows, dq);
            by_keys(all, &rows, dk, dv);
        }
    } else {
        by_key_heads(all, written);
    }
}

/// Whether the threads of the current pool are done earlier when blocks are tasks.
fn splits(shape: AttentionShape, lengths: impl Iterator<Item = usize>) -> bool {
    let mut busy = vec![0; rayon::current_num_threads()];
    for pairs in lengths.map(|length| length * length) {
        for _ in 0..shape.kv_heads {
            if let Some(next) = busy.iter_mut().min() {
                *next += pairs;
            }
        }
    }
    let (all, longest) = (busy.iter().sum::<usize>(), busy.iter().max());
    longest.is_some_and(|longest| 5 * longest * busy.len() > 7 * all)
}

/// One task for each sequence and key head: it owns dK, dV and the dQ of the key head's queries.
fn by_key_heads<T: Element>(all: Reads<T>, written: Vec<(Range<usize>, [MatMut<T>; 3])>) {
    let (d, group) = (all.shape.head_dim, all.group());
    let mut tasks = Vec::new();
    for (rows, [mut dq, mut dk, mut dv]) in written {
        for kv_head in 0..all.shape.kv_heads {
            let (dq_heads, dk_head, dv_head);
            (dq_heads, dq) = dq.split_cols(group * d);
            (dk_head, dk) = dk.split_cols(d);
            (dv_head, dv) = dv.split_cols(d);
            tasks.push((rows.clone(), kv_head, [dq_heads, dk_head, dv_head]));
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(rows, kv_head, [dq, dk, dv])| {
            with_buffers(|[a, b, c, dk_sums, dv_sums, dq_sums, tile @ ..]| {
                let mut products = Products([a, b, c]);
                T::write_matrix(dk, dk_sums, |mut dk| {
                    T::write_matrix(dv, dv_sums, |mut dv| {
                        dk.clear();
                        dv.clear();
                        let mut dq = dq;
                        for head in kv_head * group..(kv_head + 1) * group {
                            let (mut dq_head, right) = dq.split_cols(d);
                            dq = right;
                            let head = all.head(&rows, head);
                            for queries in query_blocks(rows.len()) {
                                let (block, below) = dq_head.split_rows(queries.len());
                                dq_head = below;
                                let gradients = [dk.reborrow(), dv.reborrow()];
                                T::write_matrix(block, dq_sums, |dq| {
                                    head.visit(queries, dq, gradients, &mut products, tile);
                                });
                            }
                        }
                    });
                });
            });
        });
}

/// dQ of a sequence, a task for each query head and block of queries.
fn by_queries<T: Element>(all: Reads<T>, rows: &Range<usize>, mut dq: MatMut<T>) {
    let mut tasks = Vec::new();
    for queries in query_blocks(rows.len()) {
        let (mut heads, below) = dq.split_rows(queries.len());
        dq = below;
        for head in 0..all.shape.heads {
            let (block, right) = heads.split_cols(all.shape.head_dim);
            heads = right;
            tasks.push((head, queries.clone(), block));
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(head, queries, block)| {
            with_buffers(|[a, b, c, _, _, dq_sums, tile @ ..]| {
                let mut products = Products([a, b, c]);
                let head = all.head(rows, head);
                T::write_matrix(block, dq_sums, |mut dq| {
                    let delta = head.delta(&queries, tile);
                    let mut write = Write::Replace;
                    for keys in key_blocks(all.shape, &queries) {
                        let [_, ds] = head.tile(&queries, &keys, &delta, &mut products, tile);
                        head.add_dq(dq.reborrow(), write, &keys, &ds, &mut products);
                        write = Write::Add;
                    }
                });
            });
        });
}

/// dK and dV of a sequence, a task for each key head and block of keys.
fn by_keys<T: Element>(all: Reads<T>, rows: &Range<usize>, mut dk: MatMut<T>, mut dv: MatMut<T>) {
    let (d, group) = (all.shape.head_dim, all.group());
    let mut tasks = Vec::new();
    for block in super::blocks_of(super::KEYS, 0, rows.len()) {
        let (mut dk_heads, mut dv_heads);
        (dk_heads, dk) = dk.split_rows(block.len());
        (dv_heads, dv) = dv.split_rows(block.len());
        for kv_head in 0..all.shape.kv_heads {
            let (dk_block, dv_block);
            (dk_block, dk_heads) = dk_heads.split_cols(d);
            (dv_block, dv_heads) = dv_heads.split_cols(d);
            tasks.push((kv_head, block.clone(), dk_block, dv_block));
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(kv_head, block, dk, dv)| {
            with_buffers(|[a, b, c, dk_sums, dv_sums, _, tile @ ..]| {
                let mut products = Products([a, b, c]);
                T::write_matrix(dk, dk_sums, |mut dk| {
                    T::write_matrix(dv, dv_sums, |mut dv| {
                        dk.clear();
                        dv.clear();
                        for head in kv_head * group..(kv_head + 1) * group {
                            let head = all.head(rows, head);
                            for queries in query_blocks(rows.len()) {
                                let mut seen = key_blocks(all.shape, &queries);
                                let Some(keys) = seen.find(|keys| keys.start == block.start) else {
                                    continue;
                                };
                                let delta = head.delta(&queries, tile);
                                let [p, ds] =
                                    head.tile(&queries, &keys, &delta, &mut products, tile);
                                let own =
                                    [dk.block(0..keys.len(), 0..d), dv.block(0..keys.len(), 0..d)];
                                head.add_dkv(own, &queries, [&p, &ds], &mut products);
                            }
                        }
                    });
                });
            });
        });
}

/// What the backward reads.
#[derive(Clone, Copy)]
struct Reads<'a, T> {
    shape: AttentionShape,
    qkv: MatRef<'a, T>,
    out: MatRef<'a, T>,
    dout: MatRef<'a, T>,
    lse: &'a [f32],
}

impl<'a, T: Element> Reads<'a, T> {
    /// Query heads of a key head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// One query head of the sequence that lies in these rows.
    fn head(&self, rows: &Range<usize>, head: usize) -> Head<'a, T> {
        let tokens = self.out.shape().0;
        let columns = head * self.shape.head_dim..(head + 1) * self.shape.head_dim;
        Head {
            shape: self.shape,
            qkv: heads_of_query(self.shape, self.qkv.rows(rows.clone()), head),
            out: self.out.rows(rows.clone()).cols(columns.clone()),
            dout: self.dout.rows(rows.clone()).cols(columns),
            lse: &self.lse[head * tokens..][rows.clone()],
        }
    }
}

/// A query head of a sequence: q, k, v, out and dout `(length, head_dim)`, lse `(length)`.
struct Head<'a, T> {
    shape: AttentionShape,
    qkv: [MatRef<'a, T>; 3],
    out: MatRef<'a, T>,
    dout: MatRef<'a, T>,
    lse: &'a [f32],
}

/// What a thread computes a pair of blocks in: P, dS, both rounded, and two rows.
type TileBuffers = [Buffer; 6];

impl<T: Element> Head<'_, T> {
    /// All that a block of queries adds: overwrites its dq `(queries, head_dim)`, adds to dk and dv
    /// `(length, head_dim)`.
    fn visit(
        &self,
        queries: Range<usize>,
        mut dq: MatMut,
        [mut dk, mut dv]: [MatMut; 2],
        products: &mut Products,
        tile: &mut TileBuffers,
    ) {
        let delta = self.delta(&queries, tile);
        let mut write = Write::Replace;
        for keys in key_blocks(self.shape, &queries) {
            let [p, ds] = self.tile(&queries, &keys, &delta, products, tile);
            self.add_dq(dq.reborrow(), write, &keys, &ds, products);
            let own = [
                dk.block(keys.clone(), 0..self.shape.head_dim),
                dv.block(keys.clone(), 0..self.shape.head_dim),
            ];
            self.add_dkv(own, &queries, [&p, &ds], products);
            write = Write::Add;
        }
    }

    /// δ of a block of queries.
    fn delta(&self, queries: &Range<usize>, [.., x, y]: &mut TileBuffers) -> [f32; QUERIES] {
        let mut delta = [0.0; QUERIES];
        vectorised(
            #[inline(always)]
            || {
                for (delta, i) in delta.iter_mut().zip(queries.clone()) {
                    *delta = dot(T::read(self.dout.row(i), x), T::read(self.out.row(i), y));
                }
            },
        );
        delta
    }

    /// P and s · dS of a block of queries and one of keys.
    fn tile<'b>(
        &self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        delta: &[f32; QUERIES],
        products: &mut Products,
        [p, p_rounded, ds, ds_rounded, ..]: &'b mut TileBuffers,
    ) -> [Operand<'b, T>; 2] {
        let [q, k, v] = self.qkv;
        let (k, v) = (k.rows(keys.clone()), v.rows(keys.clone()));
        let (rows, cols) = (queries.len(), keys.len());
        let mut p = Operand::<T>::new(p, p_rounded, rows, cols);
        let mut ds = Operand::<T>::new(ds, ds_rounded, rows, cols);
        products.multiply(p.wide(), Write::Replace, q.rows(queries.clone()), k.t());
        let dout = self.dout.rows(queries.clone());
        products.multiply(ds.wide(), Write::Replace, dout, v.t());
        let (lse, scale) = (&self.lse[queries.clone()], self.shape.scale());
        vectorised(
            #[inline(always)]
            || {
                for i in 0..rows {
                    let seen = seen_columns(self.shape, queries.start + i, keys);
                    let (p_row, ds_row) = (p.row_mut(i), ds.row_mut(i));
                    for hidden in [0..seen.start, seen.end..cols] {
                        p_row[hidden.clone()].fill(0.0);
                        ds_row[hidden].fill(0.0);
                    }
                    for (p, ds) in p_row[seen.clone()].iter_mut().zip(&mut ds_row[seen]) {
                        *p = exp(scale.mul_add(*p, -lse[i]));
                        *ds = scale * *p * (*ds - delta[i]);
                    }
                    p.round(i);
                    ds.round(i);
                }
            },
        );
        [p, ds]
    }

    /// dQ = s · dS K, or added to it.
    fn add_dq(
        &self,
        dq: MatMut,
        write: Write,
        keys: &Range<usize>,
        ds: &Operand<T>,
        products: &mut Products,
    ) {
        let [_, k, _] = self.qkv;
        products.multiply(dq, write, ds.matrix(), k.rows(keys.clone()));
    }

    /// dK += s · dSᵀ Q and dV += Pᵀ dO.
    fn add_dkv(
        &self,
        [dk, dv]: [MatMut; 2],
        queries: &Range<usize>,
        [p, ds]: [&Operand<T>; 2],
        products: &mut Products,
    ) {
        let [q, ..] = self.qkv;
        let (q, dout) = (q.rows(queries.clone()), self.dout.rows(queries.clone()));
        products.multiply(dk, Write::Add, ds.matrix().t(), q);
        products.multiply(dv, Write::Add, p.matrix().t(), dout);
    }
}
