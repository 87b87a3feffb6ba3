//! Qwen2 and Qwen2.5: biases on the query, key and value projections; a sliding window on the
//! layers from `max_window_layers` on where `use_sliding_window` says so.

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::{ConfigJson, Defaults, Family, read_common, sliding_window};
use crate::Result;
use crate::model::ModelSpec;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    default_bos_token_id: None,
    default_eos_token_id: None,
    tokenizer: Some(qwen2_tokenizer),
    read,
};

fn read(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_kv_heads: Some(32),
        head_dim: None,
        max_position_embeddings: 32_768,
    };
    let spec = read_common(config, &defaults)?;
    Ok(ModelSpec {
        qkv_bias: true,
        sliding_window: sliding_window::upper_layers(config, spec.num_layers)?,
        ..spec
    })
}

/// How Qwen2 cuts text before merging: contractions, words with the character before them, single
/// digits, runs of punctuation, line ends, spaces.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Gives a byte-level tokenizer Qwen2's normalizer, pre-tokenizer and decoder, as transformers'
/// `Qwen2Tokenizer` does whatever the tokenizer.json says.
pub(in crate::model) fn qwen2_tokenizer(tokenizer: &mut Tokenizer) {
    let pattern = SplitPattern::Regex(SPLIT.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .expect("the pattern is a constant that compiles");
    let byte_level = ByteLevel::new(false, true, false);
    tokenizer
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), byte_level.into()])))
        .with_decoder(Some(byte_level));
}
