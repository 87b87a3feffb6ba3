package sft

// #include "bridge.h"
import "C"

import (
	"context"
	"errors"
	"strings"
)

// Status is what a call of the library says about how it went. It is an error, so that its constants can be
// asked for: errors.Is(err, sft.ErrBatch).
type Status int32

// The statuses. OK and ErrStopped are no failures: OK is never returned as an error, and ErrStopped says, as io.EOF
// does, that there is nothing more to do.
const (
	// OK: done.
	OK Status = C.SFT_OK
	// ErrStopped: the run has ended, nothing was done. No failure.
	ErrStopped Status = C.SFT_STOPPED
	// ErrInvalidArgument: an argument is out of range or not UTF-8, or the object is closed.
	ErrInvalidArgument Status = C.SFT_ERR_INVALID_ARGUMENT
	// ErrBusy: another call is inside the same object right now. Nothing was done.
	ErrBusy Status = C.SFT_ERR_BUSY
	// ErrPoisoned: an earlier ErrPanic left the object unusable; it can only be closed.
	ErrPoisoned Status = C.SFT_ERR_POISONED
	// ErrConfig: a configuration value is wrong or contradicts another.
	ErrConfig Status = C.SFT_ERR_CONFIG
	// ErrUnknownKey: a configuration key is not known; the message names the nearest one.
	ErrUnknownKey Status = C.SFT_ERR_UNKNOWN_KEY
	// ErrUnsupported: what was asked for is known and not supported.
	ErrUnsupported Status = C.SFT_ERR_UNSUPPORTED
	// ErrModel: the model folder or its config.json is wrong.
	ErrModel Status = C.SFT_ERR_MODEL
	// ErrUnsupportedModel: the model's architecture, or one of its options, is not supported.
	ErrUnsupportedModel Status = C.SFT_ERR_UNSUPPORTED_MODEL
	// ErrTensor: a tensor is missing, has another shape or type, or holds NaN.
	ErrTensor Status = C.SFT_ERR_TENSOR
	// ErrTokenizer: the tokenizer cannot be read or lacks what the data needs.
	ErrTokenizer Status = C.SFT_ERR_TOKENIZER
	// ErrTemplate: the chat template does not compile, or raised an error.
	ErrTemplate Status = C.SFT_ERR_TEMPLATE
	// ErrData: a data file or a row of it is wrong, or there are no rows.
	ErrData Status = C.SFT_ERR_DATA
	// ErrBatch: a batch of the host is malformed. Nothing was done.
	ErrBatch Status = C.SFT_ERR_BATCH
	// ErrIO: reading or writing a file failed.
	ErrIO Status = C.SFT_ERR_IO
	// ErrExists: a folder that must not be overwritten already exists.
	ErrExists Status = C.SFT_ERR_EXISTS
	// ErrCheckpoint: a checkpoint is damaged, incomplete or of a format that is not known.
	ErrCheckpoint Status = C.SFT_ERR_CHECKPOINT
	// ErrDevice: the device cannot be used.
	ErrDevice Status = C.SFT_ERR_DEVICE
	// ErrOutOfMemory: the run does not fit into memory.
	ErrOutOfMemory Status = C.SFT_ERR_OUT_OF_MEMORY
	// ErrCancelled: a context ended the call or, earlier, the run. Where it was the context of this call, its
	// own error is wrapped.
	ErrCancelled Status = C.SFT_ERR_CANCELLED
	// ErrPanic: a defect of the library was caught. The object is poisoned.
	ErrPanic Status = C.SFT_ERR_PANIC
	// ErrInternal: a defect of the library was found by itself.
	ErrInternal Status = C.SFT_ERR_INTERNAL
)

// String is the status's name in sft.h, such as "SFT_ERR_CONFIG"; "unknown" for a number that is none.
func (s Status) String() string { return C.GoString(C.sft_status_name(C.int32_t(s))) }

// Error is the status's name with the package's.
func (s Status) Error() string { return "sft: " + s.String() }

// ErrClosed is wrapped by the error of every call on a closed Config or Session, whose status is
// ErrInvalidArgument.
var ErrClosed = errors.New("use after Close")

// Error is a call that failed. errors.Is finds its Status, ErrClosed after a Close, and the context's error where
// a context ended the call.
type Error struct {
	// Status is the class of the error.
	Status Status
	// Message names the thing, the place (file, line, key, tensor) and the way out.
	Message string

	cause error
}

// Error is the message, with the name of the status.
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString("sft: ")
	text.WriteString(e.Message)
	text.WriteString(" (" + e.Status.String() + ")")
	if e.cause != nil {
		text.WriteString(": " + e.cause.Error())
	}
	return text.String()
}

// Is says whether target is the status of the error.
func (e *Error) Is(target error) bool {
	status, ok := target.(Status)
	return ok && status == e.Status
}

// Unwrap is the context's error or ErrClosed, where one is the cause, else nil.
func (e *Error) Unwrap() error { return e.cause }

// StatusOf is the status of an error of this package, wherever in the chain it stands: OK for nil, ErrInternal for an error
// that does not come from here.
func StatusOf(err error) Status {
	var (
		status Status
		failed *Error
	)
	switch {
	case err == nil:
		return OK
	case errors.As(err, &failed):
		return failed.Status
	case errors.As(err, &status):
		return status
	default:
		return ErrInternal
	}
}

// failure is the error of a status, with what the handle says to it; nil for OK. It must be made while
// no other call can be inside the handle.
func failure(status C.sft_status, text *C.char) error {
	switch {
	case status == C.SFT_OK:
		return nil
	case status < C.SFT_ERR_INVALID_ARGUMENT:
		return Status(status) // ErrStopped, or another outcome that is no failure and leaves no text
	default:
		return &Error{Status: Status(status), Message: C.GoString(text)}
	}
}

// blame names the context as the cause of an error that it is the cause of.
func blame(ctx context.Context, err error) error {
	if failed, ok := err.(*Error); ok && failed.Status == ErrCancelled && failed.cause == nil {
		failed.cause = ctx.Err()
	}
	return err
}

// StopReason is why a run ended.
type StopReason int32

// The stop reasons.
const (
	// StopNone: the run goes on.
	StopNone StopReason = C.SFT_STOP_NONE
	// StopTargetReached: the metric reached the target and held it.
	StopTargetReached StopReason = C.SFT_STOP_TARGET_REACHED
	// StopPlateau: no improvement for the patience of a plateau rule.
	StopPlateau StopReason = C.SFT_STOP_PLATEAU
	// StopNonFinite: loss or gradient norm was NaN or infinite.
	StopNonFinite StopReason = C.SFT_STOP_NON_FINITE
	// StopDiverged: the metric grew to a multiple of its best.
	StopDiverged StopReason = C.SFT_STOP_DIVERGED
	// StopOverfit: evaluation loss rose while training loss fell.
	StopOverfit StopReason = C.SFT_STOP_OVERFIT
	// StopMaxSteps: the budget of optimizer updates is used up.
	StopMaxSteps StopReason = C.SFT_STOP_MAX_STEPS
	// StopMaxEpochs: the budget of epochs is used up.
	StopMaxEpochs StopReason = C.SFT_STOP_MAX_EPOCHS
	// StopMaxTokens: the budget of training tokens is used up.
	StopMaxTokens StopReason = C.SFT_STOP_MAX_TOKENS
	// StopMaxTime: the budget of seconds is used up.
	StopMaxTime StopReason = C.SFT_STOP_MAX_TIME
	// StopCancelled: a context ended the run.
	StopCancelled StopReason = C.SFT_STOP_CANCELLED
	// StopCallback: the progress callback asked to stop.
	StopCallback StopReason = C.SFT_STOP_CALLBACK
)

// String is the reason as logs print it, such as "target_reached"; "none" for StopNone, "unknown" for a number that is none.
func (r StopReason) String() string { return C.GoString(C.sft_stop_reason_name(C.int32_t(r))) }
