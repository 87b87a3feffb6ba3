//! Learning-rate schedules against the rates that transformers' schedulers used.

use serde_json::{Map, Value, json};
use sft::ErrorKind;
use sft::schedule::{Schedule, ScheduleKind};

fn kwargs(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn schedule(name: &str, warmup: f64, total: u64, options: Value) -> sft::Result<Schedule> {
    Schedule::new(
        ScheduleKind::from_name(name)?,
        1e-3,
        warmup,
        total,
        &kwargs(options),
    )
}

#[test]
fn every_recorded_rate_is_equal_to_the_last_bit() {
    let curves: Value =
        serde_json::from_str(include_str!("fixtures/reference/lr_schedules.json")).unwrap();
    let mut rates = 0;
    for curve in curves.as_array().unwrap() {
        let name = curve["name"].as_str().unwrap();
        let schedule = Schedule::new(
            ScheduleKind::from_name(name).unwrap(),
            curve["base_lr"].as_f64().unwrap(),
            curve["warmup"].as_f64().unwrap(),
            curve["total"].as_u64().unwrap(),
            curve["kwargs"].as_object().unwrap(),
        )
        .unwrap();
        for (expected, k) in curve["lr_used_at_update_k_1based"]
            .as_array()
            .unwrap()
            .iter()
            .zip(0..)
        {
            let expected = expected.as_f64().unwrap();
            assert_eq!(
                schedule.lr(k),
                expected,
                "{name} {} update {}",
                curve["kwargs"],
                k + 1
            );
            rates += 1;
        }
    }
    assert_eq!(rates, 15 * 11);
}

#[test]
fn a_warmup_below_one_is_a_fraction_rounded_up() {
    let updates = |warmup, total| {
        schedule("linear", warmup, total, json!({}))
            .unwrap()
            .warmup_steps()
    };
    assert_eq!(updates(0.0, 10), 0);
    assert_eq!(updates(0.1, 10), 1);
    assert_eq!(updates(0.11, 10), 2);
    assert_eq!(updates(1.0, 10), 1);
    assert_eq!(updates(2.9, 10), 2);
}

#[test]
fn every_rate_is_finite_and_in_range_also_in_degenerate_runs() {
    for kind in ScheduleKind::ALL {
        let options = match kind {
            ScheduleKind::CosineWithMinLr | ScheduleKind::CosineWarmupWithMinLr => {
                json!({"min_lr": 1e-4})
            }
            ScheduleKind::WarmupStableDecay => json!({"num_decay_steps": 0}),
            _ => json!({}),
        };
        for (warmup, total) in [(0.0, 0), (0.0, 1), (1.0, 1), (5.0, 5), (9.0, 5), (0.5, 7)] {
            let Ok(schedule) = schedule(kind.name(), warmup, total, options.clone()) else {
                // The parts of warmup_stable_decay must fit into the run.
                assert_eq!((kind, warmup), (ScheduleKind::WarmupStableDecay, 9.0));
                continue;
            };
            for k in 0..20 {
                let lr = schedule.lr(k);
                assert!(
                    (0.0..=1e-3).contains(&lr),
                    "{} {warmup} {total} {k}: {lr}",
                    kind.name()
                );
            }
        }
    }
}

#[test]
fn names_survive_serde() {
    for kind in ScheduleKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        assert_eq!(ScheduleKind::from_name(kind.name()).unwrap(), kind);
    }
}

#[test]
fn what_is_wrong_is_named_with_its_key_path() {
    let config = ErrorKind::Config;
    for (name, options, kind, start) in [
        (
            "cosine",
            json!({"num_cycles": "x"}),
            config,
            "lr_scheduler_kwargs.num_cycles: ",
        ),
        (
            "cosine",
            json!({"num_cycles": -1}),
            config,
            "lr_scheduler_kwargs.num_cycles: ",
        ),
        (
            "cosine",
            json!({"num_cycle": 1}),
            ErrorKind::UnknownKey,
            "lr_scheduler_kwargs.num_cycle: ",
        ),
        (
            "linear",
            json!({"power": 1}),
            ErrorKind::UnknownKey,
            "lr_scheduler_kwargs.power: ",
        ),
        (
            "polynomial",
            json!({"lr_end": 1.0}),
            config,
            "lr_scheduler_kwargs.lr_end: ",
        ),
        (
            "inverse_sqrt",
            json!({"timescale": 0}),
            config,
            "lr_scheduler_kwargs.timescale: ",
        ),
        (
            "cosine_with_min_lr",
            json!({}),
            config,
            "lr_scheduler_kwargs.min_lr: is missing",
        ),
        (
            "cosine_with_min_lr",
            json!({"min_lr": 0, "min_lr_rate": 0}),
            config,
            "lr_scheduler_kwargs.min_lr_rate: ",
        ),
        (
            "warmup_stable_decay",
            json!({}),
            config,
            "lr_scheduler_kwargs: missing field `num_decay",
        ),
        (
            "warmup_stable_decay",
            json!({"num_decay_steps": 11}),
            config,
            "lr_scheduler_kwargs.num_decay_steps: ",
        ),
        (
            "warmup_stable_decay",
            json!({"num_decay_steps": 1, "decay_type": "sqrt"}),
            config,
            "lr_scheduler_kwargs.decay_type: unknown variant `sqrt`",
        ),
        (
            "greedy",
            json!({}),
            ErrorKind::Unsupported,
            "lr_scheduler_type: ",
        ),
        ("cosin", json!({}), config, "lr_scheduler_type: "),
    ] {
        let error = schedule(name, 0.0, 10, options.clone()).unwrap_err();
        assert!(
            error.to_string().starts_with(start),
            "{name} {options}: {error}"
        );
        assert_eq!(error.kind(), kind, "{name} {options}: {error}");
    }
    let rate = Schedule::new(ScheduleKind::Linear, f64::NAN, 0.0, 10, &Map::new()).unwrap_err();
    assert!(rate.to_string().starts_with("learning_rate: "), "{rate}");
    let warmup = schedule("linear", -1.0, 10, json!({})).unwrap_err();
    assert!(warmup.to_string().starts_with("warmup_steps: "), "{warmup}");
}
