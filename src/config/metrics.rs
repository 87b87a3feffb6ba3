//! What must hold of the metrics that a configuration names: that something gives them, and that the
//! way in which they are said to be better is the one in which they are.

use crate::error::Result;
use crate::stop::{Direction, Metric, Rule};

use super::fields::Config;
use super::validate::wrong;

impl Config {
    /// A loss that should grow, or an accuracy that should fall, is a slip that would keep the worst
    /// model as the best.
    pub(super) fn check_metric(&self) -> Result<()> {
        let metric =
            Metric::for_best_model(self.metric_for_best_model.as_deref().unwrap_or("loss"))?;
        // Also refuses a number of a set that is not there, which would be waited for for ever.
        self.is_of_set(&metric, "metric_for_best_model")?;
        let Some(natural) = metric.known_direction() else {
            return match self.greater_is_better {
                Some(_) => Ok(()),
                None => wrong(format!(
                    "greater_is_better: missing: the name {metric} does not say which way is better"
                )),
            };
        };
        let greater = natural == Direction::Maximize;
        match self.greater_is_better {
            Some(said) if said != greater && self.is_ours(&metric, "metric_for_best_model")? => {
                wrong(format!(
                    "greater_is_better: {said} contradicts the metric {metric}, which should {}; \
                     remove the key",
                    if greater { "grow" } else { "fall" }
                ))
            }
            _ => Ok(()),
        }
    }

    /// The same for the rules. Of the metrics that have one meaning in every configuration the rules
    /// know it by themselves.
    pub(super) fn check_rule_metrics(&self) -> Result<()> {
        for (i, metric) in self.rule_metrics() {
            let place = format!("stop[{i}].metric");
            if metric.is_built_in() || !self.is_ours(metric, &place)? {
                continue;
            }
            let (key, said) = match &self.stop.rules[i] {
                Rule::Target(rule) if rule.at_most.is_some() => ("at_most", Direction::Minimize),
                Rule::Target(_) => ("at_least", Direction::Maximize),
                Rule::Plateau(rule) => ("greater_is_better", rule.direction()),
                _ => continue,
            };
            if said != metric.default_direction() {
                return wrong(format!("stop[{i}].{key}: {metric} is better the other way"));
            }
        }
        Ok(())
    }

    /// The metric of each rule that has one, with the rule's index.
    pub(super) fn rule_metrics(&self) -> impl Iterator<Item = (usize, &Metric)> {
        let rules = self.stop.rules.iter().enumerate();
        rules.filter_map(|(i, rule)| Some((i, rule.metric()?)))
    }

    /// Whether the library computes the metric, so that its direction is known for certain: what a
    /// host means by `neg_log_loss` is for the host to say.
    fn is_ours(&self, metric: &Metric, place: &str) -> Result<bool> {
        Ok(metric.is_built_in() || self.is_of_set(metric, place)?)
    }

    /// Whether evaluations give the metric: over all sets, or on one that has a name.
    pub(super) fn is_evaluation(&self, metric: &Metric, place: &str) -> Result<bool> {
        Ok(metric.is_per_evaluation() || self.is_of_set(metric, place)?)
    }

    fn is_of_set(&self, metric: &Metric, place: &str) -> Result<bool> {
        match (&self.eval_dataset_name, metric) {
            (Some(sets), Metric::Host(name)) => sets
                .is_metric_of_set(name)
                .or_else(|message| wrong(format!("{place}: {message}"))),
            _ => Ok(false),
        }
    }
}
