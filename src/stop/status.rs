//! Where each rule stands, for people.

use super::config::{Budget, Rule};
use super::metric::Direction;
use super::observation::Observation;
use super::slot::Slot;
use super::smoothing::Smoothing;
use std::fmt;

impl Slot {
    pub fn status(&self, now: &Observation<'_>) -> RuleStatus {
        let state = &self.state;
        let best = state.best.get().map(|best| best.value);
        let smoothed = state.smoother.value.or(state.current);
        let current = match self.smoothing() {
            Smoothing::None => state.current,
            _ => smoothed,
        };
        let (target, relation) = match &self.rule {
            Rule::Budget(budget) => return budget_status("budget", budget, now),
            Rule::Target(rule) => (
                Some(rule.bound().0),
                match rule.bound().1 {
                    Direction::Minimize => "at most",
                    Direction::Maximize => "at least",
                },
            ),
            Rule::Plateau(_) => (best, "best"),
            Rule::Divergence(rule) => (
                best.map(|best| best + (rule.factor - 1.0) * best.abs()),
                "bound",
            ),
            Rule::NonFinite(_) | Rule::Overfit(_) => (None, ""),
        };
        RuleStatus {
            rule: self.rule.kind(),
            metric: self.metric().map(|metric| metric.name().to_owned()),
            counter: state.counter,
            patience: self.patience(),
            current: current.map(|value| value.0),
            target,
            relation,
        }
    }
}

/// The limit of a budget of which the largest part is used.
pub(super) fn budget_status(
    rule: &'static str,
    budget: &Budget,
    now: &Observation<'_>,
) -> RuleStatus {
    let limits = [
        ("steps", now.step as f64, budget.max_steps.map(|n| n as f64)),
        ("epochs", now.epoch, budget.max_epochs),
        (
            "tokens",
            now.tokens as f64,
            budget.max_tokens.map(|n| n as f64),
        ),
        ("seconds", now.seconds, budget.max_seconds),
    ];
    let given = limits
        .into_iter()
        .filter_map(|(name, used, limit)| Some((name, used, limit?)));
    let nearest = given.max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)));
    RuleStatus {
        rule,
        metric: nearest.map(|(name, ..)| name.to_owned()),
        counter: 0,
        patience: 0,
        current: nearest.map(|(_, used, _)| used),
        target: nearest.map(|(.., limit)| limit),
        relation: "of",
    }
}

/// Where a rule stands, for display: `plateau eval_loss 1.32 (best 1.31), 2/3`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleStatus {
    /// The kind of rule.
    pub rule: &'static str,
    /// What it watches; for a budget the limit that is nearest.
    pub metric: Option<String>,
    /// Observations in a row that speak for stopping.
    pub counter: u64,
    /// How many it takes; 0 where that means nothing.
    pub patience: u64,
    /// The metric as the rule last saw it.
    pub current: Option<f64>,
    /// What `current` is held against: the bound of a target, divergence or budget, the best of a
    /// plateau.
    pub target: Option<f64>,
    relation: &'static str,
}

impl fmt::Display for RuleStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule)?;
        if let Some(metric) = &self.metric {
            write!(f, " {metric}")?;
        }
        if let Some(current) = self.current {
            write!(f, " {}", short(current))?;
        }
        if let Some(target) = self.target {
            write!(f, " ({} {})", self.relation, short(target))?;
        }
        if self.patience > 0 {
            write!(f, ", {}/{}", self.counter, self.patience)?;
        }
        Ok(())
    }
}

/// Five significant digits at most, whole numbers as they are.
fn short(x: f64) -> String {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        format!("{x:.0}")
    } else if !x.is_finite() || (1e-3..1e5).contains(&x.abs()) {
        let digits = 4 - (x.abs().log10().floor() as i32).clamp(0, 4);
        format!("{x:.*}", digits as usize)
    } else {
        format!("{x:.3e}")
    }
}
