"""A whole run in one call."""

import json
import logging
import os
import signal
import threading
from pathlib import Path

import libsft
from libsft import EarlyStopping, StepReport, StopReason, train

from .support import InFolder

ROWS = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(40)]
KEYS = {
    "device": "cpu",
    "threads": 1,
    "max_length": 32,
    "per_device_train_batch_size": 4,
    "output_dir": "out/trained",
}


class Train(InFolder):
    def test_rows_may_be_given_themselves(self) -> None:
        Path("made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        by_path = train("model", "made.jsonl", args=KEYS, max_steps=3, save_strategy="no")
        by_rows = train(
            Path("model"), iter(ROWS), args=KEYS, max_steps=3, save_strategy="no", output_dir="out/again"
        )
        for result in (by_path, by_rows):
            self.assertEqual((result.stop_reason, result.steps), (StopReason.MAX_STEPS, 3))
            self.assertTrue(result.saved and Path(result.output_dir, "model.safetensors").exists())
        assert by_path.last_report and by_rows.last_report
        self.assertEqual(by_path.last_report.loss, by_rows.last_report.loss)

    def test_early_stopping_is_decided_by_the_engine(self) -> None:
        result = train(
            "model",
            ROWS,
            eval_dataset={"some": ROWS[:4], "more": ROWS[4:8]},
            args=KEYS,
            callbacks=[EarlyStopping(patience=2, threshold=100.0, restore_best=True)],
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            max_steps=50,
        )
        self.assertEqual((result.stop_reason, result.steps), (StopReason.PLATEAU, 3))
        self.assertIsNotNone(result.snapshot.best_value)

    def test_rows_that_cannot_be_written_are_named(self) -> None:
        for row in (5, {"text": float("nan")}, {"text": object()}):
            with self.subTest(row=row), self.assertRaises(libsft.DataError) as caught:
                train("model", [ROWS[0], row], args=KEYS)  # type: ignore[list-item]
            self.assertIn("train row 2", str(caught.exception))

    def test_a_run_without_rows_says_what_is_missing(self) -> None:
        with self.assertRaises(libsft.ConfigError) as caught:
            train("model", args=KEYS)
        self.assertIn("train_dataset", str(caught.exception))

    def test_a_function_stops_the_run_and_the_log_goes_to_the_logger(self) -> None:
        with self.assertLogs("libsft", logging.INFO) as logs:
            result = train(
                "model", ROWS, args=KEYS, callbacks=[lambda report: report.step == 2], save_strategy="no"
            )
        self.assertEqual((result.stop_reason, result.steps), (StopReason.CALLBACK, 2))
        self.assertTrue(logs.output)

    def test_an_interrupted_run_leaves_a_checkpoint_from_which_it_goes_on(self) -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)

        def progress(report: StepReport) -> None:
            if report.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        with self.assertRaises(KeyboardInterrupt):
            train("model", ROWS, args=KEYS, callbacks=[progress], max_steps=4)
        self.assertTrue(Path("out/trained/checkpoint-2").is_dir())
        self.assertFalse(Path("out/trained/model.safetensors").exists())
        result = train("model", ROWS, args=KEYS, max_steps=4, resume_from_checkpoint=True)
        self.assertEqual((result.steps, result.snapshot.resumed_step), (4, 2))

    def test_a_run_that_broke_leaves_no_model(self) -> None:
        result = train("model", ROWS, args=KEYS, learning_rate=1e30, max_grad_norm=0, save_strategy="no")
        self.assertEqual(result.stop_reason, StopReason.NON_FINITE)
        self.assertFalse(result.saved or Path("out/trained/model.safetensors").exists())

    def test_a_run_that_is_cancelled_while_it_evaluates_ends_as_cancelled(self) -> None:
        canceller = libsft.Canceller()
        result = train(
            "model",
            ROWS,
            eval_dataset=ROWS * 1000,
            args=KEYS,
            callbacks=[lambda report: threading.Timer(0.05, canceller.cancel).start()],
            canceller=canceller,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
        )
        self.assertEqual((result.stop_reason, result.steps), (StopReason.CANCELLED, 2))
        self.assertTrue(result.saved)
