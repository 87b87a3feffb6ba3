//! Runs stop rules over a recorded log: where would they have stopped, and with what best?
//!
//! A log is JSONL as `train_log.jsonl` (or a peer's `log_history`) holds it: one object a line with
//! `step` and numbers under their names. `loss` is the training loss of an update,
//! `mean_token_accuracy` its accuracy; `eval_loss` and other metrics are what they say. `epoch`,
//! `num_tokens` and `elapsed_seconds` (of the run so far) feed the budgets; a limit whose number the
//! log lacks is never used up. A `loss_scale` above 1 beside a `grad_norm` that is not finite says
//! that float16 overflowed: the norm is then left out. Non-finite numbers may be the strings `nan`, `inf`, `-inf` or the bare
//! words that Python writes.

use super::config::{Budget, StopConfig};
use super::machine::StopMachine;
use super::metric::Metric;
use super::observation::Observation;
use crate::error::ResultExt;
use crate::number::{Number, parse_non_finite};
use crate::report::{MIN_LOSS_SCALE, StopReason};
use crate::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// One row of a log: what became known at a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Updates done.
    pub step: u64,
    /// Epochs done, as a fraction, if the row says so.
    pub epoch: Option<f64>,
    /// Input tokens of the run so far, if the row says so.
    pub tokens: Option<u64>,
    /// Seconds of the run so far, if the row says so.
    pub seconds: Option<f64>,
    /// The numbers by the names that rules use.
    pub metrics: Vec<(String, f64)>,
}

/// Where a set of rules would have stopped.
///
/// Its JSON form is one object with these keys; a `best_value` that is infinite is the string `inf`
/// or `-inf`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// Whether a rule fired before the log ended.
    pub stopped: bool,
    /// The step at which it fired.
    pub step: Option<u64>,
    /// Why, as its code.
    #[serde(serialize_with = "code")]
    pub reason: Option<StopReason>,
    /// The step of the best value up to the stop; see [`StopMachine::watch`] for what it is the best
    /// of.
    pub best_step: Option<u64>,
    /// The best value up to the stop.
    #[serde(serialize_with = "number")]
    pub best_value: Option<f64>,
    /// The counter of the rule that fired, else of the first plateau rule, else of the first rule.
    pub counter: u64,
}

fn code<S: Serializer>(reason: &Option<StopReason>, serializer: S) -> Result<S::Ok, S::Error> {
    reason.map(StopReason::code).serialize(serializer)
}

fn number<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(Number).serialize(serializer)
}

/// Runs the rules of `config` over `rows`, as the engine would have.
///
/// # Errors
/// As [`StopConfig::validate`].
pub fn replay(rows: &[Row], config: &StopConfig) -> Result<Replay> {
    let mut machine = StopMachine::new(config, Budget::default())?;
    let (mut epoch, mut tokens, mut seconds) = (0.0, 0, 0.0);
    for row in rows {
        epoch = row.epoch.unwrap_or(epoch);
        tokens = row.tokens.unwrap_or(tokens);
        seconds = row.seconds.unwrap_or(seconds);
        let host = &row.metrics;
        let (train, eval, step) = (None, None, row.step);
        let now = Observation {
            step,
            epoch,
            tokens,
            seconds,
            train,
            eval,
            host,
        };
        if machine.observe(&now).is_some() {
            break;
        }
    }
    let best = machine.best();
    let verdict = machine.verdict();
    Ok(Replay {
        stopped: verdict.is_some(),
        step: verdict.map(|verdict| verdict.step),
        reason: verdict.map(|verdict| verdict.reason),
        best_step: best.and_then(|best| best.step),
        best_value: best.map(|best| best.value),
        counter: machine.counter(),
    })
}

/// Reads a log: JSONL, a JSON list of rows, or a peer's `trainer_state.json` with its `log_history`.
///
/// Blank lines and the summary rows at a run's end (`train_runtime`, `stop_reason`) are passed over.
/// Where the steps go back, the run was resumed from an earlier checkpoint: the rows from that step on
/// are dropped in favour of the new ones.
///
/// # Errors
/// [`ErrorKind::Data`] with the line (of a list, the row): it is no object, has no usable `step`, or a
/// metric is no number.
pub fn read_log(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if let Some(list) = read_list(text)? {
        for (object, number) in list.iter().zip(1u64..) {
            let object = object
                .as_object()
                .ok_or_else(|| bad("not an object".into()));
            take_in(
                &mut rows,
                object
                    .and_then(read_row)
                    .context(|| format!("row {number}"))?,
            );
        }
    } else {
        for (line, number) in text.lines().zip(1u64..) {
            if !line.trim().is_empty() {
                let row = parse(line).and_then(|object| read_row(&object));
                take_in(&mut rows, row.context(|| format!("line {number}"))?);
            }
        }
    }
    Ok(rows)
}

fn bad(message: String) -> Error {
    Error::new(ErrorKind::Data, message)
}

/// Adds a row after those that it does not replace.
fn take_in(rows: &mut Vec<Row>, row: Option<Row>) {
    let Some(row) = row else { return };
    if rows.last().is_some_and(|last| row.step < last.step) {
        rows.truncate(rows.partition_point(|earlier| earlier.step < row.step));
    }
    rows.push(row);
}

/// The rows of a log that is one JSON value over several lines; `None` if it is lines.
fn read_list(text: &str) -> Result<Option<Vec<Value>>> {
    let text = text.trim();
    let is_list = text.starts_with('[');
    let is_pretty_object = text.lines().next().is_some_and(|first| first.trim() == "{");
    if !(is_list || is_pretty_object) {
        return Ok(None);
    }
    match parse(text)? {
        Value::Array(rows) => Ok(Some(rows)),
        mut value => match value.get_mut("log_history").map(Value::take) {
            Some(Value::Array(rows)) => Ok(Some(rows)),
            _ => Err(bad(
                "one object over several lines needs a list `log_history`".into(),
            )),
        },
    }
}

/// Parses JSON in which non-finite numbers may be bare words.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .or_else(|first| serde_json::from_str(&quote_non_finite(text)).map_err(|_| first))
        .map_err(|error| bad(format!("not a JSON object: {error}")))
}

/// Reads one row; `None` for a summary row or one that says nothing about metrics.
fn read_row(object: &Map<String, Value>) -> Result<Option<Row>> {
    if object.contains_key("train_runtime") || object.contains_key("stop_reason") {
        return Ok(None);
    }
    let mut row = Row::default();
    for (key, value) in object {
        let x = match value {
            Value::Number(x) => x.as_f64(),
            Value::String(text) => parse_non_finite(text),
            _ => None,
        };
        match (key.as_str(), x) {
            ("step", _) => {}
            ("epoch", x) => row.epoch = x,
            ("num_tokens", x) => row.tokens = x.map(|x| x as u64),
            ("elapsed_seconds", x) => row.seconds = x,
            ("loss", Some(x)) => row.metrics.push((Metric::TrainLoss.name().into(), x)),
            (name, Some(x)) => {
                let metric = Metric::try_from(name.to_owned()).map_err(bad)?;
                row.metrics.push((metric.into(), x));
            }
            (name, None) if name == "loss" || name.ends_with("_loss") || name == "grad_norm" => {
                return Err(bad(format!("`{name}` is no number: {value}")));
            }
            // Words and lists that a log may hold beside its numbers.
            _ => {}
        }
    }
    drop_overflow(object, &mut row);
    if row.metrics.is_empty() {
        return Ok(None);
    }
    let step = object
        .get("step")
        .ok_or_else(|| bad("the key `step` is missing".into()))?;
    row.step = step.as_u64().ok_or_else(|| {
        bad(format!(
            "`step` must be a whole number from 0, found {step}"
        ))
    })?;
    Ok(Some(row))
}

/// Takes out a gradient norm that overflowed at a loss scale that could still fall: the run's own rules
/// did not see it either.
fn drop_overflow(object: &Map<String, Value>, row: &mut Row) {
    let scale = object.get("loss_scale").and_then(Value::as_f64);
    if scale.is_some_and(|scale| scale > MIN_LOSS_SCALE) {
        let norm = Metric::GradNorm.name();
        row.metrics
            .retain(|(name, value)| name != norm || value.is_finite());
    }
}

/// Puts quotes around the bare words `NaN`, `Infinity`, `inf` and the like outside of strings.
fn quote_non_finite(line: &str) -> String {
    let mut out = String::with_capacity(line.len() + 8);
    let (mut in_string, mut escaped) = (false, false);
    let mut word = String::new();
    for c in line.chars().chain(['\n']) {
        if !in_string && (c.is_ascii_alphabetic() || (c == '-' && word.is_empty())) {
            word.push(c);
            continue;
        }
        if parse_non_finite(&word).is_some() {
            out.extend(["\"", &word, "\""]);
        } else {
            out.push_str(&word);
        }
        word.clear();
        out.push(c);
        (in_string, escaped) = match c {
            '"' if !escaped => (!in_string, false),
            '\\' if in_string => (true, !escaped),
            _ => (in_string, false),
        };
    }
    out
}
