//! Launches of `kernels/attention_*.cu`.

use super::{Arg, Cuda, Launch, kernel};
use crate::dtype::DType;
use crate::ops::{Attention, AttentionShape, Indices, Region};

/// Widest head of the kernels.
const MAX_HEAD_DIM: usize = 256;

/// Threads of a block of those without matrix instructions, and of the small kernels.
const THREADS: usize = 256;

/// Rows of a block's own, and of a tile that it loops over, without matrix instructions.
const SIMT_ROWS: usize = 16;
const SIMT_TILE: usize = 32;

impl Attention for Cuda {
    fn attention_forward(
        &mut self,
        shape: AttentionShape,
        seq_starts: Indices,
        qkv: Region,
        out: Region,
        lse: Region,
    ) {
        let tokens = checked_tokens(shape, qkv, out);
        let blocks = shape.heads * row_blocks(tokens, seq_starts, SIMT_ROWS);
        let launch = Launch::blocks(blocks, THREADS as u32).shared(
            size_of::<f32>()
                * ((SIMT_ROWS + SIMT_TILE) * simt_stride(shape) + SIMT_ROWS * SIMT_TILE),
        );
        let mut arguments = vec![
            self.address(qkv),
            self.index_address(seq_starts),
            self.address(out),
            self.address(lse),
        ];
        arguments.extend(sizes(shape, seq_starts, tokens));
        self.launch(
            kernel!(qkv.dtype, "attention_forward_simt"),
            launch,
            &arguments,
        );
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
        let tokens = checked_tokens(shape, qkv, out);
        if tokens == 0 {
            return;
        }
        // δ takes a number for each row of each head: as many key heads at a time as it fits for.
        let group = shape.heads / shape.kv_heads;
        let at_once = self.workspace.len / (tokens * group);
        assert!(
            at_once > 0,
            "attention over {tokens} rows with {group} query heads a key head needs more workspace"
        );
        for first in (0..shape.kv_heads).step_by(at_once) {
            let count = at_once.min(shape.kv_heads - first);
            let heads = count * group;
            let delta = self.workspace.first(heads * tokens);

            let lanes = lanes(shape, qkv.dtype);
            let arguments = [
                self.address(out),
                self.address(dout),
                self.address(delta),
                number(tokens),
                number(shape.heads),
                number(shape.head_dim),
                number(first * group),
                number(heads),
                number(lanes),
            ];
            self.launch(
                kernel!(qkv.dtype, "attention_delta"),
                Launch::blocks((tokens * heads * lanes).div_ceil(THREADS), THREADS as u32),
                &arguments,
            );

            let mut arguments = vec![
                self.address(qkv),
                self.index_address(seq_starts),
                self.address(lse),
                self.address(delta),
                self.address(dout),
                self.address(dqkv),
            ];
            arguments.extend(sizes(shape, seq_starts, tokens));
            arguments.extend([number(first), number(count)]);
            let blocks = row_blocks(tokens, seq_starts, SIMT_ROWS);
            let shared = size_of::<f32>()
                * (2 * (SIMT_ROWS + SIMT_TILE) * simt_stride(shape) + SIMT_ROWS * SIMT_TILE);
            self.launch(
                kernel!(qkv.dtype, "attention_backward_keys_simt"),
                Launch::blocks(blocks * count, THREADS as u32).shared(shared),
                &arguments,
            );
            self.launch(
                kernel!(qkv.dtype, "attention_backward_queries_simt"),
                Launch::blocks(blocks * heads, THREADS as u32).shared(shared),
                &arguments,
            );
        }
    }

    fn attention_cache(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
    ) {
        let (rows, row) = (qkv.len / shape.qkv_size(), 2 * shape.kv_size());
        let to = cache.slice(position * row, rows * row);
        let wide = shape.head_dim.is_multiple_of(piece(qkv.dtype));
        let step = if wide { piece(qkv.dtype) } else { 1 };
        let arguments = [
            self.address(qkv),
            self.address(to),
            Arg::U64(rows as u64),
            number(shape.qkv_size()),
            number(row),
            number(usize::from(wide)),
        ];
        let blocks = (rows * row / step).div_ceil(THREADS).min(1 << 16);
        self.launch(
            kernel!(qkv.dtype, "attention_cache"),
            Launch::blocks(blocks, THREADS as u32),
            &arguments,
        );
    }

    fn attention_decode(
        &mut self,
        shape: AttentionShape,
        position: usize,
        qkv: Region,
        cache: Region,
        out: Region,
    ) {
        /// Keys that a block holds the scores of at a time, and blocks of a head at most.
        const KEYS: usize = 256;
        const PARTS: usize = 64;

        checked_tokens(shape, qkv, out);
        let window = shape.window.unwrap_or(usize::MAX);
        let (first, end) = ((position + 1).saturating_sub(window), position + 1);
        let split = (end - first).div_ceil(PARTS).next_multiple_of(KEYS);
        let count = (end - first).div_ceil(split);
        let parts = (count > 1).then(|| {
            self.workspace
                .first(count * shape.heads * (shape.head_dim + 2))
        });
        let arguments = [
            self.address(qkv),
            self.address(cache),
            self.address(out),
            self.optional_address(parts),
            number(shape.heads),
            number(shape.kv_heads),
            number(shape.head_dim),
            number(first),
            number(end),
            number(split),
            number(lanes(shape, qkv.dtype)),
            Arg::F32(scale(shape)),
        ];
        self.launch(
            kernel!(qkv.dtype, "attention_decode"),
            Launch::blocks(shape.heads * count, THREADS as u32),
            &arguments,
        );
        if let Some(parts) = parts {
            let arguments = [
                self.address(parts),
                self.address(out),
                number(shape.heads),
                number(shape.head_dim),
                number(count),
            ];
            self.launch(
                kernel!(qkv.dtype, "attention_combine"),
                Launch::blocks(shape.heads, THREADS as u32),
                &arguments,
            );
        }
    }
}

/// The rows of `out`, once the kernels are known to take the shape.
fn checked_tokens(shape: AttentionShape, qkv: Region, out: Region) -> usize {
    let tokens = out.len / shape.q_size();
    assert!(
        shape.head_dim <= MAX_HEAD_DIM,
        "heads of {} columns; the kernels take up to {MAX_HEAD_DIM}",
        shape.head_dim
    );
    assert_eq!(
        (qkv.len, qkv.dtype),
        (tokens * shape.qkv_size(), out.dtype),
        "qkv of {tokens} rows"
    );
    tokens
}

/// Blocks of `rows` rows that sequences of unknown lengths can make.
fn row_blocks(tokens: usize, seq_starts: Indices, rows: usize) -> usize {
    if tokens == 0 {
        return 0;
    }
    tokens / rows + seq_starts.len - 1
}

/// The arguments from `sequences` to `scale` that forward and backward share.
fn sizes(shape: AttentionShape, seq_starts: Indices, tokens: usize) -> [Arg; 7] {
    let window = shape.window.unwrap_or(usize::MAX);
    [
        number(seq_starts.len - 1),
        number(tokens),
        number(shape.heads),
        number(shape.kv_heads),
        number(shape.head_dim),
        number(window.min(u32::MAX as usize)),
        Arg::F32(scale(shape)),
    ]
}

fn number(x: usize) -> Arg {
    Arg::U32(u32::try_from(x).expect("a size that fits 32 bits"))
}

fn scale(shape: AttentionShape) -> f32 {
    (1.0 / (shape.head_dim as f64).sqrt()) as f32
}

/// Floats between rows of a tile without matrix instructions.
fn simt_stride(shape: AttentionShape) -> usize {
    shape.head_dim | 1
}

/// Numbers of 16 bytes.
fn piece(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Lanes that share a head's row, one piece each if there are enough: a power of two up to 32.
fn lanes(shape: AttentionShape, dtype: DType) -> usize {
    let pieces = if shape.head_dim.is_multiple_of(piece(dtype)) {
        shape.head_dim / piece(dtype)
    } else {
        shape.head_dim
    };
    pieces.next_power_of_two().min(32)
}
