//! Causal attention over sequences laid end to end, with grouped key and value heads (Ainslie et al.
//! 2023) and an optional sliding window. No padding, and no mask tensor: a query sees the keys of its
//! own sequence from `max(0, i − window + 1)` to `i`.
//!
//! For one head, with s = head_dim^−½:
//!
//! ```text
//! forward   S = s · Q Kᵀ (masked),  lse = log Σ e^S by row,  P = e^(S − lse),  O = P V
//! backward  δ = Σ dO ∘ O by row,    dP = dO Vᵀ,              dS = P ∘ (dP − δ)
//!           dQ = s · dS K,          dK += s · dSᵀ Q,         dV += Pᵀ dO
//! ```
//!
//! Only lse is kept from the forward; the backward computes P again, one block of queries at a time
//! (Dao et al. 2022, "FlashAttention").

use super::cpu::matrix::{MatMut, MatRef, Write, matmul};
use super::cpu::vector::{dot, exp, max, sum, vectorised};
use super::{Cpu, Indices, Region};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Sizes and options of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Width of all query heads.
    pub fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of a fused query, key and value row.
    pub fn qkv_size(&self) -> usize {
        self.q_size() + 2 * self.kv_size()
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    /// The first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Causal attention, variable length.
pub trait Attention {
    /// qkv `(T, (heads + 2·kv_heads)·head_dim)`, seq_starts `(sequences + 1)` ending in T → out
    /// `(T, heads·head_dim)`, lse `(heads, T)`.
    fn attention_forward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
    );

    /// dout `(T, heads·head_dim)` → dqkv of qkv's shape, overwritten.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
        dout: Region,
        dqkv: Region,
    );

    /// Copies the keys and values of qkv `(T, (heads + 2·kv_heads)·head_dim)` into rows `position` to
    /// `position + T` of a cache `(capacity, 2·kv_heads·head_dim)`.
    fn attention_cache(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
    );

    /// One new token against a cache: qkv of one row, cache `(capacity, 2·kv_heads·head_dim)` holding
    /// keys and values of positions 0 to `position`, the new token's included → out
    /// `(heads·head_dim)`.
    fn attention_decode(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
        out: Region,
    );
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
struct Heads<'a> {
    rows: MatRef<'a>,
    shape: AttentionShape,
}

impl<'a> Heads<'a> {
    fn columns(&self, start: usize) -> MatRef<'a> {
        self.rows.cols(start..start + self.shape.head_dim)
    }

    fn query(&self, head: usize) -> MatRef<'a> {
        self.columns(head * self.shape.head_dim)
    }

    fn key(&self, kv_head: usize) -> MatRef<'a> {
        self.columns(self.shape.q_size() + kv_head * self.shape.head_dim)
    }

    fn value(&self, kv_head: usize) -> MatRef<'a> {
        self.columns(self.shape.q_size() + self.shape.kv_size() + kv_head * self.shape.head_dim)
    }
}

impl Attention for Cpu {
    fn attention_forward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
    ) {
        let ([qkv], [seq_starts], [out, lse]) =
            self.arena
                .split_with_indices([qkv], [seq_starts], [out, lse]);
        let tokens = out.len() / shape.q_size();
        let qkv = MatRef::new(qkv, tokens, shape.qkv_size());

        // One task for each sequence and query head; each owns its part of out and lse.
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
        self.pool.install(|| {
            tasks
                .into_par_iter()
                .with_max_len(1)
                .for_each(|(rows, head, out, lse)| {
                    let heads = Heads {
                        rows: qkv.rows(rows),
                        shape,
                    };
                    let kv_head = head / (shape.heads / shape.kv_heads);
                    let (q, k, v) = (heads.query(head), heads.key(kv_head), heads.value(kv_head));
                    forward_head(shape, q, k, v, out, lse);
                });
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
                .split_with_indices([qkv, out, lse, dout], [seq_starts], [dqkv]);
        let (tokens, d) = (out.len() / shape.q_size(), shape.head_dim);
        dqkv.fill(0.0);
        let qkv = MatRef::new(qkv, tokens, shape.qkv_size());
        let out = MatRef::new(out, tokens, shape.q_size());
        let dout = MatRef::new(dout, tokens, shape.q_size());

        // One task for each sequence and key head: it owns dK, dV and the dQ of the key head's
        // queries, so that no sum is shared.
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
                tasks.push((
                    start..start + sequence.len(),
                    kv_head,
                    dq_head,
                    dk_head,
                    dv_head,
                ));
            }
        }
        self.pool.install(|| {
            tasks.into_par_iter().with_max_len(1).for_each(
                |(rows, kv_head, dq, mut dk, mut dv)| {
                    let heads = Heads {
                        rows: qkv.rows(rows.clone()),
                        shape,
                    };
                    let mut dq = dq;
                    for head in kv_head * group..(kv_head + 1) * group {
                        let columns = head * d..(head + 1) * d;
                        let (dq_head, right) = dq.split_cols(d);
                        dq = right;
                        backward_head(
                            shape,
                            [heads.query(head), heads.key(kv_head), heads.value(kv_head)],
                            out.rows(rows.clone()).cols(columns.clone()),
                            &lse[head * tokens..][rows.clone()],
                            dout.rows(rows.clone()).cols(columns),
                            [dq_head, dk.reborrow(), dv.reborrow()],
                        );
                    }
                },
            );
        });
    }

    fn attention_cache(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
    ) {
        let ([qkv], [cache]) = self.arena.split([qkv], [cache]);
        let row = 2 * shape.kv_size();
        let rows = cache.chunks_exact_mut(row).skip(position);
        for (cached, qkv) in rows.zip(qkv.chunks_exact(shape.qkv_size())) {
            cached.copy_from_slice(&qkv[shape.q_size()..]);
        }
    }

    fn attention_decode(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
        out: Region,
    ) {
        let ([qkv, cache], [out]) = self.arena.split([qkv, cache], [out]);
        let (d, row) = (shape.head_dim, 2 * shape.kv_size());
        let group = shape.heads / shape.kv_heads;
        let keys = shape.first_key(position)..position + 1;
        self.pool.install(|| {
            out.par_chunks_mut(d).enumerate().for_each(|(head, out)| {
                let q = &qkv[head * d..][..d];
                let column = head / group * d;
                with_scratch(keys.len(), |scores| {
                    vectorised(
                        #[inline(always)]
                        || {
                            for (score, j) in scores.iter_mut().zip(keys.clone()) {
                                *score = shape.scale() * dot(q, &cache[j * row + column..][..d]);
                            }
                            softmax(scores);
                            out.fill(0.0);
                            for (&p, j) in scores.iter().zip(keys.clone()) {
                                let v = &cache[j * row + shape.kv_size() + column..][..d];
                                out.iter_mut()
                                    .zip(v)
                                    .for_each(|(o, &v)| *o = p.mul_add(v, *o));
                            }
                        },
                    );
                });
            });
        });
    }
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
