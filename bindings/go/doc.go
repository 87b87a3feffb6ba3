// Package sft is supervised fine-tuning of language models in a Go program, by libsft. It needs cgo and the library; the
// README beside it says how to link.
//
// Make a Config, set its keys, Start a Session and step it until it should stop:
//
//	for !session.ShouldStop() {
//		report, err := session.Step(ctx)
//		if err != nil {
//			return err
//		}
//		log.Printf("update %d: loss %.4f", report.Step, report.Loss)
//	}
//	return session.Export("tuned", sft.ExportFull)
//
// or let Run do the stepping. Config and Session hold memory that is not Go's: Close them.
package sft
