package sft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	background           = context.Background()
	_          io.Closer = (*Config)(nil)
	_          io.Closer = (*Session)(nil)
)

// TestMain runs the tests in a folder with the model and the data of the scenarios.
func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "sft-go-")
	if err == nil {
		prepare := exec.Command("../scenarios/prepare", folder)
		if sft := os.Getenv("SFT"); sft != "" {
			prepare.Args = append(prepare.Args, sft)
		}
		prepare.Stderr = os.Stderr
		if err = prepare.Run(); err == nil {
			err = os.Chdir(folder)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the tests need the scenarios' folder:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// configured is base.json with a few keys more; it is closed with the test.
func configured(t *testing.T, more map[string]any) *Config {
	t.Helper()
	config := forgotten(t, more)
	t.Cleanup(func() { config.Close() })
	return config
}

// forgotten is as configured, and nobody closes it.
func forgotten(t *testing.T, more map[string]any) *Config {
	t.Helper()
	base, err := os.ReadFile("base.json")
	must(t, err)
	config, err := NewConfig()
	must(t, err)
	must(t, config.MergeJSON(base))
	must(t, config.Set("output_dir", filepath.Join(t.TempDir(), "out")))
	must(t, config.Merge(more))
	return config
}

func started(t *testing.T, config *Config) *Session {
	t.Helper()
	session, err := config.Start(background)
	must(t, err)
	t.Cleanup(func() { session.Close() })
	return session
}

func stepped(t *testing.T, session *Session) StepReport {
	t.Helper()
	report, err := session.Step(background)
	must(t, err)
	return report
}

// eventually waits for what another goroutine or the collector is about to do.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for i := 0; i < 400; i++ {
		if holds() {
			return
		}
		runtime.GC()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within two seconds", what)
}

// ---- Errors ----

func TestErrorsAreFoundByStatusAndByType(t *testing.T) {
	config := configured(t, nil)
	err := fmt.Errorf("host: %w", config.Set("learning_rat", "0.1"))
	if !errors.Is(err, ErrUnknownKey) || errors.Is(err, ErrConfig) {
		t.Errorf("not ErrUnknownKey alone: %v", err)
	}
	var failed *Error
	if !errors.As(err, &failed) || !strings.Contains(failed.Message, "learning_rate") {
		t.Errorf("the message does not name the nearest key: %v", err)
	}
	if StatusOf(err) != ErrUnknownKey || StatusOf(nil) != OK || StatusOf(ErrStopped) != ErrStopped ||
		StatusOf(io.EOF) != ErrInternal {
		t.Error("StatusOf")
	}
	if text := failed.Error(); !strings.HasPrefix(text, "sft: ") || !strings.Contains(text, "(SFT_ERR_UNKNOWN_KEY)") {
		t.Errorf("text: %q", text)
	}
	if got := Status(-7).String() + StopReason(99).String(); got != "unknownunknown" {
		t.Errorf("numbers that are none are called %q", got)
	}
}

func TestTextThatCDoesNotKnowIsRefused(t *testing.T) {
	config := configured(t, nil)
	for _, err := range []error{
		config.Set("seed\x00", "1"), config.Set("seed", "1\x002"), config.SetInt("\xff", 1),
		config.MergeJSON([]byte("\xff")),
	} {
		if !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("got %v", err)
		}
	}
	for _, json := range []string{"", "[]", `{"max_steps": "many"}`} {
		if err := config.MergeJSON([]byte(json)); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: got %v", json, err)
		}
	}
	if err := config.Merge(map[string]any{"max_steps": func() {}}); !errors.Is(err, ErrConfig) {
		t.Errorf("a function as a value: %v", err)
	}
}

func TestMergeWritesValuesAsJSON(t *testing.T) {
	config := configured(t, map[string]any{"max_steps": 7, "output_dir": "<&>", "stop": []any{}})
	json, err := config.JSON()
	must(t, err)
	for _, part := range []string{`"max_steps": 7`, `"output_dir": "<&>"`} {
		if !bytes.Contains(json, []byte(part)) {
			t.Errorf("no %s in %s", part, json)
		}
	}
}

func TestAnotherABIVersionIsAClearError(t *testing.T) {
	if os.Getenv("SFT_TEST_OTHER_ABI") != "" {
		_, err := NewConfig()
		fmt.Println("NewConfig:", err)
		return
	}
	for version, say := range map[string]string{
		"0": "older one, libsft 0.0.1 (ABI version 0): install libsft " + HeaderVersion,
		"9": "newer one, libsft 0.0.1 (ABI version 9): rebuild",
	} {
		source, library := filepath.Join(t.TempDir(), "other.c"), filepath.Join(t.TempDir(), "libother.so")
		must(t, os.WriteFile(source, []byte(`unsigned sft_abi_version(void) { return `+version+`; }
			const char *sft_version(void) { return "0.0.1"; }`), 0o600))
		if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		program, err := os.Executable()
		must(t, err)
		// The other library's two answers stand before the real one's.
		other := exec.Command("env", "LD_PRELOAD="+library, program, "-test.run", "^TestAnotherABIVersion", "-test.v")
		other.Env = append(os.Environ(), "SFT_TEST_OTHER_ABI=1", "GODEBUG=")
		other.Dir = cameFrom
		out, err := other.CombinedOutput()
		if err != nil || !strings.Contains(string(out), say) {
			t.Errorf("ABI version %s: %v, no %q in %s", version, err, say, out)
		}
	}
}

// cameFrom is the folder of the package.
var cameFrom, _ = os.Getwd()

// ---- Life and death ----

func TestAfterCloseEveryCallSaysSo(t *testing.T) {
	config := configured(t, map[string]any{"max_steps": 1})
	session := started(t, config)
	for i := 0; i < 2; i++ {
		must(t, session.Close())
		must(t, config.Close())
	}
	calls := map[string]func() error{
		"MergeJSON": func() error { return config.MergeJSON([]byte("{}")) },
		"Set":       func() error { return config.Set("seed", "1") },
		"JSON":      func() error { _, err := config.JSON(); return err },
		"Plan":      func() error { _, err := config.Plan(background); return err },
		"Start":     func() error { _, err := config.Start(background); return err },
		"Resume":    func() error { _, err := config.Resume(background, "model"); return err },
		"Step":      func() error { _, err := session.Step(background); return err },
		"StepBatch": func() error { _, err := session.StepBatch(background, Batch{}); return err },
		"Run":       func() error { _, err := session.Run(background); return err },
		"Evaluate":  func() error { _, err := session.Evaluate(background); return err },
		"EvalSet":   func() error { _, err := session.EvalSet(""); return err },
		"Observe":   func() error { return session.Observe("score", 1) },
		"Snapshot":  func() error { _, err := session.Snapshot(); return err },
		"Save":      func() error { return session.Save("x") },
		"Export":    func() error { return session.Export("x", ExportFull) },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !session.ShouldStop() || session.StopReason() != StopNone {
		t.Error("a closed session has nothing to step")
	}
	var neither Session
	if _, err := neither.Step(background); !errors.Is(err, ErrInvalidArgument) || !neither.ShouldStop() {
		t.Errorf("a session that nobody started: %v", err)
	}
	must(t, neither.Close())
	must(t, new(Config).Close())
}

func TestWhatIsForgottenIsFreedWithCallbacksThatReferToIt(t *testing.T) {
	before := liveSlots()
	func() {
		config := forgotten(t, map[string]any{"max_steps": 2})
		var session *Session
		config.Progress = func(StepReport) bool { return session.ShouldStop() }
		config.Log = func(LogLevel, string) { _ = config.Progress }
		session, err := config.Start(background)
		must(t, err)
		stepped(t, session)
		if liveSlots() != before+1 {
			t.Errorf("%d slots, %d before", liveSlots(), before)
		}
	}()
	eventually(t, "the session is freed", func() bool { return liveSlots() == before })
}

func TestNothingIsHeldByWhatFailed(t *testing.T) {
	before, goroutines := liveSlots(), runtime.NumGoroutine()
	config := configured(t, map[string]any{"model_name_or_path": "model-tensor"})
	config.Log = func(LogLevel, string) {}
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	for i := 0; i < 3; i++ {
		if _, err := config.Start(ctx); !errors.Is(err, ErrTensor) {
			t.Errorf("got %v", err)
		}
		if _, err := config.Resume(ctx, "no-such-folder"); err == nil {
			t.Error("resumed from nothing")
		}
	}
	if liveSlots() != before {
		t.Errorf("%d slots, %d before", liveSlots(), before)
	}
	// One that has done its last may still be counted.
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestCloseDuringACallFreesAtItsEnd(t *testing.T) {
	before := liveSlots()
	config := configured(t, map[string]any{"max_steps": 3})
	var session *Session
	config.Progress = func(StepReport) bool {
		must(t, session.Close())
		if liveSlots() != before+1 {
			t.Error("freed while a call is inside")
		}
		return false
	}
	session = started(t, config)
	if report := stepped(t, session); report.Step != 1 {
		t.Errorf("update %d", report.Step)
	}
	if liveSlots() != before {
		t.Errorf("%d slots, %d before", liveSlots(), before)
	}
	if _, err := session.Step(background); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// ---- Goroutines ----

func TestAnOverlappingCallIsRefusedAndLookingIsNot(t *testing.T) {
	inside, goOn := make(chan struct{}), make(chan struct{})
	config := configured(t, map[string]any{"max_steps": 3})
	config.Progress = func(StepReport) bool {
		close(inside)
		<-goOn
		return true
	}
	session := started(t, config)
	done := make(chan error)
	go func() {
		_, err := session.Step(background)
		done <- err
	}()
	<-inside
	if _, err := session.Snapshot(); !errors.Is(err, ErrBusy) {
		t.Errorf("Snapshot: %v", err)
	}
	if err := session.Export("x", ExportFull); !errors.Is(err, ErrBusy) {
		t.Errorf("Export: %v", err)
	}
	if session.ShouldStop() || session.StopReason() != StopNone {
		t.Error("the run goes on")
	}
	close(goOn)
	must(t, <-done)
	if session.StopReason() != StopCallback {
		t.Errorf("stopped by %v", session.StopReason())
	}
}

func TestManyGoroutinesOnOneSession(t *testing.T) {
	config := configured(t, map[string]any{"max_steps": 1000000})
	session := started(t, config)
	var all sync.WaitGroup
	for i := 0; i < 6; i++ {
		i := i
		all.Add(1)
		go func() {
			defer all.Done()
			for {
				_, err := session.Step(background)
				if i%2 == 0 {
					// Its text is read while the others call.
					err = session.Export("", ExportFull)
				}
				switch {
				case errors.Is(err, ErrClosed):
					return
				case err != nil && !errors.Is(err, ErrBusy) && !strings.Contains(err.Error(), "dir is empty"):
					t.Errorf("got %v", err)
					return
				}
			}
		}()
	}
	time.Sleep(50 * time.Millisecond)
	must(t, session.Close())
	all.Wait()
}

// ---- Contexts ----

func TestAContextThatHasEndedCancelsTheRun(t *testing.T) {
	session := started(t, configured(t, map[string]any{"max_steps": 5}))
	ctx, cancel := context.WithDeadline(background, time.Unix(0, 0))
	defer cancel()
	report, err := session.Step(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrCancelled) || report.Step != 0 {
		t.Errorf("update %d, %v", report.Step, err)
	}
	if !session.ShouldStop() || session.StopReason() != StopCancelled {
		t.Errorf("stopped by %v", session.StopReason())
	}
	if _, err := session.Step(background); err != ErrStopped {
		t.Errorf("one step more: %v", err)
	}
	if _, err := session.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run: %v", err)
	}
	must(t, session.Export(t.TempDir()+"/model", ExportFull))
}

func TestAContextThatEndsDuringAnUpdateLetsItFinish(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(background)
	config := configured(t, map[string]any{"max_steps": 5})
	config.Progress = func(report StepReport) bool {
		if report.Step == 2 {
			cancel()
		}
		return false
	}
	session := started(t, config)
	for step := uint64(1); step <= 2; step++ {
		report, err := session.Step(ctx)
		if report.Step != step || errors.Is(err, context.Canceled) != (step == 2) {
			t.Errorf("update %d: %d, %v", step, report.Step, err)
		}
	}
	if snapshot, err := session.Snapshot(); err != nil || snapshot.Step != 2 || snapshot.StopReason != StopCancelled {
		t.Errorf("%+v, %v", snapshot, err)
	}
	// One that has done its last may still be counted.
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestAContextThatEndsAnEvaluationIsTheError(t *testing.T) {
	session := started(t, configured(t, map[string]any{"max_steps": 5, "eval_dataset_name": "eval.jsonl"}))
	ctx, cancel := context.WithCancel(background)
	if report, err := session.Evaluate(ctx); err != nil || !(report.Loss > 0) {
		t.Errorf("%+v, %v", report, err)
	}
	cancel()
	if _, err := session.Evaluate(ctx); !errors.Is(err, context.Canceled) || StatusOf(err) != ErrCancelled {
		t.Errorf("got %v", err)
	}
	// Of that context, not of this one.
	if _, err := session.Evaluate(background); errors.Is(err, context.Canceled) || StatusOf(err) != ErrCancelled {
		t.Errorf("got %v", err)
	}
}

func TestARunThatEndedWellStaysSoWhateverTheContext(t *testing.T) {
	session := started(t, configured(t, map[string]any{"max_steps": 1}))
	ctx, cancel := context.WithCancel(background)
	stepped(t, session)
	cancel()
	if reason, err := session.Run(ctx); reason != StopMaxSteps || err != nil {
		t.Errorf("%v, %v", reason, err)
	}
	if _, err := session.Step(ctx); err != ErrStopped {
		t.Errorf("got %v", err)
	}
}

func TestTheContextOfTheStartIsForTheStart(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	config := configured(t, map[string]any{"max_steps": 1})
	session, err := config.Start(ctx)
	must(t, err)
	defer session.Close()
	cancel()
	if reason, err := session.Run(background); reason != StopMaxSteps || err != nil {
		t.Errorf("%v, %v", reason, err)
	}
	if _, err := config.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}
	if _, err := config.Plan(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Plan: %v", err)
	}
	// And of that start alone.
	other := started(t, config)
	if other.ShouldStop() {
		t.Error("the second run is cancelled by the context of a failed start")
	}
}

// ---- Callbacks ----

// panicOf is what a call panics with.
func panicOf(call func()) (value any) {
	defer func() { value = recover() }()
	call()
	return nil
}

func TestAPanicInProgressGoesOnAfterTheCall(t *testing.T) {
	config := configured(t, map[string]any{"max_steps": 5})
	boom := errors.New("boom")
	config.Progress = func(StepReport) bool { panic(boom) }
	session := started(t, config)
	if value := panicOf(func() { session.Step(background) }); value != boom {
		t.Fatalf("panicked with %v", value)
	}
	if session.StopReason() != StopCallback {
		t.Errorf("stopped by %v", session.StopReason())
	}
	if _, err := session.Step(background); err != ErrStopped {
		t.Errorf("the session is not usable any more: %v", err)
	}
	if report, err := session.LastReport(); err != nil || report.Step != 1 {
		t.Errorf("the update's report is %v, %v", report, err)
	}
}

func TestALastReportIsOfAnUpdate(t *testing.T) {
	session := started(t, configured(t, map[string]any{"max_steps": 5}))
	if _, err := session.LastReport(); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("a report before the first update: %v", err)
	}
	report := stepped(t, session)
	// Not by ==: what is not known is NaN.
	if last, err := session.LastReport(); err != nil || last.Step != report.Step || last.Loss != report.Loss {
		t.Errorf("%v, %v is not %v", last, err, report)
	}
}

func TestAPanicInTheLogOfAStartLeavesNothingBehind(t *testing.T) {
	before := liveSlots()
	config := configured(t, map[string]any{"max_steps": 5})
	calls := 0
	config.Log = func(LogLevel, string) {
		calls++
		panic("boom")
	}
	if value := panicOf(func() { config.Start(background) }); value != "boom" || calls != 1 {
		t.Fatalf("panicked with %v after %d calls", value, calls)
	}
	if liveSlots() != before {
		t.Errorf("%d slots, %d before", liveSlots(), before)
	}
	config.Log = nil
	stepped(t, started(t, config))
}

func TestACallbackCannotCallTheObjectAtWork(t *testing.T) {
	config := configured(t, map[string]any{"max_steps": 1})
	var inner error
	config.Log = func(LogLevel, string) { inner = config.Set("seed", "3") }
	started(t, config)
	if !errors.Is(inner, ErrBusy) {
		t.Errorf("got %v", inner)
	}
}

func TestCheckpointsAreTold(t *testing.T) {
	config := configured(t, map[string]any{"max_steps": 4, "save_strategy": "steps", "save_steps": 2})
	var folders []string
	config.Checkpoint = func(step uint64, folder string) {
		if !strings.HasSuffix(folder, fmt.Sprintf("checkpoint-%d", step)) {
			t.Errorf("update %d in %s", step, folder)
		}
		folders = append(folders, folder)
	}
	_, err := started(t, config).Run(background)
	must(t, err)
	if len(folders) != 2 {
		t.Fatalf("told of %v", folders)
	}
	must(t, config.SetInt("max_steps", 5))
	session, err := config.Resume(background, folders[1])
	must(t, err)
	defer session.Close()
	if snapshot, err := session.Snapshot(); err != nil || !snapshot.Resumed || snapshot.ResumedStep != 4 {
		t.Errorf("%+v, %v", snapshot, err)
	}
}

// ---- Batches ----

func TestBatchesWithWrongLengthsAreRefused(t *testing.T) {
	session := started(t, configured(t, map[string]any{"dataset_name": nil, "max_steps": 3}))
	tokens := []int32{1, 2, 3}
	for name, batch := range map[string]Batch{
		"fewer labels":  {Tokens: tokens, Labels: []int32{1, 2}},
		"no labels":     {Tokens: tokens, Labels: []int32{}},
		"more labels":   {Tokens: tokens, Labels: []int32{1, 2, 3, 4}},
		"no starts":     {Tokens: tokens, SeqStarts: []int32{}},
		"a start later": {Tokens: tokens, SeqStarts: []int32{0, 3}},
		"no such token": {Tokens: []int32{1, -1}},
	} {
		_, one := session.StepBatch(background, batch)
		_, two := session.EvaluateBatch(background, Batch{Tokens: tokens}, batch)
		if !errors.Is(one, ErrBatch) || !errors.Is(two, ErrBatch) {
			t.Errorf("%s: %v, %v", name, one, two)
		}
	}
	if _, err := session.StepBatch(background); err == nil {
		t.Error("an update on nothing")
	}
	if snapshot, err := session.Snapshot(); err != nil || snapshot.Step != 0 {
		t.Errorf("%+v, %v", snapshot, err)
	}
}

func TestOneBatchAndSeveralAreTheSameNumbers(t *testing.T) {
	session := started(t, configured(t, map[string]any{"dataset_name": nil, "max_steps": 3}))
	a := Batch{Tokens: []int32{5, 6, 7, 8, 9}, Labels: []int32{5, NoLabel, 7, 8, 9}, SeqStarts: []int32{0, 2}}
	b := Batch{Tokens: []int32{10, 11, 12, 13}}
	evaluate := func(batches ...Batch) EvalReport {
		report, err := session.EvaluateBatch(background, batches...)
		must(t, err)
		return report
	}
	one, other, both := evaluate(a), evaluate(b), evaluate(a, b)
	if one.SupervisedTokens != 2 || other.SupervisedTokens != 3 || both.SupervisedTokens != 5 || both.Tokens != 9 {
		t.Errorf("%+v, %+v, %+v", one, other, both)
	}
	if mean := (2*one.Loss + 3*other.Loss) / 5; math.Abs(mean-both.Loss) > 1e-6 {
		t.Errorf("%v and %v together: %v", one.Loss, other.Loss, both.Loss)
	}
	// A slice in the middle of another, which Go has allocated in one piece.
	wide := []int32{1, 10, 11, 12, 13, 2}
	if part := evaluate(Batch{Tokens: wide[1:5]}); part.Loss != other.Loss {
		t.Errorf("%v, %v", part.Loss, other.Loss)
	}
}
