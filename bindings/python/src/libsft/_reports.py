"""What calls return: plain values that hold on to nothing."""

from dataclasses import dataclass
from typing import Optional

from ._native import (
    CheckpointReportStruct,
    EvalReportStruct,
    MemoryPlanStruct,
    SnapshotStruct,
    StepReportStruct,
)
from ._status import StopReason


@dataclass(frozen=True)
class Evaluation:
    """Numbers of evaluation rows, weighted by tokens over all of them."""

    #: The update after which they were taken; 0 is before the first.
    step: int
    #: Mean of -log p over supervised positions, in nats.
    loss: float
    #: Fraction of supervised positions whose most likely token is the label.
    token_accuracy: float
    #: Mean entropy of the predictions at supervised positions, in nats.
    entropy: float
    #: Supervised positions.
    supervised_tokens: int
    #: Input tokens; None in a :class:`StepReport`, which does not say.
    tokens: Optional[int]
    #: Wall time, in seconds.
    seconds: float
    #: Why the run ended with this evaluation or before.
    stop_reason: StopReason

    @classmethod
    def _of(cls, c: EvalReportStruct) -> "Evaluation":
        return cls(
            step=c.step,
            loss=c.loss,
            token_accuracy=c.token_accuracy,
            entropy=c.entropy,
            supervised_tokens=c.supervised_tokens,
            tokens=c.tokens,
            seconds=c.seconds,
            stop_reason=StopReason(c.stop_reason),
        )


@dataclass(frozen=True)
class StepReport:
    """The result of one optimizer update."""

    #: Number of this update, from 1.
    step: int
    #: Epochs done, as a fraction; 0 where the host feeds the batches.
    epoch: float
    #: Mean of -log p over the update's supervised positions, in nats; may be NaN or infinite.
    loss: float
    #: The loss as the stop rules see it after smoothing; None if no rule smooths it.
    smoothed_loss: Optional[float]
    #: L2 norm of the whole gradient before clipping.
    grad_norm: float
    #: The learning rate that this update used.
    learning_rate: float
    #: Fraction of supervised positions whose most likely token is the label.
    token_accuracy: float
    #: Mean entropy of the predictions at supervised positions, in nats.
    entropy: float
    #: Supervised positions of this update.
    supervised_tokens: int
    #: Input tokens of this update.
    tokens: int
    #: Input tokens of the run so far.
    total_tokens: int
    #: Wall time of this update without its evaluation, in seconds.
    seconds: float
    #: What the loss was multiplied by in float16; 1 in the other formats.
    loss_scale: float
    #: Updates of the run so far that were not applied, because their gradient was not finite.
    skipped_updates: int
    #: The evaluation that was due after this update, if one was.
    evaluation: Optional[Evaluation]
    #: Why the run ended with this update; false while it goes on.
    stop_reason: StopReason

    @property
    def eval_loss(self) -> Optional[float]:
        """The loss of the evaluation that was due after this update, if one was."""
        return self.evaluation.loss if self.evaluation else None

    @classmethod
    def _of(cls, c: StepReportStruct) -> "StepReport":
        reason = StopReason(c.stop_reason)
        evaluation = None
        if c.has_eval:
            evaluation = Evaluation(
                step=c.step,
                loss=c.eval_loss,
                token_accuracy=c.eval_token_accuracy,
                entropy=c.eval_entropy,
                supervised_tokens=c.eval_supervised_tokens,
                tokens=None,
                seconds=c.eval_seconds,
                stop_reason=reason,
            )
        return cls(
            step=c.step,
            epoch=c.epoch,
            loss=c.loss,
            smoothed_loss=c.smoothed_loss if c.has_smoothed_loss else None,
            grad_norm=c.grad_norm,
            learning_rate=c.learning_rate,
            token_accuracy=c.token_accuracy,
            entropy=c.entropy,
            supervised_tokens=c.supervised_tokens,
            tokens=c.tokens,
            total_tokens=c.total_tokens,
            seconds=c.seconds,
            loss_scale=c.loss_scale,
            skipped_updates=c.skipped_updates,
            evaluation=evaluation,
            stop_reason=reason,
        )


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands."""

    #: Updates done.
    step: int
    #: Updates planned; None where that is not known.
    total_steps: Optional[int]
    #: Epochs done, as a fraction.
    epoch: float
    #: Input tokens of the run so far.
    total_tokens: int
    #: The best value so far of the metric that decides what is best; None before there is one.
    best_value: Optional[float]
    #: The update after which it was seen; None where that is not known.
    best_step: Optional[int]
    #: Whether the weights are those of the best step, put back when the run ended.
    restored_best: bool
    #: Patience that the plateau rule has used up.
    patience_used: int
    #: Wall time of the run so far, over all its resumptions, in seconds.
    elapsed_seconds: float
    #: The update that the run went on from; None if it did not go on from a checkpoint.
    resumed_step: Optional[int]
    #: The update of the newest checkpoint that is known to be whole on the disk.
    checkpoint_step: Optional[int]
    #: Why the run ended; false while it goes on.
    stop_reason: StopReason

    @property
    def resumed(self) -> bool:
        """Whether the run went on from a checkpoint."""
        return self.resumed_step is not None

    @classmethod
    def _of(cls, c: SnapshotStruct) -> "Snapshot":
        return cls(
            step=c.step,
            total_steps=c.total_steps or None,
            epoch=c.epoch,
            total_tokens=c.total_tokens,
            best_value=c.best_value if c.has_best else None,
            best_step=(c.best_step or None) if c.has_best else None,
            restored_best=bool(c.restored_best),
            patience_used=c.patience_used,
            elapsed_seconds=c.elapsed_seconds,
            resumed_step=c.resumed_step if c.resumed else None,
            checkpoint_step=c.checkpoint_step if c.has_checkpoint else None,
            stop_reason=StopReason(c.stop_reason),
        )


@dataclass(frozen=True)
class Plan:
    """What a run will take of memory, in bytes. The parts may share bytes of the total."""

    #: Size of the one allocation that holds everything.
    total_bytes: int
    #: The largest number of bytes that live at the same time: no plan can be smaller.
    lower_bound_bytes: int
    #: The parameters.
    weights_bytes: int
    #: Their gradients.
    gradients_bytes: int
    #: The optimizer's moments.
    optimizer_bytes: int
    #: What the forward pass keeps for the backward pass.
    activations_bytes: int
    #: What lives within a phase of an update.
    scratch_bytes: int
    #: Token ids, labels, positions and tables.
    batch_bytes: int

    @classmethod
    def _of(cls, c: MemoryPlanStruct) -> "Plan":
        return cls(
            total_bytes=c.total_bytes,
            lower_bound_bytes=c.lower_bound_bytes,
            weights_bytes=c.weights_bytes,
            gradients_bytes=c.gradients_bytes,
            optimizer_bytes=c.optimizer_bytes,
            activations_bytes=c.activations_bytes,
            scratch_bytes=c.scratch_bytes,
            batch_bytes=c.batch_bytes,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole on the disk."""

    #: The update that it is of.
    step: int
    #: Its folder, which :meth:`Config.resume` takes.
    folder: str

    @classmethod
    def _of(cls, c: CheckpointReportStruct) -> "Checkpoint":
        return cls(step=c.step, folder=(c.folder or b"").decode("utf-8", "replace"))
