package sft

// #include "bridge.h"
import "C"

// StepReport is the result of one optimizer update.
type StepReport struct {
	// StopReason is why the run ended with this update, StopNone while it goes on.
	StopReason StopReason
	// Step is the number of this update, from 1.
	Step uint64
	// Epoch is the number of epochs done, as a fraction; 0 where the host feeds the batches.
	Epoch float64
	// Loss is the mean of -log p over the update's supervised positions, in nats. The true number: it may be NaN
	// or infinite.
	Loss float64
	// SmoothedLoss is the loss as the stop rules see it after smoothing; NaN where HasSmoothedLoss is false.
	SmoothedLoss float64
	// GradNorm is the L2 norm of the whole gradient before clipping.
	GradNorm float64
	// LearningRate is the one that this update used.
	LearningRate float64
	// TokenAccuracy is the fraction of supervised positions whose most likely token is the label.
	TokenAccuracy float64
	// Entropy is the mean entropy of the predictions at supervised positions, in nats.
	Entropy float64
	// SupervisedTokens is the number of supervised positions of this update.
	SupervisedTokens uint64
	// Tokens is the number of input tokens of this update.
	Tokens uint64
	// TotalTokens is the number of input tokens of the run so far.
	TotalTokens uint64
	// Seconds is the wall time of this update without its evaluation.
	Seconds float64
	// HasSmoothedLoss says whether a stop rule smooths the loss.
	HasSmoothedLoss bool
	// HasEval says whether an evaluation was due after this update; if not, the Eval fields are NaN or 0.
	HasEval bool
	// EvalLoss is the mean of -log p over the supervised positions of the evaluation rows, in nats.
	EvalLoss float64
	// EvalTokenAccuracy is the fraction of them whose most likely token is the label.
	EvalTokenAccuracy float64
	// EvalEntropy is the mean entropy of the predictions at them, in nats.
	EvalEntropy float64
	// EvalSupervisedTokens is the number of supervised positions of the evaluation rows.
	EvalSupervisedTokens uint64
	// EvalSeconds is the wall time of the evaluation.
	EvalSeconds float64
	// LossScale is what the loss was multiplied by for this update to keep small gradients in float16; 1 in the other
	// formats. Where it is above 1 and GradNorm is not finite, the scale was too large: the update was not
	// applied, and the stop rules do not count it as a broken gradient.
	LossScale float64
	// SkippedUpdates is the number of updates of the run so far that were not applied, because their gradient was
	// not finite.
	SkippedUpdates uint64
}

func stepReport(r *C.sft_step_report) StepReport {
	return StepReport{
		StopReason:           StopReason(r.stop_reason),
		Step:                 uint64(r.step),
		Epoch:                float64(r.epoch),
		Loss:                 float64(r.loss),
		SmoothedLoss:         float64(r.smoothed_loss),
		GradNorm:             float64(r.grad_norm),
		LearningRate:         float64(r.learning_rate),
		TokenAccuracy:        float64(r.token_accuracy),
		Entropy:              float64(r.entropy),
		SupervisedTokens:     uint64(r.supervised_tokens),
		Tokens:               uint64(r.tokens),
		TotalTokens:          uint64(r.total_tokens),
		Seconds:              float64(r.seconds),
		HasSmoothedLoss:      r.has_smoothed_loss != 0,
		HasEval:              r.has_eval != 0,
		EvalLoss:             float64(r.eval_loss),
		EvalTokenAccuracy:    float64(r.eval_token_accuracy),
		EvalEntropy:          float64(r.eval_entropy),
		EvalSupervisedTokens: uint64(r.eval_supervised_tokens),
		EvalSeconds:          float64(r.eval_seconds),
		LossScale:            float64(r.loss_scale),
		SkippedUpdates:       uint64(r.skipped_updates),
	}
}

// EvalReport is the result of an evaluation, weighted by tokens over all its rows.
type EvalReport struct {
	// StopReason is why the run ended with this evaluation or before, StopNone while it goes on.
	StopReason StopReason
	// Step is the update after which it was taken; 0 is before the first.
	Step uint64
	// Loss is the mean of -log p over supervised positions, in nats.
	Loss float64
	// TokenAccuracy is the fraction of supervised positions whose most likely token is the label.
	TokenAccuracy float64
	// Entropy is the mean entropy of the predictions at supervised positions, in nats.
	Entropy float64
	// SupervisedTokens is the number of supervised positions.
	SupervisedTokens uint64
	// Tokens is the number of input tokens.
	Tokens uint64
	// Seconds is the wall time.
	Seconds float64
}

func evalReport(r *C.sft_eval_report) EvalReport {
	return EvalReport{
		StopReason:       StopReason(r.stop_reason),
		Step:             uint64(r.step),
		Loss:             float64(r.loss),
		TokenAccuracy:    float64(r.token_accuracy),
		Entropy:          float64(r.entropy),
		SupervisedTokens: uint64(r.supervised_tokens),
		Tokens:           uint64(r.tokens),
		Seconds:          float64(r.seconds),
	}
}

// Snapshot is where a run stands.
type Snapshot struct {
	// StopReason is why the run ended, StopNone while it goes on.
	StopReason StopReason
	// Step is the number of updates done.
	Step uint64
	// TotalSteps is the number of updates planned; 0 where that is not known.
	TotalSteps uint64
	// Epoch is the number of epochs done, as a fraction.
	Epoch float64
	// TotalTokens is the number of input tokens of the run so far.
	TotalTokens uint64
	// HasBest says whether there is a best value; if not, BestValue is NaN.
	HasBest bool
	// RestoredBest says whether the weights are those of the best step, put back when the run ended.
	RestoredBest bool
	// BestStep is the update after which the best value was seen; 0 where that is not known.
	BestStep uint64
	// BestValue is the best value so far of the metric that metric_for_best_model names; without it, of the first
	// plateau rule's, else of the evaluation loss, else of the training loss.
	BestValue float64
	// PatienceUsed is the patience that the plateau rule has used up.
	PatienceUsed uint64
	// ElapsedSeconds is the wall time of the run so far, over all its resumptions.
	ElapsedSeconds float64
	// Resumed says whether the run went on from a checkpoint.
	Resumed bool
	// HasCheckpoint says whether a checkpoint of the run is known to be whole on the disk.
	HasCheckpoint bool
	// ResumedStep is the update that it went on from; 0 where Resumed is false. A host that feeds its own batches
	// goes on with those of the next update.
	ResumedStep uint64
	// CheckpointStep is the update of the newest such checkpoint; 0 where HasCheckpoint is false.
	CheckpointStep uint64
}

func snapshot(s *C.sft_snapshot) Snapshot {
	return Snapshot{
		StopReason:     StopReason(s.stop_reason),
		Step:           uint64(s.step),
		TotalSteps:     uint64(s.total_steps),
		Epoch:          float64(s.epoch),
		TotalTokens:    uint64(s.total_tokens),
		HasBest:        s.has_best != 0,
		RestoredBest:   s.restored_best != 0,
		BestStep:       uint64(s.best_step),
		BestValue:      float64(s.best_value),
		PatienceUsed:   uint64(s.patience_used),
		ElapsedSeconds: float64(s.elapsed_seconds),
		Resumed:        s.resumed != 0,
		HasCheckpoint:  s.has_checkpoint != 0,
		ResumedStep:    uint64(s.resumed_step),
		CheckpointStep: uint64(s.checkpoint_step),
	}
}

// MemoryPlan is what a run will take of memory.
type MemoryPlan struct {
	// TotalBytes is the size of the one allocation that holds everything.
	TotalBytes uint64
	// LowerBoundBytes is the largest number of bytes that live at the same time: no plan can be smaller.
	LowerBoundBytes uint64
	// WeightsBytes is that of the parameters. This and the following may share bytes of the total.
	WeightsBytes uint64
	// GradientsBytes is that of their gradients.
	GradientsBytes uint64
	// OptimizerBytes is that of the optimizer's moments.
	OptimizerBytes uint64
	// ActivationsBytes is what the forward pass keeps for the backward pass.
	ActivationsBytes uint64
	// ScratchBytes is what lives within a phase of an update.
	ScratchBytes uint64
	// BatchBytes is that of token ids, labels, positions and tables.
	BatchBytes uint64
}

func memoryPlan(p *C.sft_memory_plan) MemoryPlan {
	return MemoryPlan{
		TotalBytes:       uint64(p.total_bytes),
		LowerBoundBytes:  uint64(p.lower_bound_bytes),
		WeightsBytes:     uint64(p.weights_bytes),
		GradientsBytes:   uint64(p.gradients_bytes),
		OptimizerBytes:   uint64(p.optimizer_bytes),
		ActivationsBytes: uint64(p.activations_bytes),
		ScratchBytes:     uint64(p.scratch_bytes),
		BatchBytes:       uint64(p.batch_bytes),
	}
}
