package sft

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// handle owns a handle of the library: one call at a time, freed once, by Close or when it is garbage.
//
// The lock is only ever tried. Waiting would hang a callback that calls on the object at work, and the error text must
// be read before another call can replace it, so that the library's own SFT_ERR_BUSY comes too late.
// The finalizer hangs here and not at Config or Session: callbacks may refer to those, and a finalizer on
// a part of a cycle never runs.
type handle struct {
	what   string
	lock   sync.Mutex
	closed atomic.Bool
	free   func() // nil once it was called; must not refer to the handle
}

func newHandle(what string, free func()) *handle {
	h := &handle{what: what, free: free}
	// On a goroutine of its own: freeing a session waits for the checkpoint on the way.
	runtime.SetFinalizer(h, func(h *handle) { go h.free() })
	return h
}

// enter begins a call, which leave ends.
func (h *handle) enter() error {
	if h == nil {
		return &Error{Status: ErrInvalidArgument, Message: "this Config or Session was not made by the package's functions"}
	}
	if h.closed.Load() {
		return h.errClosed()
	}
	if !h.lock.TryLock() {
		return &Error{Status: ErrBusy, Message: "another call is inside the " + h.what + ", nothing was done"}
	}
	if h.closed.Load() {
		h.leave(run)
		return h.errClosed()
	}
	return nil
}

// leave ends a call. The last one out of a handle that was closed meanwhile frees it, through last.
func (h *handle) leave(last func(free func())) {
	h.lock.Unlock()
	if h.closed.Load() {
		h.release(last)
	}
}

// close lets no further call in and frees at once, or at the end of the call that is inside.
func (h *handle) close(last func(free func())) {
	if h == nil {
		return
	}
	h.closed.Store(true)
	h.release(last)
}

func (h *handle) release(last func(free func())) {
	if !h.lock.TryLock() {
		return // Whoever is inside comes by here when leaving.
	}
	defer h.lock.Unlock()
	if free := h.free; free != nil {
		h.free = nil
		runtime.SetFinalizer(h, nil)
		last(free)
	}
}

func run(free func()) { free() }

func (h *handle) errClosed() error {
	return &Error{Status: ErrInvalidArgument, Message: "the " + h.what + " is closed", cause: ErrClosed}
}
