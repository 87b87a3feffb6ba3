//! Reads rules from configuration values and from files of rules, with errors that name the key path.

use super::config::{MinDelta, PlateauRule, Reference, Rule, StopConfig};
use super::metric::{Direction, Metric};
use super::smoothing::Smoothing;
use super::validate::{config_error, finite};
use crate::suggest::did_you_mean;
use crate::{Error, ErrorKind, Result};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

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
            "perplexity" => Metric::EvalPerplexity,
            _ => Metric::try_from(name.to_owned())
                .map_err(|message| config_error("metric_for_best_model", message))?,
        })
    }
}
