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

use super::{Indices, Region};

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

    /// s, what scores are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    /// The first key that the query at `position` sees.
    pub(super) fn first_key(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Causal attention, variable length. All tensors but lse have one format, which may be a half-precision
/// one; lse is float32.
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
