//! `sft init-model`: a new model with seeded random weights and a tokenizer of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::Result;
use sft::model::{InitOptions, init_model};

use crate::console;

#[derive(clap::Args)]
pub struct Args {
    /// The folder to write
    folder: PathBuf,
    /// The shape to start from
    #[arg(long, default_value = "tiny", value_parser = InitOptions::PRESETS.to_vec())]
    preset: String,
    /// JSONL files to train the tokenizer on; without one it knows bytes only
    #[arg(long, value_name = "FILE", num_args = 1..)]
    corpus: Vec<PathBuf>,
    /// The same seed makes the same model
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Family, such as llama, mistral, qwen2, qwen3
    #[arg(long, value_name = "NAME")]
    model_type: Option<String>,
    /// Tokens of the vocabulary
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N")]
    hidden_size: Option<usize>,
    /// Width of the feed-forward network
    #[arg(long, value_name = "N")]
    intermediate_size: Option<usize>,
    /// Transformer blocks
    #[arg(long, value_name = "N")]
    num_hidden_layers: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N")]
    num_attention_heads: Option<usize>,
    /// Key and value heads
    #[arg(long, value_name = "N")]
    num_key_value_heads: Option<usize>,
    /// Replace a model that stands in the folder
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let preset = InitOptions::preset(&args.preset)?;
    let options = InitOptions {
        model_type: args.model_type.unwrap_or(preset.model_type),
        vocab_size: args.vocab_size.unwrap_or(preset.vocab_size),
        hidden_size: args.hidden_size.unwrap_or(preset.hidden_size),
        intermediate_size: args.intermediate_size.unwrap_or(preset.intermediate_size),
        num_hidden_layers: args.num_hidden_layers.unwrap_or(preset.num_hidden_layers),
        num_attention_heads: args
            .num_attention_heads
            .unwrap_or(preset.num_attention_heads),
        num_key_value_heads: args
            .num_key_value_heads
            .unwrap_or(preset.num_key_value_heads),
        seed: args.seed,
        corpus: args.corpus,
        overwrite: args.overwrite,
        ..preset
    };
    init_model(&args.folder, &options)?;
    console::line(&format!(
        "Wrote a new {} model to {}",
        options.model_type,
        args.folder.display()
    ));
    Ok(ExitCode::SUCCESS)
}
