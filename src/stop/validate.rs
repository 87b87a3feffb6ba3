//! What rules must satisfy beyond their types: ranges, and values that contradict each other.

use super::config::{Budget, MinDelta, Reference, Rule, StopConfig};
use super::metric::Direction;
use super::smoothing::{MAX_WINDOW, Smoothing};
use crate::{Error, ErrorKind, Result};

pub(super) fn config_error(path: &str, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("{path}: {message}"))
}

impl StopConfig {
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

impl Rule {
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
                    let limits = "max_steps, max_epochs, max_tokens, max_seconds";
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

pub(super) fn finite(x: f64, path: &str) -> Result<()> {
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
