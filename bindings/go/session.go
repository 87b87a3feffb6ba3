package sft

// #include <stdlib.h>
// #include "bridge.h"
import "C"

import (
	"context"
	"runtime"
	"unsafe"
)

// Session is a run: the model, the data, the optimizer and the stop rules. Config.Start and Config.Resume make it.
//
// It does one call at a time: a call that overlaps another on the same Session, or one that a callback makes, returns ErrBusy and has
// done nothing. ShouldStop, StopReason and Close may be called at any time from any goroutine.
//
// A context that ends cancels the run for good: a running update is finished, an evaluation is broken off, and the run's stop
// reason is StopCancelled. The call returns ErrCancelled, which wraps the context's error, so that errors.Is finds
// context.Canceled or context.DeadlineExceeded. Save and Export still work after that.
type Session struct {
	handle    *handle
	session   *C.sft_session
	links     links
	callbacks callbacks
}

func newSession(session *C.sft_session, links links, callbacks callbacks) *Session {
	free := func() {
		C.sft_session_free(session)
		links.release()
	}
	return &Session{newHandle("session", free), session, links, callbacks}
}

// Close frees the session with all its memory, once the checkpoint on the way is written, and lets go of its callbacks.
// If another call is inside, one on another goroutine or the one whose callback closes, that call ends as usual and the memory goes then.
// It never fails, and closing again does nothing. A session that is garbage is closed too, sooner or later, but its
// memory is not Go's and does not hurry the collector.
func (s *Session) Close() error {
	s.handle.close(s.last)
	return nil
}

// last frees, with the callbacks in reach: a checkpoint may become whole.
func (s *Session) last(free func()) {
	C.sft_go_slot_retain(s.links.slot)
	defer C.sft_go_slot_release(unsafe.Pointer(s.links.slot))
	inside := during(s.links.slot, s.callbacks, free)
	s.callbacks = callbacks{}
	inside.goOn()
}

// call is a call on the handle.
func (s *Session) call(ctx context.Context, body func() C.sft_status) error {
	if err := s.handle.enter(); err != nil {
		return err
	}
	defer s.handle.leave(s.last)
	var status C.sft_status
	inside := func() *call {
		stop := watch(ctx, s.links.canceller)
		defer stop()
		return during(s.links.slot, s.callbacks, func() { status = body() })
	}()
	var err error
	if status != C.SFT_OK {
		err = failure(status, C.sft_last_error(s.session))
	}
	inside.goOn()
	return s.blame(ctx, err)
}

// blame names the context as what ended the call or the run. A run that ended for another reason has ended well,
// whatever became of the context meanwhile.
func (s *Session) blame(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if (err == nil || err == ErrStopped) && C.sft_stop_reason(s.session) == C.SFT_STOP_CANCELLED {
		err = &Error{Status: ErrCancelled, Message: "the run was cancelled"}
	}
	return blame(ctx, err)
}

// Step is one optimizer update on the next rows, with the evaluation, checkpoint and stop decision that are due after
// it. Once the run has ended it does nothing and returns ErrStopped, which is to a run what io.EOF is to a reader.
//
// Errors: ErrInvalidArgument, also for a run without dataset_name. ErrIO if the log cannot be written or an earlier
// checkpoint could not: the update has taken effect all the same, the run can go on, and LastReport has the report. ErrCancelled if ctx has
// ended: where that was during the update, the update has taken effect and the report is returned as well.
// ErrDevice if the device failed: every later call that needs it fails alike, and the session can only be closed.
func (s *Session) Step(ctx context.Context) (StepReport, error) {
	return s.step(ctx, func(out *C.sft_step_report) C.sft_status { return C.sft_step(s.session, out) })
}

// StepBatch is one optimizer update on the host's own tokens. The micro-batches are one update together: the loss is
// the mean over the supervised positions of all of them.
//
// Errors: as Step, and ErrBatch for a malformed micro-batch: nothing was done.
func (s *Session) StepBatch(ctx context.Context, micro ...Batch) (StepReport, error) {
	if err := check(micro); err != nil {
		return StepReport{}, err
	}
	return s.step(ctx, func(out *C.sft_step_report) C.sft_status {
		if len(micro) == 1 {
			b := &micro[0]
			return C.sft_go_step_one(s.session, first(b.Tokens), C.size_t(len(b.Tokens)), first(b.Labels),
				first(b.SeqStarts), C.size_t(len(b.SeqStarts)), out)
		}
		batches := copied(micro)
		defer C.free(unsafe.Pointer(batches))
		return C.sft_step_batch(s.session, batches, C.size_t(len(micro)), out)
	})
}

func (s *Session) step(ctx context.Context, body func(out *C.sft_step_report) C.sft_status) (StepReport, error) {
	report := C.sft_step_report{struct_size: C.sizeof_sft_step_report}
	err := s.call(ctx, func() C.sft_status { return body(&report) })
	return stepReport(&report), err
}

// LastReport is the report of the last update since Start or Resume, as its Step returned it or would have: for an update
// that took effect although its Step returned an error, or a callback panicked.
//
// Errors: ErrInvalidArgument if there has been no update.
func (s *Session) LastReport() (StepReport, error) {
	return s.step(context.Background(), func(out *C.sft_step_report) C.sft_status {
		return C.sft_last_report(s.session, out)
	})
}

// Run steps until the run ends, and says why it did. Reports go to Config.Progress. An error is one of Step; where
// the context ended the run the reason is StopCancelled and the error is not nil.
func (s *Session) Run(ctx context.Context) (StopReason, error) {
	for {
		if _, err := s.Step(ctx); err == ErrStopped {
			return s.StopReason(), nil
		} else if err != nil {
			return s.StopReason(), err
		}
	}
}

// Evaluate evaluates on the evaluation rows now. The result is logged and seen by the stop rules. Also after the run has
// ended, unless a context ended it.
//
// Errors: ErrData if there are no evaluation rows; ErrCancelled; ErrIO if the log cannot be written.
func (s *Session) Evaluate(ctx context.Context) (EvalReport, error) {
	return s.evaluate(ctx, func(out *C.sft_eval_report) C.sft_status { return C.sft_evaluate(s.session, out) })
}

// EvaluateBatch is as Evaluate, on the host's batches.
//
// Errors: ErrBatch or ErrInvalidArgument for a malformed batch, ErrData if nothing in them is supervised.
func (s *Session) EvaluateBatch(ctx context.Context, batches ...Batch) (EvalReport, error) {
	if err := check(batches); err != nil {
		return EvalReport{}, err
	}
	return s.evaluate(ctx, func(out *C.sft_eval_report) C.sft_status {
		if len(batches) == 1 {
			b := &batches[0]
			return C.sft_go_evaluate_one(s.session, first(b.Tokens), C.size_t(len(b.Tokens)), first(b.Labels),
				first(b.SeqStarts), C.size_t(len(b.SeqStarts)), out)
		}
		all := copied(batches)
		defer C.free(unsafe.Pointer(all))
		return C.sft_evaluate_batch(s.session, all, C.size_t(len(batches)), out)
	})
}

// EvalSet is the numbers of one set of the last evaluation, whatever asked for it: a step, the start of the run or
// Evaluate. The name is one of eval_dataset_name where that names several sets, or empty for all sets together.
//
// Errors: ErrInvalidArgument if the run has not evaluated yet, or no set of that evaluation has the name.
func (s *Session) EvalSet(name string) (report EvalReport, err error) {
	err = withText("name", name, func(text *C.char) error {
		if name == "" {
			text = nil
		}
		report, err = s.evaluate(context.Background(), func(out *C.sft_eval_report) C.sft_status {
			return C.sft_eval_set(s.session, text, out)
		})
		return err
	})
	return report, err
}

func (s *Session) evaluate(ctx context.Context, body func(out *C.sft_eval_report) C.sft_status) (EvalReport, error) {
	report := C.sft_eval_report{struct_size: C.sizeof_sft_eval_report}
	err := s.call(ctx, func() C.sft_status { return body(&report) })
	return evalReport(&report), err
}

// Observe feeds a number of the host's own to the stop rules, as known after the last update. A rule names it by its
// metric; a built-in name such as "eval_loss" stands for that metric, so a host may evaluate by itself. NaN is
// allowed and never counts as progress.
//
// Errors: ErrInvalidArgument if metric is empty or not UTF-8; ErrIO if what is due at the end of the run cannot
// be written.
func (s *Session) Observe(metric string, value float64) error {
	return s.withText("metric", metric, func(metric *C.char) C.sft_status {
		return C.sft_observe(s.session, metric, C.double(value))
	})
}

// ShouldStop says whether the run has ended; it stays true once it has. Also true where there is nothing to step: for a closed or a
// poisoned session, and after the device failed.
func (s *Session) ShouldStop() bool {
	stop := bool(C.sft_should_stop(s.session)) || s.handle == nil || s.handle.closed.Load()
	runtime.KeepAlive(s)
	return stop
}

// StopReason is why the run ended: StopNone while it goes on and for a closed session.
func (s *Session) StopReason() StopReason {
	reason := StopReason(C.sft_stop_reason(s.session))
	runtime.KeepAlive(s)
	return reason
}

// Snapshot is where the run stands.
func (s *Session) Snapshot() (Snapshot, error) {
	out := C.sft_snapshot{struct_size: C.sizeof_sft_snapshot}
	err := s.call(context.Background(), func() C.sft_status { return C.sft_snapshot_get(s.session, &out) })
	return snapshot(&out), err
}

// Save writes a checkpoint to the folder dir, whole or not at all, durable on return: all that a run needs to go on by
// Config.Resume. It is a Hugging Face model folder too, with the weights of the last update. Once the run has ended and the best
// weights are back (Snapshot.RestoredBest), those are in the checkpoint beside the last ones, and Export is what
// writes them as a model.
//
// Errors: ErrIO naming the file; what stood in dir stays as it was.
func (s *Session) Save(dir string) error {
	return s.withText("dir", dir, func(dir *C.char) C.sft_status { return C.sft_save(s.session, dir) })
}

// ExportKind is what Export writes.
type ExportKind int32

// The kinds of export.
const (
	// ExportFull: the whole model as a Hugging Face folder.
	ExportFull ExportKind = C.SFT_EXPORT_FULL
	// ExportAdapter: the adapter alone. Not supported in this version.
	ExportAdapter ExportKind = C.SFT_EXPORT_ADAPTER
	// ExportMerged: the model with the adapter merged in. Not supported in this version.
	ExportMerged ExportKind = C.SFT_EXPORT_MERGED
)

// Export writes what the run has made to the folder dir, whole or not at all.
//
// Errors: ErrIO naming the file; an earlier model in dir stays as it was. ErrUnsupported for an adapter,
// ErrInvalidArgument for a kind that is none.
func (s *Session) Export(dir string, what ExportKind) error {
	return s.withText("dir", dir, func(dir *C.char) C.sft_status {
		return C.sft_export(s.session, dir, C.int32_t(what))
	})
}

func (s *Session) withText(name, text string, body func(text *C.char) C.sft_status) error {
	return withText(name, text, func(text *C.char) error {
		return s.call(context.Background(), func() C.sft_status { return body(text) })
	})
}
