//! Many rules over one recorded log: what each threshold and patience would have cost and saved, and
//! which to take. Built on [`replay`](super::replay), so that a row of the table is what the engine
//! would have done.

use super::config::{
    MinDelta, NonFiniteRule, PlateauRule, Reference, Rule, StopConfig, TargetRule,
};
use super::metric::{Direction, Metric};
use super::observation::Observation;
use super::replay::{Row, replay};
use super::smoothing::Smoothing;
use crate::{Error, ErrorKind, Result};
use serde::Serialize;

/// What to try.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepOptions {
    /// What the rules watch.
    pub metric: Metric,
    /// Which way is better; `None`: by the metric's name.
    pub greater_is_better: Option<bool>,
    /// What the plateau rules measure an improvement from.
    pub reference: Reference,
    /// `min_delta` of the plateau rules; empty: chosen from the improvements in the log.
    pub thresholds: Vec<f64>,
    /// Patience of the plateau rules; empty: as far as the log is long enough, 1, 2, 3, 5 and 8.
    pub patiences: Vec<u64>,
    /// Bounds of the target rules; empty: chosen from the improvement of the whole run.
    pub targets: Vec<f64>,
    /// The part of the whole run's improvement that a recommended rule may give up.
    pub give_up: f64,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self {
            metric: Metric::EvalLoss,
            greater_is_better: None,
            reference: Reference::default(),
            thresholds: Vec::new(),
            patiences: Vec::new(),
            targets: Vec::new(),
            give_up: 0.01,
        }
    }
}

/// What became of the rules that were tried. Its JSON form is one object with these keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// What the rules watched.
    pub metric: Metric,
    /// Which way is better.
    pub direction: Direction,
    /// What the plateau rules measured an improvement from.
    pub reference: Reference,
    /// The whole run.
    pub full: FullRun,
    /// Plateau rules, by `min_delta` and then patience.
    pub plateau: Vec<Outcome>,
    /// Target rules, from the easiest bound to the hardest, then by patience.
    pub target: Vec<Outcome>,
    /// The rule to take, if one saves anything.
    pub recommended: Option<Recommendation>,
}

/// The run as it was logged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FullRun {
    /// Values of the metric after updates; one before the first update is left out.
    pub observations: usize,
    /// The last update in the log.
    pub steps: u64,
    /// Input tokens, if the log counts them.
    pub tokens: Option<u64>,
    /// The first finite value.
    pub first_value: f64,
    /// The best value.
    pub best_value: f64,
    /// The first update after which it was observed.
    pub best_step: u64,
}

/// What one rule would have done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// `min_delta` of a plateau rule, the bound of a target rule.
    pub threshold: f64,
    /// Observations in a row.
    pub patience: u64,
    /// The update after which it would have stopped; `None` if the log ends first.
    pub stop_step: Option<u64>,
    /// The best value until then; `None` if there was no finite one.
    pub best_value: Option<f64>,
    /// The update after which it was observed.
    pub best_step: Option<u64>,
    /// How much better the whole run's best value is; never negative.
    pub given_up: Option<f64>,
    /// The part of the whole run's compute that was left, from 0 to 1: of its tokens where the log
    /// counts them, else of its updates.
    pub saved: f64,
}

/// A rule to take, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommendation {
    /// The rule.
    pub rule: Rule,
    /// What it would have done.
    pub outcome: Outcome,
}

impl Recommendation {
    /// The rule as a configuration writes it, on two lines.
    pub fn yaml(&self) -> String {
        let mut parts = vec![format!("rule: {}", self.rule.kind())];
        let Outcome {
            threshold,
            patience,
            ..
        } = self.outcome;
        match &self.rule {
            Rule::Target(rule) => {
                let side = match rule.at_most {
                    Some(_) => "at_most",
                    None => "at_least",
                };
                parts.push(format!("metric: {}", rule.metric));
                parts.push(format!("{side}: {threshold}, patience: {patience}"));
            }
            Rule::Plateau(rule) => {
                parts.push(format!("metric: {}", rule.metric));
                parts.push(format!("patience: {patience}, min_delta: {threshold}"));
                if rule.reference == Reference::Hf {
                    parts.push("reference: hf".into());
                }
                if let Some(greater) = rule.greater_is_better {
                    parts.push(format!("greater_is_better: {greater}"));
                }
            }
            _ => {}
        }
        format!("stop:\n  - {{{}}}", parts.join(", "))
    }
}

/// Tries the rules of `options` on `rows`.
///
/// # Errors
/// `InvalidArgument` if the log has no finite value of the metric or an option is out of range, and as
/// [`StopConfig::validate`].
pub fn sweep(rows: &[Row], options: &SweepOptions) -> Result<Sweep> {
    check(options)?;
    let log = Log::new(rows, options)?;
    let thresholds = match options.thresholds.is_empty() {
        true => log.usual_gains(),
        false => sorted(&options.thresholds),
    };
    let mut patiences = options.patiences.clone();
    patiences.sort_unstable();
    patiences.dedup();
    if patiences.is_empty() {
        patiences = log.usual_patiences(&[1, 2, 3, 5, 8]);
    }
    let mut targets = match options.targets.is_empty() {
        true => log.usual_bounds(),
        false => sorted(&options.targets),
    };
    if log.direction == Direction::Minimize && !options.targets.is_empty() {
        targets.reverse();
    }

    let mut tried = Vec::new();
    for &threshold in &thresholds {
        for &patience in &patiences {
            let rule = log.plateau(options, threshold, patience);
            tried.push((rule.clone(), log.outcome(&rule, threshold, patience)?));
        }
    }
    let mut reached = Vec::new();
    for &bound in &targets {
        for patience in log.usual_patiences(&[1, 2, 3]) {
            let rule = log.target(options, bound, patience);
            reached.push((rule.clone(), log.outcome(&rule, bound, patience)?));
        }
    }
    // A plateau rule carries over to other data and models; a bound was read off this very run.
    let recommended = log
        .best_of(&tried, options.give_up)
        .or_else(|| log.best_of(&reached, options.give_up));
    Ok(Sweep {
        metric: options.metric.clone(),
        direction: log.direction,
        reference: options.reference,
        recommended,
        plateau: tried.into_iter().map(|(_, outcome)| outcome).collect(),
        target: reached.into_iter().map(|(_, outcome)| outcome).collect(),
        full: log.full,
    })
}

fn check(options: &SweepOptions) -> Result<()> {
    let wrong = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    if let Some(x) = options
        .thresholds
        .iter()
        .find(|x| !(x.is_finite() && **x >= 0.0))
    {
        return wrong(format!(
            "a threshold must be a finite number from 0, found {x}"
        ));
    }
    if let Some(x) = options.targets.iter().find(|x| !x.is_finite()) {
        return wrong(format!("a target must be a finite number, found {x}"));
    }
    if options.reference == Reference::Significant && options.patiences.contains(&0) {
        return wrong("a patience must be at least 1, except with reference hf".into());
    }
    if !(0.0..=1.0).contains(&options.give_up) {
        let found = options.give_up;
        return wrong(format!(
            "what may be given up is a part from 0 to 1, found {found}"
        ));
    }
    Ok(())
}

/// The log as the rules of a sweep see it.
struct Log<'a> {
    /// Rows after the first update that have the metric.
    rows: Vec<Row>,
    /// Steps and values of the metric in `rows`.
    series: Vec<(u64, f64)>,
    /// All rows, for what each update cost.
    all: &'a [Row],
    direction: Direction,
    full: FullRun,
}

impl<'a> Log<'a> {
    fn new(all: &'a [Row], options: &SweepOptions) -> Result<Self> {
        let metric = &options.metric;
        let direction = match options.greater_is_better {
            Some(true) => Direction::Maximize,
            Some(false) => Direction::Minimize,
            None => metric.default_direction(),
        };
        let value = |row: &Row| {
            let host = &row.metrics;
            let step = row.step;
            let now = Observation {
                step,
                host,
                ..Observation::default()
            };
            now.metric(metric)
        };
        let mut rows = Vec::new();
        let mut series = Vec::new();
        // Before the first update there is nothing to stop.
        for row in all.iter().filter(|row| row.step > 0) {
            if let Some(value) = value(row) {
                series.push((row.step, value));
                rows.push(row.clone());
            }
        }
        let best = best_of(&series, direction);
        let first = series.iter().find(|(_, value)| value.is_finite());
        let (Some(&(_, first_value)), Some((best_step, best_value))) = (first, best) else {
            return Err(no_metric(all, metric));
        };
        let full = FullRun {
            observations: series.len(),
            steps: all.last().map_or(0, |row| row.step),
            tokens: all.iter().rev().find_map(|row| row.tokens),
            first_value,
            best_value,
            best_step,
        };
        Ok(Self {
            rows,
            series,
            all,
            direction,
            full,
        })
    }

    fn plateau(&self, options: &SweepOptions, min_delta: f64, patience: u64) -> Rule {
        Rule::Plateau(PlateauRule {
            metric: options.metric.clone(),
            patience,
            min_delta: MinDelta::Absolute(min_delta),
            reference: options.reference,
            greater_is_better: options.greater_is_better,
            min_steps: 0,
            smoothing: Smoothing::None,
        })
    }

    fn target(&self, options: &SweepOptions, bound: f64, patience: u64) -> Rule {
        let (at_most, at_least) = match self.direction {
            Direction::Minimize => (Some(bound), None),
            Direction::Maximize => (None, Some(bound)),
        };
        Rule::Target(TargetRule {
            metric: options.metric.clone(),
            at_most,
            at_least,
            patience: Some(patience),
            min_steps: 0,
            smoothing: Smoothing::None,
        })
    }

    fn outcome(&self, rule: &Rule, threshold: f64, patience: u64) -> Result<Outcome> {
        // The log went on after numbers that were not finite, so they are no end here either.
        let never = Rule::NonFinite(NonFiniteRule { patience: u64::MAX });
        let rules = vec![never, rule.clone()];
        let stop_step = replay(&self.rows, &StopConfig { rules })?.step;
        let seen = match stop_step {
            Some(step) => self.series.partition_point(|&(s, _)| s <= step),
            None => self.series.len(),
        };
        let best = best_of(&self.series[..seen], self.direction);
        Ok(Outcome {
            threshold,
            patience,
            stop_step,
            best_value: best.map(|(_, value)| value),
            best_step: best.map(|(step, _)| step),
            given_up: best.map(|(_, value)| (value - self.full.best_value).abs()),
            saved: stop_step.map_or(0.0, |step| self.saved_after(step)),
        })
    }

    /// The part of the run's compute that comes after update `step`.
    fn saved_after(&self, step: u64) -> f64 {
        let until = self.all.partition_point(|row| row.step <= step);
        let tokens = self.all[..until].iter().rev().find_map(|row| row.tokens);
        match (tokens, self.full.tokens) {
            (Some(used), Some(total)) if total > 0 => 1.0 - used as f64 / total as f64,
            _ => 1.0 - step as f64 / self.full.steps.max(1) as f64,
        }
    }

    /// The improvement of the whole run.
    fn gain(&self) -> f64 {
        (self.full.first_value - self.full.best_value).abs()
    }

    /// 0, and quarters of the improvements over the best so far: what the run knew as a small, a usual
    /// and a large gain.
    fn usual_gains(&self) -> Vec<f64> {
        let mut gains = Vec::new();
        let mut best: Option<f64> = None;
        for &(_, value) in self.series.iter().filter(|(_, value)| value.is_finite()) {
            if best.is_none_or(|best| self.direction.better(value, best)) {
                gains.extend(best.map(|best| (value - best).abs()));
                best = Some(value);
            }
        }
        gains.sort_by(f64::total_cmp);
        let quarters = [0.25, 0.5, 0.75].iter().filter_map(|part| {
            let at = (part * gains.len() as f64) as usize;
            gains.get(at).map(|&gain| rounded_down(gain, 1))
        });
        sorted(&[0.0].into_iter().chain(quarters).collect::<Vec<_>>())
    }

    /// Those of `patiences` that the log is long enough for, but at least the first.
    fn usual_patiences(&self, patiences: &[u64]) -> Vec<u64> {
        let long_enough = |patience: &&u64| **patience < self.series.len() as u64;
        let fitting: Vec<u64> = patiences.iter().filter(long_enough).copied().collect();
        match fitting.is_empty() {
            true => patiences[..1].to_vec(),
            false => fitting,
        }
    }

    /// Bounds at which parts of the whole improvement are reached, easiest first.
    fn usual_bounds(&self) -> Vec<f64> {
        let (first, best) = (self.full.first_value, self.full.best_value);
        // Digits that tell bounds apart, whatever the metric's offset.
        let digits = match self.gain() > 0.0 {
            true => 3 + (best.abs() / self.gain()).max(1.0).log10().floor() as i32,
            false => 3,
        };
        let mut bounds: Vec<f64> = Vec::new();
        for part in [0.5, 0.75, 0.9, 0.95, 1.0] {
            let exact = first + part * (best - first);
            // On the easy side, so that the bound is reached where the exact value is.
            let bound = match (self.direction, exact < 0.0) {
                (Direction::Minimize, false) => rounded_up(exact, digits),
                (Direction::Minimize, true) => -rounded_down(-exact, digits),
                (Direction::Maximize, false) => rounded_down(exact, digits),
                (Direction::Maximize, true) => -rounded_up(-exact, digits),
            };
            let bound = match self.direction.better(bound, exact) {
                true => exact,
                false => bound,
            };
            if bounds.last() != Some(&bound) {
                bounds.push(bound);
            }
        }
        bounds
    }

    /// The rule that saves most among those that give up no more than they may; of equal ones the most
    /// patient, then the one with the smallest threshold, since both are slower to stop another run.
    fn best_of(&self, tried: &[(Rule, Outcome)], give_up: f64) -> Option<Recommendation> {
        let may = give_up * self.gain();
        let fits =
            |(_, o): &&(Rule, Outcome)| o.saved > 0.0 && o.given_up.is_some_and(|x| x <= may);
        let better = |(_, a): &&(Rule, Outcome), (_, b): &&(Rule, Outcome)| {
            let by_saving = a.saved.total_cmp(&b.saved);
            let by_patience = a.patience.cmp(&b.patience);
            let by_threshold = b.threshold.total_cmp(&a.threshold);
            by_saving.then(by_patience).then(by_threshold)
        };
        let (rule, outcome) = tried.iter().filter(fits).max_by(better)?;
        Some(Recommendation {
            rule: rule.clone(),
            outcome: outcome.clone(),
        })
    }
}

/// The first of the best finite values.
fn best_of(series: &[(u64, f64)], direction: Direction) -> Option<(u64, f64)> {
    let finite = series
        .iter()
        .copied()
        .filter(|(_, value)| value.is_finite());
    finite.reduce(|best, next| match direction.better(next.1, best.1) {
        true => next,
        false => best,
    })
}

fn no_metric(rows: &[Row], metric: &Metric) -> Error {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.metrics) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    let has = match names.is_empty() {
        true => "it has no metric at all".to_owned(),
        false => format!("it has {}", names.join(", ")),
    };
    Error::new(
        ErrorKind::InvalidArgument,
        format!("the log has no finite `{metric}` after an update; {has}"),
    )
}

/// Ascending, each once.
fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

/// `x`, not negative, cut to so many significant digits. What is a billionth away from such a number is
/// that number: 0.3 - 0.1 is 0.2.
fn rounded_down(x: f64, digits: i32) -> f64 {
    rounded(x, digits, |x| (x * (1.0 + 1e-9)).floor())
}

/// As [`rounded_down`], to the next one.
fn rounded_up(x: f64, digits: i32) -> f64 {
    rounded(x, digits, |x| (x * (1.0 - 1e-9)).ceil())
}

fn rounded(x: f64, digits: i32, to_whole: impl Fn(f64) -> f64) -> f64 {
    if x <= 0.0 || !x.is_finite() {
        return 0.0;
    }
    let places = digits - 1 - x.log10().floor() as i32;
    // By way of text, for the nearest number to the decimal: 0.3, not 0.30000000000000004.
    let whole = to_whole(x * 10f64.powi(places));
    format!("{whole}e{}", -places).parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::replay::read_log;
    use proptest::prelude::*;

    fn log_of(values: &[f64]) -> Vec<Row> {
        let rows = values.iter().zip(1u64..);
        let rows = rows.map(|(&value, i)| Row {
            step: 10 * i,
            tokens: Some(100 * i * i),
            metrics: vec![("eval_loss".to_owned(), value)],
            ..Row::default()
        });
        rows.collect()
    }

    /// The plateau rule, written down once more.
    fn brute_plateau(values: &[f64], delta: f64, patience: u64, hf: bool) -> Option<usize> {
        let (mut reference, mut best, mut bad) = (f64::NAN, f64::NAN, 0);
        for (i, &value) in values.iter().enumerate() {
            let from = if hf { best } else { reference };
            let good = from.is_nan() || (value < from && from - value > delta);
            if good {
                reference = value;
            }
            best = if best.is_nan() {
                value
            } else {
                best.min(value)
            };
            bad = if good { 0 } else { bad + 1 };
            if bad >= patience {
                return Some(i);
            }
        }
        None
    }

    fn brute_target(values: &[f64], bound: f64, patience: u64) -> Option<usize> {
        let mut row = 0;
        values.iter().position(|&value| {
            row = if value <= bound { row + 1 } else { 0 };
            row >= patience
        })
    }

    proptest! {
        #[test]
        fn every_row_is_what_its_rule_does(
            values in prop::collection::vec(0.0f64..4.0, 1..40),
            thresholds in prop::collection::vec(0.0f64..1.0, 1..4),
            patiences in prop::collection::vec(1u64..6, 1..4),
            targets in prop::collection::vec(0.0f64..4.0, 1..4),
            hf: bool,
        ) {
            let options = SweepOptions {
                thresholds, patiences, targets,
                reference: if hf { Reference::Hf } else { Reference::Significant },
                ..SweepOptions::default()
            };
            let found = sweep(&log_of(&values), &options).unwrap();
            let full_best = values.iter().copied().fold(f64::INFINITY, f64::min);
            let n = values.len();
            let check = |o: &Outcome, end: Option<usize>| {
                prop_assert_eq!(o.stop_step, end.map(|i| 10 * (i as u64 + 1)), "{:?}", o);
                let seen = &values[..=end.unwrap_or(n - 1)];
                let best = seen.iter().copied().fold(f64::INFINITY, f64::min);
                prop_assert_eq!(o.best_value, Some(best));
                let at = seen.iter().position(|&x| x == best).unwrap();
                prop_assert_eq!(o.best_step, Some(10 * (at as u64 + 1)));
                prop_assert_eq!(o.given_up, Some(best - full_best));
                let used = (seen.len() * seen.len()) as f64;
                prop_assert!((o.saved - (1.0 - used / (n * n) as f64)).abs() < 1e-12);
                Ok(())
            };
            for o in &found.plateau {
                check(o, brute_plateau(&values, o.threshold, o.patience, hf))?;
            }
            for o in &found.target {
                check(o, brute_target(&values, o.threshold, o.patience))?;
            }
            if let Some(recommended) = &found.recommended {
                let may = 0.01 * (values[0] - full_best);
                prop_assert!(recommended.outcome.given_up.unwrap() <= may);
                // What it says to paste does what the table says.
                let rules = StopConfig::from_text(&recommended.yaml()).unwrap();
                let again = replay(&log_of(&values), &rules).unwrap();
                prop_assert_eq!(again.step, recommended.outcome.stop_step);
            }
        }

        #[test]
        fn rounding_keeps_its_side(x in 1e-9f64..1e9, digits in 1i32..5) {
            let (down, up) = (rounded_down(x, digits), rounded_up(x, digits));
            prop_assert!(down <= x * (1.0 + 2e-9) && x <= up * (1.0 + 2e-9));
            prop_assert!(up - down <= x * 10f64.powi(1 - digits) * 1.000001);
        }
    }

    #[test]
    fn the_tables_follow_from_the_log() {
        let falls = [
            3.0, 2.0, 1.5, 1.3, 1.2, 1.19, 1.25, 1.3, 1.35, 1.4, 1.4, 1.4,
        ];
        let found = sweep(&log_of(&falls), &SweepOptions::default()).unwrap();
        let column = |of: fn(&Outcome) -> f64, rows: &[Outcome]| {
            sorted(&rows.iter().map(of).collect::<Vec<_>>())
        };
        // The gains were 1, 0.5, 0.2, 0.1 and 0.01.
        assert_eq!(
            column(|o| o.threshold, &found.plateau),
            [0.0, 0.1, 0.2, 0.5]
        );
        assert_eq!(
            column(|o| o.patience as f64, &found.plateau),
            [1.0, 2.0, 3.0, 5.0, 8.0]
        );
        assert_eq!(
            column(|o| o.threshold, &found.target),
            [1.19, 1.29, 1.38, 1.65, 2.1]
        );
        let recommended = found.recommended.unwrap();
        assert_eq!(
            recommended.yaml(),
            "stop:\n  - {rule: plateau, metric: eval_loss, patience: 2, min_delta: 0.5}"
        );
        assert_eq!(recommended.outcome.stop_step, Some(60));
        assert_eq!(recommended.outcome.best_step, Some(60));
    }

    #[test]
    fn a_run_that_was_not_too_long_gets_no_plateau_rule() {
        let found = sweep(&log_of(&[3.0, 2.0, 1.0]), &SweepOptions::default()).unwrap();
        assert_eq!(found.recommended, None);
        assert!(
            found
                .plateau
                .iter()
                .all(|o| o.saved == 0.0 || o.given_up > Some(0.02))
        );
    }

    #[test]
    fn without_tokens_updates_are_what_is_saved() {
        let mut rows = log_of(&[2.0, 1.0, 1.5, 1.5]);
        rows.iter_mut().for_each(|row| row.tokens = None);
        let options = SweepOptions {
            patiences: vec![1],
            thresholds: vec![0.0],
            ..SweepOptions::default()
        };
        let found = sweep(&rows, &options).unwrap();
        assert_eq!((found.full.tokens, found.plateau[0].saved), (None, 0.25));
    }

    #[test]
    fn values_that_are_not_finite_are_bad_and_never_the_best() {
        let values = [2.0, f64::NAN, 1.0, f64::NEG_INFINITY, f64::NAN, 1.5];
        let options = SweepOptions {
            patiences: vec![2],
            thresholds: vec![0.0],
            ..SweepOptions::default()
        };
        let found = sweep(&log_of(&values), &options).unwrap();
        assert_eq!((found.full.best_value, found.full.best_step), (1.0, 30));
        assert_eq!(found.plateau[0].stop_step, Some(50));
        assert!(found.target.iter().all(|o| o.threshold >= 1.0));
    }

    #[test]
    fn a_metric_that_grows_has_lower_bounds() {
        let log = "{\"step\": 0, \"eval_acc\": 0.9}\n{\"step\": 1, \"eval_acc\": 0.5}\n\
                   {\"step\": 2, \"eval_acc\": 0.7}\n{\"step\": 3, \"eval_acc\": 0.6}\n\
                   {\"step\": 4, \"eval_acc\": 0.6}\n";
        let options = SweepOptions {
            metric: Metric::Host("eval_acc".into()),
            ..SweepOptions::default()
        };
        let found = sweep(&read_log(log).unwrap(), &options).unwrap();
        assert_eq!(found.direction, Direction::Maximize);
        assert_eq!(
            found.full.observations, 4,
            "not the one before the first update"
        );
        assert_eq!((found.full.best_value, found.full.best_step), (0.7, 2));
        assert_eq!(found.target[0].threshold, 0.6);
        assert!(
            found
                .recommended
                .unwrap()
                .yaml()
                .contains("metric: eval_acc")
        );
    }

    #[test]
    fn a_log_without_the_metric_says_what_it_has() {
        let rows = read_log("{\"step\": 1, \"loss\": 1, \"grad_norm\": 2}").unwrap();
        let error = sweep(&rows, &SweepOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let text = error.to_string();
        assert!(
            text.contains("`eval_loss`") && text.contains("grad_norm, train_loss"),
            "{text}"
        );
        assert!(sweep(&[], &SweepOptions::default()).is_err());
        // One value alone: nothing can be said, but nothing is wrong either.
        let one = sweep(&log_of(&[1.0]), &SweepOptions::default()).unwrap();
        assert_eq!(one.recommended, None);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let rows = log_of(&[2.0, 1.0]);
        for options in [
            SweepOptions {
                thresholds: vec![-1.0],
                ..SweepOptions::default()
            },
            SweepOptions {
                thresholds: vec![f64::NAN],
                ..SweepOptions::default()
            },
            SweepOptions {
                targets: vec![f64::INFINITY],
                ..SweepOptions::default()
            },
            SweepOptions {
                give_up: 1.5,
                ..SweepOptions::default()
            },
            SweepOptions {
                patiences: vec![0],
                ..SweepOptions::default()
            },
        ] {
            assert!(sweep(&rows, &options).is_err(), "{options:?}");
        }
    }
}
