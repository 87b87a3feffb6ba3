//! `sft generate`: text from a model folder, to look at what was learnt.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::config::Config;
use sft::data::{ChatTemplate, Conversation, Tokenizer};
use sft::engine::{Generator, Hooks, SamplingOptions, open_tokenizer};
use sft::{Error, ErrorKind, Result};

use crate::console;
use crate::overrides::{Overrides, configuration};

#[derive(clap::Args)]
#[command(after_help = crate::KEYS_ARE_FLAGS)]
pub struct Args {
    /// The model folder; without it the configuration's
    model: Option<PathBuf>,
    /// The configuration, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    input: Input,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 always takes the most likely token; 1 samples the model's own distribution (--seed chooses)
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f64,
    /// Sample among the most likely tokens whose probabilities sum to this
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Sample among this many most likely tokens; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// Text to continue as it stands
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What a user says, put through the chat template
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// A whole conversation for the chat template: a JSON list of {role, content}
    #[arg(long, value_name = "JSON")]
    messages: Option<String>,
}

pub fn run(args: Args, overrides: &Overrides) -> Result<ExitCode> {
    let mut config = configuration(args.config.as_deref(), overrides)?;
    if args.model.is_some() {
        config.model_name_or_path = args.model;
    }
    config.validate()?;
    let (tokenizer, template) = open_tokenizer(&config)?;
    let prompt = prompt(&args.input, &tokenizer, template.as_ref())?;
    let options = SamplingOptions {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: config.seed,
        max_new_tokens: args.max_new_tokens,
    };
    write(&config, &tokenizer, &prompt, &options)?;
    Ok(ExitCode::SUCCESS)
}

fn prompt(
    input: &Input,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Vec<i32>> {
    let messages = match (&input.prompt, &input.message, &input.messages) {
        (Some(text), _, _) => return Ok(tokenizer.encode(text, true)?.ids),
        (_, Some(text), _) => vec![serde_json::json!({"role": "user", "content": text})],
        (_, _, json) => serde_json::from_str(json.as_deref().unwrap_or_default()).map_err(|e| {
            Error::new(ErrorKind::InvalidArgument, "--messages is not a JSON list").with_source(e)
        })?,
    };
    let Some(template) = template else {
        return Err(Error::new(
            ErrorKind::Template,
            "the tokenizer has no chat template; use --prompt, or name one as chat_template_path",
        ));
    };
    let text = template.render(&Conversation {
        messages: &messages,
        add_generation_prompt: true,
        ..Conversation::default()
    })?;
    // The template has written the special tokens already.
    Ok(tokenizer.encode(&text, false)?.ids)
}

/// Writes the text while it comes.
fn write(
    config: &Config,
    tokenizer: &Tokenizer,
    prompt: &[i32],
    options: &SamplingOptions,
) -> Result<()> {
    let capacity = prompt
        .len()
        .saturating_add(options.max_new_tokens)
        .saturating_add(1);
    let mut generator = Generator::open(config, capacity, Hooks::default())?;
    if let Some(eos) = tokenizer.eos_token_id() {
        generator.add_end_token(eos);
    }
    let mut stream = tokenizer.stream(true);
    let mut failed = None;
    generator.generate(prompt, options, |token| match stream.push(token) {
        Ok(text) => {
            console::print(&text.unwrap_or_default());
            true
        }
        Err(error) => {
            failed = Some(error);
            false
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    console::line(&stream.finish()?.unwrap_or_default());
    Ok(())
}
