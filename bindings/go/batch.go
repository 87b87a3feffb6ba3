package sft

// #include <stdlib.h>
// #include "bridge.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// NoLabel is the label of a token that is not trained on.
const NoLabel int32 = -100

// Batch is sequences of tokens laid end to end, as the host feeds them. Position i of a sequence predicts the label at i + 1, so
// labels are not shifted, and the first label of each sequence never counts. The slices are only read, and only during
// the call; a single batch is handed to the library where it lies, several are copied.
type Batch struct {
	// Tokens are token ids, each from 0 to below the size of the model's vocabulary.
	Tokens []int32
	// Labels are as many labels: the token ids, or NoLabel where not trained on. nil: all are trained on.
	Labels []int32
	// SeqStarts are the positions at which a sequence starts, ascending from 0. nil: all tokens are one
	// sequence.
	SeqStarts []int32
}

// check finds what C cannot see: there, lengths have no memory behind them.
func check(batches []Batch) error {
	for i, b := range batches {
		if b.Labels != nil && len(b.Labels) != len(b.Tokens) {
			return &Error{Status: ErrBatch, Message: fmt.Sprintf(
				"batch %d: there are %d labels for %d tokens: give each token a label, or nil to train on all",
				i, len(b.Labels), len(b.Tokens))}
		}
		if b.SeqStarts != nil && len(b.SeqStarts) == 0 && len(b.Tokens) > 0 {
			return &Error{Status: ErrBatch, Message: fmt.Sprintf(
				"batch %d: SeqStarts is empty: give the starts, or nil where all tokens are one sequence", i)}
		}
	}
	return nil
}

// first is where the numbers begin; NULL where there are none.
func first(numbers []int32) *C.int32_t {
	if len(numbers) == 0 {
		return nil
	}
	return (*C.int32_t)(unsafe.Pointer(&numbers[0]))
}

// copied puts several batches into C's memory, which must be freed: an array of structs with pointers to Go's numbers
// is what cgo forbids.
func copied(batches []Batch) *C.sft_batch {
	total := 0
	for _, b := range batches {
		total += len(b.Tokens) + len(b.Labels) + len(b.SeqStarts)
	}
	structs := C.size_t(len(batches)) * C.sizeof_sft_batch
	memory := C.calloc(1, structs+C.size_t(total)*C.sizeof_int32_t+1)
	rest := unsafe.Slice((*int32)(unsafe.Add(memory, structs)), total)
	place := func(numbers []int32) *C.int32_t {
		if len(numbers) == 0 {
			return nil
		}
		at := first(rest)
		rest = rest[copy(rest, numbers):]
		return at
	}
	for i, b := range batches {
		to := (*C.sft_batch)(unsafe.Add(memory, i*C.sizeof_sft_batch))
		to.struct_size = C.sizeof_sft_batch
		to.tokens, to.n_tokens = place(b.Tokens), C.size_t(len(b.Tokens))
		to.labels = place(b.Labels)
		to.seq_starts, to.n_seqs = place(b.SeqStarts), C.size_t(len(b.SeqStarts))
	}
	return (*C.sft_batch)(memory)
}
