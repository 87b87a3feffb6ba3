//! When a run ends: rules over the run's own numbers, a machine that applies them, and its verdict.
//!
//! A [`StopConfig`] lists [`Rule`]s. A [`StopMachine`] is fed one [`Observation`] after another and
//! answers with a [`Verdict`] as soon as a rule fires; the verdict latches. Everything here is plain
//! data: no clock, no file, no device. The same observations give the same verdicts on every rank
//! and in every replay, and the whole state ([`StopState`]) survives a checkpoint.
//!
//! ```
//! use sft::stop::{EvalMetrics, Observation, StopConfig, StopMachine};
//!
//! let config = StopConfig::from_text("stop: [{rule: target, metric: eval_loss, at_most: 1.5}]")?;
//! let mut machine = StopMachine::new(&config, Default::default())?;
//! let eval = Some(EvalMetrics { loss: 1.4, token_accuracy: None });
//! let verdict = machine.observe(&Observation { step: 10, eval, ..Default::default() });
//! assert_eq!(verdict.unwrap().reason.code(), "target_reached");
//! # Ok::<(), sft::Error>(())
//! ```
//!
//! [`replay`] runs the same machine over a recorded log.

mod config;
mod machine;
mod metric;
mod observation;
mod read;
pub mod replay;
mod rules;
mod slot;
mod smoothing;
mod status;
pub mod sweep;
mod validate;

pub use config::{
    Budget, DivergenceRule, MinDelta, NonFiniteRule, OverfitRule, PlateauRule, Reference, Rule,
    StopConfig, TargetRule,
};
pub use machine::{StopMachine, StopState, Verdict};
pub use metric::{Direction, Metric};
pub use observation::{EvalMetrics, Observation, TrainMetrics};
pub use read::early_stopping;
pub use rules::Best;
pub use smoothing::Smoothing;
pub use status::RuleStatus;
