//! Logs as they are found, and the one object that a replay prints.

use sft::ErrorKind;
use sft::stop::StopConfig;
use sft::stop::replay::{read_log, replay};

fn line(log: &str, rules: &str) -> String {
    let config = StopConfig::from_text(rules).unwrap();
    serde_json::to_string(&replay(&read_log(log).unwrap(), &config).unwrap()).unwrap()
}

#[test]
fn a_replay_prints_one_object() {
    let log = r#"{"step": 1, "loss": 2.0}
{"step": 1, "eval_loss": 1.5, "eval_runtime": 0.1}

{"step": 2, "loss": 1.5, "grad_norm": 0.7, "epoch": 0.5, "num_tokens": 200}
{"step": 2, "eval_loss": 1.6}
"#;
    assert_eq!(
        line(log, "[{rule: plateau, patience: 1}]"),
        r#"{"stopped":true,"step":2,"reason":"plateau","best_step":1,"best_value":1.5,"counter":1}"#
    );
    assert_eq!(
        line(log, "[{rule: target, metric: train_loss, at_most: 1.5}]"),
        r#"{"stopped":false,"step":null,"reason":null,"best_step":1,"best_value":1.5,"counter":1}"#
    );
    let budget = "[{rule: budget, max_tokens: 200}]";
    assert!(line(log, budget).starts_with(r#"{"stopped":true,"step":2,"reason":"max_tokens","#));
}

#[test]
fn an_empty_log_stops_nothing() {
    let none = r#"{"stopped":false,"step":null,"reason":null,"best_step":null,"best_value":null,"counter":0}"#;
    assert_eq!(line("", "[{rule: plateau, patience: 1}]"), none);
    assert_eq!(line("\n \n", "[]"), none);
}

#[test]
fn an_infinite_best_is_a_string() {
    let log = "{\"step\": 1, \"eval_loss\": NaN}\n{\"step\": 2, \"eval_loss\": \"nan\"}";
    assert_eq!(
        line(log, "early_stopping_patience: 1"),
        r#"{"stopped":true,"step":2,"reason":"plateau","best_step":null,"best_value":"inf","counter":1}"#
    );
}

#[test]
fn non_finite_numbers_are_read_in_every_spelling() {
    for text in [
        "NaN",
        "nan",
        "\"nan\"",
        "\"NaN\"",
        "-NaN",
        "Infinity",
        "-inf",
        "\"-Infinity\"",
    ] {
        let log = format!("{{\"note\": \"a \\\"NaN\\\" \\\\\", \"step\": 3, \"loss\": {text}}}");
        let stop = line(&log, "[]");
        assert!(
            stop.starts_with(r#"{"stopped":true,"step":3,"reason":"non_finite""#),
            "{text}"
        );
    }
}

#[test]
fn rows_of_a_resumed_run_replace_those_it_went_back_over() {
    let log = "{\"step\": 1, \"eval_loss\": 3}\n{\"step\": 2, \"eval_loss\": 1}\n\
               {\"step\": 3, \"eval_loss\": 1}\n{\"step\": 2, \"eval_loss\": 2}\n";
    let steps: Vec<_> = read_log(log)
        .unwrap()
        .iter()
        .map(|r| (r.step, r.metrics[0].1))
        .collect();
    assert_eq!(steps, [(1, 3.0), (2, 2.0)]);
}

#[test]
fn summary_rows_and_rows_without_numbers_are_passed_over() {
    let log = "{\"step\": 4, \"train_runtime\": 1.0, \"train_loss\": 0.0}\n\
               {\"stop_reason\": \"plateau\", \"loss\": 0.0}\n{\"event\": \"saved\"}\n";
    assert_eq!(read_log(log).unwrap(), []);
}

#[test]
fn a_bad_line_is_named() {
    for (bad, start) in [
        ("{", "line 2: not a JSON object: "),
        ("[1]", "line 2: not a JSON object: "),
        ("{\"loss\": 1}", "line 2: the key `step` is missing"),
        (
            "{\"step\": 1.5, \"loss\": 1}",
            "line 2: `step` must be a whole number from 0, found 1.5",
        ),
        (
            "{\"step\": -1, \"loss\": 1}",
            "line 2: `step` must be a whole number from 0, found -1",
        ),
        (
            "{\"step\": 1, \"loss\": \"low\"}",
            "line 2: `loss` is no number: \"low\"",
        ),
        (
            "{\"step\": 1, \"eval_loss\": null}",
            "line 2: `eval_loss` is no number: null",
        ),
    ] {
        let error = read_log(&format!("{{\"step\": 1, \"loss\": 1}}\n{bad}\n")).unwrap_err();
        assert!(error.to_string().starts_with(start), "{bad}: {error}");
        assert_eq!(error.kind(), ErrorKind::Data);
    }
}

#[test]
fn a_peer_s_trainer_state_is_a_log_too() {
    let state = r#"{
  "best_metric": NaN,
  "log_history": [
    {"epoch": 0.5, "step": 1, "loss": 2.0, "grad_norm": 1.0},
    {"epoch": 0.5, "step": 1, "eval_loss": 1.5},
    {"epoch": 1.0, "step": 2, "eval_loss": NaN},
    {"epoch": 1.0, "step": 2, "train_runtime": 9.0, "train_loss": 0.0}
  ]
}"#;
    let history =
        serde_json::json!([{"step": 1, "eval_loss": 1.5}, {"step": 2, "eval_loss": "nan"}]);
    for log in [state.to_owned(), history.to_string()] {
        assert_eq!(
            line(&log, "[{rule: plateau, patience: 1}]"),
            r#"{"stopped":true,"step":2,"reason":"plateau","best_step":1,"best_value":1.5,"counter":1}"#
        );
    }
    for (bad, start) in [
        ("[{\"step\": 1, \"loss\": 1}, 7]", "row 2: not an object"),
        ("[{\"loss\": 1}]", "row 1: the key `step` is missing"),
        (
            "{\n\"step\": 1}",
            "one object over several lines needs a list `log_history`",
        ),
        ("[{", "not a JSON object: "),
    ] {
        let error = read_log(bad).unwrap_err().to_string();
        assert!(error.starts_with(start), "{bad}: {error}");
    }
}

#[test]
fn numbers_of_named_sets_and_the_perplexity_are_read_from_a_log() {
    let log = r#"{"step": 1, "eval_loss": 2.0, "eval_math_loss": 1.0, "eval_code_loss": 3.0}
{"step": 2, "eval_loss": 1.9, "eval_math_loss": 1.2, "eval_code_loss": 2.6}
{"step": 3, "eval_loss": 2.1, "eval_math_loss": 1.3, "eval_code_loss": 2.9}"#;
    let stops = |metric: &str| {
        let rules = format!("early_stopping_patience: 1\nmetric_for_best_model: {metric}");
        let rules = StopConfig::from_text(&rules).unwrap();
        let found = replay(&read_log(log).unwrap(), &rules).unwrap();
        (found.step, found.best_step, found.best_value.unwrap())
    };
    assert_eq!(stops("math_loss"), (Some(2), Some(1), 1.0));
    assert_eq!(stops("eval_code_loss"), (Some(3), Some(2), 2.6));
    assert_eq!(
        stops("eval_code_perplexity"),
        (Some(3), Some(2), 2.6f64.exp())
    );
    assert_eq!(stops("perplexity"), (Some(3), Some(2), 1.9f64.exp()));
    // A log's own perplexity is not computed again.
    let log = "{\"step\": 1, \"eval_loss\": 1.0, \"eval_perplexity\": 7.5}";
    let best = r#""best_step":1,"best_value":7.5,"#;
    let line = line(
        log,
        "[{rule: plateau, metric: eval_perplexity, patience: 9}]",
    );
    assert!(line.contains(best), "{line}");
}
