//! Launches of `kernels/attention_*.cu`.

use super::geometry::number;
use super::{Arg, Cuda, Launch, kernel};
use crate::dtype::DType;
use crate::ops::{Attention, AttentionShape, Indices, Region};

/// Widest head that the kernels take, in numbers.
pub const MAX_HEAD_DIM: usize = 256;

/// Threads of a block, but for the kernels with matrix instructions.
const THREADS: u32 = 256;

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
        let mut arguments = vec![
            self.address(qkv),
            self.index_address(seq_starts),
            self.address(out),
            self.address(lse),
        ];
        arguments.extend(sizes(shape, seq_starts, tokens));
        let instance = Instance::forward(shape, qkv.dtype);
        let launch = instance.launch(tokens, seq_starts, shape.heads);
        self.launch(instance.kernel, launch, &arguments);
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
            let blocks = (tokens * heads * lanes).div_ceil(THREADS as usize);
            self.launch(
                kernel!(qkv.dtype, "attention_delta"),
                Launch::blocks(blocks, THREADS),
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
            for (instance, heads) in [
                (Some(Instance::backward_keys(shape, qkv.dtype)), count),
                (Instance::backward_values(shape, qkv.dtype), count),
                (Some(Instance::backward_queries(shape, qkv.dtype)), heads),
            ] {
                let Some(instance) = instance else { continue };
                let launch = instance.launch(tokens, seq_starts, heads);
                self.launch(instance.kernel, launch, &arguments);
            }
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
        let blocks = (rows * row / step).div_ceil(THREADS as usize).min(1 << 16);
        self.launch(
            kernel!(qkv.dtype, "attention_cache"),
            Launch::blocks(blocks, THREADS),
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
            Launch::blocks(shape.heads * count, THREADS),
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
                Launch::blocks(shape.heads, THREADS),
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

/// A kernel that gives blocks of rows to thread blocks, and what it is launched with.
struct Instance {
    kernel: &'static str,
    /// Rows of a block.
    rows: usize,
    threads: u32,
    shared_bytes: usize,
}

/// The name of a kernel's instance for a width of heads and a half-precision format.
macro_rules! width_kernel {
    ($dtype:expr, $width:expr, $name:literal, $($known:literal),+) => {
        match ($width, $dtype) {
            $(
                ($known, DType::BF16) => concat!($name, "_", $known, "_bf16"),
                ($known, DType::F16) => concat!($name, "_", $known, "_f16"),
            )+
            (width, dtype) => unreachable!("no {} of {width} in {dtype}", $name),
        }
    };
}

impl Instance {
    /// A block keeps its queries and one tile of keys and of values in shared memory.
    fn forward(shape: AttentionShape, dtype: DType) -> Self {
        match mma_width(shape, dtype) {
            None => Self::simt(shape, kernel!(dtype, "attention_forward_simt"), 1),
            Some(width) => {
                let (rows, keys) = match width {
                    256 => (64, 64),
                    128 => (128, 32),
                    _ => (128, 64),
                };
                Self {
                    kernel: width_kernel!(dtype, width, "attention_forward", 64, 80, 96, 128, 256),
                    rows,
                    threads: 128,
                    shared_bytes: (rows + 2 * keys) * width * dtype.size(),
                }
            }
        }
    }

    /// The gradients of keys and values; with matrix instructions and the widest heads that of keys.
    fn backward_keys(shape: AttentionShape, dtype: DType) -> Self {
        match mma_width(shape, dtype) {
            None => Self::simt(shape, kernel!(dtype, "attention_backward_keys_simt"), 2),
            Some(width) => Self::backward_keys_mma(
                width_kernel!(
                    dtype,
                    width,
                    "attention_backward_keys",
                    64,
                    80,
                    96,
                    128,
                    256
                ),
                width,
            ),
        }
    }

    /// The gradient of values where it has a kernel of its own.
    fn backward_values(shape: AttentionShape, dtype: DType) -> Option<Self> {
        let width = mma_width(shape, dtype).filter(|&width| width == 256)?;
        let kernel = width_kernel!(dtype, width, "attention_backward_values", 256);
        Some(Self::backward_keys_mma(kernel, width))
    }

    /// A block keeps its keys and values, two tiles of queries and of dout, and lse and δ of these.
    fn backward_keys_mma(kernel: &'static str, width: usize) -> Self {
        let (rows, queries) = match width {
            64 => (128, 32),
            256 => (64, 16),
            _ => (64, 32),
        };
        Self {
            kernel,
            rows,
            threads: 128,
            shared_bytes: (2 * rows + 4 * queries) * width * 2 + 4 * queries * size_of::<f32>(),
        }
    }

    /// A block keeps its queries and dout, lse and δ of these, and two tiles of keys and of values.
    fn backward_queries(shape: AttentionShape, dtype: DType) -> Self {
        match mma_width(shape, dtype) {
            None => Self::simt(shape, kernel!(dtype, "attention_backward_queries_simt"), 2),
            Some(width) => {
                let (rows, keys) = if width == 256 { (64, 16) } else { (128, 32) };
                Self {
                    kernel: width_kernel!(
                        dtype,
                        width,
                        "attention_backward_queries",
                        64,
                        80,
                        96,
                        128,
                        256
                    ),
                    rows,
                    threads: 128,
                    shared_bytes: (2 * rows + 4 * keys) * width * dtype.size()
                        + 2 * rows * size_of::<f32>(),
                }
            }
        }
    }

    /// Without matrix instructions a block keeps `tensors` tensors' rows of its own and as many tiles,
    /// an odd number of floats apart, and a row of a tile's length for each of its own.
    fn simt(shape: AttentionShape, kernel: &'static str, tensors: usize) -> Self {
        const ROWS: usize = 16;
        const TILE: usize = 32;
        let floats = tensors * (ROWS + TILE) * (shape.head_dim | 1) + ROWS * TILE;
        Self {
            kernel,
            rows: ROWS,
            threads: THREADS,
            shared_bytes: floats * size_of::<f32>(),
        }
    }

    /// Blocks for as many rows as sequences of unknown lengths can need, for each of some heads.
    fn launch(&self, tokens: usize, seq_starts: Indices, heads: usize) -> Launch {
        let blocks = match tokens {
            0 => 0,
            _ => tokens / self.rows + seq_starts.len - 1,
        };
        Launch::blocks(blocks * heads, self.threads).shared(self.shared_bytes)
    }
}

/// The width of the kernels with matrix instructions that take these heads, if any do: halves, and
/// rows of whole 16 bytes. Narrower heads are filled up with zeros.
fn mma_width(shape: AttentionShape, dtype: DType) -> Option<usize> {
    if dtype == DType::F32 || !shape.head_dim.is_multiple_of(piece(dtype)) {
        return None;
    }
    [64, 80, 96, 128, 256]
        .into_iter()
        .find(|&width| shape.head_dim <= width)
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

fn scale(shape: AttentionShape) -> f32 {
    (1.0 / (shape.head_dim as f64).sqrt()) as f32
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
