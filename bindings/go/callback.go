package sft

// #include "bridge.h"
import "C"

import "runtime/cgo"

// ProgressFunc is called after each update; true asks the run to stop.
type ProgressFunc func(report StepReport) (stop bool)

// CheckpointFunc is called once a checkpoint that was due is whole on the disk: with the update that it is of and with its
// folder, which Resume takes. Checkpoints are written in the background, so it is called during a later
// call on the session than the Step of that update, or at the end of the run.
type CheckpointFunc func(step uint64, folder string)

// LogFunc receives what the library has to say, a line at a time, without a newline.
type LogFunc func(level LogLevel, message string)

// LogLevel is how much a line of the log matters.
type LogLevel int32

// The log levels.
const (
	// LogWarning: what a user should act on.
	LogWarning LogLevel = C.SFT_LOG_WARNING
	// LogInfo: what a user may want to know.
	LogInfo LogLevel = C.SFT_LOG_INFO
)

// callbacks are the functions of a host, nil where there is none.
type callbacks struct {
	progress   ProgressFunc
	checkpoint CheckpointFunc
	log        LogFunc
}

func (c callbacks) chosen() C.int {
	chosen := 0
	if c.progress != nil {
		chosen |= C.SFT_GO_PROGRESS
	}
	if c.checkpoint != nil {
		chosen |= C.SFT_GO_CHECKPOINT
	}
	if c.log != nil {
		chosen |= C.SFT_GO_LOG
	}
	return C.int(chosen)
}

// call is one call into the library while it lasts: the callbacks that it may make, and the panic of one of them,
// which must not unwind through the library and goes on once the call has returned.
type call struct {
	callbacks callbacks
	panicked  bool
	value     any
}

// during runs body, a call into the library, so that the callbacks of slot find their way.
// The library keeps no Go pointer and, outside a call, nothing that leads to Go at all: what only callbacks hold
// on to is garbage for Go's collector as anything else.
func during(slot *C.sft_go_slot, callbacks callbacks, body func()) *call {
	inside := &call{callbacks: callbacks}
	id := cgo.NewHandle(inside)
	slot.call = C.uintptr_t(id)
	defer func() {
		slot.call = 0
		id.Delete()
	}()
	body()
	return inside
}

// goOn raises the panic of a callback again.
func (c *call) goOn() {
	if c.panicked {
		panic(c.value)
	}
}

// guard runs a callback and keeps its panic. After one no callback is called until the call has returned.
func (c *call) guard(callback func()) {
	if c.panicked {
		return
	}
	c.panicked = true
	defer func() {
		if c.panicked {
			c.value = recover()
		}
	}()
	callback()
	c.panicked = false
}

//export sftGoProgress
func sftGoProgress(id C.uintptr_t, report *C.sft_step_report) C.int32_t {
	inside := cgo.Handle(id).Value().(*call)
	stop := true
	inside.guard(func() { stop = inside.callbacks.progress(stepReport(report)) })
	if stop {
		return 1
	}
	return 0
}

//export sftGoCheckpoint
func sftGoCheckpoint(id C.uintptr_t, step C.uint64_t, folder *C.char) {
	inside := cgo.Handle(id).Value().(*call)
	inside.guard(func() { inside.callbacks.checkpoint(uint64(step), C.GoString(folder)) })
}

//export sftGoLog
func sftGoLog(id C.uintptr_t, level C.int32_t, message *C.char) {
	inside := cgo.Handle(id).Value().(*call)
	inside.guard(func() { inside.callbacks.log(LogLevel(level), C.GoString(message)) })
}

// liveSlots is how many sessions' callbacks the library holds on to.
func liveSlots() int { return int(C.sft_go_live_slots()) }
