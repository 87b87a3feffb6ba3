//! Attention on the CPU: one task for each sequence and head, over blocks of queries. Scores and
//! probabilities are float32 whatever the tensors' format.

use super::Cpu;
use super::element::{Element, by_format, with_buffers};
use super::matrix::{MatMut, MatRef, Write, matmul};
use super::vector::{dot, exp, max, sum, vectorised};
use crate::ops::{Attention, AttentionShape, Indices, Region};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

impl Attention for Cpu {
    fn attention_forward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
    ) {
        let ([qkv], [seq_starts], [out, lse]) = self.arena.views([qkv], [seq_starts], [out, lse]);
        let lse = lse.f32();
        let pool = &self.pool;
        by_format!(out.dtype, T => {
            pool.install(|| forward(shape, seq_starts, qkv.of::<T>(), out.of(), lse))
        });
    }

    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
        dout: Region,
        dqkv: Region,
    ) {
        let ([qkv, out, lse, dout], [seq_starts], [dqkv]) =
            self.arena
                .views([qkv, out, lse, dout], [seq_starts], [dqkv]);
        let lse = lse.f32();
        let pool = &self.pool;
        by_format!(qkv.dtype, T => {
            let reads = [qkv.of::<T>(), out.of(), dout.of()];
            pool.install(|| backward(shape, seq_starts, reads, lse, dqkv.of()))
        });
    }

    fn attention_cache(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
    ) {
        let ([qkv], [], [cache]) = self.arena.views([qkv], [], [cache]);
        by_format!(qkv.dtype, T => {
            let row = 2 * shape.kv_size();
            let rows = cache.of::<T>().chunks_exact_mut(row).skip(position);
            for (cached, qkv) in rows.zip(qkv.of::<T>().chunks_exact(shape.qkv_size())) {
                cached.copy_from_slice(&qkv[shape.q_size()..]);
            }
        });
    }

    fn attention_decode(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
        out: Region,
    ) {
        let ([qkv, cache], [], [out]) = self.arena.views([qkv, cache], [], [out]);
        let pool = &self.pool;
        by_format!(out.dtype, T => {
            pool.install(|| decode(shape, position, qkv.of::<T>(), cache.of(), out.of()))
        });
    }
}

/// Queries that are handled at a time.
const BLOCK: usize = 64;

thread_local! {
    /// Scores of one block; grows to the longest sequence once.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len])
    })
}

/// The views of one sequence's query, key or value head, `(length, head_dim)`.
struct Heads<'a, T> {
    rows: MatRef<'a, T>,
    shape: AttentionShape,
}

impl<'a, T: Element> Heads<'a, T> {
    fn columns(&self, start: usize) -> MatRef<'a, T> {
        self.rows.cols(start..start + self.shape.head_dim)
    }

    fn query(&self, head: usize) -> MatRef<'a, T> {
        self.columns(head * self.shape.head_dim)
    }

    fn key(&self, kv_head: usize) -> MatRef<'a, T> {
        self.columns(self.shape.q_size() + kv_head * self.shape.head_dim)
    }

    fn value(&self, kv_head: usize) -> MatRef<'a, T> {
        self.columns(self.shape.q_size() + self.shape.kv_size() + kv_head * self.shape.head_dim)
    }
}

/// One task for each sequence and query head; each owns its part of out and lse.
fn forward<T: Element>(
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
        let (mut heads_out, below) = out.split_rows(sequence.len());
        out = below;
        for (head, lse) in lse_rows.iter_mut().enumerate() {
            let (head_out, right) = heads_out.split_cols(shape.head_dim);
            heads_out = right;
            let (head_lse, later) = std::mem::take(lse).split_at_mut(sequence.len());
            *lse = later;
            tasks.push((start..start + sequence.len(), head, head_out, head_lse));
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(rows, head, out, lse)| {
            let heads = Heads {
                rows: qkv.rows(rows),
                shape,
            };
            let kv_head = head / (shape.heads / shape.kv_heads);
            with_buffers(|[a, b, c, d, ..]| {
                let q = T::read_matrix(heads.query(head), a);
                let k = T::read_matrix(heads.key(kv_head), b);
                let v = T::read_matrix(heads.value(kv_head), c);
                T::write_matrix(out, d, |out| forward_head(shape, q, k, v, out, lse));
            });
        });
}

/// One task for each sequence and key head: it owns dK, dV and the dQ of the key head's queries, so
/// that no sum is shared.
fn backward<T: Element>(
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
        .for_each(|(rows, kv_head, dqkv)| {
            let lse: Vec<&[f32]> = (kv_head * group..(kv_head + 1) * group)
                .map(|head| &lse[head * tokens..][rows.clone()])
                .collect();
            let heads = Heads {
                rows: qkv.rows(rows.clone()),
                shape,
            };
            let (out, dout) = (out.rows(rows.clone()), dout.rows(rows));
            backward_group(&heads, kv_head, [out, dout], &lse, dqkv);
        });
}

/// The gradients of a key and a value head, and of the queries that meet them. out and dout have all
/// columns, lse one slice a query head, dq the columns of the group.
fn backward_group<T: Element>(
    heads: &Heads<T>,
    kv_head: usize,
    [out, dout]: [MatRef<T>; 2],
    lse: &[&[f32]],
    [dq, dk, dv]: [MatMut<T>; 3],
) {
    let (shape, width) = (heads.shape, heads.shape.head_dim);
    with_buffers(|[a, b, c, d, e, f, g, h]| {
        let k = T::read_matrix(heads.key(kv_head), a);
        let v = T::read_matrix(heads.value(kv_head), b);
        T::write_matrix(dk, c, |mut dk| {
            T::write_matrix(dv, d, |mut dv| {
                dk.clear();
                dv.clear();
                let mut dq = dq;
                for (head, lse) in (kv_head * lse.len()..).zip(lse) {
                    let (dq_head, right) = dq.split_cols(width);
                    dq = right;
                    let columns = head * width..(head + 1) * width;
                    let q = T::read_matrix(heads.query(head), e);
                    let out = T::read_matrix(out.cols(columns.clone()), f);
                    let dout = T::read_matrix(dout.cols(columns), g);
                    T::write_matrix(dq_head, h, |dq| {
                        let gradients = [dq, dk.reborrow(), dv.reborrow()];
                        backward_head(shape, [q, k, v], out, lse, dout, gradients);
                    });
                }
            });
        });
    });
}

/// One query row against the rows of the cache.
fn decode<T: Element>(
    shape: AttentionShape,
    position: usize,
    qkv: &[T],
    cache: &[T],
    out: &mut [T],
) {
    let (d, row) = (shape.head_dim, 2 * shape.kv_size());
    let group = shape.heads / shape.kv_heads;
    let keys = shape.first_key(position)..position + 1;
    out.par_chunks_mut(d).enumerate().for_each(|(head, out)| {
        let column = head / group * d;
        with_buffers(|[a, b, c, ..]| {
            with_scratch(keys.len(), |scores| {
                vectorised(
                    #[inline(always)]
                    || {
                        let q = T::read(&qkv[head * d..][..d], a);
                        for (score, j) in scores.iter_mut().zip(keys.clone()) {
                            let k = T::read(&cache[j * row + column..][..d], b);
                            *score = shape.scale() * dot(q, k);
                        }
                        softmax(scores);
                        T::write(
                            out,
                            c,
                            #[inline(always)]
                            |out| {
                                out.fill(0.0);
                                for (&p, j) in scores.iter().zip(keys.clone()) {
                                    let v = &cache[j * row + shape.kv_size() + column..][..d];
                                    out.iter_mut()
                                        .zip(T::read(v, b))
                                        .for_each(|(o, &v)| *o = p.mul_add(v, *o));
                                }
                            },
                        );
                    },
                );
            });
        });
    });
}

/// Each sequence as a range from 0 with its first row.
fn sequences(seq_starts: &[i32]) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
    seq_starts
        .windows(2)
        .map(|w| (0..(w[1] - w[0]) as usize, w[0] as usize))
}

/// Blocks of queries with the keys that any of them sees.
fn blocks(
    shape: AttentionShape,
    length: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    (0..length).step_by(BLOCK).map(move |start| {
        let end = (start + BLOCK).min(length);
        (start..end, shape.first_key(start)..end)
    })
}

/// q, k, v and out `(length, head_dim)`, lse `(length)`.
fn forward_head(
    shape: AttentionShape,
    q: MatRef,
    k: MatRef,
    v: MatRef,
    out: MatMut,
    lse: &mut [f32],
) {
    let mut out = out;
    for (queries, keys) in blocks(shape, lse.len()) {
        let (block_out, below) = out.split_rows(queries.len());
        out = below;
        with_scratch(queries.len() * keys.len(), |scores| {
            let target = MatMut::new(scores, queries.len(), keys.len());
            let (q, k) = (q.rows(queries.clone()), k.rows(keys.clone()));
            matmul(target, Write::Replace, shape.scale(), q, k.t(), false);
            vectorised(
                #[inline(always)]
                || {
                    for (i, scores) in queries.clone().zip(scores.chunks_exact_mut(keys.len())) {
                        let seen = seen_columns(shape, i, &keys);
                        lse[i] = softmax(&mut scores[seen.clone()]);
                        scores[..seen.start].fill(0.0);
                        scores[seen.end..].fill(0.0);
                    }
                },
            );
            let p = MatRef::new(scores, queries.len(), keys.len());
            matmul(
                block_out,
                Write::Replace,
                1.0,
                p,
                v.rows(keys.clone()),
                false,
            );
        });
    }
}

/// qkv = [q, k, v] and dqkv = [dq, dk, dv]; all `(length, head_dim)`, lse `(length)`.
fn backward_head(
    shape: AttentionShape,
    [q, k, v]: [MatRef; 3],
    out: MatRef,
    lse: &[f32],
    dout: MatRef,
    [dq, mut dk, mut dv]: [MatMut; 3],
) {
    let mut dq = dq;
    for (queries, keys) in blocks(shape, lse.len()) {
        let (block_dq, below) = dq.split_rows(queries.len());
        dq = below;
        let (_, dk) = dk.reborrow().split_rows(keys.start);
        let (dk, _) = dk.split_rows(keys.len());
        let (_, dv) = dv.reborrow().split_rows(keys.start);
        let (dv, _) = dv.split_rows(keys.len());
        let q = q.rows(queries.clone());
        let (k, v) = (k.rows(keys.clone()), v.rows(keys.clone()));
        let (out, dout) = (out.rows(queries.clone()), dout.rows(queries.clone()));
        let (rows, cols) = (queries.len(), keys.len());
        with_scratch(2 * rows * cols, |scratch| {
            let (p, ds) = scratch.split_at_mut(rows * cols);
            // P, from the scores and the lse of the forward.
            matmul(
                MatMut::new(p, rows, cols),
                Write::Replace,
                shape.scale(),
                q,
                k.t(),
                false,
            );
            vectorised(
                #[inline(always)]
                || {
                    for (i, p) in queries.clone().zip(p.chunks_exact_mut(cols)) {
                        let seen = seen_columns(shape, i, &keys);
                        p[..seen.start].fill(0.0);
                        p[seen.end..].fill(0.0);
                        p[seen].iter_mut().for_each(|p| *p = exp(*p - lse[i]));
                    }
                },
            );
            // dS = P ∘ (dP − δ).
            matmul(
                MatMut::new(ds, rows, cols),
                Write::Replace,
                1.0,
                dout,
                v.t(),
                false,
            );
            vectorised(
                #[inline(always)]
                || {
                    for (i, (ds, p)) in ds
                        .chunks_exact_mut(cols)
                        .zip(p.chunks_exact(cols))
                        .enumerate()
                    {
                        let delta = dot(dout.row(i), out.row(i));
                        ds.iter_mut()
                            .zip(p)
                            .for_each(|(ds, &p)| *ds = p * (*ds - delta));
                    }
                },
            );
            let (p, ds) = (MatRef::new(p, rows, cols), MatRef::new(ds, rows, cols));
            matmul(block_dq, Write::Replace, shape.scale(), ds, k, false);
            matmul(dk, Write::Add, shape.scale(), ds.t(), q, false);
            matmul(dv, Write::Add, 1.0, p.t(), dout, false);
        });
    }
}

/// The columns of a block's scores that query `i` sees.
fn seen_columns(shape: AttentionShape, i: usize, keys: &Range<usize>) -> Range<usize> {
    shape.first_key(i) - keys.start..i + 1 - keys.start
}

/// Replaces scores by probabilities and returns their lse.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let top = max(scores);
    scores.iter_mut().for_each(|s| *s = exp(*s - top));
    let total = sum(scores);
    let inverse = 1.0 / total;
    scores.iter_mut().for_each(|s| *s *= inverse);
    top + total.ln()
}
