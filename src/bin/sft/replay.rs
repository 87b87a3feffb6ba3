//! `sft replay`: where would these stop rules have ended a recorded run?

use std::path::PathBuf;
use std::process::ExitCode;

use sft::config::Config;
use sft::error::ResultExt;
use sft::stop::StopConfig;
use sft::stop::replay::{Replay, read_log, replay};
use sft::{Error, ErrorKind, Result};

use crate::console;

#[derive(clap::Args)]
pub struct Args {
    /// A train_log.jsonl: one object a line with `step` and `loss`, `eval_loss` or other metrics
    log: PathBuf,
    /// The rules, as YAML or JSON: a list, or the keys `stop` and `early_stopping_…`
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "config",
        required_unless_present = "config"
    )]
    stop: Option<PathBuf>,
    /// The configuration of a run, for its rules
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object instead of a sentence
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let rows = read_log(&read(&args.log)?).context(|| args.log.display().to_string())?;
    let rules = match (&args.stop, &args.config) {
        (Some(file), _) => {
            StopConfig::from_text(&read(file)?).context(|| file.display().to_string())?
        }
        (None, Some(file)) => Config::from_file(file)?.stop_rules()?,
        (None, None) => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "name --stop or --config",
            ));
        }
    };
    let result = replay(&rows, &rules)?;
    console::line(&if args.json {
        json(&result)?
    } else {
        sentence(&result, rows.len())
    });
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

fn json(result: &Replay) -> Result<String> {
    serde_json::to_string(result)
        .map_err(|e| Error::new(ErrorKind::Internal, "replay").with_source(e))
}

fn sentence(result: &Replay, rows: usize) -> String {
    let end = match (result.step, result.reason) {
        (Some(step), Some(reason)) => format!("Stops after update {step}: {}.", reason.code()),
        _ => format!("Never stops in {rows} rows (counter {}).", result.counter),
    };
    match (result.best_value, result.best_step) {
        (Some(value), Some(step)) => format!("{end} Best {value} after update {step}."),
        _ => end,
    }
}
