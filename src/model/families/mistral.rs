//! Mistral: a Llama without biases whose attention may look back over a window only
//! (`sliding_window`, null in later releases; 4096 where the key is absent).

use super::{ConfigJson, Defaults, Family, read_common, sliding_window};
use crate::Result;
use crate::model::ModelSpec;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    default_bos_token_id: Some(1),
    default_eos_token_id: Some(2),
    tokenizer: None,
    read,
};

fn read(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_kv_heads: Some(8),
        head_dim: None,
        max_position_embeddings: 131_072,
    };
    let spec = read_common(config, &defaults)?;
    Ok(ModelSpec {
        sliding_window: sliding_window::every_layer(config, spec.num_layers)?,
        ..spec
    })
}
