//! What holds for every run: random observations against every rule at once.

use crate::{machine, restored, saved};
use proptest::prelude::*;
use sft::stop::{EvalMetrics, Observation, TrainMetrics};

const RULES: &str = "
- {rule: non_finite, patience: 3}
- {rule: target, metric: train_loss, at_most: 0.1, patience: 3, smoothing: {median: 3}}
- {rule: target, metric: reward, at_least: 2.9, min_steps: 5, smoothing: {mean: 2}}
- {rule: plateau, metric: eval_loss, patience: 4, min_delta: 0.05, smoothing: {ema: 0.5}}
- {rule: plateau, metric: eval_loss, patience: 6, min_delta: 0.01, reference: hf}
- {rule: plateau, metric: reward, patience: 9, min_delta: {relative: 0.1}}
- {rule: divergence, factor: 5, patience: 2}
- {rule: overfit, patience: 4}
- {rule: budget, max_steps: 60, max_seconds: 55}
";

/// One step of a run: an update, sometimes an evaluation, sometimes the host's number.
#[derive(Clone, Debug)]
struct Step {
    loss: f64,
    grad_norm: f64,
    eval_loss: Option<f64>,
    host: Vec<(String, f64)>,
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        20 => 0.0..3.0f64,
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e300]),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let host = prop::option::of(number()).prop_map(|x| x.map(|x| ("reward".to_owned(), x)));
    let step = (number(), number(), prop::option::of(number()), host).prop_map(
        |(loss, grad_norm, eval_loss, host)| Step {
            loss,
            grad_norm,
            eval_loss,
            host: host.into_iter().collect(),
        },
    );
    prop::collection::vec(step, 0..70)
}

fn observation(step: &Step, number: u64) -> Observation<'_> {
    let train = TrainMetrics {
        loss: step.loss,
        grad_norm: Some(step.grad_norm),
        token_accuracy: None,
        supervised_tokens: 4,
    };
    Observation {
        step: number,
        epoch: number as f64 / 10.0,
        tokens: number * 8,
        seconds: number as f64,
        train: Some(train),
        eval: step.eval_loss.map(|loss| EvalMetrics {
            loss,
            token_accuracy: None,
        }),
        host: &step.host,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_run_saved_and_restored_at_any_point_equals_the_uninterrupted_one(
        steps in steps(), cut in 0usize..70,
    ) {
        let mut whole = machine(RULES);
        let mut parts = machine(RULES);
        for (i, step) in steps.iter().enumerate() {
            if i == cut {
                parts = restored(RULES, &saved(&parts));
            }
            let now = observation(step, i as u64 + 1);
            prop_assert_eq!(whole.observe(&now), parts.observe(&now));
            prop_assert_eq!(whole.is_new_best(), parts.is_new_best());
            prop_assert_eq!(saved(&whole), saved(&parts));
        }
    }

    #[test]
    fn a_verdict_latches_until_it_is_cleared(steps in steps()) {
        let mut machine = machine(RULES);
        let mut first = None;
        for (step, number) in steps.iter().zip(1..) {
            let verdict = machine.observe(&observation(step, number));
            first = first.or(verdict.clone());
            prop_assert_eq!(&verdict, &first);
            prop_assert_eq!(machine.verdict(), first.as_ref());
        }
        let before = saved(&machine);
        machine.clear_verdict();
        prop_assert_eq!(machine.verdict(), None);
        prop_assert_eq!(saved(&machine) == before, first.is_none());
    }

    #[test]
    fn no_counter_exceeds_its_patience(steps in steps()) {
        let mut machine = machine(RULES);
        for (step, number) in steps.iter().zip(1..) {
            let now = observation(step, number);
            machine.observe(&now);
            machine.clear_verdict();
            for line in machine.status(&now) {
                prop_assert!(line.counter <= line.patience, "{line}");
            }
        }
    }

    #[test]
    fn an_ema_equals_its_closed_form(losses in prop::collection::vec(-5.0..5.0f64, 1..60), d in 0.0..0.999f64) {
        let rules = format!(
            "[{{rule: target, metric: train_loss, at_most: -9, smoothing: {{ema: {d:?}}}}}]"
        );
        let mut machine = machine(&rules);
        crate::feed_updates(&mut machine, &losses);
        let n = losses.len() as i32;
        let sum: f64 =
            losses.iter().zip(1..).map(|(x, i)| (1.0 - d) * d.powi(n - i) * x).sum();
        let closed = sum / (1.0 - d.powi(n));
        prop_assert!((machine.smoothed().unwrap() - closed).abs() < 1e-10, "{closed}");
    }

    #[test]
    fn metrics_that_no_rule_names_change_nothing(steps in steps(), noise in prop::collection::vec(number(), 3)) {
        let (mut plain, mut noisy) = (machine(RULES), machine(RULES));
        for (step, number) in steps.iter().zip(1..) {
            let names = ["eval_bleu", "speed", "eval_acc"];
            let extra = names.iter().zip(&noise).map(|(name, x)| ((*name).to_owned(), *x));
            let mut host: Vec<_> = extra.chain(step.host.clone()).collect();
            host.rotate_left(number as usize % 3);
            let now = observation(step, number);
            prop_assert_eq!(plain.observe(&now), noisy.observe(&Observation { host: &host, ..now }));
            prop_assert_eq!(saved(&plain), saved(&noisy));
        }
    }

    #[test]
    fn the_best_is_the_least_finite_evaluation(losses in prop::collection::vec(number(), 0..40)) {
        let mut machine = machine("[{rule: plateau, patience: 99}]");
        crate::feed_evals(&mut machine, &losses);
        let finite = losses.iter().zip(1u64..).filter(|(loss, _)| loss.is_finite());
        let least = finite.min_by(|a, b| a.0.partial_cmp(b.0).unwrap());
        let best = machine.best().map(|best| (best.value, best.step.unwrap()));
        prop_assert_eq!(best, least.map(|(loss, step)| (*loss, step)));
    }
}
