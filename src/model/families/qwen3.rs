//! Qwen3 (dense): RMSNorm on every query and key head, a head width of its own (`head_dim`, 128 where
//! absent), no biases unless `attention_bias`.

use super::{ConfigJson, Defaults, Family, read_common, sliding_window};
use crate::Result;
use crate::model::ModelSpec;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    default_bos_token_id: None,
    default_eos_token_id: None,
    tokenizer: None,
    read,
};

fn read(config: &ConfigJson) -> Result<ModelSpec> {
    let attention_bias = config.bool_or("attention_bias", false)?;
    let defaults = Defaults {
        num_kv_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
    };
    let spec = read_common(config, &defaults)?;
    Ok(ModelSpec {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: true,
        sliding_window: sliding_window::upper_layers(config, spec.num_layers)?,
        ..spec
    })
}
