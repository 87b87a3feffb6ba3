//! Each rule and each option, by a small run.

use crate::{at, eval, feed_evals, feed_updates, machine, restored, saved, train, train_with_norm};
use sft::report::StopReason;
use sft::stop::{Budget, Direction, Metric, Observation, StopConfig, StopMachine, StopState};

fn near(a: Option<f64>, b: f64) {
    assert!(a.is_some_and(|a| (a - b).abs() < 1e-12), "{a:?} is not {b}");
}

/// An observation of host metrics alone.
fn host(step: u64, metrics: &[(String, f64)]) -> Observation<'_> {
    Observation {
        step,
        host: metrics,
        ..Default::default()
    }
}

#[test]
fn target_needs_consecutive_observations_at_the_bound() {
    let mut run = machine("[{rule: target, metric: eval_loss, at_most: 1.5, patience: 2}]");
    assert_eq!(
        at(feed_evals(&mut run, &[1.5, 1.6, 1.5, 1.5, 9.0])),
        Some((4, "target_reached"))
    );
}

#[test]
fn target_counts_before_min_steps_and_fires_from_there() {
    let rules = "[{rule: target, metric: eval_loss, at_most: 1.5, patience: 2, min_steps: 4}]";
    assert_eq!(
        at(feed_evals(&mut machine(rules), &[1.0; 6])),
        Some((4, "target_reached"))
    );
    assert_eq!(
        at(feed_evals(
            &mut machine(rules),
            &[1.0, 1.0, 1.0, 2.0, 1.0, 1.0]
        ))
        .unwrap()
        .0,
        6
    );
}

#[test]
fn target_of_an_accuracy_is_at_least() {
    let mut run = machine("[{rule: target, metric: eval_token_accuracy, at_least: 0.9}]");
    let metrics = |x| [("eval_token_accuracy".to_owned(), x)];
    assert_eq!(run.observe(&host(1, &metrics(0.89))), None);
    assert_eq!(
        at(run.observe(&host(2, &metrics(0.9)))),
        Some((2, "target_reached"))
    );
}

#[test]
fn target_on_a_smoothed_loss_ignores_a_dip() {
    let rules =
        "[{rule: target, metric: train_loss, at_most: 1.0, patience: 1, smoothing: SMOOTHING}]";
    let losses = [3.0, 3.0, 3.0, 0.0, 3.0, 0.9, 0.9, 0.9];
    let stop = |smoothing| {
        at(feed_updates(
            &mut machine(&rules.replace("SMOOTHING", smoothing)),
            &losses,
        ))
        .map(|v| v.0)
    };
    assert_eq!(stop("none"), Some(4));
    assert_eq!(
        stop("{median: 3}"),
        Some(6),
        "3.0, 0.9 and the dip within three"
    );
    assert_eq!(stop("{mean: 3}"), Some(8));
    assert_eq!(stop("{ema: 0.9}"), None);
}

#[test]
fn smoothing_is_what_its_name_says() {
    let smoothed = |smoothing: &str, losses: &[f64]| {
        let rule = "{rule: target, metric: train_loss, at_most: -9, smoothing: ";
        let mut run = machine(&format!(
            "[{{rule: non_finite, patience: 9}}, {rule}{smoothing}}}]"
        ));
        assert_eq!(feed_updates(&mut run, losses), None);
        run.smoothed()
    };
    assert_eq!(
        smoothed("{ema: 0.9}", &[2.0]),
        Some(2.0),
        "the first value stands for itself"
    );
    near(smoothed("{ema: 0.5}", &[1.0, 2.0]), (0.25 + 1.0) / 0.75);
    assert_eq!(
        smoothed("{ema: 0.9}", &[0.1; 50]),
        Some(0.1),
        "a constant stays that constant"
    );
    assert_eq!(smoothed("{mean: 3}", &[9.0, 1.0, 2.0, 6.0]), Some(3.0));
    assert_eq!(smoothed("{mean: 3}", &[0.1; 7]), Some(0.1));
    assert_eq!(
        smoothed("{mean: 3}", &[1.0, 2.0]),
        Some(1.5),
        "a window that is not full yet"
    );
    assert_eq!(smoothed("{median: 3}", &[9.0, 1.0, 2.0, 6.0]), Some(2.0));
    assert_eq!(smoothed("{median: 4}", &[9.0, 1.0, 2.0, 6.0]), Some(4.0));
    assert_eq!(smoothed("{median: 1}", &[9.0, 1.0]), Some(1.0));
    assert_eq!(smoothed("none", &[1.0]), None, "no rule smooths");
    let with_nan = [1.0, f64::NAN, f64::INFINITY, 2.0];
    assert_eq!(
        smoothed("{mean: 2}", &with_nan),
        Some(1.5),
        "only finite values enter"
    );
    assert_eq!(smoothed("{ema: 0.9}", &[]), None);
}

#[test]
fn plateau_measures_relative_gains_from_the_reference() {
    let rules = "[{rule: plateau, patience: 1, min_delta: {relative: 0.1}}]";
    assert_eq!(feed_evals(&mut machine(rules), &[10.0, 8.9, 8.0]), None);
    assert_eq!(
        at(feed_evals(&mut machine(rules), &[10.0, 9.5])),
        Some((2, "plateau"))
    );
}

#[test]
fn plateau_keeps_the_lowest_value_though_its_reference_stays() {
    let mut run = machine("[{rule: plateau, patience: 9, min_delta: 0.5}]");
    feed_evals(&mut run, &[1.0, 0.9, 0.8, 0.85]);
    assert_eq!(run.patience_used(), 3);
    assert_eq!(
        run.best().map(|best| (best.step, best.value)),
        Some((Some(3), 0.8))
    );
}

#[test]
fn plateau_maximises_what_is_better_when_greater() {
    let mut run = machine("[{rule: plateau, metric: rougeL, patience: 2}]");
    let mut stop = None;
    for (x, step) in [0.1, 0.3, 0.2, 0.25, 0.9].into_iter().zip(1..) {
        stop = stop.or(run.observe(&host(step, &[("rougeL".to_owned(), x)])));
    }
    assert_eq!(at(stop), Some((4, "plateau")));
    assert_eq!(run.best().map(|best| best.value), Some(0.3));
    assert_eq!(run.best_metric().1, Direction::Maximize);
}

#[test]
fn plateau_out_of_patience_before_min_steps_waits_for_it() {
    let rules = "[{rule: plateau, patience: 1, min_steps: 5}]";
    assert_eq!(
        at(feed_evals(&mut machine(rules), &[1.0; 9])),
        Some((5, "plateau"))
    );
    assert_eq!(
        feed_evals(&mut machine(rules), &[1.0, 1.0, 1.0, 1.0, 0.9]),
        None
    );
}

#[test]
fn non_finite_is_in_force_by_default_and_goes_first() {
    let mut run = machine("[{rule: budget, max_steps: 1}]");
    let verdict = run.observe(&train(1, f64::NAN)).unwrap();
    assert_eq!(
        (verdict.reason, verdict.rule),
        (StopReason::NonFinite, None)
    );

    let mut run = machine("[{rule: budget, max_steps: 3}, {rule: non_finite, patience: 2}]");
    assert_eq!(run.observe(&train(1, f64::INFINITY)), None);
    assert_eq!(
        run.observe(&train(2, 1.0)),
        None,
        "a finite update starts the row again"
    );
    let mut verdict = run.observe(&train_with_norm(3, 1.0, f64::NAN));
    assert_eq!(at(verdict), Some((3, "max_steps")));
    run.clear_verdict();
    verdict = run.observe(&train_with_norm(4, 1.0, f64::NEG_INFINITY));
    assert_eq!(
        verdict.map(|verdict| (verdict.reason, verdict.rule)),
        Some((StopReason::NonFinite, Some(1)))
    );
}

#[test]
fn a_nan_evaluation_alone_is_not_non_finite() {
    assert_eq!(machine("[]").observe(&eval(1, f64::NAN)), None);
}

#[test]
fn divergence_is_measured_from_the_best() {
    let rules = "[{rule: divergence, factor: 2, patience: 2, smoothing: none}]";
    let losses = [4.0, 1.0, 2.0, 2.1, 1.5, 2.1, 2.1];
    assert_eq!(
        at(feed_updates(&mut machine(rules), &losses)),
        Some((7, "diverged"))
    );
    let host_rules = rules.replace("factor: 2", "factor: 2, metric: nll");
    let mut run = machine(&host_rules);
    let stop = [-4.0, -3.0, 0.0, 0.1, 0.1]
        .iter()
        .zip(1..)
        .find_map(|(&x, step)| run.observe(&host(step, &[("nll".to_owned(), x)])));
    assert_eq!(at(stop), Some((5, "diverged")), "from -4 the bound is 0");
}

#[test]
fn divergence_by_default_survives_one_spike() {
    let mut losses = vec![1.0; 20];
    losses[10] = 10.0;
    assert_eq!(
        feed_updates(&mut machine("[{rule: divergence}]"), &losses),
        None
    );
    losses.extend([10.0; 20]);
    let stop = at(feed_updates(&mut machine("[{rule: divergence}]"), &losses)).unwrap();
    assert_eq!(stop.1, "diverged");
    assert!((22..30).contains(&stop.0), "{stop:?}");
}

#[test]
fn overfit_needs_both_a_rise_and_a_fall() {
    let run = |updates: [f64; 5], evals: [f64; 5]| {
        let mut machine = machine("[{rule: overfit, patience: 2}]");
        updates
            .iter()
            .zip(&evals)
            .zip(1..)
            .find_map(|((&loss, &eval_loss), i)| {
                machine.observe(&train(2 * i - 1, loss));
                machine.observe(&train(2 * i, loss - 0.01));
                machine.observe(&eval(2 * i, eval_loss))
            })
    };
    let falling = [3.0, 2.5, 2.0, 1.5, 1.0];
    let steady = [3.0; 5];
    let rising = [2.0, 1.8, 1.9, 2.0, 2.1];
    assert_eq!(at(run(falling, rising)), Some((8, "overfit")));
    assert_eq!(run(steady, rising), None, "training does not fall");
    let rising_again = [3.0, 1.0, 2.0, 2.2, 2.4];
    assert_eq!(
        run(rising_again, rising),
        None,
        "each stretch is held against the one before"
    );
    assert_eq!(
        run(falling, [2.0, 2.1, 2.0, 2.1, 2.0]),
        None,
        "no two rises in a row"
    );
    assert_eq!(
        run(falling, [2.0, 2.1, f64::NAN, 2.2, 2.1]),
        None,
        "NaN is no rise"
    );
}

#[test]
fn each_limit_of_a_budget_has_its_reason() {
    let now = Observation {
        step: 10,
        epoch: 2.0,
        tokens: 500,
        seconds: 60.0,
        ..Default::default()
    };
    for (limit, reason) in [
        ("max_steps: 10", Some("max_steps")),
        ("max_epochs: 2", Some("max_epochs")),
        ("max_tokens: 500", Some("max_tokens")),
        ("max_seconds: 60", Some("max_time")),
        ("max_seconds: 60, max_steps: 10", Some("max_steps")),
        (
            "max_steps: 11, max_epochs: 2.1, max_tokens: 501, max_seconds: 60.1",
            None,
        ),
    ] {
        let verdict = machine(&format!("[{{rule: budget, {limit}}}]")).observe(&now);
        assert_eq!(verdict.map(|v| v.reason.code()), reason, "{limit}");
    }
}

#[test]
fn the_first_declared_rule_wins_and_the_run_s_own_budget_comes_last() {
    let config = "[{rule: budget, max_tokens: 5}, {rule: target, metric: eval_loss, at_most: 1}]";
    let budget = Budget {
        max_steps: Some(3),
        ..Default::default()
    };
    let mut run = StopMachine::new(&StopConfig::from_text(config).unwrap(), budget).unwrap();
    let verdict = run
        .observe(&Observation {
            tokens: 5,
            ..eval(3, 0.5)
        })
        .unwrap();
    assert_eq!(
        (verdict.reason, verdict.rule),
        (StopReason::MaxTokens, Some(0))
    );
    run.clear_verdict();
    let verdict = run.observe(&eval(4, 0.5)).unwrap();
    assert_eq!(
        (verdict.reason, verdict.rule),
        (StopReason::TargetReached, Some(1))
    );
    run.clear_verdict();
    let verdict = run.observe(&eval(5, 2.0)).unwrap();
    assert_eq!((verdict.reason, verdict.rule), (StopReason::MaxSteps, None));
}

#[test]
fn the_host_s_wish_latches_but_does_not_replace_a_verdict() {
    let mut run = machine("[]");
    run.request(StopReason::Callback, 7);
    run.request(StopReason::Cancelled, 8);
    assert_eq!(at(run.verdict().cloned()), Some((7, "callback")));
    assert_eq!(at(run.observe(&train(9, f64::NAN))), Some((7, "callback")));
}

#[test]
fn a_host_may_evaluate_by_itself() {
    let mut run = machine("[{rule: plateau, patience: 1}]");
    let metrics = |x| [("eval_loss".to_owned(), x)];
    assert_eq!(run.observe(&host(1, &metrics(1.0))), None);
    assert_eq!(
        at(run.observe(&host(2, &metrics(1.0)))),
        Some((2, "plateau"))
    );
}

#[test]
fn best_is_the_evaluation_s_once_there_is_one() {
    let mut run = machine("[]");
    run.observe(&train(1, 0.5));
    assert_eq!(
        (run.best().unwrap().value, run.best_metric().0.name()),
        (0.5, "train_loss")
    );
    run.observe(&eval(1, 2.0));
    assert_eq!(
        (run.best().unwrap().value, run.best_metric().0.name()),
        (2.0, "eval_loss")
    );
    run.observe(&train(2, 0.1));
    assert!(!run.is_new_best());
    assert_eq!(run.best().unwrap().step, Some(1));
}

#[test]
fn a_named_metric_decides_what_is_best() {
    let mut run = machine("[{rule: plateau, patience: 9}]");
    run.watch(Metric::for_best_model("acc").unwrap(), Direction::Maximize);
    for (step, acc) in [(1, 0.2), (2, 0.4), (3, 0.3)] {
        let metrics = [("eval_acc".to_owned(), acc)];
        run.observe(&Observation {
            host: &metrics,
            ..eval(step, 1.0 / step as f64)
        });
    }
    assert_eq!(
        run.best().map(|best| (best.step, best.value)),
        Some((Some(2), 0.4))
    );
    let text = saved(&run);
    let mut other = machine("[{rule: plateau, patience: 9}]");
    other.watch(Metric::for_best_model("acc").unwrap(), Direction::Maximize);
    other.restore(&serde_json::from_str(&text).unwrap());
    assert_eq!((other.best(), saved(&other)), (run.best(), text));
}

#[test]
fn a_changed_rule_starts_afresh_and_a_changed_patience_does_not() {
    let mut run = machine("[{rule: plateau, patience: 5}, {rule: overfit}]");
    feed_evals(&mut run, &[1.0, 1.1, 1.2, 1.3]);
    let state: StopState = serde_json::from_str(&saved(&run)).unwrap();

    let mut resumed = machine("[{rule: overfit}, {rule: plateau, patience: 2}]");
    assert_eq!(resumed.restore(&state), 0, "order and patience may change");
    assert_eq!(resumed.patience_used(), 2, "never above the new patience");
    assert_eq!(at(resumed.observe(&eval(5, 1.3))), Some((5, "plateau")));

    let mut resumed = machine("[{rule: plateau, patience: 5, smoothing: {mean: 2}}]");
    assert_eq!(resumed.restore(&state), 1);
    assert_eq!((resumed.patience_used(), resumed.best()), (0, None));
}

#[test]
fn on_resume_a_verdict_lapses_with_what_decided_it() {
    let budget = |max_steps| Budget {
        max_steps: Some(max_steps),
        ..Budget::default()
    };
    let machine = |rules: &str, max_steps| {
        let config = StopConfig::from_text(rules).unwrap();
        StopMachine::new(&config, budget(max_steps)).unwrap()
    };
    let target = "[{rule: target, metric: train_loss, at_most: 1, patience: 1}]";
    let at_two = train(2, 0.5);
    let reason = |run: &StopMachine| run.verdict().map(|verdict| verdict.reason);
    let resumed = |state: &StopState, max_steps, rules_changed, budget_changed| {
        let mut run = machine(target, max_steps);
        run.resume(state, rules_changed, budget_changed, &at_two);
        reason(&run)
    };

    let mut run = machine(target, 9);
    run.observe(&at_two);
    let by_rule = Some(StopReason::TargetReached);
    assert_eq!(resumed(&run.state(), 9, false, false), by_rule);
    assert_eq!(resumed(&run.state(), 12, false, true), by_rule);
    assert_eq!(resumed(&run.state(), 9, true, false), None);

    let mut run = machine(target, 2);
    run.observe(&train(2, 5.0));
    let by_budget = Some(StopReason::MaxSteps);
    assert_eq!(resumed(&run.state(), 2, true, false), by_budget);
    assert_eq!(resumed(&run.state(), 9, false, true), None);
    assert_eq!(
        resumed(&run.state(), 1, false, true),
        by_budget,
        "a smaller one is used up as well"
    );

    for wish in [StopReason::Cancelled, StopReason::Callback] {
        let mut run = machine(target, 9);
        run.request(wish, 2);
        assert_eq!(resumed(&run.state(), 9, false, false), None);
        assert_eq!(resumed(&run.state(), 2, false, true), by_budget);
    }

    let mut run = machine(target, 9);
    run.observe(&train(2, f64::NAN));
    let broken = Some(StopReason::NonFinite);
    assert_eq!(resumed(&run.state(), 9, false, true), broken);
}

#[test]
fn infinities_survive_a_checkpoint() {
    let rules = "[{rule: plateau, patience: 3, reference: hf}]";
    let mut run = machine(rules);
    feed_evals(&mut run, &[f64::NAN, f64::NAN]);
    let resumed = restored(rules, &saved(&run));
    assert_eq!(resumed.best(), run.best());
    assert_eq!(
        resumed.best().map(|best| (best.step, best.value)),
        Some((None, f64::INFINITY))
    );
}

#[test]
fn status_lines_say_where_each_rule_stands() {
    let rules = "[{rule: target, metric: eval_loss, at_most: 0.5, patience: 2}, \
                 {rule: plateau, patience: 3}, {rule: budget, max_steps: 100, max_seconds: 10}]";
    let mut run = machine(rules);
    let now = |step, loss| Observation {
        seconds: 9.0,
        ..eval(step, loss)
    };
    run.observe(&now(1, 1.25));
    run.observe(&now(2, 1.5));
    let lines: Vec<String> = run
        .status(&now(2, 1.5))
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "non_finite, 0/1",
        "target eval_loss 1.5000 (at most 0.5000), 0/2",
        "plateau eval_loss 1.5000 (best 1.2500), 1/3",
        "budget seconds 9 (of 10)",
    ];
    assert_eq!(lines, expected);
    let mut run = machine("[]");
    let verdict = run
        .observe(&train_with_norm(1, 1.0, f64::INFINITY))
        .unwrap();
    assert_eq!(verdict.detail, "non_finite inf, 1/1");
}
