//! The rules as a configuration writes them: serde types and their defaults.

use super::metric::{Direction, Metric};
use super::smoothing::Smoothing;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// The stop rules of a run: a list, as the `stop` key of a configuration holds it.
///
/// ```yaml
/// stop:
///   - {rule: target, metric: eval_loss, at_most: 1.5, patience: 2, min_steps: 10}
///   - {rule: plateau, metric: eval_loss, patience: 3, min_delta: 0.01}
///   - {rule: divergence, factor: 3, smoothing: {ema: 0.9}}
///   - {rule: budget, max_seconds: 3600}
/// ```
///
/// A [`NonFiniteRule`] with its defaults is in force even where the list has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopConfig {
    /// In the order in which they are asked: where several fire at once, the first one wins, but
    /// `non_finite` rules go before all others.
    pub rules: Vec<Rule>,
}

/// One stop rule: a mapping whose `rule` key names its kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Rule {
    /// Stop when a metric is good enough.
    Target(TargetRule),
    /// Stop when a metric no longer improves.
    Plateau(PlateauRule),
    /// Stop when the numbers are no numbers any more.
    NonFinite(NonFiniteRule),
    /// Stop when a metric runs away from its best.
    Divergence(DivergenceRule),
    /// Stop when evaluation gets worse while training gets better.
    Overfit(OverfitRule),
    /// Stop when steps, epochs, tokens or seconds are used up.
    Budget(Budget),
}

/// Fires when the smoothed metric is at or beyond a bound for `patience` observations in a row.
///
/// An observation that is not finite is a miss and starts the row again. Exactly one of `at_most`
/// and `at_least` must be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRule {
    /// What to watch.
    pub metric: Metric,
    /// Reached at or below this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// Reached at or above this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Observations in a row; see [`TargetRule::patience`] for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// The rule counts from the start but does not fire before this update.
    #[serde(default)]
    pub min_steps: u64,
    /// What to do to the metric first.
    #[serde(default)]
    pub smoothing: Smoothing,
}

impl TargetRule {
    /// The observations in a row that it takes. By default 3 for a metric of every update, where one
    /// lucky or degenerate batch must not end the run, and 1 for an evaluation or a host's metric.
    pub fn patience(&self) -> u64 {
        self.patience
            .unwrap_or(if self.metric.is_per_update() { 3 } else { 1 })
    }

    /// The bound, and which side of it counts as reached.
    pub(super) fn bound(&self) -> (f64, Direction) {
        match (self.at_most, self.at_least) {
            (Some(bound), _) => (bound, Direction::Minimize),
            (None, bound) => (bound.unwrap_or(f64::NAN), Direction::Maximize),
        }
    }
}

/// Fires after `patience` observations in a row without an improvement of more than `min_delta`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlateauRule {
    /// What to watch; `eval_loss` by default.
    #[serde(default = "eval_loss")]
    pub metric: Metric,
    /// Observations without an improvement. 0, with `reference: hf` only, stops at the first one.
    pub patience: u64,
    /// The gain that an improvement must exceed; 0 by default.
    #[serde(default)]
    pub min_delta: MinDelta,
    /// What an improvement is measured from.
    #[serde(default)]
    pub reference: Reference,
    /// Which way is better; by default what the metric's name says
    /// ([`Metric::known_direction`]), else less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub greater_is_better: Option<bool>,
    /// The rule counts from the start but does not fire before this update.
    #[serde(default)]
    pub min_steps: u64,
    /// What to do to the metric first; not with `reference: hf`, which reads it as it is.
    #[serde(default)]
    pub smoothing: Smoothing,
}

impl PlateauRule {
    /// Which way is better.
    pub fn direction(&self) -> Direction {
        match self.greater_is_better {
            Some(true) => Direction::Maximize,
            Some(false) => Direction::Minimize,
            None => self.metric.default_direction(),
        }
    }
}

/// What a plateau rule measures an improvement from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The last value that was an improvement: it moves only when the gain exceeds `min_delta`, so
    /// small steps add up. The first finite value sets it; a value that is not finite counts as bad.
    #[default]
    Significant,
    /// As transformers' `EarlyStoppingCallback` and `Trainer` do, bit for bit: the best value, which
    /// moves on any gain, so a run that improves by less than `min_delta` each time is stopped. The
    /// first evaluation never counts as bad, whatever its value; one before the first update is
    /// ignored.
    Hf,
}

/// The gain that an improvement must exceed: a number, `{absolute: 0.01}` or `{relative: 0.01}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum MinDelta {
    /// In the metric's own unit.
    Absolute(f64),
    /// As a fraction of the reference's magnitude.
    Relative(f64),
}

impl Default for MinDelta {
    fn default() -> Self {
        MinDelta::Absolute(0.0)
    }
}

impl TryFrom<Value> for MinDelta {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let entry = match &value {
            Value::Number(x) => return Ok(MinDelta::Absolute(x.as_f64().unwrap_or(f64::NAN))),
            Value::Object(map) if map.len() == 1 => map.iter().next(),
            _ => None,
        };
        match entry.map(|(key, x)| (key.as_str(), x.as_f64())) {
            Some(("absolute", Some(x))) => Ok(MinDelta::Absolute(x)),
            Some(("relative", Some(x))) => Ok(MinDelta::Relative(x)),
            _ => Err(format!(
                "expected a number, {{absolute: x}} or {{relative: x}}, found {value}"
            )),
        }
    }
}

impl From<MinDelta> for Value {
    fn from(delta: MinDelta) -> Value {
        match delta {
            MinDelta::Absolute(x) => x.into(),
            MinDelta::Relative(x) => serde_json::json!({ "relative": x }),
        }
    }
}

/// Fires when an update's loss or gradient norm is NaN or infinite `patience` times in a row.
///
/// The default patience is 1: after an update on NaN gradients every weight is NaN, and nothing that
/// follows is worth its time. Evaluations are not watched: a plateau rule counts a bad one. An update
/// that a loss scaler skipped is no update and is not observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NonFiniteRule {
    /// Updates in a row.
    #[serde(default = "one")]
    pub patience: u64,
}

impl Default for NonFiniteRule {
    fn default() -> Self {
        Self { patience: 1 }
    }
}

/// Fires when the smoothed metric exceeds `factor` × its best for `patience` observations in a row.
///
/// For a metric that can be negative or zero, the bound is best + (factor − 1) × |best|. A value that
/// is not finite exceeds every bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DivergenceRule {
    /// What to watch; `train_loss` by default. It must be one that is minimised.
    #[serde(default = "train_loss")]
    pub metric: Metric,
    /// How many times its best is too much; 3 by default.
    #[serde(default = "three_times")]
    pub factor: f64,
    /// Observations in a row; 3 by default.
    #[serde(default = "three")]
    pub patience: u64,
    /// The rule counts from the start but does not fire before this update.
    #[serde(default)]
    pub min_steps: u64,
    /// What to do to the metric first; by default `{ema: 0.9}`, so that one easy batch sets no best.
    #[serde(default = "long_ema")]
    pub smoothing: Smoothing,
}

/// Fires when the evaluation loss rises `patience` evaluations in a row while the training loss falls.
///
/// Rises: it is above that of the evaluation before by more than `min_delta`. Falls: the mean training
/// loss since the evaluation before is below the mean of the stretch before that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverfitRule {
    /// Evaluations in a row; 2 by default.
    #[serde(default = "two")]
    pub patience: u64,
    /// The rise that counts must exceed this; 0 by default.
    #[serde(default)]
    pub min_delta: MinDelta,
    /// The rule counts from the start but does not fire before this update.
    #[serde(default)]
    pub min_steps: u64,
    /// What to do to the evaluation loss first.
    #[serde(default)]
    pub smoothing: Smoothing,
}

/// Limits that end a run whatever its numbers say; where several are used up, the first in this order
/// is the reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Optimizer updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Passes over the data, as a fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<f64>,
    /// Input tokens trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Wall time, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<f64>,
}

fn eval_loss() -> Metric {
    Metric::EvalLoss
}
fn train_loss() -> Metric {
    Metric::TrainLoss
}
fn one() -> u64 {
    1
}
fn two() -> u64 {
    2
}
fn three() -> u64 {
    3
}
fn three_times() -> f64 {
    3.0
}
fn long_ema() -> Smoothing {
    Smoothing::Ema(0.9)
}

impl Rule {
    /// The kind, as the `rule` key writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Rule::Target(_) => "target",
            Rule::Plateau(_) => "plateau",
            Rule::NonFinite(_) => "non_finite",
            Rule::Divergence(_) => "divergence",
            Rule::Overfit(_) => "overfit",
            Rule::Budget(_) => "budget",
        }
    }

    /// What it watches; an `overfit` rule watches the training loss as well.
    pub fn metric(&self) -> Option<&Metric> {
        match self {
            Rule::Target(rule) => Some(&rule.metric),
            Rule::Plateau(rule) => Some(&rule.metric),
            Rule::Divergence(rule) => Some(&rule.metric),
            Rule::Overfit(_) => Some(&Metric::EvalLoss),
            Rule::NonFinite(_) | Rule::Budget(_) => None,
        }
    }
}

impl Serialize for StopConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rules.serialize(serializer)
    }
}
