//! `sft eval`: the loss of a model on evaluation rows.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::engine::{Hooks, LogLevel, evaluate_model};
use sft::{Error, ErrorKind, Result};

use crate::console;
use crate::overrides::{Overrides, configuration};
use crate::progress::describe_eval;

#[derive(clap::Args)]
#[command(after_help = crate::KEYS_ARE_FLAGS)]
pub struct Args {
    /// The model folder; without it the configuration's
    model: Option<PathBuf>,
    /// The configuration, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object instead of a sentence
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, overrides: &Overrides) -> Result<ExitCode> {
    let mut config = configuration(args.config.as_deref(), overrides)?;
    if args.model.is_some() {
        config.model_name_or_path = args.model;
    }
    config.validate()?;
    let hooks = Hooks {
        log: Some(Box::new(|level, text| {
            if level == LogLevel::Warning {
                console::note(&format!("warning: {text}"));
            }
        })),
        ..Hooks::default()
    };
    let report = evaluate_model(&config, hooks)?;
    console::line(&if args.json {
        serde_json::to_string(&report)
            .map_err(|e| Error::new(ErrorKind::Internal, "evaluation").with_source(e))?
    } else {
        describe_eval(&report)
    });
    Ok(ExitCode::SUCCESS)
}
