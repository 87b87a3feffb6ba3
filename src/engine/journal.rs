//! `train_log.jsonl`: one JSON object a line for each update and evaluation, under TRL's key names,
//! and a last one with the reason for the end. Numbers are the true ones: a NaN stands as `"nan"`.

use crate::error::{Error, Result};
use crate::number::Number;
use crate::report::{EvalReport, Snapshot, StepReport};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The log of a run.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Name of the file in the output folder.
    pub const FILE_NAME: &'static str = "train_log.jsonl";

    /// Starts a new log in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(Self::FILE_NAME);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, file })
    }

    pub fn update(&mut self, report: &StepReport, elapsed: Duration) -> Result<()> {
        let mut row = log_row(report);
        row["elapsed_seconds"] = number(elapsed.as_secs_f64());
        self.write(row)
    }

    pub fn evaluation(&mut self, epoch: f64, report: &EvalReport, elapsed: Duration) -> Result<()> {
        let mut row = eval_row(epoch, report);
        row["elapsed_seconds"] = number(elapsed.as_secs_f64());
        self.write(row)
    }

    pub fn end(&mut self, snapshot: &Snapshot, detail: &str) -> Result<()> {
        self.write(json!({
            "step": snapshot.step,
            "epoch": number(snapshot.epoch),
            "num_tokens": snapshot.total_tokens,
            "stop_reason": snapshot.stop_reason.map(|r| r.code()),
            "stop_detail": detail,
            "best_step": snapshot.best_step,
            "best_value": snapshot.best_value.map(number),
        }))
    }

    /// One line in one write, so that a crash leaves whole lines.
    fn write(&mut self, row: Value) -> Result<()> {
        let mut line = row.to_string();
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| Error::io(&self.path, e))
    }
}

/// The log's row of an update.
pub fn log_row(report: &StepReport) -> Value {
    let mut row = Map::new();
    row.insert("step".into(), report.step.into());
    row.insert("epoch".into(), number(report.epoch));
    row.insert("loss".into(), number(report.loss));
    if let Some(smoothed) = report.smoothed_loss {
        row.insert("smoothed_loss".into(), number(smoothed));
    }
    row.insert("grad_norm".into(), number(report.grad_norm));
    row.insert("learning_rate".into(), number(report.learning_rate));
    row.insert("entropy".into(), number(report.entropy));
    row.insert("mean_token_accuracy".into(), number(report.token_accuracy));
    row.insert("num_tokens".into(), report.total_tokens.into());
    row.insert("supervised_tokens".into(), report.supervised_tokens.into());
    if let Some(scale) = report.loss_scale {
        row.insert("loss_scale".into(), number(scale));
    }
    if report.loss_scale.is_some() || report.skipped_updates > 0 {
        row.insert("skipped_updates".into(), report.skipped_updates.into());
    }
    let rate = report.tokens as f64 / report.seconds.max(1e-9);
    row.insert(
        "tokens_per_second".into(),
        number((rate * 10.0).round() / 10.0),
    );
    Value::Object(row)
}

fn eval_row(epoch: f64, report: &EvalReport) -> Value {
    let mut row = json!({
        "step": report.step,
        "epoch": number(epoch),
        "eval_loss": number(report.loss),
        "eval_entropy": number(report.entropy),
        "eval_mean_token_accuracy": number(report.token_accuracy),
        "eval_num_tokens": report.tokens,
        "eval_supervised_tokens": report.supervised_tokens,
        "eval_runtime": number(report.seconds),
    });
    for (name, value) in report.named_metrics() {
        row[name] = number(value);
    }
    row
}

/// JSON has no NaN and no infinity: they are written as text.
fn number(x: f64) -> Value {
    json!(Number(x))
}
