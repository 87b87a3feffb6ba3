//! The structs that cross the border.

use super::arguments::GrowingStruct;
use super::status::stop_code;
use crate::memory::{MemoryPlan, SegmentKind};
use crate::report::{EvalReport, EvalSetReport, MIN_LOSS_SCALE, Snapshot, StepReport};
use std::ffi::{CStr, c_char};

/// Sequences of tokens laid end to end, as the host feeds them. All pointers are borrowed for the
/// call. Position i of a sequence predicts the label at i + 1, so labels are not shifted, and the
/// first label of each sequence never counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sft_batch {
    /// sizeof(sft_batch), the same in every batch of an array.
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// n_tokens token ids, each from 0 to below the size of the model's vocabulary.
    pub tokens: *const i32,
    /// n_tokens labels: the token ids, or -100 where not trained on. NULL: all are trained on.
    pub labels: *const i32,
    /// n_seqs positions at which a sequence starts, ascending from 0. NULL: all tokens are one
    /// sequence.
    pub seq_starts: *const i32,
    /// Number of tokens and labels.
    pub n_tokens: usize,
    /// Number of sequence starts; not looked at where seq_starts is NULL, unless above 1.
    pub n_seqs: usize,
}

/// The result of one optimizer update.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sft_step_report {
    /// Set it to sizeof(sft_step_report) before the call.
    pub struct_size: u32,
    /// Why the run ended with this update: one of the SFT_STOP_ numbers, SFT_STOP_NONE while it
    /// goes on.
    pub stop_reason: i32,
    /// Number of this update, from 1.
    pub step: u64,
    /// Epochs done, as a fraction; 0 where the host feeds the batches.
    pub epoch: f64,
    /// Mean of -log p over the update's supervised positions, in nats. The true number: it may be
    /// NaN or infinite.
    pub loss: f64,
    /// The loss as the stop rules see it after smoothing; NaN where has_smoothed_loss is 0.
    pub smoothed_loss: f64,
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
    /// Wall time of this update without its evaluation, in seconds.
    pub seconds: f64,
    /// 1 if a stop rule smooths the loss, else 0.
    pub has_smoothed_loss: i32,
    /// 1 if an evaluation was due after this update, else 0 and the eval_ fields are NaN or 0.
    pub has_eval: i32,
    /// Mean of -log p over the supervised positions of the evaluation rows, in nats.
    pub eval_loss: f64,
    /// Fraction of them whose most likely token is the label.
    pub eval_token_accuracy: f64,
    /// Mean entropy of the predictions at them, in nats.
    pub eval_entropy: f64,
    /// Supervised positions of the evaluation rows.
    pub eval_supervised_tokens: u64,
    /// Wall time of the evaluation, in seconds.
    pub eval_seconds: f64,
    /// What the loss was multiplied by for this update to keep small gradients in float16; 1 in the
    /// other formats. Where it is above 1 and grad_norm is not finite, the scale was too large: the
    /// update was not applied, and the stop rules do not count it as a broken gradient.
    pub loss_scale: f64,
    /// Updates of the run so far that were not applied, because their gradient was not finite.
    pub skipped_updates: u64,
}

/// The result of an evaluation, weighted by tokens over all its rows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sft_eval_report {
    /// Set it to sizeof(sft_eval_report) before the call.
    pub struct_size: u32,
    /// Why the run ended with this evaluation or before: one of the SFT_STOP_ numbers, SFT_STOP_NONE
    /// while it goes on.
    pub stop_reason: i32,
    /// The update after which it was taken; 0 is before the first.
    pub step: u64,
    /// Mean of -log p over supervised positions, in nats.
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

/// Where a run stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sft_snapshot {
    /// Set it to sizeof(sft_snapshot) before the call.
    pub struct_size: u32,
    /// Why the run ended: one of the SFT_STOP_ numbers, SFT_STOP_NONE while it goes on.
    pub stop_reason: i32,
    /// Updates done.
    pub step: u64,
    /// Updates planned; 0 where that is not known.
    pub total_steps: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Input tokens of the run so far.
    pub total_tokens: u64,
    /// 1 if there is a best value, else 0 and best_value is NaN.
    pub has_best: i32,
    /// 1 if the weights are those of the best step, put back when the run ended, else 0.
    pub restored_best: i32,
    /// The update after which the best value was seen; 0 where that is not known.
    pub best_step: u64,
    /// The best value so far of the metric that metric_for_best_model names; without it, of the first
    /// plateau rule's, else of the evaluation loss, else of the training loss.
    pub best_value: f64,
    /// Patience that the plateau rule has used up.
    pub patience_used: u64,
    /// Wall time of the run so far, over all its resumptions, in seconds.
    pub elapsed_seconds: f64,
    /// 1 if the run went on from a checkpoint, else 0.
    pub resumed: i32,
    /// 1 if a checkpoint of the run is known to be whole on the disk, else 0.
    pub has_checkpoint: i32,
    /// The update that it went on from; 0 where resumed is 0. A host that feeds its own batches goes on
    /// with those of the next update.
    pub resumed_step: u64,
    /// The update of the newest such checkpoint; 0 where has_checkpoint is 0.
    pub checkpoint_step: u64,
}

/// A checkpoint that is whole on the disk.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sft_checkpoint_report {
    /// sizeof(sft_checkpoint_report).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// The update that it is of.
    pub step: u64,
    /// Its folder, which sft_resume takes; borrowed for the call.
    pub folder: *const c_char,
}

/// What a run will take of memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sft_memory_plan {
    /// Set it to sizeof(sft_memory_plan) before the call.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Size of the one allocation that holds everything, in bytes.
    pub total_bytes: u64,
    /// The largest number of bytes that live at the same time: no plan can be smaller.
    pub lower_bound_bytes: u64,
    /// Bytes of the parameters. This and the following may share bytes of the total.
    pub weights_bytes: u64,
    /// Bytes of their gradients.
    pub gradients_bytes: u64,
    /// Bytes of the optimizer's moments.
    pub optimizer_bytes: u64,
    /// Bytes that the forward pass keeps for the backward pass.
    pub activations_bytes: u64,
    /// Bytes that live within a phase of an update.
    pub scratch_bytes: u64,
    /// Bytes of token ids, labels, positions and tables.
    pub batch_bytes: u64,
}

// SAFETY: each is repr(C), begins with its size and has no padding (a test looks).
unsafe impl GrowingStruct for sft_step_report {
    const NAME: &str = "sft_step_report";
}
// SAFETY: as above.
unsafe impl GrowingStruct for sft_eval_report {
    const NAME: &str = "sft_eval_report";
}
// SAFETY: as above.
unsafe impl GrowingStruct for sft_snapshot {
    const NAME: &str = "sft_snapshot";
}
// SAFETY: as above.
unsafe impl GrowingStruct for sft_memory_plan {
    const NAME: &str = "sft_memory_plan";
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

impl From<&StepReport> for sft_step_report {
    fn from(report: &StepReport) -> Self {
        let eval = report.eval.as_ref();
        Self {
            struct_size: size::<Self>(),
            stop_reason: stop_code(report.stop_reason),
            step: report.step,
            epoch: report.epoch,
            loss: report.loss,
            smoothed_loss: report.smoothed_loss.unwrap_or(f64::NAN),
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            token_accuracy: report.token_accuracy,
            entropy: report.entropy,
            supervised_tokens: report.supervised_tokens,
            tokens: report.tokens,
            total_tokens: report.total_tokens,
            seconds: report.seconds,
            has_smoothed_loss: report.smoothed_loss.is_some().into(),
            has_eval: eval.is_some().into(),
            eval_loss: eval.map_or(f64::NAN, |e| e.loss),
            eval_token_accuracy: eval.map_or(f64::NAN, |e| e.token_accuracy),
            eval_entropy: eval.map_or(f64::NAN, |e| e.entropy),
            eval_supervised_tokens: eval.map_or(0, |e| e.supervised_tokens),
            eval_seconds: eval.map_or(f64::NAN, |e| e.seconds),
            loss_scale: report.loss_scale.unwrap_or(MIN_LOSS_SCALE),
            skipped_updates: report.skipped_updates,
        }
    }
}

impl sft_eval_report {
    pub(super) fn new(report: &EvalReport, stop_reason: i32) -> Self {
        Self {
            struct_size: size::<Self>(),
            stop_reason,
            step: report.step,
            loss: report.loss,
            token_accuracy: report.token_accuracy,
            entropy: report.entropy,
            supervised_tokens: report.supervised_tokens,
            tokens: report.tokens,
            seconds: report.seconds,
        }
    }

    /// The part of one named set.
    pub(super) fn of_set(set: &EvalSetReport, step: u64, stop_reason: i32) -> Self {
        Self {
            struct_size: size::<Self>(),
            stop_reason,
            step,
            loss: set.loss,
            token_accuracy: set.token_accuracy,
            entropy: set.entropy,
            supervised_tokens: set.supervised_tokens,
            tokens: set.tokens,
            seconds: set.seconds,
        }
    }
}

impl sft_snapshot {
    pub(super) fn new(snapshot: &Snapshot, restored_best: bool) -> Self {
        Self {
            struct_size: size::<Self>(),
            stop_reason: stop_code(snapshot.stop_reason),
            step: snapshot.step,
            total_steps: snapshot.total_steps.unwrap_or(0),
            epoch: snapshot.epoch,
            total_tokens: snapshot.total_tokens,
            has_best: snapshot.best_value.is_some().into(),
            restored_best: restored_best.into(),
            best_step: snapshot.best_step.unwrap_or(0),
            best_value: snapshot.best_value.unwrap_or(f64::NAN),
            patience_used: snapshot.patience_used,
            elapsed_seconds: snapshot.elapsed_seconds,
            resumed: snapshot.resumed_step.is_some().into(),
            has_checkpoint: snapshot.checkpoint_step.is_some().into(),
            resumed_step: snapshot.resumed_step.unwrap_or(0),
            checkpoint_step: snapshot.checkpoint_step.unwrap_or(0),
        }
    }
}

impl sft_checkpoint_report {
    pub(super) fn new(step: u64, folder: &CStr) -> Self {
        Self {
            struct_size: size::<Self>(),
            reserved: 0,
            step,
            folder: folder.as_ptr(),
        }
    }
}

impl From<&MemoryPlan> for sft_memory_plan {
    fn from(plan: &MemoryPlan) -> Self {
        let bytes_of = |kind| plan.bytes_of(kind) as u64;
        Self {
            struct_size: size::<Self>(),
            reserved: 0,
            total_bytes: plan.total_bytes as u64,
            lower_bound_bytes: plan.lower_bound() as u64,
            weights_bytes: bytes_of(SegmentKind::Weights),
            gradients_bytes: bytes_of(SegmentKind::Gradients),
            optimizer_bytes: bytes_of(SegmentKind::Optimizer),
            activations_bytes: bytes_of(SegmentKind::Activations),
            scratch_bytes: bytes_of(SegmentKind::Scratch),
            batch_bytes: bytes_of(SegmentKind::Batch),
        }
    }
}
