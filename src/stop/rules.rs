//! What each rule remembers, and what one observation does to it.

use super::config::{
    Budget, DivergenceRule, MinDelta, OverfitRule, PlateauRule, Reference, Rule, TargetRule,
};
use super::metric::{Direction, Metric};
use super::observation::Observation;
use super::smoothing::Smoother;
use crate::number::Number;
use crate::report::StopReason;
use serde::{Deserialize, Serialize};

/// The best value of a metric and the step that gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// The update after which it was observed; `None` only with [`Reference::Hf`], when nothing so
    /// far beat infinity.
    pub step: Option<u64>,
    /// The value as the rule sees it, that is after smoothing.
    pub value: f64,
}

/// Keeps the [`Best`] of a metric.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct BestTracker {
    step: Option<u64>,
    value: Option<Number>,
}

impl BestTracker {
    pub fn get(&self) -> Option<Best> {
        self.value.map(|value| Best {
            step: self.step,
            value: value.0,
        })
    }

    /// Takes `value` if it is strictly better than all before; a NaN never is, and an infinity only
    /// for [`Reference::Hf`].
    pub fn offer(
        &mut self,
        reference: Reference,
        better: Direction,
        step: u64,
        value: f64,
    ) -> bool {
        if reference == Reference::Significant && !value.is_finite() {
            return false;
        }
        let best = self.value.map_or(better.worst(), |best| best.0);
        let improved = better.better(value, best);
        if improved {
            (self.step, self.value) = (Some(step), Some(Number(value)));
        } else if reference == Reference::Hf {
            // The peer writes ±inf down as its best when the first value is NaN.
            self.value = Some(Number(best));
        }
        improved
    }
}

/// What a rule remembers between observations.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RuleState {
    /// Observations in a row that speak for stopping; never above the patience.
    pub counter: u64,
    /// The metric as last observed.
    pub current: Option<Number>,
    pub smoother: Smoother,
    pub best: BestTracker,
    /// What `reference: significant` measures an improvement from.
    reference: Option<Number>,
    /// The training loss between evaluations, for `overfit`.
    stretch: Stretch,
}

/// What `overfit` compares: the stretch of updates since an evaluation, and what came before.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Stretch {
    updates: u64,
    mean_train_loss: f64,
    previous_train_loss: Option<f64>,
    previous_eval_loss: Option<f64>,
}

impl RuleState {
    fn count(&mut self, speaks_for_stopping: bool, patience: u64) {
        self.counter = if speaks_for_stopping {
            (self.counter + 1).min(patience)
        } else {
            0
        };
    }

    /// Takes in an observation and says why to stop, if the rule fires on it.
    pub fn observe(&mut self, rule: &Rule, o: &Observation<'_>) -> Option<StopReason> {
        match rule {
            Rule::Target(rule) => {
                self.target(rule, o.metric(&rule.metric)?);
                let fires = self.counter >= rule.patience() && o.step >= rule.min_steps;
                fires.then_some(StopReason::TargetReached)
            }
            Rule::Plateau(rule) => {
                if rule.reference == Reference::Hf && o.step == 0 {
                    return None;
                }
                self.plateau(rule, o.step, o.metric(&rule.metric)?);
                let fires = self.counter >= rule.patience && o.step >= rule.min_steps;
                fires.then_some(StopReason::Plateau)
            }
            Rule::NonFinite(rule) => {
                let (loss, norm) = (o.raw_train_loss(), o.metric(&Metric::GradNorm));
                let broken = [loss, norm].into_iter().flatten().find(|x| !x.is_finite());
                self.current = Some(Number(broken.or(loss).or(norm)?));
                self.count(broken.is_some(), rule.patience);
                (self.counter >= rule.patience).then_some(StopReason::NonFinite)
            }
            Rule::Divergence(rule) => {
                self.divergence(rule, o.step, o.metric(&rule.metric)?);
                let fires = self.counter >= rule.patience && o.step >= rule.min_steps;
                fires.then_some(StopReason::Diverged)
            }
            Rule::Overfit(rule) => {
                if let Some(loss) = o.metric(&Metric::TrainLoss).filter(|loss| loss.is_finite()) {
                    let stretch = &mut self.stretch;
                    stretch.updates += 1;
                    stretch.mean_train_loss +=
                        (loss - stretch.mean_train_loss) / stretch.updates as f64;
                }
                self.overfit(rule, o.metric(&Metric::EvalLoss)?);
                let fires = self.counter >= rule.patience && o.step >= rule.min_steps;
                fires.then_some(StopReason::Overfit)
            }
            Rule::Budget(budget) => budget.used_up(o),
        }
    }

    fn target(&mut self, rule: &TargetRule, value: f64) {
        self.current = Some(Number(value));
        let (bound, side) = rule.bound();
        let reached = value.is_finite() && {
            let smoothed = self.smoother.push(rule.smoothing, value);
            smoothed == bound || side.better(smoothed, bound)
        };
        self.count(reached, rule.patience());
    }

    fn plateau(&mut self, rule: &PlateauRule, step: u64, raw: f64) {
        self.current = Some(Number(raw));
        let better = rule.direction();
        let value = match rule.reference {
            Reference::Significant if raw.is_finite() => self.smoother.push(rule.smoothing, raw),
            _ => raw,
        };
        // The value before this observation: the best moves only after it was compared.
        let from = match rule.reference {
            Reference::Significant => self.reference.map(|reference| reference.0),
            Reference::Hf => self.best.get().map(|best| best.value),
        };
        let improved = match (rule.reference, from) {
            (Reference::Significant, _) if !value.is_finite() => false,
            (_, None) => true,
            (_, Some(from)) => {
                let needed = match rule.min_delta {
                    MinDelta::Absolute(delta) => delta,
                    MinDelta::Relative(fraction) => fraction * from.abs(),
                };
                better.better(value, from) && (value - from).abs() > needed
            }
        };
        if improved {
            self.reference = Some(Number(value));
        }
        self.best.offer(rule.reference, better, step, value);
        self.count(!improved, rule.patience);
    }

    fn divergence(&mut self, rule: &DivergenceRule, step: u64, value: f64) {
        self.current = Some(Number(value));
        let best = self.best.get().map(|best| best.value);
        let bound = best.map(|best| best + (rule.factor - 1.0) * best.abs());
        let exceeds = if value.is_finite() {
            let smoothed = self.smoother.push(rule.smoothing, value);
            self.best
                .offer(Reference::Significant, Direction::Minimize, step, smoothed);
            bound.is_some_and(|bound| smoothed > bound)
        } else {
            bound.is_some()
        };
        self.count(exceeds, rule.patience);
    }

    fn overfit(&mut self, rule: &OverfitRule, value: f64) {
        self.current = Some(Number(value));
        let stretch = self.stretch;
        if !value.is_finite() {
            // No evidence either way, and the stretch goes on until the next evaluation.
            self.counter = 0;
            return;
        }
        let eval_loss = self.smoother.push(rule.smoothing, value);
        let rises = stretch.previous_eval_loss.is_some_and(|before| {
            let needed = match rule.min_delta {
                MinDelta::Absolute(delta) => delta,
                MinDelta::Relative(fraction) => fraction * before.abs(),
            };
            eval_loss > before && eval_loss - before > needed
        });
        let trained = (stretch.updates > 0).then_some(stretch.mean_train_loss);
        let falls = match (stretch.previous_train_loss, trained) {
            (Some(before), Some(now)) => now < before,
            _ => false,
        };
        self.count(rises && falls, rule.patience);
        self.stretch = Stretch {
            previous_train_loss: trained.or(stretch.previous_train_loss),
            previous_eval_loss: Some(eval_loss),
            ..Stretch::default()
        };
    }
}

impl Budget {
    /// The first limit that is used up.
    pub(super) fn used_up(&self, o: &Observation<'_>) -> Option<StopReason> {
        if self.max_steps.is_some_and(|limit| o.step >= limit) {
            Some(StopReason::MaxSteps)
        } else if self.max_epochs.is_some_and(|limit| o.epoch >= limit) {
            Some(StopReason::MaxEpochs)
        } else if self.max_tokens.is_some_and(|limit| o.tokens >= limit) {
            Some(StopReason::MaxTokens)
        } else if self.max_seconds.is_some_and(|limit| o.seconds >= limit) {
            Some(StopReason::MaxTime)
        } else {
            None
        }
    }
}
