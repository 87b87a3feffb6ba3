//! The rules as a configuration writes them: serde types, their defaults and their validation.

use super::metric::{Direction, Metric};
use super::smoothing::{MAX_WINDOW, Smoothing};
use crate::suggest::did_you_mean;
use crate::{Error, ErrorKind, Result};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

/// The keys of each kind of rule beside `rule`.
const KINDS: [(&str, &[&str]); 6] = [
    (
        "target",
        &[
            "metric",
            "at_most",
            "at_least",
            "patience",
            "min_steps",
            "smoothing",
        ],
    ),
    (
        "plateau",
        &[
            "metric",
            "patience",
            "min_delta",
            "reference",
            "greater_is_better",
            "min_steps",
            "smoothing",
        ],
    ),
    ("non_finite", &["patience"]),
    (
        "divergence",
        &["metric", "factor", "patience", "min_steps", "smoothing"],
    ),
    (
        "overfit",
        &["patience", "min_delta", "min_steps", "smoothing"],
    ),
    (
        "budget",
        &["max_steps", "max_epochs", "max_tokens", "max_seconds"],
    ),
];

/// The keys of transformers' early stopping, as a file of rules may hold them.
const SUGAR: [&str; 4] = [
    "early_stopping_patience",
    "early_stopping_threshold",
    "metric_for_best_model",
    "greater_is_better",
];

fn config_error(path: &str, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("{path}: {message}"))
}

fn unknown_key(path: &str, key: &str, known: &[&str]) -> Error {
    let hint = did_you_mean(key, known.iter().copied());
    let message = format!(
        "{path}: unknown key `{key}`{hint} (known: {})",
        known.join(", ")
    );
    Error::new(ErrorKind::UnknownKey, message)
}

/// Reads `value` as a `T`; an error names the key path below `path`.
fn read<T: DeserializeOwned>(value: Value, path: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let below = error.path().to_string();
        let place = if below == "." {
            path.to_owned()
        } else {
            format!("{path}.{below}")
        };
        config_error(&place, error.into_inner())
    })
}

impl Rule {
    /// Reads one rule; `path` is its place in the configuration, such as `stop[1]`, for errors.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownKey`] for a key that the kind does not have, else [`ErrorKind::Config`].
    pub fn from_value(value: Value, path: &str) -> Result<Self> {
        let Value::Object(mut map) = value else {
            let example = "{rule: plateau, metric: eval_loss, patience: 3}";
            return Err(config_error(
                path,
                format!("a rule is a mapping such as {example}"),
            ));
        };
        let names = KINDS.map(|(name, _)| name).join(", ");
        let Some(kind) = map.shift_remove("rule") else {
            return Err(config_error(
                path,
                format!("the key `rule` is missing: one of {names}"),
            ));
        };
        let Some((kind, keys)) = KINDS.into_iter().find(|(name, _)| kind == *name) else {
            let hint = did_you_mean(kind.as_str().unwrap_or(""), KINDS.map(|(name, _)| name));
            let message = format!("{kind} is no rule{hint} (known: {names})");
            return Err(config_error(&format!("{path}.rule"), message));
        };
        if let Some(key) = map.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(unknown_key(path, key, keys));
        }
        let value = Value::Object(map);
        Ok(match kind {
            "target" => Rule::Target(read(value, path)?),
            "plateau" => Rule::Plateau(read(value, path)?),
            "non_finite" => Rule::NonFinite(read(value, path)?),
            "divergence" => Rule::Divergence(read(value, path)?),
            "overfit" => Rule::Overfit(read(value, path)?),
            _ => Rule::Budget(read(value, path)?),
        })
    }

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

    /// Checks the values and how they go together; `path` is the rule's place, such as `stop[1]`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with the key path of the value.
    pub fn validate(&self, path: &str) -> Result<()> {
        let at = |key: &str| format!("{path}.{key}");
        match self {
            Rule::Target(rule) => {
                let (bound, direction) = rule.bound();
                match (rule.at_most, rule.at_least) {
                    (Some(_), Some(_)) | (None, None) => {
                        let message = "a target has exactly one of `at_most` and `at_least`";
                        return Err(config_error(path, message));
                    }
                    _ => {}
                }
                let (key, other) = match direction {
                    Direction::Minimize => ("at_most", "at_least"),
                    Direction::Maximize => ("at_least", "at_most"),
                };
                finite(bound, &at(key))?;
                if rule.metric.is_built_in() && rule.metric.default_direction() != direction {
                    let message = format!("{} is better the other way: use `{other}`", rule.metric);
                    return Err(config_error(&at(key), message));
                }
                positive(rule.patience(), &at("patience"))?;
                check_smoothing(rule.smoothing, &at("smoothing"))
            }
            Rule::Plateau(rule) => {
                let natural = rule.metric.default_direction();
                if rule.metric.is_built_in() && rule.direction() != natural {
                    let better = natural == Direction::Maximize;
                    let message = format!("must be {better} for {}: drop it", rule.metric);
                    return Err(config_error(&at("greater_is_better"), message));
                }
                match rule.reference {
                    Reference::Significant => {
                        positive(rule.patience, &at("patience"))?;
                        check_min_delta(rule.min_delta, &at("min_delta"))?;
                    }
                    Reference::Hf => {
                        match rule.min_delta {
                            MinDelta::Absolute(x) => finite(x, &at("min_delta"))?,
                            MinDelta::Relative(_) => {
                                let message = "`reference: hf` knows absolute gains only";
                                return Err(config_error(&at("min_delta"), message));
                            }
                        }
                        if rule.smoothing != Smoothing::None {
                            let message = "`reference: hf` reads the metric as it is; use \
                                           `reference: significant` to smooth it";
                            return Err(config_error(&at("smoothing"), message));
                        }
                    }
                }
                check_smoothing(rule.smoothing, &at("smoothing"))
            }
            Rule::NonFinite(rule) => positive(rule.patience, &at("patience")),
            Rule::Divergence(rule) => {
                if rule.metric.default_direction() == Direction::Maximize {
                    let message = format!("{} is not minimised, so it cannot diverge", rule.metric);
                    return Err(config_error(&at("metric"), message));
                }
                if !(rule.factor.is_finite() && rule.factor > 1.0) {
                    let message = format!("must be a number above 1, found {}", rule.factor);
                    return Err(config_error(&at("factor"), message));
                }
                positive(rule.patience, &at("patience"))?;
                check_smoothing(rule.smoothing, &at("smoothing"))
            }
            Rule::Overfit(rule) => {
                positive(rule.patience, &at("patience"))?;
                check_min_delta(rule.min_delta, &at("min_delta"))?;
                check_smoothing(rule.smoothing, &at("smoothing"))
            }
            Rule::Budget(budget) => {
                if *budget == Budget::default() {
                    let limits = KINDS[5].1.join(", ");
                    return Err(config_error(
                        path,
                        format!("a budget has at least one of {limits}"),
                    ));
                }
                budget.validate(path)
            }
        }
    }
}

impl Budget {
    /// Checks that every limit is above 0; `path` is the budget's place, for errors.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with the key path of the value.
    pub fn validate(&self, path: &str) -> Result<()> {
        let limits = [
            ("max_steps", self.max_steps.map(|n| n as f64)),
            ("max_epochs", self.max_epochs),
            ("max_tokens", self.max_tokens.map(|n| n as f64)),
            ("max_seconds", self.max_seconds),
        ];
        for (key, limit) in limits {
            if let Some(x) = limit
                && !(x.is_finite() && x > 0.0)
            {
                return Err(config_error(
                    &format!("{path}.{key}"),
                    format!("must be above 0, found {x}"),
                ));
            }
        }
        Ok(())
    }
}

fn finite(x: f64, path: &str) -> Result<()> {
    if x.is_finite() {
        Ok(())
    } else {
        Err(config_error(path, format!("must be finite, found {x}")))
    }
}

fn positive(n: u64, path: &str) -> Result<()> {
    if n > 0 {
        Ok(())
    } else {
        Err(config_error(path, "must be at least 1, found 0"))
    }
}

fn check_min_delta(delta: MinDelta, path: &str) -> Result<()> {
    let (MinDelta::Absolute(x) | MinDelta::Relative(x)) = delta;
    if x.is_finite() && x >= 0.0 {
        Ok(())
    } else {
        Err(config_error(
            path,
            format!("must be finite and not negative, found {x}"),
        ))
    }
}

fn check_smoothing(smoothing: Smoothing, path: &str) -> Result<()> {
    match smoothing {
        Smoothing::None => Ok(()),
        Smoothing::Ema(decay) if (0.0..1.0).contains(&decay) => Ok(()),
        Smoothing::Ema(decay) => {
            let message = format!("the weight of the past must be in [0, 1), found {decay}");
            Err(config_error(&format!("{path}.ema"), message))
        }
        Smoothing::Mean(n) | Smoothing::Median(n) if (1..=MAX_WINDOW).contains(&n) => Ok(()),
        Smoothing::Mean(n) | Smoothing::Median(n) => {
            let message = format!("a window holds 1 to {MAX_WINDOW} observations, found {n}");
            Err(config_error(path, message))
        }
    }
}

impl StopConfig {
    /// Reads a list of rules, as the `stop` key holds it, and validates them; null is an empty list.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownKey`] or [`ErrorKind::Config`], with a key path such as `stop[1].patience`.
    pub fn from_value(value: Value) -> Result<Self> {
        let items = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items,
            _ => {
                let message = "expected a list of rules such as [{rule: budget, max_seconds: 60}]";
                return Err(config_error("stop", message));
            }
        };
        let paths = (0..items.len()).map(|i| format!("stop[{i}]"));
        let rules = items
            .into_iter()
            .zip(paths)
            .map(|(item, path)| Rule::from_value(item, &path));
        let config = Self {
            rules: rules.collect::<Result<_>>()?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads a file of rules, YAML or JSON: a bare list, one rule, or a mapping with `stop` and the
    /// keys of [`early_stopping`], whose rule then comes last.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for malformed text; else as [`StopConfig::from_value`].
    pub fn from_text(text: &str) -> Result<Self> {
        let json = text.trim_start().starts_with(['[', '{']);
        let parsed = json.then(|| serde_json::from_str(text).ok()).flatten();
        let value: Value = match parsed {
            Some(value) => value,
            None => serde_saphyr::from_str(text).map_err(|error| {
                Error::new(ErrorKind::Config, "stop rules").with_source(error.to_string())
            })?,
        };
        let mut map = match value {
            Value::Object(map) if map.contains_key("rule") => {
                return Self::from_value(Value::Array(vec![Value::Object(map)]));
            }
            Value::Object(map) => map,
            list => return Self::from_value(list),
        };
        let known = || ["stop"].into_iter().chain(SUGAR).collect::<Vec<_>>();
        if let Some(key) = map.keys().find(|key| !known().contains(&key.as_str())) {
            return Err(unknown_key("stop rules", key, &known()));
        }
        let mut config = match map.shift_remove("stop") {
            Some(list) => Self::from_value(list)?,
            None => Self::default(),
        };
        if !map.is_empty() {
            let sugar: Sugar = serde_path_to_error::deserialize(Value::Object(map))
                .map_err(|e| config_error(&e.path().to_string(), e.inner()))?;
            let Some(patience) = sugar.early_stopping_patience else {
                let message = "is missing; the other early stopping keys do nothing without it";
                return Err(config_error(SUGAR[0], message));
            };
            let metric = sugar.metric_for_best_model.as_deref();
            let threshold = sugar.early_stopping_threshold;
            config.rules.push(early_stopping(
                patience,
                threshold,
                metric,
                sugar.greater_is_better,
            )?);
        }
        Ok(config)
    }

    /// Checks every rule.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], with a key path such as `stop[1].patience`.
    pub fn validate(&self) -> Result<()> {
        self.rules
            .iter()
            .enumerate()
            .try_for_each(|(i, rule)| rule.validate(&format!("stop[{i}]")))
    }
}

impl Serialize for StopConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rules.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StopConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
struct Sugar {
    early_stopping_patience: Option<u64>,
    early_stopping_threshold: Option<f64>,
    metric_for_best_model: Option<String>,
    greater_is_better: Option<bool>,
}

/// transformers' early stopping keys as a plateau rule with [`Reference::Hf`].
///
/// `early_stopping_threshold` is 0 and `metric_for_best_model` is `loss` by default. As there, `loss`
/// means `eval_loss`, and a name without `eval_` also reads the metric with it. Unlike there, a
/// perplexity is minimised by default, and a metric whose name says nothing must come with
/// `greater_is_better`.
///
/// # Errors
/// [`ErrorKind::Config`] that names the key.
pub fn early_stopping(
    early_stopping_patience: u64,
    early_stopping_threshold: Option<f64>,
    metric_for_best_model: Option<&str>,
    greater_is_better: Option<bool>,
) -> Result<Rule> {
    let metric = Metric::for_best_model(metric_for_best_model.unwrap_or("loss"))?;
    if greater_is_better.is_none() && metric.known_direction().is_none() {
        let message = format!("set it: the name `{metric}` does not say which way is better");
        return Err(config_error("greater_is_better", message));
    }
    let natural = metric.default_direction() == Direction::Maximize;
    if metric.is_built_in() && greater_is_better.is_some_and(|greater| greater != natural) {
        let message = format!("must be {natural} for {metric}: drop it");
        return Err(config_error("greater_is_better", message));
    }
    let threshold = early_stopping_threshold.unwrap_or(0.0);
    finite(threshold, "early_stopping_threshold")?;
    Ok(Rule::Plateau(PlateauRule {
        metric,
        patience: early_stopping_patience,
        min_delta: MinDelta::Absolute(threshold),
        reference: Reference::Hf,
        greater_is_better,
        min_steps: 0,
        smoothing: Smoothing::None,
    }))
}

impl Metric {
    /// The metric that `metric_for_best_model: name` means: `loss` is the evaluation's.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the name is empty.
    pub fn for_best_model(name: &str) -> Result<Self> {
        Ok(match name.strip_prefix("eval_").unwrap_or(name) {
            "loss" => Metric::EvalLoss,
            "token_accuracy" | "mean_token_accuracy" => Metric::EvalTokenAccuracy,
            _ => Metric::try_from(name.to_owned())
                .map_err(|message| config_error("metric_for_best_model", message))?,
        })
    }
}
