//! The stopping state machine: its rules, the traps that others fell into, and the recorded traces of
//! transformers' early stopping.

#[path = "stop/config.rs"]
mod config;
#[path = "stop/properties.rs"]
mod properties;
#[path = "stop/replay.rs"]
mod replay;
#[path = "stop/rules.rs"]
mod rules;
#[path = "stop/traces.rs"]
mod traces;
#[path = "stop/traps.rs"]
mod traps;

use sft::stop::{
    Budget, EvalMetrics, Observation, StopConfig, StopMachine, StopState, TrainMetrics, Verdict,
};

/// A machine for rules written as YAML.
fn machine(rules: &str) -> StopMachine {
    StopMachine::new(&StopConfig::from_text(rules).unwrap(), Budget::default()).unwrap()
}

/// The update `step` with this loss and a gradient norm of 1.
fn train(step: u64, loss: f64) -> Observation<'static> {
    train_with_norm(step, loss, 1.0)
}

fn train_with_norm(step: u64, loss: f64, grad_norm: f64) -> Observation<'static> {
    let train = TrainMetrics {
        loss,
        grad_norm: Some(grad_norm),
        token_accuracy: Some(0.5),
        supervised_tokens: 10,
    };
    Observation {
        step,
        train: Some(train),
        ..Default::default()
    }
}

/// An evaluation after update `step`.
fn eval(step: u64, loss: f64) -> Observation<'static> {
    let eval = EvalMetrics {
        loss,
        token_accuracy: None,
    };
    Observation {
        step,
        eval: Some(eval),
        ..Default::default()
    }
}

/// Feeds evaluations at steps 1, 2, … until a verdict.
fn feed_evals(machine: &mut StopMachine, losses: &[f64]) -> Option<Verdict> {
    losses
        .iter()
        .zip(1..)
        .find_map(|(&loss, step)| machine.observe(&eval(step, loss)))
}

/// Feeds updates at steps 1, 2, … until a verdict.
fn feed_updates(machine: &mut StopMachine, losses: &[f64]) -> Option<Verdict> {
    losses
        .iter()
        .zip(1..)
        .find_map(|(&loss, step)| machine.observe(&train(step, loss)))
}

/// The step and the reason's code of a verdict.
fn at(verdict: Option<Verdict>) -> Option<(u64, &'static str)> {
    verdict.map(|verdict| (verdict.step, verdict.reason.code()))
}

/// The machine's state as the JSON text of a checkpoint.
fn saved(machine: &StopMachine) -> String {
    serde_json::to_string(&machine.state()).unwrap()
}

/// A new machine for the same rules that goes on from a checkpoint's text.
fn restored(rules: &str, text: &str) -> StopMachine {
    let mut machine = machine(rules);
    let state: StopState = serde_json::from_str(text).unwrap();
    assert_eq!(machine.restore(&state), 0, "every rule finds its state");
    machine
}
