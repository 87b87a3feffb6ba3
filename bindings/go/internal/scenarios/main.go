// Scenarios runs the scenarios of bindings/scenarios.md, in a folder that bindings/scenarios/prepare made, and prints the table that
// every language prints. With the argument resume it is the second process of the scenario of that name.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sft "github.com/libsft/libsft/bindings/go"
)

var background = context.Background()

// ---- What the scenarios share ----

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func contents(path string) []byte {
	content, err := os.ReadFile(path)
	must(err)
	return content
}

func newConfig() *sft.Config {
	config, err := sft.NewConfig()
	must(err)
	return config
}

func configured(name string) *sft.Config {
	config := newConfig()
	must(config.MergeFile("base.json"))
	must(config.MergeFile(name + ".json"))
	return config
}

func started(config *sft.Config) *sft.Session {
	session, err := config.Start(background)
	must(err)
	return session
}

func stepped(session *sft.Session) sft.StepReport {
	report, err := session.Step(background)
	must(err)
	return report
}

// toTheEnd steps until the session should stop; the last report is returned.
func toTheEnd(session *sft.Session) (report sft.StepReport) {
	for !session.ShouldStop() {
		report = stepped(session)
	}
	return report
}

func snapshotOf(session *sft.Session) sft.Snapshot {
	snapshot, err := session.Snapshot()
	must(err)
	return snapshot
}

func evalSet(session *sft.Session, name string) sft.EvalReport {
	report, err := session.EvalSet(name)
	must(err)
	return report
}

func yes(truth bool) string {
	if truth {
		return "yes"
	}
	return "NO"
}

// status is the name of an error's status.
func status(err error) string { return sft.StatusOf(err).String() }

// hex is a double's bits.
func hex(value float64) string { return fmt.Sprintf("%016x", math.Float64bits(value)) }

func same(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }

// exported is the FNV-1a of the weights that an export writes.
func exported(session *sft.Session, folder string) string {
	must(session.Export(folder, sft.ExportFull))
	hash := uint64(14695981039346656037)
	for _, b := range contents(filepath.Join(folder, "model.safetensors")) {
		hash = (hash ^ uint64(b)) * 1099511628211
	}
	return fmt.Sprintf("%016x", hash)
}

func numbers(text string) (parsed []int32) {
	if text == "-" {
		return nil
	}
	for _, word := range strings.Fields(text) {
		number, err := strconv.ParseInt(word, 10, 32)
		must(err)
		parsed = append(parsed, int32(number))
	}
	return parsed
}

// lines are the lines of a table, in columns.
func lines(path string) (rows [][]string) {
	for _, line := range strings.Split(strings.TrimSuffix(string(contents(path)), "\n"), "\n") {
		rows = append(rows, strings.Split(line, "\t"))
	}
	return rows
}

// batchesFor are the batches of batches.tsv whose first column is where.
func batchesFor(where string) (batches []sft.Batch) {
	for _, columns := range lines("batches.tsv") {
		if columns[0] == where {
			batches = append(batches, sft.Batch{
				Tokens: numbers(columns[1]), Labels: numbers(columns[2]), SeqStarts: numbers(columns[3]),
			})
		}
	}
	return batches
}

// ---- What becomes of callbacks: Go lets go of one when nothing refers to it any more ----

// witness is what a callback refers to; that it was collected says that the callback is gone.
type witness struct{ drops *atomic.Int64 }

func newWitness(drops *atomic.Int64) *witness {
	w := &witness{drops}
	runtime.SetFinalizer(w, func(w *witness) { w.drops.Add(1) })
	return w
}

// collect collects garbage until so many were let go of, and for a while if they are not.
func collect(drops *atomic.Int64, atLeast int64) {
	for i := 0; i < 100; i++ {
		runtime.GC()
		if i > 1 && drops.Load() >= atLeast {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ---- The scenarios ----

func library() {
	statuses, reasons := 0, 0
	for status, name := range map[sft.Status]string{
		sft.OK: "SFT_OK", sft.ErrStopped: "SFT_STOPPED", sft.ErrInvalidArgument: "SFT_ERR_INVALID_ARGUMENT",
		sft.ErrBusy: "SFT_ERR_BUSY", sft.ErrPoisoned: "SFT_ERR_POISONED", sft.ErrConfig: "SFT_ERR_CONFIG",
		sft.ErrUnknownKey: "SFT_ERR_UNKNOWN_KEY", sft.ErrUnsupported: "SFT_ERR_UNSUPPORTED",
		sft.ErrModel: "SFT_ERR_MODEL", sft.ErrUnsupportedModel: "SFT_ERR_UNSUPPORTED_MODEL",
		sft.ErrTensor: "SFT_ERR_TENSOR", sft.ErrTokenizer: "SFT_ERR_TOKENIZER", sft.ErrTemplate: "SFT_ERR_TEMPLATE",
		sft.ErrData: "SFT_ERR_DATA", sft.ErrBatch: "SFT_ERR_BATCH", sft.ErrIO: "SFT_ERR_IO",
		sft.ErrExists: "SFT_ERR_EXISTS", sft.ErrCheckpoint: "SFT_ERR_CHECKPOINT", sft.ErrDevice: "SFT_ERR_DEVICE",
		sft.ErrOutOfMemory: "SFT_ERR_OUT_OF_MEMORY", sft.ErrCancelled: "SFT_ERR_CANCELLED",
		sft.ErrPanic: "SFT_ERR_PANIC", sft.ErrInternal: "SFT_ERR_INTERNAL",
	} {
		if status.String() == name {
			statuses++
		}
	}
	for reason, name := range map[sft.StopReason]string{
		sft.StopNone: "none", sft.StopTargetReached: "target_reached", sft.StopPlateau: "plateau",
		sft.StopNonFinite: "non_finite", sft.StopDiverged: "diverged", sft.StopOverfit: "overfit",
		sft.StopMaxSteps: "max_steps", sft.StopMaxEpochs: "max_epochs", sft.StopMaxTokens: "max_tokens",
		sft.StopMaxTime: "max_time", sft.StopCancelled: "cancelled", sft.StopCallback: "callback",
	} {
		if reason.String() == name {
			reasons++
		}
	}
	fmt.Printf("library abi=%s version=%s build=%s statuses=%d reasons=%d\n",
		yes(sft.ABIVersion() == sft.HeaderABIVersion), yes(sft.Version() == sft.HeaderVersion),
		yes(strings.Contains(sft.BuildInfo(), `"devices"`)), statuses, reasons)
}

func configKeys() {
	config, second, ofFile := configured("target"), newConfig(), configured("target")
	defer config.Close()
	defer second.Close()
	defer ofFile.Close()
	must(config.SetInt("max_steps", 5))
	must(config.SetFloat("learning_rate", 0.25))
	must(config.SetBool("packing", true))
	must(config.Set("seed", "9"))
	first, err := config.JSON()
	must(err)
	must(second.MergeJSON(first))
	again, err := second.JSON()
	must(err)
	must(ofFile.MergeFile("file.yaml"))
	filed, err := ofFile.JSON()
	must(err)
	set := true
	for _, line := range []string{`"max_steps": 5`, `"learning_rate": 0.25`, `"packing": true`, `"seed": 9`} {
		set = set && bytes.Contains(first, []byte(line))
	}
	fmt.Printf("config set=%s round_trip=%s file=%s\n", yes(set), yes(bytes.Equal(first, again)), yes(bytes.Equal(first, filed)))
}

func plan() {
	config := configured("target")
	defer config.Close()
	plan, err := config.Plan(background)
	must(err)
	json, err := config.PlanJSON(background)
	must(err)
	total := fmt.Sprintf(`"total_bytes":%d`, plan.TotalBytes)
	fmt.Printf("plan weights=%d gradients=%d optimizer=%d bounded=%s json=%s ~total=%d\n",
		plan.WeightsBytes, plan.GradientsBytes, plan.OptimizerBytes,
		yes(plan.LowerBoundBytes <= plan.TotalBytes), yes(bytes.Contains(json, []byte(total))), plan.TotalBytes)
}

func target() {
	config := configured("target")
	defer config.Close()
	session := started(config)
	defer session.Close()
	report := toTheEnd(session)
	_, after := session.Step(background)
	fmt.Printf("target stop=%s steps=%d snapshot=%d after=%s ~loss=%s ~weights=%s\n", session.StopReason(),
		report.Step, snapshotOf(session).Step, status(after), hex(report.Loss), exported(session, "out/target/model"))
}

func plateau() {
	config := configured("plateau")
	defer config.Close()
	session := started(config)
	defer session.Close()
	evaluations, bestStep, steps, best := 0, uint64(0), uint64(0), math.Inf(1)
	for !session.ShouldStop() {
		report := stepped(session)
		steps = report.Step
		if !report.HasEval {
			continue
		}
		evaluations++
		if some := evalSet(session, "some"); some.Loss < best {
			best, bestStep = some.Loss, report.Step
		}
	}
	snapshot := snapshotOf(session)
	all, err := session.Evaluate(background)
	must(err)
	some, more := evalSet(session, "some"), evalSet(session, "more")
	seen := snapshot.HasBest && snapshot.BestStep == bestStep && same(snapshot.BestValue, best)
	fmt.Printf("plateau stop=%s steps=%d evaluations=%d best_step=%d patience_used=%d best_seen=%s restored=%s "+
		"best_is_back=%s sets=%s ~best=%s ~weights=%s\n",
		session.StopReason(), steps, evaluations, snapshot.BestStep, snapshot.PatienceUsed, yes(seen),
		yes(snapshot.RestoredBest), yes(same(some.Loss, best)),
		yes(some.SupervisedTokens+more.SupervisedTokens == all.SupervisedTokens), hex(best),
		exported(session, "out/plateau/model"))
}

func batches() {
	config := configured("batches")
	defer config.Close()
	session := started(config)
	defer session.Close()
	var report sft.StepReport
	supervised := uint64(0)
	for update := 1; !session.ShouldStop(); update++ {
		var err error
		report, err = session.StepBatch(background, batchesFor(strconv.Itoa(update))...)
		must(err)
		supervised += report.SupervisedTokens
	}
	eval, err := session.EvaluateBatch(background, batchesFor("eval")...)
	must(err)
	fmt.Printf("batches stop=%s steps=%d tokens=%d supervised=%d eval_tokens=%d eval_supervised=%d "+
		"~loss=%s ~eval_loss=%s ~weights=%s\n",
		session.StopReason(), report.Step, report.TotalTokens, supervised, eval.Tokens, eval.SupervisedTokens,
		hex(report.Loss), hex(eval.Loss), exported(session, "out/batches/model"))
}

func observe() {
	scores := []float64{0.5, 0.95, 0.2, math.NaN(), 0.91, 0.97, 0.1, 0.1}
	config := configured("observe")
	defer config.Close()
	session := started(config)
	defer session.Close()
	steps := uint64(0)
	for !session.ShouldStop() && steps < 8 {
		steps = stepped(session).Step
		must(session.Observe("score", scores[steps-1]))
	}
	fmt.Printf("observe stop=%s steps=%d\n", session.StopReason(), steps)
}

func cancel() {
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	config := configured("cancel")
	defer config.Close()
	updates := make(chan struct{})
	done := make(chan struct{})
	config.Progress = func(sft.StepReport) bool {
		select {
		case updates <- struct{}{}:
		case <-done:
		}
		return false
	}
	session, err := config.Start(ctx)
	must(err)
	defer session.Close()
	go func() {
		defer close(done)
		for i := 0; i < 3; i++ {
			<-updates
		}
		cancel()
	}()
	reason, err := session.Run(ctx)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, sft.ErrCancelled) {
		must(fmt.Errorf("cancel: Run returned %v", err))
	}
	<-done
	_, after := session.Step(background)
	_, again := config.Start(ctx)
	fmt.Printf("cancel stop=%s enough=%s after=%s start=%s\n", reason, yes(snapshotOf(session).Step >= 3),
		status(after), status(again))
}

func progress() {
	var drops atomic.Int64
	var calls, logs int
	var loss float64
	config := configured("progress")
	first, second := newWitness(&drops), newWitness(&drops)
	config.Progress = func(report sft.StepReport) bool {
		runtime.KeepAlive(first)
		calls++
		loss = report.Loss
		return report.Step == 4
	}
	config.Log = func(level sft.LogLevel, message string) {
		runtime.KeepAlive(second)
		if (level == sft.LogInfo || level == sft.LogWarning) && message != "" {
			logs++
		}
	}
	session := started(config)
	report := toTheEnd(session)
	fmt.Printf("progress stop=%s steps=%d calls=%d same=%s logged=%s", session.StopReason(), report.Step, calls,
		yes(same(loss, report.Loss)), yes(logs > 0))
	config.Close()
	collect(&drops, 0)
	held := drops.Load() == 0
	session.Close()
	collect(&drops, 2)
	fmt.Printf(" dropped=%s ~loss=%s\n", yes(held && drops.Load() == 2), hex(report.Loss))
	runtime.KeepAlive(session)
}

func failure() {
	mine := errors.New("mine")
	config := configured("progress")
	defer config.Close()
	config.Progress = func(report sft.StepReport) bool {
		if report.Step == 3 {
			panic(mine)
		}
		return false
	}
	session := started(config)
	defer session.Close()
	cameOut := func() (panicked any) {
		defer func() { panicked = recover() }()
		toTheEnd(session)
		return nil
	}()
	last, err := session.LastReport()
	must(err)
	_, after := session.Step(background)
	fmt.Printf("failure came_out=%s stop=%s last=%d after=%s\n", yes(cameOut == mine), session.StopReason(), last.Step,
		status(after))
}

func checkpoints() {
	var told []string
	config := configured("checkpoints")
	defer config.Close()
	config.Checkpoint = func(step uint64, folder string) {
		if !strings.HasSuffix(folder, fmt.Sprintf("checkpoint-%d", step)) {
			folder = "elsewhere"
		}
		told = append(told, strings.TrimPrefix(filepath.Base(folder), "checkpoint-"))
	}
	session := started(config)
	toTheEnd(session)
	newest := snapshotOf(session).CheckpointStep
	session.Close()
	must(config.SetInt("max_steps", 8))
	session, err := config.Resume(background, "out/checkpoints/checkpoint-6")
	must(err)
	defer session.Close()
	toTheEnd(session)
	snapshot := snapshotOf(session)
	resumed := 0
	if snapshot.Resumed {
		resumed = 1
	}
	fmt.Printf("checkpoints told=%s newest=%d resumed=%d resumed_step=%d steps=%d stop=%s\n",
		strings.Join(told, ","), newest, resumed, snapshot.ResumedStep, snapshot.Step, session.StopReason())
}

// lineToTheEnd steps to the end and says "STEPS REASON LOSS… EVAL_LOSS WEIGHTS", from update 4 on.
func lineToTheEnd(session *sft.Session, folder string) string {
	var report sft.StepReport
	var losses []string
	for !session.ShouldStop() {
		report = stepped(session)
		if report.Step > 3 {
			losses = append(losses, hex(report.Loss))
		}
	}
	return fmt.Sprintf("%d %s %s %s %s", report.Step, session.StopReason(), strings.Join(losses, " "),
		hex(report.EvalLoss), exported(session, folder))
}

func resumeChild() {
	config := configured("resume")
	defer config.Close()
	session, err := config.Resume(background, "out/resume-saved")
	must(err)
	defer session.Close()
	snapshot := snapshotOf(session)
	resumed := 0
	if snapshot.Resumed {
		resumed = 1
	}
	fmt.Printf("%d %d %s\n", resumed, snapshot.ResumedStep, lineToTheEnd(session, "out/resume-child"))
}

func resume() {
	config := configured("resume")
	defer config.Close()
	session := started(config)
	whole := lineToTheEnd(session, "out/resume-whole")
	session.Close()

	session = started(config)
	for i := 0; i < 3; i++ {
		stepped(session)
	}
	must(session.Save("out/resume-saved"))
	session.Close()

	program, err := os.Executable()
	must(err)
	child := exec.Command(program, "resume")
	child.Stderr = os.Stderr
	said, err := child.Output()
	if err != nil && child.ProcessState == nil {
		must(err)
	}
	fields := strings.Fields(whole)
	fmt.Printf("resume stop=%s steps=%s child=%d same=%s ~numbers=%s\n", fields[1], fields[0],
		child.ProcessState.ExitCode(), yes(string(said) == "1 3 "+whole+"\n"), fields[len(fields)-1])
}

// provoke does what a line of errors.tsv asks for.
func provoke(how, jsonOrPath string) error {
	fresh := newConfig()
	defer fresh.Close()
	switch how {
	case "merge":
		return fresh.MergeJSON([]byte(jsonOrPath))
	case "file":
		return fresh.MergeFile(jsonOrPath)
	}
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	config := configured("errors")
	defer config.Close()
	must(config.MergeJSON([]byte(jsonOrPath)))
	var session *sft.Session
	var inner error
	switch how {
	case "busy":
		config.Progress = func(sft.StepReport) bool {
			_, inner = session.Step(background)
			return false
		}
	case "cancelled":
		cancel()
	}
	var err error
	if how == "resume" {
		session, err = config.Resume(ctx, "model")
	} else {
		session, err = config.Start(ctx)
	}
	if err != nil {
		return err
	}
	defer session.Close()
	switch how {
	case "step":
		_, err = session.Step(ctx)
	case "export":
		err = session.Export("/proc/no/such", sft.ExportFull)
	case "batch":
		_, err = session.StepBatch(ctx, sft.Batch{Tokens: []int32{1, 1000000, 2}})
	case "busy":
		stepped(session)
		err = inner
	}
	return err
}

func provokeAll() {
	for _, columns := range lines("errors.tsv") {
		err := provoke(columns[1], columns[2])
		var failed *sft.Error
		said := errors.As(err, &failed) && strings.Contains(failed.Message, columns[3])
		fmt.Printf("error %s got=%s text=%s\n", columns[0], status(err), yes(said))
		if !said {
			fmt.Fprintf(os.Stderr, "no %q in: %v\n", columns[3], err)
		}
	}
}

func losses(name string) (losses [12]uint64) {
	config := configured(name)
	defer config.Close()
	session := started(config)
	defer session.Close()
	for i := range losses {
		losses[i] = math.Float64bits(stepped(session).Loss)
	}
	return losses
}

func two() {
	names := [2]string{"one", "other"}
	var together, alone [2][12]uint64
	var both sync.WaitGroup
	for i, name := range names {
		i, name := i, name
		both.Add(1)
		go func() {
			defer both.Done()
			together[i] = losses(name)
		}()
	}
	both.Wait()
	for i, name := range names {
		alone[i] = losses(name)
	}
	one, other := alone[0][11], alone[1][11]
	fmt.Printf("two same=%s different=%s ~one=%016x ~other=%016x\n", yes(together == alone), yes(one != other), one, other)
}

func freed() {
	ctx, cancel := context.WithCancel(background)
	config := configured("freed")
	session, err := config.Start(ctx)
	must(err)
	config.Close()
	// The start is over: its context has nothing to cancel any more.
	cancel()
	outlives := stepped(session).Step == 1
	session.Close()
	_, step := session.Step(background)
	set := config.SetInt("max_steps", 1)
	shouldStop := session.ShouldStop()
	session.Close()
	config.Close()
	cancel()
	fmt.Printf("freed outlives=%s session=%s should_stop=%s config=%s twice=ok\n", yes(outlives),
		status(step), yes(shouldStop), status(set))
}

// resident is the memory of the process in bytes, without what Go has freed and keeps for later.
func resident() int {
	debug.FreeOSMemory()
	fields := strings.Fields(string(contents("/proc/self/statm")))
	pages, err := strconv.Atoi(fields[1])
	must(err)
	return pages * os.Getpagesize()
}

func cycle(drops *atomic.Int64) {
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	config := configured("memory")
	defer config.Close()
	first, second := newWitness(drops), newWitness(drops)
	config.Progress = func(sft.StepReport) bool {
		runtime.KeepAlive(first)
		return false
	}
	config.Log = func(sft.LogLevel, string) { runtime.KeepAlive(second) }
	session, err := config.Start(ctx)
	must(err)
	defer session.Close()
	_, err = session.Step(ctx)
	must(err)
}

func memory() {
	var drops atomic.Int64
	before := 0
	for i := int64(0); i < 1000; i++ {
		if i == 250 {
			collect(&drops, 2*i)
			before = resident()
		}
		cycle(&drops)
	}
	collect(&drops, 2000)
	grown := resident() - before
	fmt.Printf("memory cycles=1000 drops=%d within_8_MiB=%s\n", drops.Load(), yes(grown <= 8<<20))
	fmt.Fprintf(os.Stderr, "memory: grown by %d KiB\n", grown>>10)
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "resume" {
		resumeChild()
		return
	}
	for _, scenario := range []func(){
		library, configKeys, plan, target, plateau, batches, observe, cancel, progress, failure, checkpoints,
		resume, provokeAll, two, freed, memory,
	} {
		scenario()
	}
}
