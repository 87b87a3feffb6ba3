//! Attention's backward: the probabilities again, a block at a time, from the lse of the forward.

use super::{Heads, Operand, Products, key_blocks, query_blocks, seen_columns, sequences};
use crate::ops::AttentionShape;
use crate::ops::cpu::element::{Buffer, Element, with_buffers};
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};
use crate::ops::cpu::vector::{dot, exp, vectorised};
use rayon::prelude::*;

/// One task for each sequence and key head: it owns dK, dV and the dQ of the key head's queries, so
/// that no sum is shared.
pub fn backward<T: Element>(
    shape: AttentionShape,
    seq_starts: &[i32],
    [qkv, out, dout]: [&[T]; 3],
    lse: &[f32],
    dqkv: &mut [T],
) {
    let (tokens, d) = (out.len() / shape.q_size(), shape.head_dim);
    let qkv = MatRef::new(qkv, tokens, shape.qkv_size());
    let out = MatRef::new(out, tokens, shape.q_size());
    let dout = MatRef::new(dout, tokens, shape.q_size());
    let group = shape.heads / shape.kv_heads;
    let mut dqkv = MatMut::new(dqkv, tokens, shape.qkv_size());
    let mut tasks = Vec::new();
    for (sequence, start) in sequences(seq_starts) {
        let (rows, below) = dqkv.split_rows(sequence.len());
        dqkv = below;
        let (mut dq, dkv) = rows.split_cols(shape.q_size());
        let (mut dk, mut dv) = dkv.split_cols(shape.kv_size());
        for kv_head in 0..shape.kv_heads {
            let (dq_head, dk_head, dv_head);
            (dq_head, dq) = dq.split_cols(group * d);
            (dk_head, dk) = dk.split_cols(d);
            (dv_head, dv) = dv.split_cols(d);
            let rows = start..start + sequence.len();
            tasks.push((rows, kv_head, [dq_head, dk_head, dv_head]));
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(rows, kv_head, [dq, dk, dv])| {
            let heads = Heads {
                rows: qkv.rows(rows.clone()),
                shape,
            };
            let (k, v) = (heads.key(kv_head), heads.value(kv_head));
            with_buffers(|[a, b, c, dk_sums, dv_sums, blocks @ ..]| {
                let mut products = Products([a, b, c]);
                T::write_matrix(dk, dk_sums, |mut dk| {
                    T::write_matrix(dv, dv_sums, |mut dv| {
                        dk.clear();
                        dv.clear();
                        let mut dq = dq;
                        for head in kv_head * group..(kv_head + 1) * group {
                            let (dq_head, right) = dq.split_cols(d);
                            dq = right;
                            let columns = head * d..(head + 1) * d;
                            let reads = Reads {
                                shape,
                                qkv: [heads.query(head), k, v],
                                out: out.rows(rows.clone()).cols(columns.clone()),
                                dout: dout.rows(rows.clone()).cols(columns),
                                lse: &lse[head * tokens..][rows.clone()],
                            };
                            let gradients = (dq_head, [dk.reborrow(), dv.reborrow()]);
                            backward_head(reads, gradients, &mut products, blocks);
                        }
                    });
                });
            });
        });
}

/// What the backward of a head reads: q, k, v, out and dout `(length, head_dim)`, lse `(length)`.
struct Reads<'a, T> {
    shape: AttentionShape,
    qkv: [MatRef<'a, T>; 3],
    out: MatRef<'a, T>,
    dout: MatRef<'a, T>,
    lse: &'a [f32],
}

/// Overwrites dq and adds to dk and dv, all `(length, head_dim)`.
fn backward_head<T: Element>(
    reads: Reads<T>,
    (mut dq, [mut dk, mut dv]): (MatMut<T>, [MatMut; 2]),
    products: &mut Products,
    [dq_sums, p, p_rounded, ds, ds_rounded, x, y]: &mut [Buffer; 7],
) {
    let shape = reads.shape;
    let [q, k, v] = reads.qkv;
    for queries in query_blocks(reads.lse.len()) {
        let (block_dq, below) = dq.split_rows(queries.len());
        dq = below;
        let rows = queries.len();
        let (q, dout) = (q.rows(queries.clone()), reads.dout.rows(queries.clone()));
        let (out, lse) = (reads.out.rows(queries.clone()), &reads.lse[queries.clone()]);
        // δ
        let mut delta = [0.0; super::QUERIES];
        vectorised(
            #[inline(always)]
            || {
                for (i, delta) in delta.iter_mut().enumerate().take(rows) {
                    *delta = dot(T::read(dout.row(i), x), T::read(out.row(i), y));
                }
            },
        );
        T::write_matrix(block_dq, dq_sums, |mut dq| {
            let mut write = Write::Replace;
            for keys in key_blocks(shape, &queries) {
                let (k, v) = (k.rows(keys.clone()), v.rows(keys.clone()));
                let cols = keys.len();
                let mut p = Operand::<T>::new(p, p_rounded, rows, cols);
                let mut ds = Operand::<T>::new(ds, ds_rounded, rows, cols);
                products.multiply(p.wide(), Write::Replace, q, k.t());
                products.multiply(ds.wide(), Write::Replace, dout, v.t());
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..rows {
                            let seen = seen_columns(shape, queries.start + i, &keys);
                            let (p_row, ds_row) = (p.row_mut(i), ds.row_mut(i));
                            for hidden in [0..seen.start, seen.end..cols] {
                                p_row[hidden.clone()].fill(0.0);
                                ds_row[hidden].fill(0.0);
                            }
                            let pairs = p_row[seen.clone()].iter_mut().zip(&mut ds_row[seen]);
                            for (p, ds) in pairs {
                                *p = exp(shape.scale().mul_add(*p, -lse[i]));
                                // s · dS = s · P ∘ (dP − δ)
                                *ds = shape.scale() * *p * (*ds - delta[i]);
                            }
                            p.round(i);
                            ds.round(i);
                        }
                    },
                );
                let d = 0..shape.head_dim;
                let (p, ds) = (p.matrix(), ds.matrix());
                products.multiply(dq.reborrow(), write, ds, k);
                products.multiply(dk.block(keys.clone(), d.clone()), Write::Add, ds.t(), q);
                products.multiply(dv.block(keys, d), Write::Add, p.t(), dout);
                write = Write::Add;
            }
        });
    }
}
