//! The operations a transformer is trained with: one file an op, holding its formula, its shapes, the
//! trait that a backend implements (forward and backward, both required) and the CPU implementation
//! (attention's, the longest, is `cpu/attention.rs`).
//!
//! **Number formats.** Each trait says which of its tensors may be in half precision, all in the same;
//! the others are float32, and so is the arithmetic. A number is rounded once, when it is stored.
//!
//! **The accumulation law.** A backward adds to gradients of parameters (`dweight +=`), and
//! overwrites gradients of activations (`dx =`), unless its documentation names the residual stream.
//!
//! **Shapes** stand beside each argument. T is the number of tokens of a micro-batch, H the hidden
//! size, V the vocabulary. Matrices are row-major; a weight is `(out, in)` as PyTorch stores it.
//!
//! **Same input, same bits.** Work is cut into pieces whose size does not depend on the number of
//! threads, and partial sums are added in a fixed order.

mod adamw;
mod attention;
mod cast;
mod cpu;
mod cross_entropy;
mod embedding;
mod grad_norm;
mod linear;
mod qk_norm;
mod rms_norm;
mod rope;
mod rows;
mod swiglu;

pub use adamw::{AdamW, AdamWStep};
pub use attention::{Attention, AttentionShape};
pub use cast::Cast;
pub use cpu::Cpu;
pub use cross_entropy::{CrossEntropy, TokenStats};
pub use embedding::Embedding;
pub use grad_norm::{ClipStats, GradNorm};
pub use linear::{Linear, LinearShape};
pub use qk_norm::{QkNorm, QkNormShape};
pub use rms_norm::RmsNorm;
pub use rope::{Rope, RopeShape};
pub use rows::Rows;
pub use swiglu::Swiglu;

use crate::dtype::DType;
use crate::error::Result;
use crate::io::read_in_pieces;

/// Delivers the numbers of a tensor: `read(start, piece)` writes those from element `start` on. Called
/// on several threads at once.
pub type ReadPiece<'a> = dyn Fn(usize, &mut [f32]) -> Result<()> + Sync + 'a;

/// A device with its memory and every operation on it. The compiler refuses a backend that lacks one.
pub trait Backend:
    AdamW
    + Attention
    + Cast
    + CrossEntropy
    + Embedding
    + GradNorm
    + Linear
    + QkNorm
    + RmsNorm
    + Rope
    + Rows
    + Swiglu
    + Send
{
    /// Bytes of scratch memory that the ops of this backend use, beside the tensors they are given.
    const WORKSPACE_BYTES: usize;

    /// The device in words, such as `cpu, 2 threads, float32 by avx512, bf16 matrices by amx`.
    fn describe(&self) -> String;

    /// Allocates the one arena of this device, zeroed. Called once, with the size that the memory
    /// plan computed and the place in it of [`Backend::WORKSPACE_BYTES`] of scratch (float32).
    ///
    /// # Errors
    /// `OutOfMemory` with the need and what is free.
    fn allocate(&mut self, bytes: usize, workspace: Region) -> Result<()>;

    /// Whether every operation so far was carried out. A device fails late: an op returns before its
    /// work is done, so ask after a download. Once failed, always failed.
    ///
    /// # Errors
    /// `Device` with what the driver said.
    fn status(&self) -> Result<()>;

    /// Copies numbers from the host.
    fn upload(&mut self, to: Region, from: &[f32]);

    /// Fills a region with what `read` delivers, each element once, in pieces of the backend's choice:
    /// on a device whose memory is the host's, straight into it.
    ///
    /// # Errors
    /// That of the piece with the lowest start for which `read` failed; what the region holds is
    /// undefined then.
    fn upload_from(&mut self, to: Region, read: &ReadPiece) -> Result<()> {
        const STAGED: usize = 1 << 22;
        let mut values = vec![0.0; STAGED.min(to.len)];
        for start in (0..to.len).step_by(STAGED) {
            let piece = &mut values[..STAGED.min(to.len - start)];
            read_in_pieces(piece, 1 << 18, &|from, piece| read(start + from, piece))?;
            self.upload(to.slice(start, piece.len()), piece);
        }
        Ok(())
    }

    /// Copies token ids, labels, positions or row numbers from the host.
    fn upload_indices(&mut self, to: Indices, from: &[i32]);

    /// Copies numbers to the host, after all earlier operations are done.
    fn download(&mut self, from: Region, to: &mut [f32]);

    /// Copies within the device. The regions have the same length and do not overlap.
    fn copy(&mut self, from: Region, to: Region);

    /// Sets every number of a region.
    fn fill(&mut self, to: Region, value: f32);

    /// The tokens and sequences to which a micro-batch is filled up for training and evaluation, so that
    /// few sizes occur ([`Backend::recorded`]). More tokens are never filled up to fewer, and sizes that
    /// come out are not filled up further. By default none are.
    fn filled_sizes(tokens: usize, sequences: usize) -> (usize, usize)
    where
        Self: Sized,
    {
        (tokens, sequences)
    }

    /// Does what `work` asks of the backend. For an equal key `work` asks for the same operations, of
    /// the same regions and numbers, so that a device may record them once and do them again; the
    /// numbers in the regions may differ. It copies nothing from or to the host.
    fn recorded(&mut self, key: Recording, work: impl Fn(&mut Self))
    where
        Self: Sized,
    {
        let _ = key;
        work(self);
    }
}

/// The name of a sequence of operations: all that its regions and numbers depend on, for the network
/// that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Which sequence.
    pub part: &'static str,
    /// The sizes that differ from one micro-batch to another.
    pub sizes: [usize; 2],
}

/// A tensor's place in the arena of a backend: plain data, made by the memory plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Format of the elements.
    pub dtype: DType,
}

impl Region {
    /// A region without elements.
    pub const EMPTY: Region = Region {
        offset: 0,
        len: 0,
        dtype: DType::F32,
    };

    /// The part of `len` elements from element `start`.
    pub fn slice(self, start: usize, len: usize) -> Region {
        assert!(
            start + len <= self.len,
            "slice {start}+{len} of a region of {}",
            self.len
        );
        Region {
            offset: self.offset + start * self.dtype.size(),
            len,
            dtype: self.dtype,
        }
    }

    /// The first `len` elements.
    pub fn first(self, len: usize) -> Region {
        self.slice(0, len)
    }
}

/// The place of int32 numbers in the arena of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indices {
    /// First byte.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Indices {
    /// The part of `len` elements from element `start`.
    pub fn slice(self, start: usize, len: usize) -> Indices {
        assert!(
            start + len <= self.len,
            "slice {start}+{len} of {} indices",
            self.len
        );
        Indices {
            offset: self.offset + start * 4,
            len,
        }
    }

    /// The first `len` elements.
    pub fn first(self, len: usize) -> Indices {
        self.slice(0, len)
    }
}
