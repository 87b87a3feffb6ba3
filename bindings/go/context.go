package sft

// #include "bridge.h"
import "C"

import "context"

// watch triggers the canceller when ctx ends, at once if it has ended. The function that it returns ends the watch, after
// which the canceller is not touched.
func watch(ctx context.Context, canceller *C.sft_canceller) (stop func()) {
	if ctx.Err() != nil {
		C.sft_canceller_cancel(canceller)
		return func() {}
	}
	if ctx.Done() == nil {
		return func() {}
	}
	over, left := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		select {
		case <-ctx.Done():
			C.sft_canceller_cancel(canceller)
		case <-over:
			// Both may be ready: a context that ended during the call counts.
			if ctx.Err() != nil {
				C.sft_canceller_cancel(canceller)
			}
		}
	}()
	return func() {
		close(over)
		<-left
	}
}
