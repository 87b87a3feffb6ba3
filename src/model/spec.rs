//! What a decoder-only transformer is, as plain data: read from `config.json` by
//! [`families`](super::families), consumed by the memory plan and the network.

use serde::{Deserialize, Serialize};

/// Dimensions and options of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// `model_type` of `config.json`, such as `llama`.
    pub model_type: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    /// The ε of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Keys that a query sees at most, itself included; `None` is all.
    pub sliding_window: Option<usize>,
    /// Biases on the query, key and value projections (Qwen2).
    pub qkv_bias: bool,
    /// Bias on the output projection of attention (Llama's `attention_bias`).
    pub o_bias: bool,
    /// Biases in the feed-forward network (Llama's `mlp_bias`).
    pub mlp_bias: bool,
    /// RMSNorm on each query and key head (Qwen3).
    pub qk_norm: bool,
    /// The LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
}

/// Rotary position embedding: the angle of pair `i` at position `p` is `p · inv_freq[i]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Inverse frequencies after scaling, `(head_dim / 2)`, in the float32 arithmetic of
    /// transformers.
    pub inv_freq: Vec<f32>,
}

impl Rope {
    /// Cosines and sines of all angles of the first `positions` positions, each
    /// `(positions, head_dim / 2)`. The angle is a float32 product, as in the peer.
    pub fn table(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = (0..positions)
            .flat_map(|p| self.inv_freq.iter().map(move |&f| f64::from(p as f32 * f)));
        angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip()
    }
}

impl ModelSpec {
    /// Width of all query heads.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of the fused query, key and value projection.
    pub fn qkv_size(&self) -> usize {
        self.q_size() + 2 * self.kv_size()
    }
}
