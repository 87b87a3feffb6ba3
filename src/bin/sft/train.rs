//! `sft train`: a run from its configuration to the model folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sft::config::Config;
use sft::engine::{Canceller, Export, Hooks, LogLevel, Session};
use sft::report::{StepReport, StopReason};
use sft::stop::{Metric, Rule};
use sft::{Error, ErrorKind, Result};

use crate::console;
use crate::curve::{self, Curve};
use crate::overrides::{Overrides, configuration};
use crate::progress::{Progress, describe_end, describe_state};

#[derive(clap::Args)]
#[command(after_help = crate::KEYS_ARE_FLAGS)]
pub struct Args {
    /// The configuration, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(args: &Args, overrides: &Overrides) -> Result<ExitCode> {
    let config = configuration(args.config.as_deref(), overrides)?;
    config.validate()?;
    let canceller = Canceller::new();
    cancel_on_interrupt(&canceller)?;
    let mut progress = Progress::new(config.disable_tqdm);
    let printer = progress.printer();
    // Once updates are shown, news comes with them and at the end.
    let begun = Arc::new(AtomicBool::new(false));
    let quiet = Arc::clone(&begun);
    let hooks = Hooks {
        canceller,
        progress: None,
        checkpoint: None,
        log: Some(Box::new(move |level, text| match level {
            LogLevel::Warning => printer.line(&format!("warning: {text}")),
            LogLevel::Info if quiet.load(Ordering::Relaxed) => {}
            LogLevel::Info => printer.line(text),
        })),
    };

    let mut session = Session::start(config.clone(), hooks)?;
    let total = session.snapshot().total_steps;
    progress.begin(total, config.logging_steps.of(total.unwrap_or(0)));
    let mut curve = Curve {
        target: target(&config),
        ..Curve::default()
    };
    if session.snapshot().resumed_step.is_some() {
        curve_so_far(&mut curve, &config.output_dir);
    }
    let own = own_command(args.config.as_deref(), overrides);
    let mut speed = Speed::default();
    let trained = train(&mut session, &mut progress, &mut curve, &mut speed, &begun);
    progress.finish();
    if let Err(error) = trained {
        rescue(&mut session, &config.output_dir, &own);
        return Err(error);
    }
    finish(&mut session, &config, &curve, &speed, &own)
}

/// What was done in how long, without the first update, which also touches its memory.
#[derive(Default)]
struct Speed {
    updates: u64,
    tokens: u64,
    flops: f64,
    seconds: f64,
}

impl Speed {
    fn take_in(&mut self, report: &StepReport) {
        if self.updates == 1 {
            *self = Self {
                updates: 1,
                ..Self::default()
            };
        }
        self.updates += 1;
        self.tokens += report.tokens;
        self.flops += report.model_flops as f64;
        self.seconds += report.seconds;
    }

    /// For people, beside the ceiling.
    fn describe(&self, ceiling: f64) -> String {
        let seconds = self.seconds.max(1e-9);
        let flops = self.flops / seconds;
        format!(
            "Speed: {:.1} tokens/s; {:.3} TFLOP/s of the model, {:.1} % of what its matrix products \
             reach alone ({:.3}).",
            self.tokens as f64 / seconds,
            flops / 1e12,
            100.0 * flops / ceiling,
            ceiling / 1e12
        )
    }
}

/// The updates of earlier legs, as the log has them.
fn curve_so_far(curve: &mut Curve, out: &Path) {
    let text = std::fs::read_to_string(out.join("train_log.jsonl")).unwrap_or_default();
    let rows = text.lines().map(serde_json::from_str::<serde_json::Value>);
    for row in rows.flatten() {
        let Some(step) = row["step"].as_u64() else {
            continue;
        };
        curve
            .train
            .extend(row["loss"].as_f64().map(|loss| (step, loss)));
        curve
            .eval
            .extend(row["eval_loss"].as_f64().map(|loss| (step, loss)));
    }
}

/// The command line of this run, without what it went on from.
fn own_command(file: Option<&Path>, overrides: &Overrides) -> String {
    let mut command = "sft train".to_owned();
    if let Some(file) = file {
        command += &format!(" --config {}", quoted(&file.display().to_string()));
    }
    for (key, value) in overrides {
        if key != "resume_from_checkpoint" && key != "overwrite_output_dir" {
            command += &format!(" --{key}={}", quoted(value));
        }
    }
    command
}

/// What goes on from the newest checkpoint.
const AUTO: &str = " --resume_from_checkpoint auto";

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

fn train(
    session: &mut Session,
    progress: &mut Progress,
    curve: &mut Curve,
    speed: &mut Speed,
    begun: &AtomicBool,
) -> Result<()> {
    loop {
        match session.step() {
            Ok(Some(report)) => {
                begun.store(true, Ordering::Relaxed);
                speed.take_in(&report);
                curve.train.push((report.step, report.loss));
                curve
                    .eval
                    .extend(report.eval.as_ref().map(|eval| (eval.step, eval.loss)));
                progress.step(&report, &state(session, &report));
            }
            Ok(None) => return Ok(()),
            // Cancelled inside an evaluation: the next call closes the run.
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => return Err(error),
        }
    }
}

/// What ends a run early, such as a checkpoint that cannot be written, must not cost the weights:
/// tries to save them.
fn rescue(session: &mut Session, out: &Path, own: &str) {
    let step = session.snapshot().step;
    if step == 0 {
        return;
    }
    // The first try may also end the run, and fail at that; the second is about the weights alone.
    let first = session.export(out, Export::Full);
    match first.or_else(|_| session.export(out, Export::Full)) {
        Ok(()) => console::error(&format!(
            "the run ends here; the weights after update {step} are in {}",
            out.display()
        )),
        Err(again) => console::error(&format!("the weights cannot be saved either: {again}")),
    }
    if let Some(step) = session.snapshot().checkpoint_step {
        console::error(&format!(
            "the checkpoint of update {step} is whole; to go on from it:\n  {own}{AUTO}"
        ));
    }
}

/// Best value and the rules that have begun to count.
fn state(session: &Session, report: &StepReport) -> String {
    let snapshot = session.snapshot();
    let best = snapshot.best_step.zip(snapshot.best_value);
    describe_state(report.step, best, &session.rule_status())
}

/// Saves what the run made and says what became of it.
fn finish(
    session: &mut Session,
    config: &Config,
    curve: &Curve,
    speed: &Speed,
    own: &str,
) -> Result<ExitCode> {
    let snapshot = session.snapshot();
    let out = &config.output_dir;
    let reason = session.stop_reason();
    let detail = session.stop_detail().unwrap_or_default().to_owned();
    // After an update on NaN every weight may be NaN: such a model must not pass for a result.
    let broken = reason == Some(StopReason::NonFinite) && !session.restored_best();
    let saved = snapshot.step > 0 && !broken;
    if saved {
        session.export(out, Export::Full)?;
    }
    let svg = out.join("loss.svg");
    std::fs::write(&svg, curve::svg(curve)).map_err(|e| Error::io(&svg, e))?;

    console::line(&format!("\n{}", describe_end(&snapshot, &detail)));
    if let (Some(step), Some(value)) = (snapshot.best_step, snapshot.best_value) {
        let whose = if session.restored_best() {
            "; the saved model has its weights"
        } else {
            ""
        };
        console::line(&format!("Best {value:.4} after update {step}{whose}."));
    }
    let losses: Vec<f64> = curve.train.iter().map(|&(_, loss)| loss).collect();
    if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
        let line = curve::sparkline(&losses, 60);
        console::line(&format!("Training loss {first:.3} {line} {last:.3}"));
    }
    if let Some(ceiling) = session.ceiling_flops_per_second() {
        console::line(&speed.describe(ceiling));
    }
    let log = out.join("train_log.jsonl");
    if saved {
        console::line(&format!("Model: {}", out.display()));
    }
    console::line(&format!(
        "Log:   {}\nCurve: {}",
        log.display(),
        svg.display()
    ));

    match reason {
        Some(StopReason::Cancelled) => {
            if let Some(step) = snapshot.checkpoint_step {
                console::line(&format!(
                    "Cancelled. To go on from update {step}:\n  {own}{AUTO}"
                ));
            } else if saved {
                console::line(&format!(
                    "Cancelled. To go on from these weights (with a new optimizer and schedule):\n  \
                     {own} --model_name_or_path {0} --output_dir {0}-2",
                    out.display()
                ));
            }
            Ok(ExitCode::from(130))
        }
        Some(StopReason::NonFinite) if broken => {
            console::error(
                "the loss or the gradient was not finite, so the last weights are not saved as the \
                 model. Checkpoints of earlier updates are whole; a lower learning_rate, or \
                 load_best_model_at_end: true, helps",
            );
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The value of the first target rule on a loss, for the curve.
fn target(config: &Config) -> Option<f64> {
    config.stop.rules.iter().find_map(|rule| match rule {
        Rule::Target(target) if matches!(target.metric, Metric::TrainLoss | Metric::EvalLoss) => {
            target.at_most
        }
        _ => None,
    })
}

/// The first Ctrl-C (or termination request) lets the update finish and saves; the second ends the
/// process at once.
fn cancel_on_interrupt(canceller: &Canceller) -> Result<()> {
    let canceller = canceller.clone();
    ctrlc::set_handler(move || {
        if canceller.is_cancelled() {
            std::process::exit(130);
        }
        canceller.cancel();
        console::note("Finishing the update, then saving. Ctrl-C again ends at once.");
    })
    .map_err(|e| Error::new(ErrorKind::Internal, "cannot listen for Ctrl-C").with_source(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_go_on_is_the_same_run_with_words_that_a_shell_takes_as_they_are() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let overrides = vec![
            pair("learning_rate", "1e-4"),
            pair("stop", "[{rule: plateau}]"),
            pair("eos_token", "it's"),
            pair("resume_from_checkpoint", "out/checkpoint-5"),
            pair("overwrite_output_dir", "true"),
        ];
        assert_eq!(
            own_command(Some(Path::new("run.yaml")), &overrides),
            "sft train --config run.yaml --learning_rate=1e-4 --stop='[{rule: plateau}]' \
             --eos_token='it'\\''s'"
        );
        assert_eq!(own_command(None, &Overrides::new()), "sft train");
    }

    #[test]
    fn the_curve_shows_the_first_target_on_a_loss() {
        let target_of = |yaml| target(&Config::from_yaml_str(yaml, "run.yaml").unwrap());
        assert_eq!(target_of("seed: 1"), None);
        let rules = "stop:\n  - {rule: target, metric: token_accuracy, at_least: 0.9}\n  \
                     - {rule: target, metric: eval_loss, at_most: 1.5}\n";
        assert_eq!(target_of(rules), Some(1.5));
    }
}
