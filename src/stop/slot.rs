//! One rule of a running machine with what it remembers.

use super::config::Rule;
use super::metric::Metric;
use super::rules::RuleState;
use super::smoothing::Smoothing;

#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Index in the configuration, none for the implied rule.
    pub index: Option<usize>,
    pub rule: Rule,
    pub state: RuleState,
}

impl Slot {
    pub fn metric(&self) -> Option<&Metric> {
        self.rule.metric()
    }

    pub fn smoothing(&self) -> Smoothing {
        match &self.rule {
            Rule::Target(rule) => rule.smoothing,
            Rule::Plateau(rule) => rule.smoothing,
            Rule::Divergence(rule) => rule.smoothing,
            Rule::Overfit(rule) => rule.smoothing,
            Rule::NonFinite(_) | Rule::Budget(_) => Smoothing::None,
        }
    }

    pub fn patience(&self) -> u64 {
        match &self.rule {
            Rule::Target(rule) => rule.patience(),
            Rule::Plateau(rule) => rule.patience,
            Rule::NonFinite(rule) => rule.patience,
            Rule::Divergence(rule) => rule.patience,
            Rule::Overfit(rule) => rule.patience,
            Rule::Budget(_) => 0,
        }
    }

    /// What gives the remembered numbers their meaning; states are matched by it.
    pub fn key(&self) -> String {
        let mut key = self.rule.kind().to_owned();
        if let Some(metric) = self.metric() {
            key += &format!(" {metric} {:?}", self.smoothing());
        }
        match &self.rule {
            Rule::Plateau(rule) => key += &format!(" {:?} {:?}", rule.direction(), rule.reference),
            Rule::Target(rule) => key += &format!(" {:?}", rule.bound().1),
            _ => {}
        }
        key
    }
}
