//! `sft eval`: the loss of a model on evaluation rows.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::engine::{Hooks, LogLevel, evaluate_model};
use sft::report::EvalReport;
use sft::{Error, ErrorKind, Result};

use crate::console;
use crate::overrides::{Overrides, configuration};
use crate::progress::describe_numbers;

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
        json(&report)?
    } else {
        table(&report)
    });
    Ok(ExitCode::SUCCESS)
}

fn json(report: &EvalReport) -> Result<String> {
    let mut value = serde_json::to_value(report)
        .map_err(|e| Error::new(ErrorKind::Internal, "evaluation").with_source(e))?;
    value["perplexity"] = report.perplexity().into();
    Ok(value.to_string())
}

/// All rows, and under them a line for each set that has a name.
fn table(report: &EvalReport) -> String {
    let all = describe_numbers(report.loss, report.token_accuracy, report.supervised_tokens);
    let mut text = format!("{all} · perplexity {:.2}", report.perplexity());
    let width = report.sets.iter().map(|set| set.name.len()).max();
    for set in &report.sets {
        let numbers = describe_numbers(set.loss, set.token_accuracy, set.supervised_tokens);
        let width = width.unwrap_or(0);
        text += &format!("\n  {:width$}  {numbers}", set.name);
    }
    text
}
