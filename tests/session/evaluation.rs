//! Evaluation: several named sets, what they cost the run (nothing), and what they decide.

use crate::*;
use sft::engine::Export;
use sft::stop::StopConfig;
use sft::stop::replay::{read_log, replay};

/// Two sets of unlike rows: short questions, and answers up to the model's limit.
fn sets(folder: &Path) -> Value {
    let rows = |name: &str, count: usize, text: &dyn Fn(&Value) -> String| {
        let source = fixtures().join("data/gsm8k_test_small.jsonl");
        let lines = std::fs::read_to_string(source).unwrap();
        let rows: Vec<Value> = lines
            .lines()
            .take(count)
            .map(|line| json!({"text": text(&serde_json::from_str(line).unwrap())}))
            .collect();
        write(folder, name, &rows)
    };
    let question = |row: &Value| row["question"].as_str().unwrap()[..40].to_owned();
    let both = |row: &Value| format!("{} {}", row["question"], row["answer"]).repeat(2);
    json!({"short": rows("short.jsonl", 7, &question), "long": rows("long.jsonl", 5, &both)})
}

/// What an evaluation found, without its clock.
fn numbers(eval: &EvalReport) -> Vec<(String, u64, u64, u64, u64)> {
    let all = (eval.loss, eval.token_accuracy, eval.supervised_tokens);
    let sets = eval.sets.iter().map(|set| {
        let numbers = (set.loss, set.token_accuracy, set.supervised_tokens);
        (set.name.clone(), numbers, set.tokens)
    });
    [(String::new(), all, eval.tokens)]
        .into_iter()
        .chain(sets)
        .map(|(name, (loss, accuracy, supervised), tokens)| {
            (name, loss.to_bits(), accuracy.to_bits(), supervised, tokens)
        })
        .collect()
}

#[test]
fn every_named_set_has_its_own_numbers_and_the_loss_is_weighted_over_all() {
    let dir = folder();
    let named = sets(dir.path());
    let keys = json!({"eval_dataset_name": named, "eval_strategy": "steps", "eval_steps": 2,
        "eval_on_start": true});
    let mut session = start(config(dir.path(), keys.clone()));
    assert_eq!(session.last_evaluation(), None);
    let reports = run(&mut session);
    let eval = reports[1].eval.clone().unwrap();
    let names: Vec<&str> = eval.sets.iter().map(|set| set.name.as_str()).collect();
    assert_eq!(
        names,
        ["short", "long"],
        "in the order of the configuration"
    );
    let mean = |of: fn(&EvalSetReport) -> f64| {
        let weighted = |set: &EvalSetReport| of(set) * set.supervised_tokens as f64;
        eval.sets.iter().map(weighted).sum::<f64>() / eval.supervised_tokens as f64
    };
    assert!((eval.loss - mean(|set| set.loss)).abs() < 1e-12);
    assert!((eval.token_accuracy - mean(|set| set.token_accuracy)).abs() < 1e-12);
    assert!((eval.entropy - mean(|set| set.entropy)).abs() < 1e-12);
    assert_eq!(
        eval.tokens,
        eval.sets.iter().map(|set| set.tokens).sum::<u64>()
    );
    assert_eq!(
        session.last_evaluation(),
        reports.last().unwrap().eval.as_ref()
    );
    let rows: Vec<_> = session
        .eval_reports()
        .map(|(name, r)| (name, r.rows))
        .collect();
    assert_eq!(rows, [(Some("short"), 7), (Some("long"), 5)]);

    // The log has them under their names, in the row of the evaluation.
    let logged = log_rows(dir.path(), "eval_loss");
    assert_eq!(logged.len(), 4, "before the first update and after 2, 4, 6");
    assert_eq!(logged[1]["eval_short_loss"], eval.sets[0].loss);
    assert_eq!(
        logged[1]["eval_long_mean_token_accuracy"],
        eval.sets[1].token_accuracy
    );

    // A set alone gives the same numbers.
    for set in &eval.sets {
        let dir = folder();
        let mut keys = keys.clone();
        keys["eval_dataset_name"] = named[&set.name].clone();
        let alone = run(&mut start(config(dir.path(), keys)));
        let alone = alone[1].eval.as_ref().unwrap();
        assert_eq!((alone.loss, alone.tokens), (set.loss, set.tokens));
        assert!(alone.sets.is_empty());
        assert!(!log(dir.path()).iter().any(|row| {
            let mut keys = row.as_object().unwrap().keys();
            keys.any(|key| key.contains("short") || key.contains("long"))
        }));
    }
}

#[test]
fn evaluations_leave_the_run_as_it_is_to_the_bit() {
    let outcome = |evaluation: Value| {
        let dir = folder();
        let keys = json!({"train_sampling_strategy": "random", "weight_decay": 0.01,
            "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": -1,
            "num_train_epochs": 2, "eval_dataset_name": sets(dir.path())});
        let mut session = start(config(dir.path(), with(keys, &evaluation)));
        let reports = run(&mut session);
        let rows: Vec<Value> = log_rows(dir.path(), "loss")
            .into_iter()
            .map(|mut row| {
                for key in [
                    "elapsed_seconds",
                    "tokens_per_second",
                    "model_flops_per_second",
                ] {
                    row.as_object_mut().unwrap().remove(key);
                }
                row
            })
            .collect();
        let model = dir.path().join("model");
        session.export(&model, Export::Full).unwrap();
        let weights = std::fs::read(model.join("model.safetensors")).unwrap();
        let evals: Vec<u64> = log_rows(dir.path(), "eval_loss")
            .iter()
            .map(|row| row["step"].as_u64().unwrap())
            .collect();
        assert_eq!(reports.len(), 8);
        (rows, weights, evals)
    };
    let (rows, weights, evals) = outcome(json!({"eval_strategy": "no"}));
    assert!(evals.is_empty());
    for (keys, steps) in [
        (
            json!({"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": true}),
            (0..=8).collect::<Vec<u64>>(),
        ),
        (
            json!({"eval_strategy": "steps", "eval_steps": 3, "eval_delay": 4}),
            vec![6, 8],
        ),
        (json!({"eval_strategy": "epoch"}), vec![4, 8]),
        (
            json!({"eval_strategy": "epoch", "eval_delay": 1.5}),
            vec![8],
        ),
        (
            json!({"eval_strategy": "steps", "eval_steps": 0.25, "per_device_eval_batch_size": 1}),
            vec![2, 4, 6, 8],
        ),
    ] {
        let found = outcome(keys.clone());
        assert_eq!(found.2, steps, "{keys}");
        assert!(
            found.0 == rows,
            "{keys}: the training rows of the log differ"
        );
        assert!(found.1 == weights, "{keys}: the weights differ");
    }
}

#[test]
fn the_number_of_one_set_or_the_perplexity_decides_what_is_best_and_when_to_stop() {
    let keys = json!({"max_steps": 40, "learning_rate": 2e-2, "lr_scheduler_type": "constant",
        "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": true,
        "early_stopping_patience": 3});
    for metric in [
        "eval_short_loss",
        "long_loss",
        "eval_long_mean_token_accuracy",
        "eval_short_perplexity",
        "perplexity",
    ] {
        let dir = folder();
        let mut keys = keys.clone();
        keys["metric_for_best_model"] = json!(metric);
        keys["eval_dataset_name"] = sets(dir.path());
        let mut session = start(config(dir.path(), keys));
        let reports = run(&mut session);
        assert_eq!(session.stop_reason(), Some(StopReason::Plateau), "{metric}");
        let value = |report: &StepReport| {
            let eval = report.eval.as_ref().unwrap();
            let (short, long) = (eval.set("short").unwrap(), eval.set("long").unwrap());
            match metric {
                "eval_short_loss" => short.loss,
                "long_loss" => long.loss,
                "eval_long_mean_token_accuracy" => -long.token_accuracy,
                "eval_short_perplexity" => short.loss.exp(),
                _ => eval.perplexity(),
            }
        };
        let values: Vec<f64> = reports.iter().map(value).collect();
        let best = (0..values.len()).min_by(|&a, &b| values[a].total_cmp(&values[b]));
        let snapshot = session.snapshot();
        assert_eq!(
            snapshot.best_step,
            Some(best.unwrap() as u64 + 1),
            "{metric}"
        );
        assert_eq!(
            snapshot.best_value.unwrap().abs(),
            values[best.unwrap()].abs()
        );
        // The very weights of that step are back.
        let again = session.evaluate().unwrap();
        assert_eq!(
            numbers(&again),
            numbers(reports[best.unwrap()].eval.as_ref().unwrap())
        );

        // The log tells the same story when it is replayed.
        let text = std::fs::read_to_string(dir.path().join("out/train_log.jsonl")).unwrap();
        let rules = format!("early_stopping_patience: 3\nmetric_for_best_model: {metric}");
        let rules = StopConfig::from_text(&rules).unwrap();
        let replayed = replay(&read_log(&text).unwrap(), &rules).unwrap();
        assert_eq!(replayed.step, Some(snapshot.step), "{metric}");
        assert_eq!(replayed.best_step, snapshot.best_step);
        assert_eq!(replayed.best_value, snapshot.best_value);
    }
}

/// The peer restores the best checkpoint, so its best step must be one that was saved.
#[test]
fn the_best_step_between_saves_is_restored_as_the_peers_rule_counts_it() {
    let dir = folder();
    let keys = json!({"max_steps": 60, "learning_rate": 2e-2, "lr_scheduler_type": "constant",
        "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": true,
        "early_stopping_patience": 4, "save_strategy": "steps", "save_steps": 7});
    let mut session = start(config(dir.path(), keys));
    let reports = run(&mut session);
    let snapshot = session.snapshot();
    let best = snapshot.best_step.unwrap();
    assert!(
        !best.is_multiple_of(7) && best > 1 && best < snapshot.step,
        "step {best} of {} should lie between saves for this test to say anything",
        snapshot.step
    );
    assert!(!dir.path().join(format!("out/checkpoint-{best}")).exists());
    assert_eq!(snapshot.step, best + 4, "as the patience says");
    let seen = numbers(reports[best as usize - 1].eval.as_ref().unwrap());
    let model = dir.path().join("model");
    session.export(&model, Export::Full).unwrap();
    let mut again = session.config().clone();
    again.model_name_or_path = Some(model);
    let found = evaluate_model(&again, Hooks::default()).unwrap();
    assert_eq!(numbers(&found), seen);
}

#[test]
fn a_checkpoint_folder_evaluates_to_what_the_run_saw() {
    let dir = folder();
    let keys = json!({"eval_dataset_name": sets(dir.path()), "eval_strategy": "steps",
        "eval_steps": 2, "save_strategy": "steps", "save_steps": 2});
    let mut session = start(config(dir.path(), keys));
    let reports = run(&mut session);
    for step in [2, 4, 6] {
        let mut config = session.config().clone();
        config.model_name_or_path = Some(dir.path().join(format!("out/checkpoint-{step}")));
        let found = evaluate_model(&config, Hooks::default()).unwrap();
        let seen = reports[step - 1].eval.as_ref().unwrap();
        assert_eq!(numbers(&found), numbers(seen), "checkpoint-{step}");
    }
}

#[test]
fn memory_is_planned_for_the_largest_batch_of_all_sets() {
    let dir = folder();
    let named = sets(dir.path());
    let planned = |sets: Value| {
        let keys = json!({"eval_dataset_name": sets, "max_length": 64, "eval_strategy": "steps",
            "per_device_eval_batch_size": 8, "per_device_train_batch_size": 1});
        plan(&config(dir.path(), keys)).unwrap().total_bytes
    };
    let (short, long) = (
        planned(named["short"].clone()),
        planned(named["long"].clone()),
    );
    assert!(short < long);
    assert_eq!(planned(named.clone()), long);
    let reversed = json!({"long": named["long"], "short": named["short"]});
    assert_eq!(planned(reversed), long, "whatever the order");
}

#[test]
fn a_set_that_cannot_be_evaluated_is_named() {
    let dir = folder();
    let mut named = sets(dir.path());
    let masked = json!({"input_ids": [5, 6, 7], "labels": [-100, -100, -100]});
    named["masked"] = json!(write(dir.path(), "masked.jsonl", &[masked]));
    let keys = json!({"eval_dataset_name": named, "eval_packing": true});
    let mut session = start(config(dir.path(), keys));
    let error = session.evaluate().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("eval_masked"), "{error}");
    // What was added up before it does not reach the next update.
    let after = session.step().unwrap().unwrap();
    let dir = folder();
    let untouched = start(config(dir.path(), json!({})))
        .step()
        .unwrap()
        .unwrap();
    assert_eq!(after.loss, untouched.loss);
    assert_eq!(after.supervised_tokens, untouched.supervised_tokens);

    let dir = folder();
    let mut named = sets(dir.path());
    named["gone"] = json!(dir.path().join("gone.jsonl").display().to_string());
    let keys = json!({"eval_dataset_name": named});
    let error = Session::start(config(dir.path(), keys), Hooks::default())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("eval_dataset_name.gone"),
        "{error}"
    );
}

#[test]
fn a_host_may_feed_the_perplexity_and_an_accuracy_under_each_of_their_names() {
    for (metric, name, values) in [
        ("eval_perplexity", "perplexity", [9.0, 8.0, 8.5]),
        ("perplexity", "eval_perplexity", [9.0, 8.0, 8.5]),
        ("perplexity", "eval_loss", [2.0, 1.0, 1.5]),
        (
            "eval_token_accuracy",
            "eval_mean_token_accuracy",
            [0.1, 0.2, 0.15],
        ),
    ] {
        let dir = folder();
        let rules = json!([{"rule": "plateau", "metric": metric, "patience": 1}]);
        let mut session = start(host_fed(dir.path(), json!({"stop": rules})));
        for value in values {
            session.step_batch(&[batch(0)]).unwrap().unwrap();
            session.observe(name, value).unwrap();
        }
        assert_eq!(session.stop_reason(), Some(StopReason::Plateau), "{metric}");
        assert_eq!(session.snapshot().best_step, Some(2), "{metric} as {name}");
    }
}

#[test]
fn an_evaluation_that_is_cancelled_midway_leaves_nothing_for_the_next_update() {
    let dir = folder();
    let canceller = Canceller::new();
    let hooks = Hooks {
        canceller: canceller.clone(),
        ..Hooks::default()
    };
    let long = write(
        dir.path(),
        "many.jsonl",
        &vec![json!({"text": "one two three four five six seven"}); 4000],
    );
    let keys = json!({"eval_dataset_name": long, "per_device_eval_batch_size": 1});
    let mut session = Session::start(config(dir.path(), keys), hooks).unwrap();
    let trigger = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        canceller.cancel();
    });
    let error = session.evaluate().unwrap_err();
    trigger.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(session.last_evaluation(), None);
    assert!(log_rows(dir.path(), "eval_loss").is_empty());
    // The host's own batches are evaluated also after the end.
    let found = session.evaluate_batch(&[batch(0)]).unwrap();
    let dir = folder();
    let alone = start(config(dir.path(), json!({})))
        .evaluate_batch(&[batch(0)])
        .unwrap();
    assert_eq!(numbers(&found), numbers(&alone));
}
