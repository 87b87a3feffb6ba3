//! Every recorded trace of transformers' early stopping, through the log reader and `replay` and,
//! evaluation by evaluation, through the machine.

use crate::{at, eval, machine, restored, saved, train};
use serde_json::{Value, json};
use sft::stop::replay::{Replay, read_log, replay};
use sft::stop::{Observation, StopConfig, StopMachine};

/// Traces that no log can tell, with the reason. Everything else is held against the machine.
const NOT_A_LOG: [(&str, &str); 3] = [
    (
        "T15",
        "a threshold of None raises a TypeError in the peer at the second evaluation",
    ),
    (
        "T20",
        "without metric_for_best_model the peer's assertion fails before the first step",
    ),
    (
        "T22",
        "`loss` with several evaluation sets raises a KeyError in the peer",
    ),
];

struct Trace(Value);

impl Trace {
    fn all() -> Vec<Trace> {
        let text = include_str!("../fixtures/reference/early_stopping_traces.json");
        let file: Value = serde_json::from_str(text).unwrap();
        file["traces"]
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .map(Trace)
            .collect()
    }

    fn named(id: &str) -> Trace {
        Trace::all()
            .into_iter()
            .find(|trace| trace.id() == id)
            .unwrap()
    }

    fn id(&self) -> &str {
        self.0["name"].as_str().unwrap().split(' ').next().unwrap()
    }

    fn patience(&self) -> u64 {
        self.0["patience"].as_u64().unwrap()
    }

    fn records(&self) -> &[Value] {
        self.0["records"].as_array().unwrap()
    }

    /// `metric_for_best_model`, which is `loss` where the peer fills it in.
    fn metric(&self) -> &str {
        self.0["args"]["metric_for_best_model"]
            .as_str()
            .unwrap_or("loss")
    }

    /// The peer's keys for this trace.
    fn rules(&self) -> String {
        let mut rules = json!({
            "early_stopping_patience": self.patience(),
            "early_stopping_threshold": self.0["threshold"],
            "metric_for_best_model": self.metric(),
        });
        if self.id() == "T25" {
            // The peer maximises whatever does not end with `loss`; we minimise a perplexity unless
            // told otherwise.
            rules["greater_is_better"] = json!(true);
        }
        rules.to_string()
    }

    /// The log of the run as if it had not been stopped: the recorded steps, then the remaining
    /// values at the same distance.
    fn log(&self) -> String {
        let args = &self.0["args"];
        let every = match args["eval_strategy"].as_str() {
            Some("epoch") => 2,
            _ => args["eval_steps"].as_u64().unwrap_or(1),
        };
        let mut steps: Vec<u64> = self
            .records()
            .iter()
            .map(|record| record["step"].as_u64().unwrap())
            .collect();
        if args["eval_on_start"] == json!(true) {
            steps.insert(0, 0);
        }
        let evals: Vec<Value> = self.0["evals"].as_array().unwrap().clone();
        let evals: Vec<Value> = if self.0["multi_eval"] == json!(true) {
            let sets = evals.chunks(2);
            sets.map(|pair| json!({"a_loss": pair[0], "b_loss": pair[1]}))
                .collect()
        } else {
            evals
        };
        let mut lines = String::new();
        for (i, value) in evals.iter().enumerate() {
            let step = steps.get(i).copied().unwrap_or_else(|| {
                let step = steps.last().map_or(1, |last| last + every);
                steps.push(step);
                step
            });
            let mut row = json!({ "step": step });
            match value {
                Value::Object(metrics) => {
                    for (name, x) in metrics {
                        row[format!("eval_{name}")] = x.clone();
                    }
                }
                loss => row["eval_loss"] = loss.clone(),
            }
            lines += &format!(
                "{}\n{row}\n",
                json!({"step": step, "loss": 2.0, "grad_norm": 1.0})
            );
        }
        lines
    }

    /// What the trace says that `replay` must find.
    fn expected(&self) -> Value {
        // `stop` is also true at the last planned step, so the counter says who stopped the run.
        let last = self.records().last();
        let stopped = last.filter(|record| record["counter"].as_u64() >= Some(self.patience()));
        // Nothing was saved in T34, so the peer knows no best step; we do not depend on a save.
        let best_step = if self.id() == "T34" {
            json!(1)
        } else {
            self.0["best_step"].clone()
        };
        json!({
            "stopped": stopped.is_some(),
            "step": stopped.map(|record| record["step"].clone()),
            "reason": stopped.map(|_| "plateau"),
            "best_step": best_step,
            "best_value": self.0["best_metric"],
            "counter": last.map_or(json!(0), |record| record["counter"].clone()),
        })
    }
}

fn replayed(log: &str, rules: &str) -> Replay {
    replay(
        &read_log(log).unwrap(),
        &StopConfig::from_text(rules).unwrap(),
    )
    .unwrap()
}

#[test]
fn every_trace_holds_through_replay() {
    let mut checked = 0;
    for trace in Trace::all() {
        let is_log = NOT_A_LOG.iter().all(|(id, _)| *id != trace.id());
        // The second legs of resumed runs start from the state of the first: see below.
        let is_second_leg = ["R1", "R2", "R4"].contains(&trace.id());
        if is_log && !is_second_leg {
            let found = replayed(&trace.log(), &trace.rules());
            assert_eq!(
                serde_json::to_value(found).unwrap(),
                trace.expected(),
                "{}",
                trace.id()
            );
            checked += 1;
        }
    }
    assert_eq!(Trace::all().len(), 49);
    assert_eq!(checked, 49 - NOT_A_LOG.len() - 3);
}

#[test]
fn every_trace_ends_at_the_recorded_step_with_the_run_s_own_budget() {
    let mut checked = 0;
    for trace in Trace::all() {
        if trace.id().starts_with('R') && trace.0["args"]["resume"].is_string()
            || NOT_A_LOG.iter().any(|(id, _)| *id == trace.id())
            || trace.id() == "T21"
        // the peer raises at the first evaluation; see below
        {
            continue;
        }
        let budget = format!("[{{rule: budget, max_steps: {}}}]", trace.0["max_steps"]);
        let mut config = StopConfig::from_text(&trace.rules()).unwrap();
        config
            .rules
            .extend(StopConfig::from_text(&budget).unwrap().rules);
        let found = replay(&read_log(&trace.log()).unwrap(), &config).unwrap();
        assert_eq!(found.step, trace.0["stop_step"].as_u64(), "{}", trace.id());
        checked += 1;
    }
    assert_eq!(checked, 49 - NOT_A_LOG.len() - 3 - 1);
}

/// Feeds the rows of the trace that the peer's callback saw; counter and best must follow the record.
fn follow(machine: &mut StopMachine, trace: &Trace) -> usize {
    let watched = format!("eval_{}", trace.metric().trim_start_matches("eval_"));
    let mut records = trace.records().iter();
    for row in read_log(&trace.log()).unwrap() {
        if machine.verdict().is_some() {
            break;
        }
        let seen = row.metrics.iter().any(|(name, _)| *name == watched);
        let now = Observation {
            step: row.step,
            host: &row.metrics,
            ..Default::default()
        };
        let before = machine.best();
        let verdict = machine.observe(&now);
        if !seen || row.step == 0 {
            assert_eq!((verdict, machine.is_new_best()), (None, false));
            continue;
        }
        let record = records.next().expect("no evaluation beyond the record");
        let place = format!("{} step {}", trace.id(), row.step);
        let number = |value: Option<f64>| match value {
            Some(x) if x.is_infinite() => json!(if x > 0.0 { "inf" } else { "-inf" }),
            x => json!(x),
        };
        assert_eq!(json!(row.step), record["step"], "{place}");
        assert_eq!(
            number(before.map(|best| best.value)),
            record["best_before"],
            "{place}"
        );
        assert_eq!(
            number(machine.best().map(|b| b.value)),
            record["best_after"],
            "{place}"
        );
        assert_eq!(json!(machine.patience_used()), record["counter"], "{place}");
        let best_step = machine.best().and_then(|best| best.step);
        if trace.id() != "T34" {
            assert_eq!(json!(best_step), record["best_step"], "{place}");
        }
        assert_eq!(
            machine.is_new_best(),
            best_step == Some(row.step),
            "{place}"
        );
        let fires = machine.patience_used() >= trace.patience();
        assert_eq!(
            at(verdict),
            fires.then_some((row.step, "plateau")),
            "{place}"
        );
    }
    assert_eq!(
        records.next(),
        None,
        "{}: every record was reached",
        trace.id()
    );
    trace.records().len()
}

#[test]
fn every_counter_and_best_follows_the_record() {
    let (mut traces, mut evaluations) = (0, 0);
    for trace in Trace::all() {
        let is_log = NOT_A_LOG.iter().all(|(id, _)| *id != trace.id());
        if is_log && !["R1", "R2", "R4"].contains(&trace.id()) {
            evaluations += follow(&mut machine(&trace.rules()), &trace);
            traces += 1;
        }
    }
    let recorded: usize = Trace::all().iter().map(|trace| trace.records().len()).sum();
    let second_legs = 3 + 2 + 3; // R1, R2, R4
    let not_a_log = 1; // T15's first evaluation
    assert_eq!(
        (traces, evaluations),
        (43, recorded - second_legs - not_a_log)
    );
}

#[test]
fn a_resumed_run_keeps_its_patience_as_the_peer_does_on_request() {
    let (first, second) = (Trace::named("R0"), Trace::named("R2"));
    let mut run = machine(&first.rules());
    follow(&mut run, &first);
    follow(&mut restored(&second.rules(), &saved(&run)), &second);
    // The same as one log that was never interrupted.
    let log = first.log() + &second.log();
    assert_eq!(
        replayed(&log, &second.rules()).step,
        second.0["stop_step"].as_u64()
    );
}

#[test]
fn forgetting_the_patience_on_resume_gives_the_peer_s_default() {
    // The peer forgets its counter unless asked to restore it, and so runs on to step 5. We always
    // restore; with the counter erased from the checkpoint the peer's trace comes out.
    let (first, second) = (Trace::named("R0"), Trace::named("R1"));
    let mut run = machine(&first.rules());
    follow(&mut run, &first);
    let mut kept = restored(&second.rules(), &saved(&run));
    let evals = [(3, 1.2), (4, 1.3), (5, 1.4)];
    let verdict = evals
        .iter()
        .find_map(|&(step, loss)| kept.observe(&eval(step, loss)));
    assert_eq!(at(verdict), Some((4, "plateau")));

    let erased = saved(&run).replace("\"counter\":1", "\"counter\":0");
    assert_ne!(erased, saved(&run));
    follow(&mut restored(&second.rules(), &erased), &second);
}

#[test]
fn an_early_stopped_run_that_goes_on_keeps_its_counter_until_it_improves() {
    let (first, second) = (Trace::named("R3"), Trace::named("R4"));
    let mut run = machine(&first.rules());
    follow(&mut run, &first);
    let mut resumed = restored(&second.rules(), &saved(&run));
    assert!(
        resumed.verdict().is_some(),
        "the verdict is part of the checkpoint"
    );
    resumed.clear_verdict();
    assert_eq!(resumed.observe(&train(4, 2.0)), None);
    follow(&mut resumed, &second);
}

#[test]
fn a_metric_that_never_comes_never_stops() {
    // T21: the peer warns and then raises; a log without the metric has no best and no stop.
    let trace = Trace::named("T21");
    let found = replayed(&trace.log(), &trace.rules());
    let line = serde_json::to_string(&found).unwrap();
    let expected = r#"{"stopped":false,"step":null,"reason":null,"best_step":null,"best_value":null,"counter":0}"#;
    assert_eq!(line, expected);
}

#[test]
fn perplexity_is_minimised_unless_told_otherwise() {
    // T25: the peer maximises it and stops a run that improves.
    let trace = Trace::named("T25");
    let rules = r#"{"early_stopping_patience": 2, "metric_for_best_model": "ppl"}"#;
    let found = replayed(&trace.log(), rules);
    assert_eq!(
        (found.stopped, found.best_step, found.best_value),
        (false, Some(4), Some(0.5))
    );
}
