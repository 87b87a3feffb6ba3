//! What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sft::report::{EvalReport, Snapshot, StepReport};

use crate::console;

/// Weight of the past in the figures that are smoothed for the eye.
const PAST: f64 = 0.9;

/// The live view of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Updates between plain lines.
    every: u64,
    total: Option<u64>,
    figures: Figures,
}

impl Progress {
    /// A view of a run of `total` updates; `plain` never draws a bar, and writes a line every
    /// `every` updates.
    pub fn new(total: Option<u64>, every: u64, plain: bool) -> Self {
        let bar = (!plain && std::io::stderr().is_terminal()).then(|| {
            let (bar, template) = match total {
                Some(total) => (
                    ProgressBar::new(total),
                    "{bar:24} {pos}/{len} ETA {eta} · {wide_msg}",
                ),
                None => (ProgressBar::no_length(), "{spinner} {pos} · {wide_msg}"),
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self {
            bar,
            every: every.max(1),
            total,
            figures: Figures::default(),
        }
    }

    /// Shows one update.
    pub fn step(&mut self, report: &StepReport, snapshot: &Snapshot) {
        self.figures.take_in(report);
        let text = self.figures.describe(report, snapshot);
        match &self.bar {
            Some(bar) => {
                bar.set_position(report.step);
                bar.set_message(text);
            }
            None if report.step.is_multiple_of(self.every) => {
                let total = self.total.map(|n| format!("/{n}")).unwrap_or_default();
                let eta = self.figures.eta(report.step, self.total);
                console::line(&format!("step {}{total} · {text}{eta}", report.step));
            }
            None => {}
        }
        if let Some(eval) = &report.eval {
            self.evaluation(eval);
        }
    }

    /// Shows an evaluation.
    pub fn evaluation(&self, eval: &EvalReport) {
        self.line(&format!(
            "eval after update {} · {}",
            eval.step,
            describe_eval(eval)
        ));
    }

    /// Writes a line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| console::line(text)),
            None => console::line(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Loss, accuracy and size of an evaluation.
pub fn describe_eval(eval: &EvalReport) -> String {
    format!(
        "loss {:.4} · accuracy {:.1} % · {} supervised tokens",
        eval.loss,
        100.0 * eval.token_accuracy,
        eval.supervised_tokens
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

    /// The update in one line.
    fn describe(&self, report: &StepReport, snapshot: &Snapshot) -> String {
        let smoothed = report.smoothed_loss.unwrap_or_else(|| self.loss.value());
        let mut text = format!(
            "epoch {:.2} · loss {:.4} (smoothed {smoothed:.4}) · lr {:.2e} · grad norm {:.3} · {:.0} \
             tokens/s",
            report.epoch,
            report.loss,
            report.learning_rate,
            report.grad_norm,
            self.tokens.value() / self.seconds.value(),
        );
        if let (Some(step), Some(value)) = (snapshot.best_step, snapshot.best_value) {
            text += &format!(" · best {value:.4} at {step}");
        }
        if snapshot.patience_used > 0 {
            text += &format!(" · patience used {}", snapshot.patience_used);
        }
        text
    }

    fn eta(&self, step: u64, total: Option<u64>) -> String {
        let left = total.map(|total| total.saturating_sub(step) as f64 * self.seconds.value());
        match left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            Some(left) => format!(" · ETA {}", indicatif::HumanDuration(left)),
            None => String::new(),
        }
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
            seconds: 0.5,
            eval: None,
            stop_reason: None,
        }
    }

    #[test]
    fn an_update_reads_as_one_line() {
        let mut figures = Figures::default();
        figures.take_in(&report(1, 4.0));
        let mut snapshot = Snapshot::default();
        assert_eq!(
            figures.describe(&report(1, 4.0), &snapshot),
            "epoch 0.50 · loss 4.0000 (smoothed 4.0000) · lr 2.00e-5 · grad norm 1.250 · 200 tokens/s"
        );
        snapshot.best_step = Some(3);
        snapshot.best_value = Some(1.5);
        snapshot.patience_used = 2;
        let text = figures.describe(&report(4, 4.0), &snapshot);
        assert!(
            text.ends_with("best 1.5000 at 3 · patience used 2"),
            "{text}"
        );
    }

    #[test]
    fn a_loss_that_is_not_finite_leaves_the_smoothed_one_alone() {
        let mut figures = Figures::default();
        figures.take_in(&report(1, 4.0));
        figures.take_in(&report(2, f64::NAN));
        figures.take_in(&report(3, f64::INFINITY));
        assert_eq!(figures.loss.value(), 4.0);
        let text = figures.describe(&report(2, f64::NAN), &Snapshot::default());
        assert!(text.contains("loss NaN (smoothed 4.0000)"), "{text}");
    }

    #[test]
    fn a_rules_own_smoothing_is_shown_before_ours() {
        let mut figures = Figures::default();
        figures.take_in(&report(1, 4.0));
        let ruled = StepReport {
            smoothed_loss: Some(3.25),
            ..report(1, 4.0)
        };
        assert!(
            figures
                .describe(&ruled, &Snapshot::default())
                .contains("(smoothed 3.2500)")
        );
    }

    #[test]
    fn the_time_left_needs_a_total_and_a_pace() {
        let mut figures = Figures::default();
        assert_eq!(figures.eta(1, Some(10)), "");
        figures.take_in(&report(1, 4.0));
        assert_eq!(figures.eta(1, Some(121)), " · ETA 60 seconds");
        assert_eq!(figures.eta(1, None), "");
    }
}
