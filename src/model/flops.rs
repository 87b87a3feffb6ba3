//! The floating-point operations that training a model takes: what a run's speed is told in, besides
//! tokens, so that models and machines can be compared.
//!
//! Counted is what the mathematics needs, not what an implementation does: a multiplication and an
//! addition for each weight and row in the forward and two of each in the backward, so 6 operations;
//! likewise 12 for each pair of a query and a key that it sees and each channel of the query heads (scores
//! and sums in the forward, twice that in the backward). Recomputed activations do not count, nor do norms,
//! the embedding lookup and the optimizer. The LM head counts for supervised positions, which alone go
//! through it. For rows whose every token is supervised this is the usual (6·P + 6·L·Q·T) a token of
//! sequences of T tokens, causal attention counted once.

use super::spec::ModelSpec;

impl ModelSpec {
    /// Forward and backward over whole sequences of these lengths, in floating-point operations;
    /// `supervised` of their tokens are predicted.
    pub fn training_flops(
        &self,
        lengths: impl IntoIterator<Item = usize>,
        supervised: usize,
    ) -> u64 {
        let (mut tokens, mut pairs) = (0, 0);
        for length in lengths {
            tokens += length as u64;
            pairs += self.attended_pairs(length);
        }
        let (h, f, q) = (self.hidden_size, self.intermediate_size, self.q_size());
        let block = h * self.qkv_size() + q * h + 3 * h * f;
        let (layers, head) = (self.num_layers as u64, self.vocab_size * h);
        let products = layers * block as u64 * tokens + head as u64 * supervised as u64;
        6 * products + 12 * layers * q as u64 * pairs
    }

    /// Pairs of a query and a key that it sees, itself included, in a sequence of `length` tokens.
    fn attended_pairs(&self, length: usize) -> u64 {
        let window = self.sliding_window.map_or(length, |keys| keys.min(length));
        let (length, window) = (length as u64, window as u64);
        // Queries see one key more each until the window is full.
        window * (window + 1) / 2 + (length - window) * window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rope;

    /// Q is 8 and K is 4 channels wide: a block has 8·16 + 8·8 + 3·8·16 = 576 weights, the head 80.
    fn grouped_query() -> ModelSpec {
        ModelSpec {
            model_type: "llama".into(),
            vocab_size: 10,
            hidden_size: 8,
            intermediate_size: 16,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 2,
            rms_norm_eps: 1e-5,
            rope: Rope {
                inv_freq: vec![1.0],
            },
            sliding_window: None,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tie_word_embeddings: false,
            max_position_embeddings: 64,
        }
    }

    #[test]
    fn sequences_are_counted_each_by_itself_and_the_head_for_supervised_tokens() {
        // 6·(2·576·5 + 80·3) + 12·2·8·(1 + 2 + 3 + 1 + 2)
        assert_eq!(grouped_query().training_flops([3, 2], 3), 36_000 + 1_728);
        assert_eq!(grouped_query().training_flops([3, 2], 0), 34_560 + 1_728);
        // One sequence of the same tokens has 15 pairs.
        assert_eq!(grouped_query().training_flops([5], 3), 36_000 + 2_880);
        assert_eq!(grouped_query().training_flops([], 0), 0);
    }

    #[test]
    fn a_tied_head_is_a_product_all_the_same_and_the_lookup_is_none() {
        let tied = ModelSpec {
            tie_word_embeddings: true,
            ..grouped_query()
        };
        assert_eq!(tied.training_flops([3, 2], 3), 37_728);
    }

    #[test]
    fn a_window_bounds_the_keys_of_each_query() {
        let windowed = |keys| ModelSpec {
            sliding_window: Some(keys),
            ..grouped_query()
        };
        // 1 + 2 + 2 pairs, and 1 + 2.
        assert_eq!(windowed(2).training_flops([3, 2], 3), 36_000 + 1_536);
        assert_eq!(windowed(3).training_flops([3, 2], 3), 37_728);
        assert_eq!(windowed(99).training_flops([3, 2], 3), 37_728);
    }

    /// 357,826,560 weights in the blocks and 136,134,656 in the head: 3.096 GFLOP a token of 1024.
    #[test]
    fn qwen_of_half_a_billion_parameters_has_the_published_number() {
        let qwen = ModelSpec {
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            num_layers: 24,
            num_heads: 14,
            num_kv_heads: 2,
            head_dim: 64,
            tie_word_embeddings: true,
            ..grouped_query()
        };
        let a_token = qwen.training_flops([1024], 1024) / 1024;
        assert_eq!(a_token, 6 * (357_826_560 + 136_134_656) + 132_249_600);
    }
}
