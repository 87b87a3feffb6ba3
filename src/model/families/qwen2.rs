//! Qwen2 and Qwen2.5: biases on the query, key and value projections; a sliding window on the
//! layers from `max_window_layers` on where `use_sliding_window` says so.

use super::{ConfigJson, Defaults, Family, read_common, sliding_window};
use crate::Result;
use crate::model::ModelSpec;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    default_bos_token_id: None,
    default_eos_token_id: None,
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
