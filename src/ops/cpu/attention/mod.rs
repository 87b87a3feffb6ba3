//! Attention on the CPU: one task for each sequence and head, over blocks of queries and of keys.
//! Scores, statistics and sums are float32. Probabilities and their gradients are rounded to the
//! tensors' format where a matrix product reads them, as in the peers' fused attention.

mod backward;
mod decode;
mod forward;

use super::Cpu;
use super::element::{Buffer, Element, by_format};
use super::matrix::{MatMut, MatRef, Write};
use crate::dtype::DType;
use crate::ops::{Attention, AttentionShape, Indices, Region};
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
            pool.install(|| forward::forward(shape, seq_starts, qkv.of::<T>(), out.of(), lse))
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
            pool.install(|| backward::backward(shape, seq_starts, reads, lse, dqkv.of()))
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
            pool.install(|| decode::decode(shape, position, qkv.of::<T>(), cache.of(), out.of()))
        });
    }
}

/// A query head of a sequence with the key and the value head that it meets, `(length, head_dim)` each,
/// from the sequence's rows of qkv.
fn heads_of_query<T: Element>(
    shape: AttentionShape,
    qkv: MatRef<T>,
    head: usize,
) -> [MatRef<T>; 3] {
    let kv_head = head / (shape.heads / shape.kv_heads);
    let columns = [
        head,
        shape.heads + kv_head,
        shape.heads + shape.kv_heads + kv_head,
    ];
    columns.map(|column| qkv.cols(column * shape.head_dim..(column + 1) * shape.head_dim))
}

/// Each sequence as a range from 0 with its first row.
fn sequences(seq_starts: &[i32]) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
    seq_starts
        .windows(2)
        .map(|w| (0..(w[1] - w[0]) as usize, w[0] as usize))
}

/// Queries and keys that are handled at a time. Their scores are 96 KiB: with the gradients and both
/// in the tensors' format they stay in the second cache. 96 is a multiple of what each kernel of
/// bf16 products computes at a time.
const QUERIES: usize = 96;
const KEYS: usize = 256;

/// Blocks of queries.
fn query_blocks(length: usize) -> impl Iterator<Item = Range<usize>> {
    blocks_of(QUERIES, 0, length)
}

/// Blocks of the keys that any of these queries sees. They start at multiples of KEYS, so that keys
/// meet the same blocks of queries in whatever order the pairs of blocks are visited.
fn key_blocks(shape: AttentionShape, queries: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = shape.first_key(queries.start) / KEYS * KEYS;
    blocks_of(KEYS, first, queries.end)
}

fn blocks_of(size: usize, first: usize, end: usize) -> impl Iterator<Item = Range<usize>> {
    (first..end)
        .step_by(size)
        .map(move |start| start..(start + size).min(end))
}

/// The columns of a block of keys that query `i` sees.
fn seen_columns(shape: AttentionShape, i: usize, keys: &Range<usize>) -> Range<usize> {
    let bound = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
    bound(shape.first_key(i))..bound(i + 1)
}

/// Matrix products on this thread, and what they need.
struct Products<'a>([&'a mut Buffer; 3]);

impl Products<'_> {
    /// `c = a·b` or `c += a·b`.
    fn multiply<T: Element>(&mut self, c: MatMut, write: Write, a: MatRef<T>, b: MatRef<T>) {
        let [x, y, z] = &mut self.0;
        T::multiply(c, write, a, b, [x, y, z], |_, _| ());
    }
}

/// A float32 matrix on its way into a product: rounded to the tensors' format row by row, or itself.
struct Operand<'a, T> {
    wide: &'a mut [f32],
    /// Empty when T is float32.
    rounded: &'a mut [T],
    shape: (usize, usize),
}

impl<'a, T: Element> Operand<'a, T> {
    fn new(wide: &'a mut Buffer, rounded: &'a mut Buffer, rows: usize, cols: usize) -> Self {
        let len = match T::DTYPE {
            DType::F32 => 0,
            _ => rows * cols,
        };
        Self {
            wide: wide.first(rows * cols),
            rounded: rounded.of(len),
            shape: (rows, cols),
        }
    }

    /// Its float32 numbers.
    fn wide(&mut self) -> MatMut<'_> {
        MatMut::new(self.wide, self.shape.0, self.shape.1)
    }

    fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.wide[i * self.shape.1..][..self.shape.1]
    }

    /// Rounds a row that is complete.
    #[inline(always)]
    fn round(&mut self, i: usize) {
        let (start, cols) = (i * self.shape.1, self.shape.1);
        if !self.rounded.is_empty() {
            T::narrow(
                &self.wide[start..][..cols],
                &mut self.rounded[start..][..cols],
            );
        }
    }

    /// What the product reads, once every row is rounded.
    fn matrix(&self) -> MatRef<'_, T> {
        let numbers = match T::DTYPE {
            DType::F32 => bytemuck::cast_slice(self.wide),
            _ => &*self.rounded,
        };
        MatRef::new(numbers, self.shape.0, self.shape.1)
    }
}
