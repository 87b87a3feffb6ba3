//! A new model with seeded random weights and a tokenizer of its own: to try the engine, to test it
//! and to measure it, where no model is at hand.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::families::Family;
use super::folder::{is_model_file, write_weights};
use super::params::{Param, ParamTable};
use super::spec::ModelSpec;
use super::train_tokenizer::{SPECIAL_TOKENS, train_tokenizer};
use crate::dtype::DType;
use crate::error::ResultExt;
use crate::io::{AtomicFolder, DEFAULT_SHARD_BYTES};
use crate::rng::Stream;
use crate::{Error, ErrorKind, Result};

/// `<|endoftext|>` begins texts and fills up batches, `<|im_end|>` ends a turn.
const BOS: u32 = 0;
const EOS: u32 = 2;

/// A turn of ChatML for each message; the assistant's own words are marked for `assistant_only_loss`.
pub const CHATML_TEMPLATE: &str = "\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
";

/// What [`init_model`] makes.
#[derive(Clone, Debug, PartialEq)]
pub struct InitOptions {
    /// A family that [`families`](super::families) supports, such as `llama`.
    pub model_type: String,
    /// Rows of the embedding table; at least 259. The tokenizer has at most this many tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// The LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Attention window in tokens (Mistral).
    pub sliding_window: Option<usize>,
    /// Standard deviation of matrices and embeddings.
    pub initializer_range: f64,
    /// Number format of the file.
    pub dtype: DType,
    /// The same seed makes the same file.
    pub seed: u64,
    /// JSONL files whose strings the tokenizer is trained on; none leaves a byte-level tokenizer.
    pub corpus: Vec<PathBuf>,
    /// Replace a model that stands at the destination.
    pub overwrite: bool,
}

impl InitOptions {
    /// Names that [`InitOptions::preset`] knows.
    pub const PRESETS: &[&str] = &["tiny", "smollm2-135m", "qwen2.5-0.5b"];

    /// The shape of a well-known model, or `tiny`, which trains in seconds on any machine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] lists the presets.
    pub fn preset(name: &str) -> Result<Self> {
        let tiny = Self {
            model_type: "llama".into(),
            vocab_size: 2048,
            hidden_size: 64,
            intermediate_size: 176,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: None,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            sliding_window: None,
            initializer_range: 0.02,
            dtype: DType::F32,
            seed: 0,
            corpus: Vec::new(),
            overwrite: false,
        };
        match name {
            "tiny" => Ok(tiny),
            "smollm2-135m" => Ok(Self {
                vocab_size: 49_152,
                hidden_size: 576,
                intermediate_size: 1536,
                num_hidden_layers: 30,
                num_attention_heads: 9,
                num_key_value_heads: 3,
                max_position_embeddings: 8192,
                rope_theta: 100_000.0,
                ..tiny
            }),
            "qwen2.5-0.5b" => Ok(Self {
                model_type: "qwen2".into(),
                vocab_size: 151_936,
                hidden_size: 896,
                intermediate_size: 4864,
                num_hidden_layers: 24,
                num_attention_heads: 14,
                num_key_value_heads: 2,
                max_position_embeddings: 32_768,
                rope_theta: 1_000_000.0,
                rms_norm_eps: 1e-6,
                ..tiny
            }),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("no preset {name:?}; there are {}", Self::PRESETS.join(", ")),
            )),
        }
    }

    /// `config.json` with the keys of both transformers 4 and 5.
    fn config_json(&self) -> Result<Map<String, Value>> {
        let family = Family::of(&self.model_type)?;
        let config = json!({
            "architectures": [family.architecture],
            "attention_dropout": 0.0,
            "bos_token_id": BOS,
            "dtype": self.dtype.name(),
            "eos_token_id": EOS,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": BOS,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": { "rope_theta": self.rope_theta, "rope_type": "default" },
            "rope_theta": self.rope_theta,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype.name(),
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        let Value::Object(mut config) = config else {
            return Err(Error::new(ErrorKind::Internal, "config.json is no object"));
        };
        let derived = || self.hidden_size.checked_div(self.num_attention_heads);
        if let Some(head_dim) = self.head_dim.or_else(derived) {
            config.insert("head_dim".into(), head_dim.into());
        }
        Ok(config)
    }
}

/// Writes a new model folder in Hugging Face layout to `dest`: matrices and embeddings from
/// N(0, `initializer_range`²), norms one, biases zero; a byte-level BPE tokenizer with ChatML.
///
/// # Errors
/// [`ErrorKind::Exists`] if a model stands there and `overwrite` is off; [`ErrorKind::Model`] or
/// [`ErrorKind::UnsupportedModel`] naming a size or family that makes no model; [`ErrorKind::Data`]
/// for a corpus file that cannot be read, with its line; [`ErrorKind::Io`].
pub fn init_model(dest: impl AsRef<Path>, options: &InitOptions) -> Result<()> {
    let dest = dest.as_ref();
    if dest.join("config.json").exists() && !options.overwrite {
        return Err(Error::new(
            ErrorKind::Exists,
            format!(
                "{} already holds a model; choose another folder",
                dest.display()
            ),
        ));
    }
    let config = options.config_json()?;
    let spec = ModelSpec::from_json("the new model", config.clone())?;
    let tokenizer = train_tokenizer(options.vocab_size, &options.corpus)?;
    let pretty = |value: Value| format!("{value:#}\n").into_bytes();

    let making = || format!("making the model {}", dest.display());
    let mut folder = AtomicFolder::create(dest).context(making)?;
    let [bos, _, eos] = SPECIAL_TOKENS;
    let files = [
        ("config.json", pretty(Value::Object(config))),
        (
            "generation_config.json",
            pretty(json!({ "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": BOS })),
        ),
        ("tokenizer.json", tokenizer.into_bytes()),
        (
            "tokenizer_config.json",
            pretty(json!({
                "bos_token": bos,
                "clean_up_tokenization_spaces": false,
                "eos_token": eos,
                "model_max_length": options.max_position_embeddings,
                "pad_token": bos,
                "tokenizer_class": "PreTrainedTokenizerFast",
            })),
        ),
        ("chat_template.jinja", CHATML_TEMPLATE.as_bytes().to_vec()),
    ];
    for (name, content) in &files {
        folder.write(name, content).context(making)?;
    }
    let table = ParamTable::new(&spec);
    let std = options.initializer_range;
    let fill = |param: &Param, start: usize, chunk: &mut [f32]| {
        fill_initial(&table, param, options.seed, std, start, chunk);
        Ok(())
    };
    write_weights(
        &mut folder,
        &table,
        options.dtype,
        DEFAULT_SHARD_BYTES,
        fill,
    )
    .context(making)?;
    folder.merge(is_model_file).context(making)
}

/// The initial values of elements `start..` of one tensor; each depends on seed, tensor and index
/// alone.
fn fill_initial(
    table: &ParamTable,
    param: &Param,
    seed: u64,
    std: f64,
    start: usize,
    chunk: &mut [f32],
) {
    if param.name.ends_with(".bias") {
        return chunk.fill(0.0);
    }
    if !param.decay {
        return chunk.fill(1.0);
    }
    let number = table
        .params
        .iter()
        .position(|p| p.offset == param.offset)
        .unwrap_or(0);
    let stream = Stream::new(seed, number as u64);
    chunk.par_iter_mut().enumerate().for_each(|(i, x)| {
        *x = (std * stream.normal((start + i) as u64)) as f32;
    });
}
