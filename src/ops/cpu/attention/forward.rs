//! Attention's forward: an online softmax (Milakov and Gimelshein 2018) over blocks of keys.

use super::{
    Operand, Products, QUERIES, heads_of_query, key_blocks, query_blocks, seen_columns, sequences,
};
use crate::ops::AttentionShape;
use crate::ops::cpu::element::{Buffer, Element, with_buffers};
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};
use crate::ops::cpu::vector::{exp, max, sum, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// One task for each sequence, query head and block of queries; each owns its part of out and lse.
pub fn forward<T: Element>(
    shape: AttentionShape,
    seq_starts: &[i32],
    qkv: &[T],
    out: &mut [T],
    lse: &mut [f32],
) {
    let tokens = out.len() / shape.q_size();
    let qkv = MatRef::new(qkv, tokens, shape.qkv_size());
    let mut lse_rows: Vec<&mut [f32]> = lse.chunks_mut(tokens.max(1)).collect();
    let mut out = MatMut::new(out, tokens, shape.q_size());
    let mut tasks = Vec::new();
    for (sequence, start) in sequences(seq_starts) {
        let rows = qkv.rows(start..start + sequence.len());
        for queries in query_blocks(sequence.len()) {
            let (mut heads_out, below) = out.split_rows(queries.len());
            out = below;
            for (head, lse) in lse_rows.iter_mut().enumerate() {
                let (head_out, right) = heads_out.split_cols(shape.head_dim);
                heads_out = right;
                let (block_lse, later) = std::mem::take(lse).split_at_mut(queries.len());
                *lse = later;
                tasks.push((rows, head, queries.clone(), head_out, block_lse));
            }
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(rows, head, queries, out, lse)| {
            with_buffers(|[a, b, c, buffers @ ..]| {
                forward_block(
                    shape,
                    heads_of_query(shape, rows, head),
                    queries,
                    out,
                    lse,
                    Products([a, b, c]),
                    buffers,
                );
            });
        });
}

/// A block of queries of a head, q, k and v `(length, head_dim)`; out `(queries, head_dim)`, lse
/// `(queries)`.
fn forward_block<T: Element>(
    shape: AttentionShape,
    [q, k, v]: [MatRef<T>; 3],
    queries: Range<usize>,
    out: MatMut<T>,
    lse: &mut [f32],
    mut products: Products,
    [scores, rounded, sums, ..]: &mut [Buffer; 9],
) {
    let (q, rows) = (q.rows(queries.clone()), queries.len());
    let mut softmax = OnlineSoftmax::<QUERIES>::new();
    T::write_matrix(out, sums, |mut sums| {
        let mut write = Write::Replace;
        for keys in key_blocks(shape, &queries) {
            let (k, v) = (k.rows(keys.clone()), v.rows(keys.clone()));
            let mut p = Operand::<T>::new(scores, rounded, rows, keys.len());
            products.multiply(p.wide(), Write::Replace, q, k.t());
            vectorised(
                #[inline(always)]
                || {
                    for i in 0..rows {
                        let seen = seen_columns(shape, queries.start + i, &keys);
                        let row = p.row_mut(i);
                        row[..seen.start].fill(0.0);
                        row[seen.end..].fill(0.0);
                        let shrink = softmax.add(i, &mut row[seen], shape.scale());
                        if shrink != 1.0 && write == Write::Add {
                            sums.row_mut(i).iter_mut().for_each(|s| *s *= shrink);
                        }
                        p.round(i);
                    }
                },
            );
            products.multiply(sums.reborrow(), write, p.matrix(), v);
            write = Write::Add;
        }
        for (i, lse) in lse.iter_mut().enumerate() {
            let inverse = 1.0 / softmax.total[i];
            sums.row_mut(i).iter_mut().for_each(|s| *s *= inverse);
            *lse = softmax.top[i] + softmax.total[i].ln();
        }
    });
}

/// The softmax of rows that come in parts: the largest score so far, and the sum of what is divided
/// by in the end, relative to it.
struct OnlineSoftmax<const ROWS: usize> {
    top: [f32; ROWS],
    total: [f32; ROWS],
}

impl<const ROWS: usize> OnlineSoftmax<ROWS> {
    fn new() -> Self {
        Self {
            top: [f32::NEG_INFINITY; ROWS],
            total: [0.0; ROWS],
        }
    }

    /// Replaces a part of row `i` by `e^(scale · score − top)` and returns what to multiply earlier
    /// parts' sums by.
    #[inline(always)]
    fn add(&mut self, i: usize, scores: &mut [f32], scale: f32) -> f32 {
        if scores.is_empty() {
            return 1.0;
        }
        let before = self.top[i];
        let here = scale * max(scores);
        // So that NaN stays.
        let top = if before > here { before } else { here };
        let shrink = if before == top {
            1.0
        } else {
            exp(before - top)
        };
        scores
            .iter_mut()
            .for_each(|s| *s = exp(scale.mul_add(*s, -top)));
        self.top[i] = top;
        self.total[i] = self.total[i] * shrink + sum(scores);
        shrink
    }
}
