package sft_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	sft "github.com/libsft/libsft/bindings/go"
)

// A run that Ctrl-C ends after the update that is running, and whose result is kept all the same.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	config, err := sft.NewConfig()
	if err != nil {
		log.Fatal(err)
	}
	defer config.Close()
	config.Progress = func(report sft.StepReport) bool {
		fmt.Printf("update %d: loss %.4f\n", report.Step, report.Loss)
		return false
	}
	if err := config.Merge(map[string]any{"model_name_or_path": "model", "dataset_name": "rows.jsonl"}); err != nil {
		log.Fatal(err)
	}
	session, err := config.Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	reason, err := session.Run(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
	fmt.Println("stopped:", reason)
	if err := session.Export("tuned", sft.ExportFull); err != nil {
		log.Fatal(err)
	}
}
