//! Model families: each reads `config.json` of its architecture into a [`ModelSpec`].
//!
//! A family is one file here and one line of [`FAMILIES`]. Both spellings of the file are read: that
//! of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5
//! (`rope_parameters`, `dtype`). Sizes must be present; an absent option has the default that
//! transformers gives it for that family. What the network cannot compute is refused here by name,
//! so that no model is ever trained as something else than it is.

mod config_json;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;
mod sliding_window;

use std::path::Path;

use serde_json::{Map, Value};

use super::spec::{ModelSpec, Rope};
use crate::{Error, ErrorKind, Result};

pub use config_json::{ConfigJson, read_json_object};
pub(super) use qwen2::qwen2_tokenizer;

/// One architecture: how it is named and how its configuration is read.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class in `architectures` whose tensors have the names of `ParamTable`.
    pub architecture: &'static str,
    /// `bos_token_id` where the file has none.
    pub default_bos_token_id: Option<u32>,
    /// `eos_token_id` where the file has none.
    pub default_eos_token_id: Option<u32>,
    /// What transformers puts in the place of the tokenizer.json's normalizer and pre-tokenizer, for
    /// the families whose folders it never believes. A model must be trained on the ids that it will
    /// be asked with.
    pub tokenizer: Option<fn(&mut tokenizers::Tokenizer)>,
    /// Reads the family's own options.
    read: fn(&ConfigJson) -> Result<ModelSpec>,
}

/// The supported families, by `model_type`.
pub const FAMILIES: &[Family] = &[llama::FAMILY, mistral::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

/// More than any model has; keeps a corrupt file from overflowing sizes or exhausting memory.
const MAX_PARAMETERS: u128 = 1 << 44;
const MAX_LAYERS: usize = 10_000;

impl Family {
    /// The family of a `model_type`.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedModel`] lists the supported ones.
    pub fn of(model_type: &str) -> Result<&'static Family> {
        FAMILIES
            .iter()
            .find(|f| f.model_type == model_type)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::UnsupportedModel,
                    format!(
                        "model_type {model_type:?} is not supported; supported are {}",
                        supported()
                    ),
                )
            })
    }
}

impl ModelSpec {
    /// Reads `config.json` of the model folder `dir`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a missing or broken file, key or value; [`ErrorKind::UnsupportedModel`]
    /// for what the library cannot compute. Both name the file, the key and its value.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "model folder {} does not exist; give a Hugging Face model folder on this \
                     machine (names on a hub are not downloaded)",
                    dir.display()
                ),
            ));
        }
        let path = dir.join("config.json");
        Self::from_config(&ConfigJson::open(&path)?)
    }

    /// Reads the content of a `config.json`; `place` names it in errors.
    ///
    /// # Errors
    /// As [`ModelSpec::from_dir`].
    pub fn from_json(place: impl Into<String>, object: Map<String, Value>) -> Result<Self> {
        Self::from_config(&ConfigJson::new(place, object))
    }

    fn from_config(config: &ConfigJson) -> Result<Self> {
        let family = family_of(config)?;
        refuse_unsupported(config)?;
        (family.read)(config)
    }
}

fn supported() -> String {
    let names: Vec<_> = FAMILIES.iter().map(|f| f.model_type).collect();
    names.join(", ")
}

fn family_of(config: &ConfigJson) -> Result<&'static Family> {
    let model_type = config.required_str("model_type")?;
    let family = Family::of(model_type)
        .map_err(|e| e.context(format!("{}: key `model_type`", config.place())))?;
    if let Some(architectures) = config.get("architectures") {
        let listed = architectures
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if !listed
            .iter()
            .any(|a| a.as_str() == Some(family.architecture))
        {
            return Err(
                config.unsupported("architectures", &format!("[{:?}]", family.architecture))
            );
        }
    }
    Ok(family)
}

/// Options that no family computes.
fn refuse_unsupported(config: &ConfigJson) -> Result<()> {
    if config.get("quantization_config").is_some() {
        return Err(config.unsupported(
            "quantization_config",
            "absent: weights in float32, bfloat16 or float16",
        ));
    }
    let hidden_act = config.str_or("hidden_act", "silu")?;
    if !matches!(hidden_act, "silu" | "swish") {
        return Err(config.unsupported("hidden_act", "\"silu\""));
    }
    if config.f64_or("attention_dropout", 0.0)? != 0.0 {
        return Err(config.unsupported("attention_dropout", "0.0"));
    }
    Ok(())
}

fn check(config: &ConfigJson, spec: &ModelSpec) -> Result<()> {
    if !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        return Err(config.invalid(
            "num_key_value_heads",
            &format!("a divisor of `num_attention_heads` ({})", spec.num_heads),
        ));
    }
    if !spec.head_dim.is_multiple_of(2) {
        return Err(config.invalid_value(
            "head_dim",
            &spec.head_dim.to_string(),
            "an even number, for rotary position embedding turns pairs",
        ));
    }
    let wide = |n: usize| n as u128;
    let layer = wide(spec.hidden_size)
        .saturating_mul(2 * wide(spec.num_heads) + 2 * wide(spec.num_kv_heads))
        .saturating_mul(wide(spec.head_dim))
        .saturating_add((3 * wide(spec.hidden_size)).saturating_mul(wide(spec.intermediate_size)));
    let total = layer
        .saturating_mul(wide(spec.num_layers))
        .saturating_add(2 * wide(spec.vocab_size).saturating_mul(wide(spec.hidden_size)));
    if total > MAX_PARAMETERS || spec.num_layers > MAX_LAYERS {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}: the sizes make {} layers and {total} parameters, more than any model has; is \
                 one of `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`, \
                 `num_attention_heads`, `head_dim` mistyped?",
                config.place(),
                spec.num_layers
            ),
        ));
    }
    Ok(())
}

/// What the families differ in where `config.json` is silent.
struct Defaults {
    /// `None` is one for each query head.
    num_kv_heads: Option<usize>,
    /// `None` is `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
}

/// The keys that all families share; the rest has the plainest value and is for the family to set.
fn read_common(config: &ConfigJson, defaults: &Defaults) -> Result<ModelSpec> {
    let hidden_size = config.required_size("hidden_size")?;
    let num_heads = config.required_size("num_attention_heads")?;
    let num_kv_heads = match config.optional("num_key_value_heads") {
        Some(Value::Null) => num_heads,
        Some(_) => config.required_size("num_key_value_heads")?,
        None => defaults.num_kv_heads.unwrap_or(num_heads),
    };
    let head_dim = match (config.get("head_dim"), defaults.head_dim) {
        (Some(_), _) => config.required_size("head_dim")?,
        (None, Some(head_dim)) => head_dim,
        (None, None) if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        (None, None) => {
            return Err(config.invalid(
                "hidden_size",
                &format!(
                    "a multiple of `num_attention_heads` ({num_heads}), or `head_dim` beside it"
                ),
            ));
        }
    };
    let max_position_embeddings =
        config.size_or("max_position_embeddings", defaults.max_position_embeddings)?;
    let mut spec = ModelSpec {
        model_type: config.required_str("model_type")?.to_owned(),
        vocab_size: config.required_size("vocab_size")?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size")?,
        num_layers: config.required_size("num_hidden_layers")?,
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: config.positive_or("rms_norm_eps", 1e-6)? as f32,
        rope: Rope {
            inv_freq: Vec::new(),
        },
        sliding_window: None,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        max_position_embeddings,
    };
    // Before anything is allocated by size.
    check(config, &spec)?;
    spec.rope = rope::read(config, head_dim, max_position_embeddings)?;
    Ok(spec)
}
