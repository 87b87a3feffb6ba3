//! The machine: takes in observations, asks the rules in order and latches the first verdict.

use super::config::{Budget, NonFiniteRule, Reference, Rule, StopConfig};
use super::metric::{Direction, Metric};
use super::observation::Observation;
use super::rules::{Best, BestTracker, RuleState};
use super::slot::Slot;
use super::smoothing::Smoothing;
use super::status::{RuleStatus, budget_status};
use crate::Result;
use crate::report::StopReason;
use serde::{Deserialize, Serialize};

/// Why, when and by what a run was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The stable reason.
    pub reason: StopReason,
    /// The update after which it was reached.
    pub step: u64,
    /// Index of the rule in [`StopConfig::rules`]; `None` for the run's own budget, the implied
    /// `non_finite` rule and the host.
    pub rule: Option<usize>,
    /// The rule and its numbers, for people.
    pub detail: String,
}

/// The stopping state machine of a run.
#[derive(Clone, Debug)]
pub struct StopMachine {
    slots: Vec<Slot>,
    budget: Budget,
    /// The metric named for the best model, if one was.
    watched: Option<Watched>,
    /// What "best" means where neither a metric was named nor a plateau rule exists.
    eval_loss: BestTracker,
    train_loss: BestTracker,
    verdict: Option<Verdict>,
    is_new_best: bool,
}

#[derive(Clone, Debug)]
struct Watched {
    metric: Metric,
    direction: Direction,
    best: BestTracker,
}

/// Everything that a [`StopMachine`] remembers, for a checkpoint. It survives JSON bit for bit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StopState {
    rules: Vec<(String, RuleState)>,
    watched: Option<(String, BestTracker)>,
    eval_loss: BestTracker,
    train_loss: BestTracker,
    verdict: Option<Verdict>,
}

impl StopMachine {
    /// A machine for the rules of `config` and the run's own `budget`, which is asked last.
    ///
    /// # Errors
    /// As [`StopConfig::validate`] and [`Budget::validate`].
    pub fn new(config: &StopConfig, budget: Budget) -> Result<Self> {
        config.validate()?;
        budget.validate("budget")?;
        let declared = config.rules.iter().cloned().enumerate();
        let slot = |(i, rule)| Slot {
            index: Some(i),
            rule,
            state: RuleState::default(),
        };
        let (mut slots, others): (Vec<Slot>, Vec<Slot>) = declared
            .map(slot)
            .partition(|slot| matches!(slot.rule, Rule::NonFinite(_)));
        if slots.is_empty() {
            let rule = Rule::NonFinite(NonFiniteRule::default());
            slots.push(Slot {
                index: None,
                rule,
                state: RuleState::default(),
            });
        }
        slots.extend(others);
        Ok(Self {
            slots,
            budget,
            watched: None,
            eval_loss: BestTracker::default(),
            train_loss: BestTracker::default(),
            verdict: None,
            is_new_best: false,
        })
    }

    /// Names the metric that decides which weights are the best, as `metric_for_best_model` does.
    /// Without it the first plateau rule decides, else the least evaluation loss, else the least
    /// training loss.
    pub fn watch(&mut self, metric: Metric, direction: Direction) {
        self.watched = Some(Watched {
            metric,
            direction,
            best: BestTracker::default(),
        });
    }

    /// Takes in what became known and says whether the run is over. Once it is, nothing more is taken
    /// in and the same verdict comes back.
    pub fn observe(&mut self, observation: &Observation<'_>) -> Option<Verdict> {
        self.is_new_best = false;
        if self.verdict.is_some() {
            return self.verdict.clone();
        }
        let step = observation.step;
        let best_before = self.best();
        for slot in &mut self.slots {
            // Every rule takes in the observation, also after another fired.
            let fired = slot.state.observe(&slot.rule, observation);
            if let (Some(reason), None) = (fired, &self.verdict) {
                let detail = slot.status(observation).to_string();
                self.verdict = Some(Verdict {
                    reason,
                    step,
                    rule: slot.index,
                    detail,
                });
            }
        }
        if self.verdict.is_none() {
            self.ask_budget(observation);
        }
        self.track_best(observation);
        let best = self.best();
        self.is_new_best = best != best_before && best.is_some_and(|b| b.step == Some(step));
        self.verdict.clone()
    }

    fn track_best(&mut self, o: &Observation<'_>) {
        let significant = Reference::Significant;
        if let Some(Watched {
            metric,
            direction,
            best,
        }) = &mut self.watched
            && let Some(value) = o.metric(metric)
        {
            best.offer(significant, *direction, o.step, value);
        }
        if let Some(loss) = o.metric(&Metric::EvalLoss) {
            self.eval_loss
                .offer(significant, Direction::Minimize, o.step, loss);
        }
        if let Some(loss) = o.metric(&Metric::TrainLoss) {
            self.train_loss
                .offer(significant, Direction::Minimize, o.step, loss);
        }
    }

    /// Ends the run at the host's wish ([`StopReason::Cancelled`] or [`StopReason::Callback`]) after
    /// update `step`; an earlier verdict stays.
    pub fn request(&mut self, reason: StopReason, step: u64) {
        self.verdict.get_or_insert_with(|| Verdict {
            reason,
            step,
            rule: None,
            detail: format!("the host asked to stop: {}", reason.code()),
        });
    }

    /// The latched verdict.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Lets a run that was stopped go on. Counters stay: a rule that is out of patience fires at its
    /// next bad observation, and an improvement resets it as always.
    pub fn clear_verdict(&mut self) {
        self.verdict = None;
    }

    /// The metric that [`StopMachine::best`] is about, at present.
    pub fn best_metric(&self) -> (&Metric, Direction) {
        match (&self.watched, self.first_plateau()) {
            (Some(watched), _) => (&watched.metric, watched.direction),
            (None, Some((Rule::Plateau(rule), _))) => (&rule.metric, rule.direction()),
            _ if self.eval_loss.get().is_some() => (&Metric::EvalLoss, Direction::Minimize),
            _ => (&Metric::TrainLoss, Direction::Minimize),
        }
    }

    /// The best value so far and its step; see [`StopMachine::watch`] for what it is the best of.
    pub fn best(&self) -> Option<Best> {
        match (&self.watched, self.first_plateau()) {
            (Some(watched), _) => watched.best.get(),
            (None, Some((_, state))) => state.best.get(),
            _ => self.eval_loss.get().or_else(|| self.train_loss.get()),
        }
    }

    /// Whether the last observation brought a new best: the weights of this very step are the ones to
    /// keep.
    pub fn is_new_best(&self) -> bool {
        self.is_new_best
    }

    /// The training loss as the first rule that smooths it sees it.
    pub fn smoothed(&self) -> Option<f64> {
        let smooths = |slot: &&Slot| {
            slot.metric() == Some(&Metric::TrainLoss) && slot.smoothing() != Smoothing::None
        };
        self.slots
            .iter()
            .find(smooths)?
            .state
            .smoother
            .value
            .map(|value| value.0)
    }

    /// The counter of the first plateau rule; 0 without one.
    pub fn patience_used(&self) -> u64 {
        self.first_plateau().map_or(0, |(_, state)| state.counter)
    }

    /// The counter that says most: of the rule that fired, else of the first plateau rule, else of
    /// the first declared rule, else 0.
    pub fn counter(&self) -> u64 {
        let fired = self.verdict.as_ref().and_then(|verdict| verdict.rule);
        let slot = self
            .slots
            .iter()
            .find(|slot| fired.is_some() && slot.index == fired);
        let plateau = || {
            self.slots
                .iter()
                .find(|slot| matches!(slot.rule, Rule::Plateau(_)))
        };
        let first = || self.slots.iter().find(|slot| slot.index == Some(0));
        slot.or_else(plateau)
            .or_else(first)
            .map_or(0, |slot| slot.state.counter)
    }

    /// Where every rule stands, in the order in which they are asked. `now` is the last observation,
    /// for the budgets.
    pub fn status(&self, now: &Observation<'_>) -> Vec<RuleStatus> {
        let mut lines: Vec<_> = self.slots.iter().map(|slot| slot.status(now)).collect();
        if self.budget != Budget::default() {
            lines.push(budget_status("budget", &self.budget, now));
        }
        lines
    }

    /// Everything that the machine remembers.
    pub fn state(&self) -> StopState {
        let rules = self
            .slots
            .iter()
            .map(|slot| (slot.key(), slot.state.clone()));
        StopState {
            rules: rules.collect(),
            watched: self
                .watched
                .as_ref()
                .map(|watched| (watched.key(), watched.best)),
            eval_loss: self.eval_loss,
            train_loss: self.train_loss,
            verdict: self.verdict.clone(),
        }
    }

    /// Goes on from `state`, as if it had not been interrupted.
    ///
    /// Patience, bounds and budgets may have changed since. A rule that watches its metric in another
    /// way than any saved one (another metric, direction, smoothing or reference) starts afresh; the
    /// number of such rules is returned.
    pub fn restore(&mut self, state: &StopState) -> usize {
        let mut saved: Vec<_> = state.rules.iter().map(Some).collect();
        let mut fresh = 0;
        for slot in &mut self.slots {
            let key = slot.key();
            let found = saved
                .iter_mut()
                .find(|s| s.is_some_and(|(saved_key, _)| *saved_key == key));
            slot.state = match found.and_then(Option::take) {
                Some((_, state)) => state.clone(),
                None => {
                    fresh += 1;
                    RuleState::default()
                }
            };
            slot.state.counter = slot.state.counter.min(slot.patience());
        }
        if let (Some(watched), Some((key, best))) = (&mut self.watched, &state.watched)
            && watched.key() == *key
        {
            watched.best = *best;
        }
        self.eval_loss = state.eval_loss;
        self.train_loss = state.train_loss;
        self.verdict = state.verdict.clone();
        self.is_new_best = false;
        fresh
    }

    /// As [`StopMachine::restore`], for a run that goes on from a checkpoint, and decides what becomes of
    /// its verdict: the host's wish to stop was about the earlier leg and is forgotten; the budget's
    /// verdict goes when `budget_changed`, a rule's when `rules_changed`. Then the budget is asked about
    /// `now`, where the run stands, so that one which is used up already allows no further update.
    pub fn resume(
        &mut self,
        state: &StopState,
        rules_changed: bool,
        budget_changed: bool,
        now: &Observation<'_>,
    ) -> usize {
        let fresh = self.restore(state);
        let lapsed =
            self.verdict
                .as_ref()
                .is_some_and(|verdict| match (verdict.reason, verdict.rule) {
                    (StopReason::Cancelled | StopReason::Callback, _) => true,
                    (_, None) if verdict.reason.is_budget() => budget_changed,
                    _ => rules_changed,
                });
        if lapsed {
            self.clear_verdict();
        }
        if self.verdict.is_none() && now.step > 0 {
            self.ask_budget(now);
        }
        fresh
    }

    fn ask_budget(&mut self, now: &Observation<'_>) {
        if let Some(reason) = self.budget.used_up(now) {
            let detail = budget_status("budget", &self.budget, now).to_string();
            self.verdict = Some(Verdict {
                reason,
                step: now.step,
                rule: None,
                detail,
            });
        }
    }

    fn first_plateau(&self) -> Option<(&Rule, &RuleState)> {
        let mut plateaus = self
            .slots
            .iter()
            .filter(|slot| matches!(slot.rule, Rule::Plateau(_)));
        plateaus.next().map(|slot| (&slot.rule, &slot.state))
    }
}

impl Watched {
    fn key(&self) -> String {
        format!("{} {:?}", self.metric, self.direction)
    }
}
