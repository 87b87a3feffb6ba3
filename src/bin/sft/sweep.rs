//! `sft sweep`: which threshold and patience would have ended a recorded run best?

use std::path::PathBuf;
use std::process::ExitCode;

use sft::stop::replay::Row;
use sft::stop::sweep::{Outcome, Sweep, SweepOptions, sweep};
use sft::stop::{Direction, Metric, Reference};
use sft::{Error, ErrorKind, Result};

use crate::console;
use crate::report::run::Run;

#[derive(clap::Args)]
pub struct Args {
    /// A log, or the output folder of a run: train_log.jsonl, a peer's trainer_state.json
    log: PathBuf,
    /// What the rules watch [default: eval_loss, or train_loss in a log without evaluations]
    #[arg(long)]
    metric: Option<String>,
    /// Whether more of the metric is better [default: by its name]
    #[arg(long, value_name = "BOOL")]
    greater_is_better: Option<bool>,
    /// What an improvement is measured from: significant (the last one), hf (the best value, as
    /// transformers does)
    #[arg(long, default_value = "significant", value_parser = ["significant", "hf"])]
    reference: String,
    /// min_delta of the plateau rules, such as 0,0.01,0.05 [default: from the gains in the log]
    #[arg(
        long,
        value_name = "X,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    thresholds: Vec<f64>,
    /// Patience of the plateau rules [default: 1,2,3,5,8]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    patiences: Vec<u64>,
    /// Bounds of the target rules [default: from the gain of the whole run]
    #[arg(
        long,
        value_name = "X,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    targets: Vec<f64>,
    /// The part of the whole run's gain that the recommended rule may give up
    #[arg(long, value_name = "PART", default_value_t = 0.01)]
    give_up: f64,
    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let rows = Run::read(&args.log, None)?.rows;
    let wrong = |message: String| Error::new(ErrorKind::InvalidArgument, message);
    let metric = match &args.metric {
        Some(name) => {
            Metric::try_from(name.clone()).map_err(|e| wrong(format!("--metric: {e}")))?
        }
        None => usual_metric(&rows),
    };
    let options = SweepOptions {
        metric,
        greater_is_better: args.greater_is_better,
        reference: match args.reference.as_str() {
            "hf" => Reference::Hf,
            _ => Reference::Significant,
        },
        thresholds: args.thresholds.clone(),
        patiences: args.patiences.clone(),
        targets: args.targets.clone(),
        give_up: args.give_up,
    };
    let found = sweep(&rows, &options).map_err(|e| e.context(args.log.display().to_string()))?;
    if args.json {
        let json = serde_json::to_string(&found)
            .map_err(|e| Error::new(ErrorKind::Internal, "sweep").with_source(e))?;
        console::line(&json);
    } else {
        console::print(&text(&found, args.give_up));
    }
    Ok(ExitCode::SUCCESS)
}

fn usual_metric(rows: &[Row]) -> Metric {
    let mut metrics = rows.iter().flat_map(|row| &row.metrics);
    match metrics.any(|(name, _)| name == Metric::EvalLoss.name()) {
        true => Metric::EvalLoss,
        false => Metric::TrainLoss,
    }
}

fn text(sweep: &Sweep, give_up: f64) -> String {
    let full = &sweep.full;
    let metric = &sweep.metric;
    let values = counted(full.observations as u64, "value");
    let tokens = full.tokens.map(|n| format!(" ({n} tokens)"));
    let mut text = format!(
        "{metric}: {values} in {}{}, from {} to a best of {} after update {}.\n",
        counted(full.steps, "update"),
        tokens.unwrap_or_default(),
        short(full.first_value),
        short(full.best_value),
        full.best_step
    );
    let reference = match sweep.reference {
        Reference::Significant => "",
        Reference::Hf => ", reference hf",
    };
    text += &format!(
        "\nplateau{reference}: ends after `patience` values in a row that gain no more than `min_delta`\n"
    );
    text += &table("min_delta", &sweep.plateau);
    let side = match sweep.direction {
        Direction::Minimize => "at_most",
        Direction::Maximize => "at_least",
    };
    text += &format!("\ntarget: ends after `patience` values in a row of `{side}`\n");
    text += &table(side, &sweep.target);
    text + "\n" + &advice(sweep, give_up)
}

/// One line an outcome; a threshold is written once.
fn table(threshold: &str, outcomes: &[Outcome]) -> String {
    let kept = "best kept";
    let mut text = format!(
        "{threshold:>10} {:>9} {:>9} {kept:>10} {:>8} {:>9} {:>7}\n",
        "patience", "ends at", "of", "given up", "saved"
    );
    let mut before = None;
    for outcome in outcomes {
        let shown = match before == Some(outcome.threshold) {
            true => String::new(),
            false => outcome.threshold.to_string(),
        };
        before = Some(outcome.threshold);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        text += &format!(
            "{shown:>10} {:>9} {:>9} {:>10} {:>8} {:>9} {:>5.1} %\n",
            outcome.patience,
            outcome
                .stop_step
                .map_or("never".into(), |step| step.to_string()),
            or_dash(outcome.best_value.map(short)),
            or_dash(outcome.best_step.map(|step| step.to_string())),
            or_dash(outcome.given_up.map(short)),
            100.0 * outcome.saved
        );
    }
    text
}

fn advice(sweep: &Sweep, give_up: f64) -> String {
    let allowed = format!("{} % of the gain", short(100.0 * give_up));
    let Some(recommended) = &sweep.recommended else {
        return format!(
            "No rule here ends the run earlier without giving up more than {allowed}: it was not too \
             long.\n"
        );
    };
    let outcome = &recommended.outcome;
    let unit = match sweep.full.tokens {
        Some(_) => "tokens",
        None => "updates",
    };
    let lost = match outcome.given_up {
        Some(lost) if lost > 0.0 => format!("gives up {} of {}", short(lost), sweep.metric),
        _ => "gives up nothing".to_owned(),
    };
    format!(
        "Recommended: ends after update {} of {}, saves {:.1} % of the {unit} and {lost}; of the rules \
         that give up at most {allowed} none saves more. With load_best_model_at_end: true the best \
         weights are the ones that are kept.\n\n{}\n",
        outcome.stop_step.unwrap_or(sweep.full.steps),
        sweep.full.steps,
        100.0 * outcome.saved,
        recommended.yaml()
    )
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Four decimals where they say something, else what is needed.
fn short(x: f64) -> String {
    match x == 0.0 || (0.001..1e6).contains(&x.abs()) {
        true => {
            let fixed = format!("{x:.4}");
            let trimmed = fixed.trim_end_matches('0').trim_end_matches('.');
            trimmed.to_owned()
        }
        false => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (1.19, "1.19"),
            (0.12345, "0.1235"),
            (-2.0, "-2"),
            (1e-7, "1.00e-7"),
        ];
        for (x, expected) in cases {
            assert_eq!(short(x), expected);
        }
    }
}
