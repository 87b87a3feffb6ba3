//! What the stop rules make of a log: how each stands at the end, and where each alone would have ended
//! the run.

use serde_json::Value;
use sft::Result;
use sft::config::Config;
use sft::stop::replay::{Replay, Row, replay};
use sft::stop::{Budget, NonFiniteRule, Observation, Rule, StopConfig, StopMachine, Verdict};

/// The rules of a run over its log.
#[derive(Debug, Default)]
pub struct Judgement {
    /// In the order in which they are asked.
    pub rules: Vec<JudgedRule>,
    /// Where all of them together end the run.
    pub verdict: Option<Verdict>,
    /// The rules as the configuration has them.
    pub stop: StopConfig,
    /// The best of the run; also of a log whose rules are not known.
    pub best: Option<Best>,
}

/// A rule and what it makes of the log.
#[derive(Debug)]
pub struct JudgedRule {
    /// The rule.
    pub rule: Rule,
    /// Whether the `stop` list or the `early_stopping_…` keys have it, rather than the library or the
    /// run's budget.
    pub written: bool,
    /// Where it stands at the end, in words.
    pub status: String,
    /// Whether it is the one that fires first.
    pub fired: bool,
    /// What happens with this rule alone.
    pub alone: Replay,
}

/// The best value of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// Of what.
    pub metric: String,
    /// After which update.
    pub step: u64,
    /// The value.
    pub value: f64,
}

/// Runs the rules of `config` over `rows`; without one, those that are always in force.
///
/// # Errors
/// As [`StopConfig::validate`].
pub fn judge(rows: &[Row], config: Option<&Config>) -> Result<Judgement> {
    let (stop, budget) = match config {
        Some(config) => (config.stop_rules()?, config.budget()),
        None => (StopConfig::default(), Budget::default()),
    };
    let mut machine = StopMachine::new(&stop, budget.clone())?;
    if let Some((metric, direction)) = config.map(Config::best_metric).transpose()?.flatten() {
        machine.watch(metric, direction);
    }
    let mut now = Observation::default();
    let mut end = None;
    for row in rows {
        now = Observation {
            step: row.step,
            epoch: row.epoch.unwrap_or(now.epoch),
            tokens: row.tokens.unwrap_or(now.tokens),
            seconds: row.seconds.unwrap_or(now.seconds),
            host: &row.metrics,
            ..Observation::default()
        };
        // The log may go on after its rules would have ended it; the best is that of all of it.
        if let Some(verdict) = machine.observe(&now) {
            end.get_or_insert_with(|| (verdict, machine.status(&now)));
            machine.clear_verdict();
        }
    }
    let (verdict, statuses) = match end {
        Some((verdict, statuses)) => (Some(verdict), statuses),
        None => (None, machine.status(&now)),
    };
    let mut rules = Vec::new();
    for ((index, rule), status) in in_order(&stop, &budget).into_iter().zip(statuses) {
        let fired = verdict.as_ref().is_some_and(|verdict| match index {
            Some(_) => verdict.rule == index,
            None => verdict.rule.is_none() && is_reason_of(&rule, verdict.reason.code()),
        });
        let alone = alone(rows, &rule, &stop)?;
        rules.push(JudgedRule {
            rule,
            written: index.is_some(),
            status: status.to_string(),
            fired,
            alone,
        });
    }
    let best = machine.best().and_then(|best| {
        Some(Best {
            metric: machine.best_metric().0.name().to_owned(),
            step: best.step?,
            value: best.value,
        })
    });
    Ok(Judgement {
        rules,
        verdict,
        stop,
        best,
    })
}

/// What `rule` makes of the log by itself, that is with no other rules of `stop` than those on numbers
/// that are not finite, without which the rest means nothing.
///
/// # Errors
/// As [`StopConfig::validate`].
pub fn alone(rows: &[Row], rule: &Rule, stop: &StopConfig) -> Result<Replay> {
    let always = |other: &&Rule| matches!(other, Rule::NonFinite(_)) && *other != rule;
    let mut rules: Vec<Rule> = stop.rules.iter().filter(always).cloned().collect();
    rules.push(rule.clone());
    replay(rows, &StopConfig { rules })
}

/// What a replay of `rule` alone gives the best of.
pub fn best_of<'a>(rule: &'a Rule, rows: &[Row]) -> &'a str {
    let has_eval = || {
        rows.iter()
            .any(|row| row.metrics.iter().any(|(name, _)| name == "eval_loss"))
    };
    match rule {
        Rule::Plateau(rule) => rule.metric.name(),
        _ if has_eval() => "eval_loss",
        _ => "train_loss",
    }
}

/// The rules as a machine asks them, each with its index in `stop`: non_finite ones first, also where
/// none is written; the run's own budget last.
fn in_order(stop: &StopConfig, budget: &Budget) -> Vec<(Option<usize>, Rule)> {
    let written = stop
        .rules
        .iter()
        .cloned()
        .enumerate()
        .map(|(i, rule)| (Some(i), rule));
    let (mut rules, others): (Vec<_>, Vec<_>) =
        written.partition(|(_, rule)| matches!(rule, Rule::NonFinite(_)));
    if rules.is_empty() {
        rules.push((None, Rule::NonFinite(NonFiniteRule::default())));
    }
    rules.extend(others);
    if *budget != Budget::default() {
        rules.push((None, Rule::Budget(budget.clone())));
    }
    rules
}

fn is_reason_of(rule: &Rule, code: &str) -> bool {
    match rule {
        Rule::Budget(_) => code.starts_with("max_"),
        rule => rule.kind() == code,
    }
}

/// A rule's settings as a configuration writes them, without what says nothing.
pub fn settings(rule: &Rule) -> String {
    let Ok(Value::Object(mut map)) = serde_json::to_value(rule) else {
        return String::new();
    };
    if let Rule::Target(target) = rule {
        map.insert("patience".to_owned(), target.patience().into());
    }
    let says_nothing = |key: &str, value: &Value| match value {
        Value::Null => true,
        Value::String(text) => key == "rule" || text == "none" || text == "significant",
        Value::Number(x) => matches!(key, "min_steps" | "min_delta") && x.as_f64() == Some(0.0),
        _ => false,
    };
    let shown = map.iter().filter(|(key, value)| !says_nothing(key, value));
    shown
        .map(|(key, value)| format!("{key}: {}", flow(value)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A value as flow YAML.
pub fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(flow).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| format!("{key}: {}", flow(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Number(x) => match x.as_f64() {
            // 0.00002 reads better as 2e-5.
            Some(x) if x != 0.0 && x.abs() < 1e-3 => format!("{x:e}"),
            _ => x.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sft::stop::replay::read_log;

    fn judged(yaml: &str, losses: &[f64]) -> Judgement {
        let log: String = losses
            .iter()
            .zip(1..)
            .map(|(loss, step)| {
                format!("{{\"step\": {step}, \"epoch\": {step}, \"eval_loss\": {loss}}}\n")
            })
            .collect();
        let config = Config::from_yaml_str(yaml, "run.yaml").unwrap();
        judge(&read_log(&log).unwrap(), Some(&config)).unwrap()
    }

    #[test]
    fn each_rule_has_its_status_and_its_own_end() {
        let yaml = "stop:\n  - {rule: target, metric: eval_loss, at_most: 0.5}\n  \
                    - {rule: plateau, metric: eval_loss, patience: 2}\nmax_steps: 5\n";
        let judgement = judged(yaml, &[3.0, 1.0, 1.5, 1.25, 0.4]);
        let kinds: Vec<_> = judgement
            .rules
            .iter()
            .map(|rule| rule.rule.kind())
            .collect();
        assert_eq!(kinds, ["non_finite", "target", "plateau", "budget"]);
        let ends: Vec<_> = judgement.rules.iter().map(|rule| rule.alone.step).collect();
        assert_eq!(ends, [None, Some(5), Some(4), Some(5)]);
        let fired: Vec<_> = judgement.rules.iter().map(|rule| rule.fired).collect();
        assert_eq!(fired, [false, false, true, false]);
        let written: Vec<_> = judgement.rules.iter().map(|rule| rule.written).collect();
        assert_eq!(written, [false, true, true, false]);
        assert_eq!(
            judgement.rules[2].status,
            "plateau eval_loss 1.2500 (best 1), 2/2"
        );
        let best = judgement.best.unwrap();
        assert_eq!(
            (best.metric.as_str(), best.step, best.value),
            ("eval_loss", 5, 0.4)
        );
    }

    #[test]
    fn the_best_is_that_of_the_whole_log() {
        let judgement = judged("max_steps: 2\n", &[3.0, 2.0, 1.0]);
        assert_eq!(judgement.verdict.unwrap().step, 2);
        assert_eq!(judgement.best.unwrap().step, 3);
    }

    #[test]
    fn the_budget_of_the_run_fires_last() {
        let judgement = judged("max_steps: 2\n", &[3.0, 2.0, 1.0]);
        let fired: Vec<_> = judgement.rules.iter().map(|rule| rule.fired).collect();
        assert_eq!(fired, [false, true]);
        assert_eq!(judgement.verdict.unwrap().step, 2);
    }

    #[test]
    fn a_log_without_rules_still_has_a_best() {
        let rows = read_log("{\"step\": 1, \"loss\": 2}\n{\"step\": 2, \"loss\": 1}\n").unwrap();
        let judgement = judge(&rows, None).unwrap();
        let best = judgement.best.unwrap();
        assert_eq!((best.metric.as_str(), best.step), ("train_loss", 2));
        assert!(judge(&[], None).unwrap().best.is_none());
    }

    #[test]
    fn a_run_that_bears_a_nan_bears_it_in_every_rule_alone() {
        let log = "{\"step\": 1, \"loss\": \"nan\"}\n{\"step\": 2, \"loss\": 1}\n";
        let stop = |text| StopConfig::from_text(text).unwrap();
        let rows = read_log(log).unwrap();
        let target = stop("[{rule: target, metric: train_loss, at_most: 1, patience: 1}]");
        let patient = stop("[{rule: non_finite, patience: 2}]");
        assert_eq!(
            alone(&rows, &target.rules[0], &target).unwrap().step,
            Some(1)
        );
        assert_eq!(
            alone(&rows, &target.rules[0], &patient).unwrap().step,
            Some(2)
        );
    }

    #[test]
    fn settings_read_as_they_are_written() {
        let text = |yaml| {
            let stop = StopConfig::from_text(yaml).unwrap();
            settings(&stop.rules[0])
        };
        assert_eq!(
            text("[{rule: target, metric: train_loss, at_most: 1.5, smoothing: {ema: 0.9}}]"),
            "metric: train_loss, at_most: 1.5, smoothing: {ema: 0.9}, patience: 3"
        );
        assert_eq!(
            text("[{rule: plateau, patience: 3, min_delta: {relative: 0.0001}}]"),
            "metric: eval_loss, patience: 3, min_delta: {relative: 1e-4}"
        );
        assert_eq!(text("[{rule: budget, max_steps: 7}]"), "max_steps: 7");
    }
}
