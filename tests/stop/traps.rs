//! The traps that other trainers fell into, each by name.

use crate::{at, eval, feed_evals, feed_updates, machine, restored, saved, train, train_with_norm};
use sft::report::StepReport;
use sft::stop::replay::{read_log, replay};
use sft::stop::{EvalMetrics, Observation, TrainMetrics};

const TARGET: &str = "[{rule: target, metric: train_loss, at_most: 0.5, patience: 1}]";

#[test]
fn nan_logged_as_zero_does_not_reach_target() {
    // A trainer that filters NaN logs such an update as loss 0 with gradient norm NaN.
    let verdict = machine(TARGET).observe(&train_with_norm(2, 0.0, f64::NAN));
    assert_eq!(at(verdict), Some((2, "non_finite")));

    // Nor while the non-finite rule is still patient.
    let patient = TARGET.replace('[', "[{rule: non_finite, patience: 3}, ");
    let mut machine = machine(&patient);
    assert_eq!(machine.observe(&train_with_norm(1, 0.0, f64::NAN)), None);
    assert_eq!(
        machine.observe(&train_with_norm(2, 0.0, f64::INFINITY)),
        None
    );
    assert_eq!(machine.best(), None, "and it is no best either");
    assert_eq!(
        at(machine.observe(&train(3, 0.4))),
        Some((3, "target_reached"))
    );
}

#[test]
fn nan_loss_does_not_reach_target() {
    let mut run = machine("[{rule: target, metric: eval_loss, at_most: 0.5, patience: 2}]");
    assert_eq!(
        feed_evals(&mut run, &[0.4, f64::NAN, 0.4, f64::NEG_INFINITY, 0.4]),
        None
    );
    assert_eq!(at(run.observe(&eval(6, 0.4))), Some((6, "target_reached")));
}

#[test]
fn one_zero_loss_step_does_not_end_the_run() {
    // By default a metric of every update must hold its target three times.
    let mut run = machine("[{rule: target, metric: train_loss, at_most: 0.5}]");
    assert_eq!(feed_updates(&mut run, &[2.0, 0.0, 1.9, 0.1, 0.2]), None);
    assert_eq!(at(run.observe(&train(6, 0.3))), Some((6, "target_reached")));
}

/// An update of float16 training at this loss scale.
fn scaled(loss: f64, grad_norm: f64, loss_scale: Option<f64>) -> StepReport {
    StepReport {
        step: 1,
        epoch: 0.0,
        loss,
        smoothed_loss: None,
        grad_norm,
        learning_rate: 1e-3,
        token_accuracy: 0.5,
        entropy: 1.0,
        supervised_tokens: 10,
        tokens: 10,
        total_tokens: 10,
        model_flops: 0,
        seconds: 1.0,
        eval: None,
        stop_reason: None,
        loss_scale,
        skipped_updates: 1,
    }
}

#[test]
fn an_overflow_is_the_models_only_at_the_smallest_loss_scale() {
    for (loss, grad_norm, scale, stops) in [
        (2.0, f64::INFINITY, Some(65536.0), false),
        (2.0, f64::NAN, Some(2.0), false),
        (2.0, f64::INFINITY, Some(1.0), true),
        (2.0, f64::INFINITY, None, true),
        (f64::NAN, f64::NAN, Some(65536.0), true),
        (f64::INFINITY, 1.0, Some(65536.0), true),
    ] {
        let report = scaled(loss, grad_norm, scale);
        let observation = Observation {
            step: 1,
            train: Some((&report).into()),
            ..Default::default()
        };
        let verdict = machine("[]").observe(&observation);
        let expected = stops.then_some((1, "non_finite"));
        assert_eq!(
            at(verdict),
            expected,
            "loss {loss} norm {grad_norm} at {scale:?}"
        );

        // A replay of the row that the run logs says the same.
        let row = sft::engine::log_row(&report).to_string();
        let rules = sft::stop::StopConfig::from_text("[]").unwrap();
        let again = replay(&read_log(&row).unwrap(), &rules).unwrap();
        assert_eq!(again.stopped, stops, "{row}");
    }
}

#[test]
fn an_update_without_supervised_tokens_is_not_looked_at() {
    let mut machine = machine(TARGET);
    let empty = TrainMetrics {
        loss: 0.0,
        grad_norm: Some(0.0),
        token_accuracy: Some(0.0),
        supervised_tokens: 0,
    };
    let observation = Observation {
        step: 1,
        train: Some(empty),
        ..Default::default()
    };
    assert_eq!(machine.observe(&observation), None);
    assert_eq!((machine.best(), machine.counter()), (None, 0));
}

#[test]
fn patience_survives_resume() {
    let rules = "[{rule: plateau, patience: 3}]";
    let mut run = machine(rules);
    assert_eq!(feed_evals(&mut run, &[1.0, 1.1, 1.2]), None);
    let mut resumed = restored(rules, &saved(&run));
    assert_eq!(resumed.patience_used(), 2);
    assert_eq!(at(resumed.observe(&eval(4, 1.3))), Some((4, "plateau")));
}

#[test]
fn best_compared_before_updated() {
    // Were the best updated first, no evaluation could ever improve on it.
    for reference in ["significant", "hf"] {
        let mut run = machine(&format!(
            "[{{rule: plateau, patience: 1, reference: {reference}}}]"
        ));
        assert_eq!(
            feed_evals(&mut run, &[1.0, 0.9, 0.8, 0.7]),
            None,
            "{reference}"
        );
    }
}

#[test]
fn counter_resets_on_improvement() {
    let mut run = machine("[{rule: plateau, patience: 2}]");
    let counters = [1.0, 1.1, 0.9, 1.0, 0.8]
        .iter()
        .zip(1..)
        .map(|(&loss, step)| {
            assert_eq!(run.observe(&eval(step, loss)), None);
            run.patience_used()
        });
    assert_eq!(counters.collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
}

#[test]
fn first_evaluation_is_not_bad() {
    for reference in ["significant", "hf"] {
        let mut run = machine(&format!(
            "[{{rule: plateau, patience: 1, reference: {reference}}}]"
        ));
        assert_eq!(feed_evals(&mut run, &[1e30]), None, "{reference}");
        assert_eq!(run.patience_used(), 0, "{reference}");
        assert!(run.is_new_best(), "{reference}");
    }
}

#[test]
fn stop_takes_effect_at_the_same_step() {
    let mut run = machine("[{rule: plateau, patience: 1}]");
    assert_eq!(run.observe(&eval(10, 1.0)), None);
    let verdict = run.observe(&eval(20, 1.0)).unwrap();
    assert_eq!((verdict.step, verdict.reason.code()), (20, "plateau"));
    assert_eq!(run.verdict(), Some(&verdict));
}

#[test]
fn best_step_is_reported_between_saves() {
    // The best evaluation is at step 6, whatever steps a checkpoint is written at.
    let mut run = machine("[{rule: plateau, patience: 2}]");
    let mut kept = None;
    for (step, loss) in [(2, 1.0), (4, 0.9), (6, 0.5), (8, 0.8), (10, 0.9)] {
        run.observe(&eval(step, loss));
        if run.is_new_best() {
            kept = Some(step);
        }
    }
    let best = run.best().unwrap();
    assert_eq!((best.step, best.value), (Some(6), 0.5));
    assert_eq!(kept, Some(6), "the engine hears of it at that very step");
    assert_eq!(run.verdict().map(|verdict| verdict.step), Some(10));
}

#[test]
fn identical_observations_give_identical_verdicts_on_every_rank() {
    let rules = "[{rule: target, metric: train_loss, at_most: 0.3, smoothing: {ema: 0.5}}, \
                 {rule: plateau, patience: 2}, {rule: divergence}, {rule: overfit}, \
                 {rule: budget, max_seconds: 9.5}]";
    let mut ranks = [machine(rules), machine(rules), machine(rules)];
    for step in 1..=12 {
        let x = (step as f64).sin();
        let observation = Observation {
            seconds: step as f64,
            eval: Some(EvalMetrics {
                loss: 2.0 - x,
                token_accuracy: None,
            }),
            ..train(step, 1.0 + x)
        };
        let verdicts = ranks.each_mut().map(|rank| rank.observe(&observation));
        let states = ranks.each_ref().map(saved);
        assert!(
            verdicts.iter().all(|verdict| *verdict == verdicts[0]),
            "step {step}"
        );
        assert!(
            states.iter().all(|state| *state == states[0]),
            "step {step}"
        );
    }
    assert!(ranks[0].verdict().is_some());
}

#[test]
fn a_nan_evaluation_is_bad_but_never_the_best() {
    let mut run = machine("[{rule: plateau, patience: 3}]");
    assert_eq!(
        feed_evals(&mut run, &[f64::NAN, 1.0, f64::NAN, f64::INFINITY]),
        None
    );
    assert_eq!(
        run.best().map(|best| (best.step, best.value)),
        Some((Some(2), 1.0))
    );
    assert_eq!(at(run.observe(&eval(5, f64::NAN))), Some((5, "plateau")));
}

#[test]
fn steady_small_gains_stop_the_peer_s_reference_only() {
    let rules = "[{rule: plateau, patience: 3, min_delta: 0.1, reference: hf}]";
    let losses = [1.0, 0.95, 0.90, 0.85, 0.80, 0.75, 0.70];
    assert_eq!(
        at(feed_evals(&mut machine(rules), &losses)),
        Some((4, "plateau"))
    );
    let ours = rules.replace("hf", "significant");
    assert_eq!(at(feed_evals(&mut machine(&ours), &losses)), None);
}
