//! What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sft::report::{EvalReport, Snapshot, StepReport, StopReason};
use sft::stop::RuleStatus;

use crate::console;

/// Weight of the past in the figures that are smoothed for the eye.
const PAST: f64 = 0.9;

/// The live view of a run.
pub struct Progress {
    printer: Printer,
    /// Updates between plain lines.
    every: u64,
    total: Option<u64>,
    figures: Figures,
}

/// Writes lines that stay, above the bar if there is one. Clones write above the same bar.
#[derive(Clone)]
pub struct Printer(Option<ProgressBar>);

impl Printer {
    /// Writes one line.
    pub fn line(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| console::line(text)),
            None => console::line(text),
        }
    }
}

impl Progress {
    /// A view that shows nothing yet; `plain` never draws a bar.
    pub fn new(plain: bool) -> Self {
        let bar = !plain && std::io::stderr().is_terminal();
        Self {
            printer: Printer(bar.then(ProgressBar::no_length)),
            every: 1,
            total: None,
            figures: Figures::default(),
        }
    }

    /// For lines beside the view's own.
    pub fn printer(&self) -> Printer {
        self.printer.clone()
    }

    /// The run has `total` updates; plain lines come every `every` updates.
    pub fn begin(&mut self, total: Option<u64>, every: u64) {
        self.total = total;
        self.every = every.max(1);
        self.figures = Figures::default();
        let Some(bar) = &self.printer.0 else { return };
        let template = match total {
            Some(total) => {
                bar.set_length(total);
                "{bar:24} {pos}/{len} · {prefix}\n{msg}"
            }
            None => "{spinner} {pos} · {prefix}\n{msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
    }

    /// Shows one update and, after it, the state of the stop rules.
    pub fn step(&mut self, report: &StepReport, state: &str) {
        self.take_in(report);
        if self.is_live() || report.step.is_multiple_of(self.every) {
            self.show(report, state);
        }
        if let Some(eval) = &report.eval {
            self.evaluation(eval);
        }
    }

    /// Counts an update for the smoothed figures without showing it.
    pub fn take_in(&mut self, report: &StepReport) {
        self.figures.take_in(report);
    }

    /// Shows an update that was taken in: in the bar, or as a line.
    pub fn show(&self, report: &StepReport, state: &str) {
        let numbers = self.figures.numbers(report);
        let pace = self.figures.pace(report, self.total);
        if let Some(bar) = &self.printer.0 {
            bar.set_position(report.step);
            bar.set_prefix(pace);
            bar.set_message(format!("{numbers}\n{state}"));
            return;
        }
        let total = self.total.map(|n| format!("/{n}")).unwrap_or_default();
        let step = format!("step {}{total}", report.step);
        let parts = [&step, &numbers, &pace, state];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        console::line(&parts.join(" · "));
    }

    /// Whether there is a bar.
    pub fn is_live(&self) -> bool {
        self.printer.0.is_some()
    }

    /// Writes the line of an evaluation.
    pub fn evaluation(&self, eval: &EvalReport) {
        let text = format!("eval after update {} · {}", eval.step, describe_eval(eval));
        self.printer.line(&text);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.printer.0 {
            bar.finish_and_clear();
        }
    }
}

/// The best value and the rules that have begun to count, after update `step`. A best that is this very
/// update's goes without saying.
pub fn describe_state(step: u64, best: Option<(u64, f64)>, rules: &[RuleStatus]) -> String {
    let best = best.filter(|&(of, _)| of < step);
    let counting = |status: &&RuleStatus| status.rule != "budget" && status.counter > 0;
    let rules = rules.iter().filter(counting).map(RuleStatus::to_string);
    let best = best.map(describe_best);
    best.into_iter()
        .chain(rules)
        .collect::<Vec<_>>()
        .join(" · ")
}

/// `best 1.2345 at 60`.
pub fn describe_best((step, value): (u64, f64)) -> String {
    format!("best {value:.4} at {step}")
}

/// Where a run ended, and why.
pub fn describe_end(snapshot: &Snapshot, detail: &str) -> String {
    format!(
        "Stopped after update {} (epoch {:.2}, {} tokens, {:.1} s): {} · {detail}",
        snapshot.step,
        snapshot.epoch,
        snapshot.total_tokens,
        snapshot.elapsed_seconds,
        snapshot.stop_reason.map_or("none", StopReason::code)
    )
}

/// Loss, accuracy and size of an evaluation, and the loss on each set that has a name.
pub fn describe_eval(eval: &EvalReport) -> String {
    let all = describe_numbers(eval.loss, eval.token_accuracy, eval.supervised_tokens);
    let sets = eval.sets.iter();
    sets.fold(all, |line, set| {
        format!("{line} · {} {:.4}", set.name, set.loss)
    })
}

/// As [`describe_eval`], without the sets.
pub fn describe_numbers(loss: f64, token_accuracy: f64, supervised_tokens: u64) -> String {
    format!(
        "loss {loss:.4} · accuracy {:.1} % · {supervised_tokens} supervised tokens",
        100.0 * token_accuracy
    )
}

/// Figures smoothed for the eye. The stop rules have their own.
#[derive(Default)]
struct Figures {
    loss: Mean,
    /// Tokens and seconds of an update.
    tokens: Mean,
    seconds: Mean,
}

/// An exponential mean, corrected for its empty start.
#[derive(Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    /// A value that is not finite would stay for ever: it is left out.
    fn take_in(&mut self, value: f64) {
        if value.is_finite() {
            self.sum = PAST * self.sum + (1.0 - PAST) * value;
            self.weight = PAST * self.weight + (1.0 - PAST);
        }
    }

    fn value(&self) -> f64 {
        self.sum / self.weight
    }
}

impl Figures {
    fn take_in(&mut self, report: &StepReport) {
        self.loss.take_in(report.loss);
        self.tokens.take_in(report.tokens as f64);
        self.seconds.take_in(report.seconds);
    }

    /// What the update was.
    fn numbers(&self, report: &StepReport) -> String {
        let smoothed = report.smoothed_loss.unwrap_or_else(|| self.loss.value());
        format!(
            "loss {:.4} (smoothed {smoothed:.4}) · lr {:.2e} · grad norm {:.3}",
            report.loss, report.learning_rate, report.grad_norm
        )
    }

    /// How fast it goes and what is left.
    fn pace(&self, report: &StepReport, total: Option<u64>) -> String {
        let rate = self.tokens.value() / self.seconds.value();
        let left = total.map(|n| n.saturating_sub(report.step) as f64 * self.seconds.value());
        let eta = match left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            Some(left) => format!(" · ETA {}", indicatif::HumanDuration(left)),
            None => String::new(),
        };
        format!("epoch {:.2} · {rate:.0} tokens/s{eta}", report.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64, loss: f64) -> StepReport {
        StepReport {
            step,
            epoch: 0.5,
            loss,
            smoothed_loss: None,
            grad_norm: 1.25,
            learning_rate: 2e-5,
            token_accuracy: 0.5,
            entropy: 1.0,
            supervised_tokens: 50,
            tokens: 100,
            total_tokens: 100 * step,
            model_flops: 0,
            seconds: 0.5,
            eval: None,
            stop_reason: None,
            loss_scale: None,
            skipped_updates: 0,
        }
    }

    fn after(reports: &[StepReport]) -> Figures {
        let mut figures = Figures::default();
        reports.iter().for_each(|report| figures.take_in(report));
        figures
    }

    #[test]
    fn an_update_reads_as_numbers_and_pace() {
        let figures = after(&[report(1, 4.0)]);
        let numbers = figures.numbers(&report(1, 4.0));
        assert_eq!(
            numbers,
            "loss 4.0000 (smoothed 4.0000) · lr 2.00e-5 · grad norm 1.250"
        );
        let pace = figures.pace(&report(1, 4.0), Some(121));
        assert_eq!(pace, "epoch 0.50 · 200 tokens/s · ETA 60 seconds");
    }

    #[test]
    fn a_loss_that_is_not_finite_leaves_the_smoothed_one_alone() {
        let figures = after(&[
            report(1, 4.0),
            report(2, f64::NAN),
            report(3, f64::INFINITY),
        ]);
        let numbers = figures.numbers(&report(2, f64::NAN));
        assert!(
            numbers.starts_with("loss NaN (smoothed 4.0000)"),
            "{numbers}"
        );
    }

    #[test]
    fn a_rules_own_smoothing_is_shown_before_ours() {
        let ruled = StepReport {
            smoothed_loss: Some(3.25),
            ..report(1, 4.0)
        };
        assert!(
            after(&[report(1, 4.0)])
                .numbers(&ruled)
                .contains("(smoothed 3.2500)")
        );
    }

    #[test]
    fn the_time_left_needs_a_total() {
        let figures = after(&[report(1, 4.0)]);
        assert!(!figures.pace(&report(1, 4.0), None).contains("ETA"));
        assert!(
            figures
                .pace(&report(9, 4.0), Some(3))
                .contains("ETA 0 seconds")
        );
    }
}
