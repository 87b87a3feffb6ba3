package sft

// #include <stdlib.h>
// #include "bridge.h"
import "C"

import (
	"context"
	"encoding/json"
	"strings"
	"unsafe"
)

// Config is the configuration of runs: keys with values, and the callbacks of the host. Make it by NewConfig. Keys are those of
// the command line's configuration files.
//
// It does one call at a time: a call that overlaps another on the same Config returns ErrBusy.
type Config struct {
	// Progress, Checkpoint and Log are read by Start and Resume, for the session that they make, and Log by Plan
	// too; nil for none. They run on the goroutine that called, inside the call. There, calls on the object that
	// is at work return ErrBusy; ShouldStop, StopReason and Close work. A panic goes on out of the
	// call, once the library has returned from it; one of Progress ends the run as well, by StopCallback. Sessions on several goroutines that share a callback may call it at
	// the same time.
	Progress   ProgressFunc
	Checkpoint CheckpointFunc
	Log        LogFunc

	handle *handle
	config *C.sft_config
}

// NewConfig makes a configuration with every key at its default. It fails where the running library is not of the
// binary interface that the program was built for.
func NewConfig() (*Config, error) {
	if errABI != nil {
		return nil, errABI
	}
	config := C.sft_config_new()
	if config == nil {
		return nil, errNoMemory()
	}
	return &Config{
		handle: newHandle("configuration", func() { C.sft_config_free(config) }),
		config: config,
	}, nil
}

func errNoMemory() error {
	return &Error{Status: ErrOutOfMemory, Message: "there is no memory for a handle"}
}

// Close frees the configuration. Sessions that were started from it go on. It never fails, and closing
// again does nothing.
func (c *Config) Close() error {
	c.handle.close(run)
	return nil
}

// do is a call on the handle.
func (c *Config) do(body func() C.sft_status) error {
	if err := c.handle.enter(); err != nil {
		return err
	}
	defer c.handle.leave(run)
	return c.failure(body())
}

func (c *Config) failure(status C.sft_status) error {
	if status == C.SFT_OK {
		return nil
	}
	return failure(status, C.sft_config_last_error(c.config))
}

// MergeJSON sets the keys of a JSON object: all of them or, on an error, none.
//
// Errors: ErrConfig for malformed JSON or a value of the wrong type, ErrUnknownKey, ErrUnsupported,
// ErrInvalidArgument.
func (c *Config) MergeJSON(object []byte) error {
	if len(object) == 0 {
		object = []byte(" ")
	}
	return c.do(func() C.sft_status {
		return C.sft_config_merge_json(c.config, (*C.char)(unsafe.Pointer(&object[0])), C.size_t(len(object)))
	})
}

// MergeFile sets the keys of the YAML or JSON file at path: all of them or, on an error, none. The message of an error
// names the file and, where it is about a key or the syntax, the line.
//
// Errors: ErrIO if the file cannot be read, else as MergeJSON.
func (c *Config) MergeFile(path string) error {
	return withText("path", path, func(path *C.char) error {
		return c.do(func() C.sft_status { return C.sft_config_merge_file(c.config, path) })
	})
}

// Merge sets the keys of a map or a struct, by way of encoding/json; nil sets none. Errors: as MergeJSON, and
// ErrConfig for what cannot be written as JSON.
func (c *Config) Merge(values any) error {
	object, err := json.Marshal(values)
	if err != nil {
		return &Error{Status: ErrConfig, Message: "the values cannot be written as JSON", cause: err}
	}
	if string(object) == "null" {
		object = []byte("{}")
	}
	return c.MergeJSON(object)
}

// Set sets one key to a text, which is read as the key needs it: "5" sets a number, "null" clears an optional key, JSON
// sets a nested one such as "stop". A key with dots reaches inside a nested one: "lr_scheduler_kwargs.num_cycles".
//
// Errors: ErrConfig for a value of the wrong type, ErrUnknownKey, ErrUnsupported, ErrInvalidArgument.
func (c *Config) Set(key, value string) error {
	return withText("value", value, func(value *C.char) error {
		return c.set(key, func(key *C.char) C.sft_status {
			return C.sft_config_set_str(c.config, key, value)
		})
	})
}

// SetInt sets one key to a whole number. Errors: as Set.
func (c *Config) SetInt(key string, value int64) error {
	return c.set(key, func(key *C.char) C.sft_status {
		return C.sft_config_set_i64(c.config, key, C.int64_t(value))
	})
}

// SetFloat sets one key to a number, which must be finite. Errors: as Set.
func (c *Config) SetFloat(key string, value float64) error {
	return c.set(key, func(key *C.char) C.sft_status {
		return C.sft_config_set_f64(c.config, key, C.double(value))
	})
}

// SetBool sets one key to false or true. Errors: as Set.
func (c *Config) SetBool(key string, value bool) error {
	number := C.int32_t(0)
	if value {
		number = 1
	}
	return c.set(key, func(key *C.char) C.sft_status {
		return C.sft_config_set_bool(c.config, key, number)
	})
}

func (c *Config) set(key string, body func(key *C.char) C.sft_status) error {
	return withText("key", key, func(key *C.char) error {
		return c.do(func() C.sft_status { return body(key) })
	})
}

// withText runs body with a copy of text in C's memory. A NUL would end it early there.
func withText(name, text string, body func(text *C.char) error) error {
	if strings.IndexByte(text, 0) >= 0 {
		return &Error{Status: ErrInvalidArgument, Message: name + " has a NUL byte in it"}
	}
	copied := C.CString(text)
	defer C.free(unsafe.Pointer(copied))
	return body(copied)
}

// JSON writes all keys with their values, defaults included, as a JSON object that MergeJSON takes.
func (c *Config) JSON() ([]byte, error) {
	var out *C.char
	err := c.do(func() C.sft_status { return C.sft_config_to_json(c.config, &out) })
	return taken(out), err
}

// taken is a string that the library gave away.
func taken(text *C.char) []byte {
	if text == nil {
		return nil
	}
	defer C.sft_string_free(text)
	return []byte(C.GoString(text))
}

// Plan plans the memory of a run, without allocating it: it reads the model's config.json and, where the configuration names data,
// tokenises the rows (or finds them in the cache).
//
// Errors: those of Start about the configuration, the model's config.json and the data; ErrCancelled, wrapping
// the context's error, if ctx ends meanwhile.
func (c *Config) Plan(ctx context.Context) (MemoryPlan, error) {
	plan := C.sft_memory_plan{struct_size: C.sizeof_sft_memory_plan}
	err := c.plan(ctx, func() C.sft_status { return C.sft_plan(c.config, &plan) })
	return memoryPlan(&plan), err
}

// PlanJSON is as Plan, with every tensor: a JSON object whose "total_bytes" is the size and whose "segments" are objects
// with "name", "kind", "bytes", "offset" and the first and last phase of the update in which the tensor lives, "birth"
// and "death".
func (c *Config) PlanJSON(ctx context.Context) ([]byte, error) {
	var out *C.char
	err := c.plan(ctx, func() C.sft_status { return C.sft_plan_json(c.config, &out) })
	return taken(out), err
}

func (c *Config) plan(ctx context.Context, body func() C.sft_status) error {
	links, err := newLinks()
	if err != nil {
		return err
	}
	defer links.release()
	return c.call(ctx, links, callbacks{log: c.Log}, body)
}

// Start starts a run: it loads the model and the data that the configuration names, allocates all memory, and opens the log in
// output_dir; or goes on from a checkpoint where resume_from_checkpoint says so. The configuration is copied and can be
// changed, used again or closed. Without dataset_name the host feeds its own batches by StepBatch.
//
// ctx is for the start alone, as with net.Dialer: what ends the run is the context of the calls that step it.
//
// Errors: any, each naming what is wrong and where; ErrCancelled, wrapping the context's error, if ctx ends
// meanwhile. A failed start leaves output_dir as it was.
func (c *Config) Start(ctx context.Context) (*Session, error) {
	return c.begin(ctx, func(out **C.sft_session) C.sft_status { return C.sft_start(c.config, out) })
}

// Resume is as Start, going on from the checkpoint in the folder dir whatever resume_from_checkpoint says. With the same
// configuration and rows the run gives the numbers that it would have given without the interruption, bit
// for bit. A host that feeds its own batches goes on with those after the snapshot's step. The log in
// output_dir is cut to where the checkpoint was made, and goes on there.
//
// Errors: as Start. ErrCheckpoint if dir holds no whole checkpoint. ErrConfig if the configuration or the rows have
// changed in what changes the numbers; the message lists every key, and resume_allow_changes allows them.
// ErrExists if output_dir has newer checkpoints of the run: overwrite_output_dir removes them.
func (c *Config) Resume(ctx context.Context, dir string) (session *Session, err error) {
	err = withText("dir", dir, func(dir *C.char) error {
		session, err = c.begin(ctx, func(out **C.sft_session) C.sft_status { return C.sft_resume(c.config, dir, out) })
		return err
	})
	return session, err
}

func (c *Config) begin(ctx context.Context, start func(out **C.sft_session) C.sft_status) (*Session, error) {
	links, err := newLinks()
	if err != nil {
		return nil, err
	}
	var handle *C.sft_session
	mine := true
	// Also when a callback panics, as the log may.
	defer func() {
		if mine {
			C.sft_session_free(handle)
			links.release()
		}
	}()
	callbacks := callbacks{c.Progress, c.Checkpoint, c.Log}
	if err := c.call(ctx, links, callbacks, func() C.sft_status { return start(&handle) }); err != nil {
		return nil, err
	}
	// The context ended when the library no longer looked.
	if ctx.Err() != nil && C.sft_stop_reason(handle) == C.SFT_STOP_CANCELLED {
		return nil, &Error{Status: ErrCancelled, Message: "cancelled while starting", cause: ctx.Err()}
	}
	mine = false
	return newSession(handle, links, callbacks), nil
}

// call is a call on the handle that a context may end and that may call the host. What it needs for that is the
// configuration's for as long as it lasts.
func (c *Config) call(ctx context.Context, links links, callbacks callbacks, body func() C.sft_status) error {
	if err := c.handle.enter(); err != nil {
		return err
	}
	defer c.handle.leave(run)
	defer C.sft_go_detach(c.config)
	status := C.sft_go_attach(c.config, links.slot, callbacks.chosen())
	if status == C.SFT_OK {
		status = C.sft_config_set_canceller(c.config, links.canceller)
	}
	if status != C.SFT_OK {
		return c.failure(status)
	}
	inside := func() *call {
		stop := watch(ctx, links.canceller)
		defer stop()
		return during(links.slot, callbacks, func() { status = body() })
	}()
	err := blame(ctx, c.failure(status))
	inside.goOn()
	return err
}

// links are what leads from a session back to its host: the callbacks' slot and the canceller that contexts trigger.
type links struct {
	slot      *C.sft_go_slot
	canceller *C.sft_canceller
}

func newLinks() (links, error) {
	links := links{C.sft_go_slot_new(), C.sft_canceller_new()}
	if links.slot == nil || links.canceller == nil {
		links.release()
		return links, errNoMemory()
	}
	return links, nil
}

func (l links) release() {
	C.sft_canceller_free(l.canceller)
	if l.slot != nil {
		C.sft_go_slot_release(unsafe.Pointer(l.slot))
	}
}
