//! What a step, an evaluation and a run report: plain data that crosses every door.

use serde::{Deserialize, Serialize};

/// Why a run ended. The numbers are stable and shared with the C ABI; 0 means "still running".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[repr(i32)]
pub enum StopReason {
    /// The metric reached the target and held it.
    TargetReached = 1,
    /// No improvement for `patience` evaluations.
    Plateau = 2,
    /// Loss or gradient norm was NaN or infinite.
    NonFinite = 3,
    /// The metric grew to a multiple of its best.
    Diverged = 4,
    /// Evaluation loss rose while training loss fell.
    Overfit = 5,
    /// The budget of optimizer updates is used up.
    MaxSteps = 6,
    /// The budget of epochs is used up.
    MaxEpochs = 7,
    /// The budget of training tokens is used up.
    MaxTokens = 8,
    /// The budget of seconds is used up.
    MaxTime = 9,
    /// The canceller was triggered.
    Cancelled = 10,
    /// The progress callback asked to stop.
    Callback = 11,
}

impl StopReason {
    /// The stable code, as logs and `sft replay` print it.
    pub const fn code(self) -> &'static str {
        match self {
            StopReason::TargetReached => "target_reached",
            StopReason::Plateau => "plateau",
            StopReason::NonFinite => "non_finite",
            StopReason::Diverged => "diverged",
            StopReason::Overfit => "overfit",
            StopReason::MaxSteps => "max_steps",
            StopReason::MaxEpochs => "max_epochs",
            StopReason::MaxTokens => "max_tokens",
            StopReason::MaxTime => "max_time",
            StopReason::Cancelled => "cancelled",
            StopReason::Callback => "callback",
        }
    }

    /// Whether updates, epochs, tokens or seconds were used up.
    pub const fn is_budget(self) -> bool {
        matches!(
            self,
            StopReason::MaxSteps
                | StopReason::MaxEpochs
                | StopReason::MaxTokens
                | StopReason::MaxTime
        )
    }
}

/// The result of an evaluation: token-weighted over all rows of all evaluation sets together, so that
/// no number depends on the batch size or on how the rows lie in sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// The update after which it was taken; 0 is before the first.
    pub step: u64,
    /// Mean −log p over supervised positions, in nats.
    pub loss: f64,
    /// Fraction of supervised positions whose most likely token is the label.
    pub token_accuracy: f64,
    /// Mean entropy of the predictions at supervised positions, in nats.
    pub entropy: f64,
    /// Supervised positions.
    pub supervised_tokens: u64,
    /// Input tokens.
    pub tokens: u64,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// The numbers of each named set; empty where the rows have no name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<EvalSetReport>,
}

impl EvalReport {
    /// e to the power of the loss: among how many equally likely tokens the model is undecided.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// The part of the named set `name`.
    pub fn set(&self, name: &str) -> Option<&EvalSetReport> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// The numbers of the named sets under the names that the log and the stop rules have for them:
    /// `eval_<name>_loss` and `eval_<name>_mean_token_accuracy`.
    pub fn named_metrics(&self) -> Vec<(String, f64)> {
        let pairs = self.sets.iter().flat_map(|set| {
            let key = |suffix: &str| format!("eval_{}{suffix}", set.name);
            [
                (key(EvalSetReport::LOSS), set.loss),
                (key(EvalSetReport::ACCURACY), set.token_accuracy),
            ]
        });
        pairs.collect()
    }
}

/// The result of an evaluation on one named set: token-weighted over its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalSetReport {
    /// The name of the set.
    pub name: String,
    /// Mean −log p over supervised positions, in nats.
    pub loss: f64,
    /// Fraction of supervised positions whose most likely token is the label.
    pub token_accuracy: f64,
    /// Mean entropy of the predictions at supervised positions, in nats.
    pub entropy: f64,
    /// Supervised positions.
    pub supervised_tokens: u64,
    /// Input tokens.
    pub tokens: u64,
    /// Wall time, in seconds.
    pub seconds: f64,
}

impl EvalSetReport {
    /// The numbers of `report`, which is of the set `name` alone.
    pub(crate) fn new(name: String, report: &EvalReport) -> Self {
        Self {
            name,
            loss: report.loss,
            token_accuracy: report.token_accuracy,
            entropy: report.entropy,
            supervised_tokens: report.supervised_tokens,
            tokens: report.tokens,
            seconds: report.seconds,
        }
    }

    const LOSS: &str = "_loss";
    const ACCURACY: &str = "_mean_token_accuracy";
    /// What follows `eval_` and the set's name in a metric. The perplexity is found from the loss.
    pub(crate) const SUFFIXES: [&str; 3] = [Self::LOSS, Self::ACCURACY, "_perplexity"];
}

/// The smallest loss scale of float16 training: the loss as it is.
pub const MIN_LOSS_SCALE: f64 = 1.0;

/// The result of one optimizer update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Number of this update, from 1.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Sum of −log p over the update's supervised positions, divided by their number.
    pub loss: f64,
    /// The loss as the stop rules see it after smoothing, where a rule smooths it.
    pub smoothed_loss: Option<f64>,
    /// L2 norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate that this update used.
    pub learning_rate: f64,
    /// Fraction of supervised positions whose most likely token is the label.
    pub token_accuracy: f64,
    /// Mean entropy of the predictions at supervised positions, in nats.
    pub entropy: f64,
    /// Supervised positions of this update.
    pub supervised_tokens: u64,
    /// Input tokens of this update.
    pub tokens: u64,
    /// Input tokens of the run so far.
    pub total_tokens: u64,
    /// Floating-point operations that the model needs for this update, as
    /// [`ModelSpec::training_flops`](crate::model::ModelSpec::training_flops) counts them.
    #[serde(default)]
    pub model_flops: u64,
    /// Wall time of this update without its evaluation, in seconds.
    pub seconds: f64,
    /// The evaluation that was due after this update.
    pub eval: Option<EvalReport>,
    /// Why the run ended with this update, if it did.
    pub stop_reason: Option<StopReason>,
    /// What the loss was multiplied by for this update, to keep small gradients in float16; `None` in
    /// the other formats, which need no scale.
    pub loss_scale: Option<f64>,
    /// Updates of the run so far that were not applied, because their gradient was not finite.
    pub skipped_updates: u64,
}

impl StepReport {
    /// The speed of this update in floating-point operations of the model a second.
    pub fn model_flops_per_second(&self) -> f64 {
        self.model_flops as f64 / self.seconds.max(1e-9)
    }

    /// Whether the gradient overflowed at a loss scale that can still fall: the update was not applied
    /// and says nothing about the model, only that the scale was too large.
    pub fn overflowed(&self) -> bool {
        !self.grad_norm.is_finite() && self.loss_scale.is_some_and(|s| s > MIN_LOSS_SCALE)
    }
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Updates done.
    pub step: u64,
    /// Updates planned, if the budget says so.
    pub total_steps: Option<u64>,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Input tokens of the run so far.
    pub total_tokens: u64,
    /// The step of the best evaluation (or best observation of the watched metric).
    pub best_step: Option<u64>,
    /// Its value.
    pub best_value: Option<f64>,
    /// Patience used up by the plateau rule.
    pub patience_used: u64,
    /// Why the run ended, if it did.
    pub stop_reason: Option<StopReason>,
    /// Wall time of the run so far, over all its resumptions, in seconds.
    pub elapsed_seconds: f64,
    /// The update that this leg of the run went on from, if it was resumed.
    pub resumed_step: Option<u64>,
    /// The update of the newest checkpoint that is known to be whole on the disk.
    pub checkpoint_step: Option<u64>,
}
