//! Rules as configurations write them, and what is wrong with the wrong ones.

use sft::ErrorKind;
use sft::stop::{
    Budget, DivergenceRule, Metric, MinDelta, NonFiniteRule, OverfitRule, PlateauRule, Reference,
    Rule, Smoothing, StopConfig, TargetRule, early_stopping,
};

const EVERY_RULE: &str = "
stop:
  - {rule: target, metric: eval_loss, at_most: 1.5, patience: 2, min_steps: 10, smoothing: {ema: 0.9}}
  - {rule: plateau, metric: eval_loss, patience: 3, min_delta: 0.01, reference: significant}
  - rule: plateau
    metric: f1
    patience: 0
    reference: hf
    greater_is_better: true
  - {rule: non_finite}
  - {rule: divergence, smoothing: {median: 5}}
  - {rule: overfit, min_delta: {relative: 1e-2}, smoothing: {mean: 2}}
  - {rule: budget, max_steps: 10, max_epochs: 0.5, max_tokens: 1000, max_seconds: 60}
";

fn every_rule() -> Vec<Rule> {
    let plateau = PlateauRule {
        metric: Metric::EvalLoss,
        patience: 3,
        min_delta: MinDelta::Absolute(0.01),
        reference: Reference::Significant,
        greater_is_better: None,
        min_steps: 0,
        smoothing: Smoothing::None,
    };
    vec![
        Rule::Target(TargetRule {
            metric: Metric::EvalLoss,
            at_most: Some(1.5),
            at_least: None,
            patience: Some(2),
            min_steps: 10,
            smoothing: Smoothing::Ema(0.9),
        }),
        Rule::Plateau(plateau.clone()),
        Rule::Plateau(PlateauRule {
            metric: Metric::Host("f1".into()),
            patience: 0,
            min_delta: MinDelta::Absolute(0.0),
            reference: Reference::Hf,
            greater_is_better: Some(true),
            ..plateau
        }),
        Rule::NonFinite(NonFiniteRule { patience: 1 }),
        Rule::Divergence(DivergenceRule {
            metric: Metric::TrainLoss,
            factor: 3.0,
            patience: 3,
            min_steps: 0,
            smoothing: Smoothing::Median(5),
        }),
        Rule::Overfit(OverfitRule {
            patience: 2,
            min_delta: MinDelta::Relative(0.01),
            min_steps: 0,
            smoothing: Smoothing::Mean(2),
        }),
        Rule::Budget(Budget {
            max_steps: Some(10),
            max_epochs: Some(0.5),
            max_tokens: Some(1000),
            max_seconds: Some(60.0),
        }),
    ]
}

#[test]
fn every_rule_reads_from_yaml_and_survives_json() {
    let config = StopConfig::from_text(EVERY_RULE).unwrap();
    assert_eq!(config.rules, every_rule());
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(StopConfig::from_text(&json).unwrap(), config, "as a file");
    assert_eq!(
        serde_json::from_str::<StopConfig>(&json).unwrap(),
        config,
        "as a value"
    );
}

#[test]
fn a_file_may_be_a_list_or_one_rule_or_hold_the_peer_s_keys() {
    let rule = Rule::Budget(Budget {
        max_steps: Some(5),
        ..Default::default()
    });
    for text in [
        "- {rule: budget, max_steps: 5}",
        "{rule: budget, max_steps: 5}",
        "rule: budget\nmax_steps: 5",
        "{\"stop\":\n\t[{\"rule\": \"budget\", \"max_steps\": 5}]}",
    ] {
        assert_eq!(
            StopConfig::from_text(text).unwrap().rules,
            std::slice::from_ref(&rule),
            "{text}"
        );
    }
    let sugar = early_stopping(2, Some(0.1), Some("acc"), None).unwrap();
    let text = "early_stopping_patience: 2\nearly_stopping_threshold: 0.1\n\
                metric_for_best_model: acc\nstop: [{rule: budget, max_steps: 5}]";
    assert_eq!(StopConfig::from_text(text).unwrap().rules, [rule, sugar]);
    for empty in ["[]", "stop: []", "stop:", "{}"] {
        assert_eq!(
            StopConfig::from_text(empty).unwrap(),
            StopConfig::default(),
            "{empty}"
        );
    }
}

#[test]
fn early_stopping_keys_mean_what_they_mean_in_the_peer() {
    let Rule::Plateau(rule) = early_stopping(3, None, None, None).unwrap() else {
        panic!()
    };
    assert_eq!(
        (rule.metric, rule.patience, rule.reference),
        (Metric::EvalLoss, 3, Reference::Hf)
    );
    assert_eq!(
        (rule.min_delta, rule.smoothing),
        (MinDelta::Absolute(0.0), Smoothing::None)
    );
    for (name, metric) in [
        ("loss", Metric::EvalLoss),
        ("eval_loss", Metric::EvalLoss),
        ("mean_token_accuracy", Metric::EvalTokenAccuracy),
        ("eval_mean_token_accuracy", Metric::EvalTokenAccuracy),
        ("perplexity", Metric::EvalPerplexity),
        ("eval_perplexity", Metric::EvalPerplexity),
        ("eval_acc", Metric::Host("eval_acc".into())),
        ("eval_math_loss", Metric::Host("eval_math_loss".into())),
    ] {
        assert_eq!(Metric::for_best_model(name).unwrap(), metric);
    }
    let unknown = early_stopping(1, None, Some("sparkle"), None)
        .unwrap_err()
        .to_string();
    assert!(unknown.starts_with("greater_is_better: "), "{unknown}");
    assert!(early_stopping(1, None, Some("sparkle"), Some(true)).is_ok());
}

#[test]
fn the_direction_follows_the_name() {
    use sft::stop::Direction::{Maximize, Minimize};
    for (name, direction) in [
        ("train_loss", Some(Minimize)),
        ("grad_norm", Some(Minimize)),
        ("ppl", Some(Minimize)),
        ("eval_perplexity", Some(Minimize)),
        ("mean_token_accuracy", Some(Maximize)),
        ("eval_acc", Some(Maximize)),
        ("macro_F1", Some(Maximize)),
        ("rougeLsum", Some(Maximize)),
        ("sparkle", None),
    ] {
        assert_eq!(
            Metric::try_from(name.to_owned()).unwrap().known_direction(),
            direction,
            "{name}"
        );
    }
}

#[test]
fn what_is_wrong_is_named_with_its_key_path() {
    let value = ErrorKind::Config;
    let unknown = ErrorKind::UnknownKey;
    for (rules, kind, start) in [
        (
            "[{rule: target, metric: eval_loss}]",
            value,
            "stop[0]: a target has exactly one of",
        ),
        (
            "[{rule: target, at_most: 1}]",
            value,
            "stop[0]: missing field `metric`",
        ),
        (
            "[{rule: target, metric: loss, at_most: 1}]",
            value,
            "stop[0].metric: `loss` is ambiguous",
        ),
        (
            "[{rule: target, metric: eval_loss, at_most: .nan}]",
            value,
            "stop rules: ",
        ),
        (
            "[{rule: target, metric: token_accuracy, at_most: 1}]",
            value,
            "stop[0].at_most: ",
        ),
        (
            "[{rule: target, metric: eval_loss, at_least: 1}]",
            value,
            "stop[0].at_least: ",
        ),
        (
            "[{rule: target, metric: acc, at_least: 1, patience: 0}]",
            value,
            "stop[0].patience: ",
        ),
        (
            "[{rule: budget, max_steps: 1}, {rule: plateau, patience: 0}]",
            value,
            "stop[1].patience: ",
        ),
        (
            "[{rule: budget, max_steps: 1}, {rule: plateau}]",
            value,
            "stop[1]: missing field `patience`",
        ),
        (
            "[{rule: plateau, patience: -1}]",
            value,
            "stop[0].patience: invalid value",
        ),
        (
            "[{rule: plateau, patience: two}]",
            value,
            "stop[0].patience: invalid type",
        ),
        (
            "[{rule: plateau, patience: 1, min_delta: -1}]",
            value,
            "stop[0].min_delta: ",
        ),
        (
            "[{rule: plateau, patience: 1, min_delta: {rel: 1}}]",
            value,
            "stop[0].min_delta: expected",
        ),
        (
            "[{rule: plateau, patience: 1, greater_is_better: true}]",
            value,
            "stop[0].greater_is_better",
        ),
        (
            "[{rule: plateau, patience: 1, reference: hf, smoothing: {mean: 2}}]",
            value,
            "stop[0].smoothing",
        ),
        (
            "[{rule: plateau, patience: 1, reference: tf}]",
            value,
            "stop[0].reference: unknown variant",
        ),
        (
            "[{rule: plateau, patience: 1, smoothing: {ema: 1}}]",
            value,
            "stop[0].smoothing.ema: ",
        ),
        (
            "[{rule: plateau, patience: 1, smoothing: {mean: 0}}]",
            value,
            "stop[0].smoothing: ",
        ),
        ("[{rule: divergence, factor: 1}]", value, "stop[0].factor: "),
        (
            "[{rule: divergence, metric: acc}]",
            value,
            "stop[0].metric: ",
        ),
        (
            "[{rule: non_finite, patience: 0}]",
            value,
            "stop[0].patience: ",
        ),
        (
            "[{rule: budget}]",
            value,
            "stop[0]: a budget has at least one of",
        ),
        (
            "[{rule: budget, max_seconds: 0}]",
            value,
            "stop[0].max_seconds: must be above 0",
        ),
        (
            "[{rule: plato, patience: 1}]",
            value,
            "stop[0].rule: \"plato\" is no rule",
        ),
        (
            "[{metric: eval_loss}]",
            value,
            "stop[0]: the key `rule` is missing",
        ),
        ("[7]", value, "stop[0]: a rule is a mapping"),
        ("stop: {max_steps: 1}", value, "stop: expected a list"),
        ("[{rule: plateau, patience: 1", value, "stop rules: "),
        (
            "metric_for_best_model: loss",
            value,
            "early_stopping_patience: is missing",
        ),
        (
            "early_stopping_patience: x",
            value,
            "early_stopping_patience: invalid type",
        ),
        (
            "[{rule: plateau, patienc: 1}]",
            unknown,
            "stop[0]: unknown key `patienc`; did you mean `patience`?",
        ),
        (
            "early_stoping_patience: 1",
            unknown,
            "stop rules: unknown key `early_stoping_patience`; did you mean `early_stopping_patience`?",
        ),
    ] {
        let error = StopConfig::from_text(rules).unwrap_err();
        assert!(error.to_string().starts_with(start), "{rules}: {error}");
        assert_eq!(error.kind(), kind, "{rules}: {error}");
    }

    let target = TargetRule {
        metric: Metric::EvalLoss,
        at_most: Some(f64::NAN),
        at_least: None,
        patience: None,
        min_steps: 0,
        smoothing: Smoothing::None,
    };
    let error = StopConfig {
        rules: vec![Rule::Target(target)],
    }
    .validate()
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "stop[0].at_most: must be finite, found NaN"
    );
}
