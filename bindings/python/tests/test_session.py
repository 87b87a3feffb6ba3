"""Sessions: batches, callbacks that raise, closing at any time, and no call at the same time as another."""

import gc
import math
import os
import subprocess
import sys
import threading
import warnings
import weakref
from array import array
from pathlib import Path
from typing import Any, Optional

import libsft
from libsft import Batch, Canceller, Config, Session, StepReport, StopReason

from .support import InFolder, with_package


class Batches(InFolder):
    def losses(self, *batches: Any) -> list[str]:
        with self.configured(dataset_name=None) as config, config.start() as session:
            report = session.step_batch(*batches)
            assert report is not None
            return [report.loss.hex(), str(report.supervised_tokens)]

    def test_tokens_come_from_anything_that_holds_whole_numbers(self) -> None:
        tokens = [10, 11, 12, 13, 14, 15]
        expected = self.losses(tokens)
        frozen = memoryview(array("i", tokens)).toreadonly()
        strided = memoryview(array("i", [n for token in tokens for n in (token, 0)]))[::2]
        for given in (
            tuple(tokens),
            range(10, 16),
            (n for n in tokens),
            array("i", tokens),
            array("q", tokens),
            array("H", tokens),
            memoryview(array("i", tokens)),
            frozen,
            strided,
            memoryview(bytes(tokens)),
            Batch(tokens),
            Batch(tokens, labels=array("q", tokens), seq_starts=[0]),
        ):
            with self.subTest(given=given):
                self.assertEqual(self.losses(given), expected)

    def test_numpy_arrays_are_taken(self) -> None:
        try:
            import numpy
        except ImportError:
            self.skipTest("no numpy")
        tokens = [10, 11, 12, 13, 14, 15]
        expected = self.losses(tokens)
        for kind in (numpy.int32, numpy.int64, numpy.uint16, ">i4"):
            with self.subTest(kind=kind):
                self.assertEqual(self.losses(list(numpy.array(tokens, dtype=kind))), expected)
                if kind != ">i4":
                    self.assertEqual(self.losses(numpy.array(tokens, dtype=kind)), expected)
        with self.assertRaises(TypeError):
            Batch(numpy.array(tokens, dtype=numpy.float32))
        with self.assertRaises(TypeError):
            Batch(numpy.array([tokens], dtype=numpy.int32))

    def test_a_buffer_of_32_bit_integers_is_read_where_it_lies(self) -> None:
        tokens = array("i", [1, 2, 3, 4])
        batch = Batch(tokens)
        tokens[:] = array("i", [10, 11, 12, 13])
        self.assertEqual(self.losses(batch), self.losses([10, 11, 12, 13]))
        with self.assertRaises(BufferError):
            tokens.append(5)
        self.assertEqual(len(batch), 4)

    def test_what_is_no_batch_is_refused(self) -> None:
        for given in (b"abc", "abc", [1.5], [None], array("d", [1.0]), 5):
            with self.subTest(given=given), self.assertRaises((TypeError, ValueError)):
                self.losses(given)
        with self.assertRaises(libsft.BatchError):
            Batch([1, 2], labels=[1])
        with self.assertRaises(libsft.BatchError):
            Batch([2**31])
        for batches in ([], [[1, 10**6]], [Batch([1, 2], seq_starts=[1])]):
            with self.subTest(batches=batches), self.assertRaises(libsft.SftError) as caught:
                self.losses(*batches)
            self.assertIn(caught.exception.status.label, ("SFT_ERR_BATCH", "SFT_ERR_INVALID_ARGUMENT"))


class Steps(InFolder):
    def test_iteration_ends_with_the_run(self) -> None:
        with self.configured().start() as session:
            self.assertEqual([report.step for report in session], [1, 2, 3])
            self.assertEqual(list(session), [])
            self.assertIsNone(session.step())
            self.assertTrue(session.should_stop)
            self.assertIs(session.stop_reason, libsft.StopReason.MAX_STEPS)
            last = session.last_report
            assert last is not None
            self.assertEqual((last.step, last.stop_reason), (3, libsft.StopReason.MAX_STEPS))
            self.assertTrue(math.isfinite(last.loss))
            self.assertIsNone(last.evaluation)
            self.assertIsNone(last.smoothed_loss)
            self.assertFalse(session.snapshot().resumed)
            self.assertIsNone(session.snapshot().resumed_step)

    def test_an_evaluation_is_in_the_report_and_can_be_asked_for(self) -> None:
        keys = {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset_name": "eval.jsonl"}
        with self.configured(**keys).start() as session:
            first, _, last = session
            self.assertIsNone(first.eval_loss)
            self.assertEqual(last.eval_loss, session.eval_set().loss)
            self.assertEqual(last.eval_loss, session.evaluate().loss)
            with self.assertRaises(libsft.InvalidArgumentError):
                session.eval_set("no-such")

    def test_paths_may_be_objects_and_adapters_are_refused_by_name(self) -> None:
        with self.configured().start() as session:
            session.run()
            session.save(Path("out") / "saved")
            session.export(Path("out") / "model")
            self.assertTrue(Path("out/model/model.safetensors").exists())
            with self.assertRaises(libsft.UnsupportedError):
                session.export("out/adapter", libsft.Export.ADAPTER)
        with self.configured(max_steps=5).resume(Path("out") / "saved") as session:
            self.assertEqual(session.snapshot().resumed_step, 3)
            self.assertEqual([report.step for report in session], [4, 5])


class Callbacks(InFolder):
    def test_what_the_progress_callback_raises_comes_out_of_the_call_and_ends_the_run(self) -> None:
        error = LookupError("mine")

        def progress(report: StepReport) -> None:
            if report.step == 2:
                raise error

        config = self.configured()
        config.set_progress(progress)
        with config.start() as session:
            session.step()
            with self.assertRaises(LookupError) as caught:
                session.step()
            self.assertIs(caught.exception, error)
            last = session.last_report
            assert last is not None
            self.assertEqual(last.step, 2)
            self.assertEqual(session.stop_reason, StopReason.CALLBACK)
            self.assertEqual(list(session), [])

    def test_the_report_of_an_update_whose_checkpoint_failed_is_kept(self) -> None:
        config = self.configured(max_steps=4, save_strategy="steps", save_steps=1)
        with config.start() as session:
            folder = Path(config["output_dir"])
            folder.rename(folder.with_name("away"))
            folder.write_text("where the checkpoints were to be")
            errors = 0
            while not session.should_stop:
                try:
                    report = session.step()
                except libsft.FileError:
                    errors += 1
                    report = session.last_report
                assert report is not None
                self.assertEqual(report.step, session.snapshot().step)
            self.assertGreater(errors, 0)

    def test_an_exception_of_the_log_leaves_no_half_started_run(self) -> None:
        def log(level: libsft.LogLevel, line: str) -> None:
            raise SystemExit(3)

        config = self.configured()
        config.set_log(log)
        with self.assertRaises(SystemExit):
            config.start()
        config.set_log(None)
        with config.start() as session:
            self.assertEqual(len(list(session)), 3)

    def test_a_callback_that_is_replaced_is_let_go_of(self) -> None:
        class Stop:
            def __call__(self, report: StepReport) -> bool:
                return True

        stop = Stop()
        gone = weakref.ref(stop)
        config = self.configured()
        config.set_progress(stop)
        del stop
        session = config.start()
        config.set_progress(None)
        self.assertIsNotNone(gone(), "the session may call it")
        self.assertEqual([report.step for report in session], [1])
        session.close()
        self.assertIsNone(gone())
        with self.assertRaises(libsft.InvalidArgumentError):
            config.set_progress(5)  # type: ignore[arg-type]

    def test_a_callback_may_close_the_session_and_read_where_it_stands(self) -> None:
        sessions: list[Session] = []
        seen: list[object] = []

        def progress(report: StepReport) -> None:
            seen.append(sessions[0].should_stop)
            with self.assertRaises(libsft.BusyError):
                sessions[0].step()
            sessions[0].close()

        config = self.configured()
        config.set_progress(progress)
        sessions.append(config.start())
        report = sessions[0].step()
        assert report is not None
        self.assertEqual((report.step, seen), (1, [False]))
        with self.assertRaises(libsft.ClosedError):
            sessions[0].step()
        self.assertTrue(sessions[0].should_stop)

    def test_a_callback_may_train_another_session(self) -> None:
        other = self.configured(output_dir="out/other").start()
        self.addCleanup(other.close)

        def progress(report: StepReport) -> None:
            inner = other.step()
            assert inner is not None
            self.assertEqual(inner.step, report.step)

        config = self.configured()
        config.set_progress(progress)
        with config.start() as session:
            session.run()
        self.assertTrue(other.should_stop)


class Closing(InFolder):
    def test_a_closed_object_says_so(self) -> None:
        config = self.configured()
        session = config.start()
        session.close()
        config.close()
        for call in (
            session.step,
            session.snapshot,
            session.evaluate,
            lambda: session.save("out/x"),
            config.to_json,
            config.start,
            lambda: config.set("seed", 1),
            session.__enter__,
        ):
            with self.assertRaises(libsft.ClosedError) as caught:
                call()
            self.assertEqual(caught.exception.status.label, "SFT_ERR_INVALID_ARGUMENT")
        self.assertTrue(session.closed and config.closed)
        self.assertIn("closed", repr(session))
        canceller = Canceller()
        canceller.close()
        with self.assertRaises(libsft.ClosedError):
            self.configured().set_canceller(canceller)

    def test_what_is_forgotten_is_closed(self) -> None:
        def loss(report: StepReport) -> None:
            pass

        gone = weakref.ref(loss)
        config = self.configured()
        config.set_progress(loss)
        session = config.start()
        config.close()
        del loss
        self.assertIsNotNone(gone())
        del session
        gc.collect()
        self.assertIsNone(gone(), "the session let go of its callback, so it was freed")

    def test_an_object_does_one_call_at_a_time(self) -> None:
        inside, leave = threading.Event(), threading.Event()

        def progress(report: StepReport) -> None:
            inside.set()
            leave.wait(60)

        config = self.configured()
        config.set_progress(progress)
        session = config.start()
        reports: list[Optional[StepReport]] = []
        thread = threading.Thread(target=lambda: reports.append(session.step()))
        thread.start()
        inside.wait(60)
        with self.assertRaises(libsft.BusyError):
            session.step()
        self.assertFalse(session.should_stop)
        session.close()  # the rest goes when the other thread's call ends
        leave.set()
        thread.join()
        self.assertEqual([report.step for report in reports if report], [1])
        with self.assertRaises(libsft.ClosedError):
            session.step()

    def test_a_forked_child_cannot_use_its_parents_objects(self) -> None:
        with self.configured().start() as session:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the fork beside threads, which is the point
                pid = os.fork()
            if pid == 0:
                try:
                    session.step()
                except libsft.InvalidArgumentError as error:
                    session.close()
                    os._exit(7 if "fork" in str(error) else 8)
                os._exit(9)
            _, status = os.waitpid(pid, 0)
            self.assertEqual(os.WEXITSTATUS(status), 7)
            self.assertEqual(len(list(session)), 3)

    def test_a_start_that_fails_leaves_nothing(self) -> None:
        config = Config("base.json", model_name_or_path="model-tensor", output_dir="out/failed", max_steps=1)
        with config, self.assertRaises(libsft.TensorError):
            config.start()
        self.assertFalse(Path("out/failed").exists())

    def test_python_ends_while_a_daemon_thread_trains(self) -> None:
        host = """
import libsft, threading
begun = threading.Event()
config = libsft.Config("base.json", output_dir="out/daemon", max_steps=10**9)
config.set_progress(lambda report: begun.set())
session = config.start()
threading.Thread(target=session.run, daemon=True).start()
begun.wait()
"""
        for _ in range(5):
            ended = subprocess.run(
                [sys.executable, "-c", host], env=with_package(), capture_output=True, text=True, timeout=60
            )
            self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "", ""))
