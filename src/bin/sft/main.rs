//! `sft`: the command line over the library. Every command is a thin file of its own; nothing here
//! does what the library cannot do for another host.

mod console;
mod curve;
mod eval;
mod export;
mod generate;
mod init;
mod init_model;
mod markup;
mod overrides;
mod plan;
mod plot;
mod preview;
mod progress;
mod replay;
mod report;
mod sweep;
mod train;
mod watch;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind as UsageKind};
use clap::{Parser, Subcommand};
use sft::{Error, ErrorKind};

use overrides::Overrides;

const EXIT_CODES: &str = "\
Exit codes: 0 done, an early stop included; 1 the run or a file failed, a loss that is not finite
included; 2 the command line, the configuration or the rules are wrong; 130 cancelled (Ctrl-C).";

const KEYS_ARE_FLAGS: &str = "\
Every key of the configuration is a flag too: --learning_rate 1e-4, --packing, --max-length=512,
--stop '[{rule: target, metric: eval_loss, at_most: 1.5}]'. A flag wins over the file, the file over
the default; `sft init` lists all keys.";

/// Supervised fine-tuning of language models.
#[derive(Parser)]
#[command(name = "sft", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model until a stop rule or the budget ends the run
    Train(train::Args),
    /// Follow a run that another process trains
    Watch(watch::Args),
    /// Write a configuration with every key explained
    Init(init::Args),
    /// Show how much memory a run takes, without loading the model
    Plan(plan::Args),
    /// Show rows as tokens, with those marked that are trained on
    Preview(preview::Args),
    /// Measure the loss of a model on evaluation rows
    Eval(eval::Args),
    /// Let a model write
    Generate(generate::Args),
    /// Run stop rules over a recorded log
    Replay(replay::Args),
    /// Find the stop rule that would have ended a recorded run best
    Sweep(sweep::Args),
    /// Write one HTML page about a run
    Report(report::Args),
    /// Write a model or checkpoint in another number format
    Export(export::Args),
    /// Make a new model with seeded random weights and a tokenizer
    InitModel(init_model::Args),
}

/// Commands that take the keys of the configuration as flags.
const CONFIGURED: [&str; 5] = ["train", "plan", "preview", "eval", "generate"];

fn main() -> ExitCode {
    match run(std::env::args().collect()) {
        Ok(code) => code,
        Err(error) => {
            console::error(&error.to_string());
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

/// A wrong command line or configuration is 2, as shells have it; what fails later is 1.
fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Cancelled => 130,
        ErrorKind::InvalidArgument
        | ErrorKind::Config
        | ErrorKind::UnknownKey
        | ErrorKind::Unsupported => 2,
        _ => 1,
    }
}

fn run(args: Vec<String>) -> Result<ExitCode, Error> {
    let configured = args
        .get(1)
        .is_some_and(|command| CONFIGURED.contains(&command.as_str()));
    let (args, overrides) = if configured {
        overrides::split(args)
    } else {
        (args, Overrides::new())
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) => return Ok(refuse(&usage, configured)),
    };
    match cli.command {
        Command::Train(args) => train::run(&args, &overrides),
        Command::Watch(args) => watch::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Plan(args) => plan::run(&args, &overrides),
        Command::Preview(args) => preview::run(&args, &overrides),
        Command::Eval(args) => eval::run(args, &overrides),
        Command::Generate(args) => generate::run(args, &overrides),
        Command::Replay(args) => replay::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Export(args) => export::run(&args),
        Command::InitModel(args) => init_model::run(args),
    }
}

/// Shows clap's message; a flag that nobody knows gets the configuration's words, which know every
/// key and its old names.
fn refuse(usage: &clap::Error, configured: bool) -> ExitCode {
    if configured
        && usage.kind() == UsageKind::UnknownArgument
        && let Some(ContextValue::String(flag)) = usage.get(ContextKind::InvalidArg)
        && flag.starts_with("--")
    {
        console::error(&overrides::unknown_flag(flag));
        return ExitCode::from(2);
    }
    // A failure to print a usage message has nowhere to be reported.
    let _ = usage.print();
    if usage.use_stderr() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}
