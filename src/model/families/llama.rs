//! Llama: the plain block. `attention_bias` puts biases on all four attention projections,
//! `mlp_bias` on the three of the feed-forward network. SmolLM2, TinyLlama and Llama 3.x are Llamas.

use super::{ConfigJson, Defaults, Family, read_common};
use crate::Result;
use crate::model::ModelSpec;

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    default_bos_token_id: Some(1),
    default_eos_token_id: Some(2),
    tokenizer: None,
    read,
};

fn read(config: &ConfigJson) -> Result<ModelSpec> {
    let attention_bias = config.bool_or("attention_bias", false)?;
    let defaults = Defaults {
        num_kv_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
    };
    Ok(ModelSpec {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: config.bool_or("mlp_bias", false)?,
        ..read_common(config, &defaults)?
    })
}
