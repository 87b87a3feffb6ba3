//! `train_log.jsonl`: one JSON object a line for each update and evaluation, under TRL's key names,
//! and a last one with the reason for the end. Numbers are the true ones: a NaN stands as `"nan"`.

use super::tensorboard::EventFile;
use crate::error::{Error, Result};
use crate::number::Number;
use crate::report::{EvalReport, Snapshot, StepReport};
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The log of a run.
///
/// A row that cannot be written (a full disk) is kept and written before the next one, so that a log has
/// no gap and no half row while the process lives. What a crash leaves behind is cut off by
/// [`Journal::resume`] at the length that the checkpoint noted.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole rows in the file.
    length: u64,
    /// Rows that the file does not have yet.
    pending: Vec<u8>,
    /// The file may hold a part of `pending` beyond `length`.
    torn: bool,
    /// Where the rows go as well, with `report_to: tensorboard`.
    events: Option<EventFile>,
}

impl Journal {
    /// Name of the file in the output folder.
    pub const FILE_NAME: &'static str = "train_log.jsonl";

    /// Starts a new log in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(Self::FILE_NAME);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self::new(path, file, 0))
    }

    /// Goes on with the log in `folder`, of which the first `bytes` are kept: those that were written
    /// when the checkpoint was made. What stands there later (updates that are done again, a torn row,
    /// the last row of a run that had ended) vanishes. Where the folder has no log, it gets that part of
    /// `elsewhere`, if there is such a file.
    ///
    /// False when fewer rows than that were found: earlier ones are missing.
    pub fn resume(folder: &Path, bytes: u64, elsewhere: Option<&Path>) -> Result<(Self, bool)> {
        let path = folder.join(Self::FILE_NAME);
        if let (false, Some(other)) = (path.exists(), elsewhere) {
            copy_start(other, &path, bytes)?;
        }
        let at = |e| Error::io(&path, e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(at)?;
        let found = file.metadata().map_err(at)?.len();
        let length = match bytes <= found {
            true => bytes,
            false => end_of_last_row(&mut file).map_err(at)?,
        };
        file.set_len(length).map_err(at)?;
        file.seek(SeekFrom::Start(length)).map_err(at)?;
        Ok((Self::new(path, file, length), bytes <= found))
    }

    fn new(path: PathBuf, file: File, length: u64) -> Self {
        Self {
            path,
            file,
            length,
            pending: Vec::new(),
            torn: false,
            events: None,
        }
    }

    /// Sends every row to `events` as well.
    pub fn with_events(self, events: Option<EventFile>) -> Self {
        Self { events, ..self }
    }

    /// With the ceiling that the run's speed is held against, if it was measured.
    pub fn update(
        &mut self,
        report: &StepReport,
        ceiling: Option<f64>,
        elapsed: Duration,
    ) -> Result<()> {
        let mut row = log_row(report);
        if let Some(ceiling) = ceiling {
            let ratio = report.model_flops_per_second() / ceiling;
            row["ceiling_ratio"] = number((ratio * 1e4).round() / 1e4);
        }
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
        }))?;
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }

    /// Bytes of the rows in the file, and a handle by which another thread can make them durable; none
    /// where rows are still to be written and cannot be, since what a broken log costs is rows.
    pub fn mark(&mut self) -> (u64, Option<LogFile>) {
        let file = self.flush().ok().and_then(|()| self.file.try_clone().ok());
        let path = self.path.clone();
        (self.length, file.map(|file| LogFile { path, file }))
    }

    fn write(&mut self, row: Value) -> Result<()> {
        self.pending.extend_from_slice(row.to_string().as_bytes());
        self.pending.push(b'\n');
        let logged = self.flush();
        let shown = match &mut self.events {
            Some(events) => events.row(&row),
            None => Ok(()),
        };
        logged.and(shown)
    }

    /// The rows that are due, in one write, so that a crash leaves whole lines.
    fn flush(&mut self) -> Result<()> {
        let result = self.try_flush();
        self.torn = result.is_err();
        result.map_err(|e| Error::io(&self.path, e))
    }

    fn try_flush(&mut self) -> std::io::Result<()> {
        if self.torn && self.file.metadata()?.len() > self.length {
            self.file.set_len(self.length)?;
        }
        if self.torn {
            self.file.seek(SeekFrom::Start(self.length))?;
        }
        self.file.write_all(&self.pending)?;
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

/// The log for another thread.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Makes the rows in the file durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }
}

/// The first `bytes` of `from` as the new file `to`; nothing when `from` is missing or shorter.
fn copy_start(from: &Path, to: &Path, bytes: u64) -> Result<()> {
    let Ok(file) = File::open(from) else {
        return Ok(());
    };
    let mut start = Vec::new();
    let read = file.take(bytes).read_to_end(&mut start);
    read.map_err(|e| Error::io(from, e))?;
    if start.len() as u64 == bytes {
        std::fs::write(to, start).map_err(|e| Error::io(to, e))?;
    }
    Ok(())
}

/// Where the last whole row ends.
fn end_of_last_row(file: &mut File) -> std::io::Result<u64> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let end = text.iter().rposition(|&byte| byte == b'\n');
    Ok(end.map_or(0, |at| at as u64 + 1))
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
    row.insert(
        "model_flops_per_second".into(),
        number(report.model_flops_per_second().round()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(folder: &Path) -> String {
        std::fs::read_to_string(folder.join(Journal::FILE_NAME)).unwrap()
    }

    fn row(journal: &mut Journal, n: u32) {
        journal.write(json!({ "n": n })).unwrap();
    }

    #[test]
    fn a_log_goes_on_where_the_checkpoint_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        row(&mut journal, 1);
        let (bytes, file) = journal.mark();
        assert!(file.is_some());
        row(&mut journal, 2);
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join(Journal::FILE_NAME))
            .unwrap()
            .write_all(b"{\"n\": 3, torn")
            .unwrap();

        let (mut journal, whole) = Journal::resume(dir.path(), bytes, None).unwrap();
        assert!(whole);
        assert_eq!(text(dir.path()), "{\"n\":1}\n");
        row(&mut journal, 2);
        assert_eq!(text(dir.path()), "{\"n\":1}\n{\"n\":2}\n");
        assert_eq!(journal.mark().0, 16);
    }

    #[test]
    fn a_log_that_lost_rows_keeps_the_whole_ones_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(Journal::FILE_NAME), "{\"n\":1}\n{\"n\"").unwrap();
        let (mut journal, whole) = Journal::resume(dir.path(), 99, None).unwrap();
        assert!(!whole);
        row(&mut journal, 9);
        assert_eq!(text(dir.path()), "{\"n\":1}\n{\"n\":9}\n");
        let empty = tempfile::tempdir().unwrap();
        assert!(!Journal::resume(empty.path(), 99, None).unwrap().1);
        assert!(Journal::resume(empty.path(), 0, None).unwrap().1);
    }

    #[test]
    fn a_run_that_moves_takes_the_start_of_its_log_along() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = old.path().join(Journal::FILE_NAME);
        std::fs::write(&other, "{\"n\":1}\n{\"n\":2}\n").unwrap();
        let (mut journal, whole) = Journal::resume(new.path(), 8, Some(&other)).unwrap();
        assert!(whole);
        row(&mut journal, 5);
        assert_eq!(text(new.path()), "{\"n\":1}\n{\"n\":5}\n");
        assert_eq!(text(old.path()).lines().count(), 2);
    }

    #[test]
    fn rows_that_could_not_be_written_come_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        row(&mut journal, 1);
        let path = dir.path().join(Journal::FILE_NAME);
        let writable = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
        let error = journal.write(json!({"n": 2})).unwrap_err();
        assert!(error.to_string().contains(Journal::FILE_NAME), "{error}");
        let (bytes, file) = journal.mark();
        assert_eq!((bytes, file.is_some()), (8, false));
        journal.file = writable;
        row(&mut journal, 3);
        assert_eq!(text(dir.path()), "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
    }
}
