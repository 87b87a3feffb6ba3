"""Ctrl-C ends what the library is at, and comes out as KeyboardInterrupt once that has ended."""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Optional

import libsft
from libsft import StepReport, StopReason

from .support import InFolder


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Interrupts(InFolder):
    def setUp(self) -> None:
        super().setUp()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)

    def test_a_step_is_finished_and_the_run_has_ended(self) -> None:
        def progress(report: StepReport) -> None:
            if report.step == 2:
                interrupt()
                time.sleep(0.01)

        config = self.configured(max_steps=1000)
        config.set_progress(progress)
        with config.start() as session:
            with self.assertRaises(KeyboardInterrupt):
                session.run()
            last = session.last_report
            assert last is not None
            self.assertEqual(last.step, 2)
            self.assertTrue(session.should_stop)
            self.assertIsNone(session.step())
            self.assertIs(session.stop_reason, StopReason.CANCELLED)
            session.export("out/model")
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)
        self.assertEqual(signal.set_wakeup_fd(-1), -1)

    def test_an_evaluation_ends_at_once(self) -> None:
        rows = Path("eval.jsonl").read_text()
        Path("long.jsonl").write_text(rows * (200_000 // len(rows.splitlines())))
        config = self.configured(eval_dataset_name="long.jsonl")
        with config.start() as session:
            timer = threading.Timer(0.3, interrupt)
            timer.start()
            start = time.monotonic()
            with self.assertRaises(KeyboardInterrupt) as caught:
                session.evaluate()
            seconds = time.monotonic() - start
            timer.join()
            self.assertIsInstance(caught.exception.__cause__, libsft.CancelledError)
            self.assertLess(seconds, 2)

    def test_a_start_ends_and_leaves_no_run(self) -> None:
        config = self.configured()
        config.set_log(lambda level, line: interrupt())
        with self.assertRaises(KeyboardInterrupt):
            config.start()
        config.set_log(None)
        with config.start() as session:
            self.assertEqual(len(list(session)), 3, "the canceller was that start's own")

    def test_the_canceller_that_was_set_is_triggered(self) -> None:
        config = self.configured()
        canceller = libsft.Canceller()
        config.set_canceller(canceller)
        config.set_log(lambda level, line: interrupt())
        with self.assertRaises(KeyboardInterrupt):
            config.start()
        with self.assertRaises(libsft.CancelledError):
            config.start()

    def test_a_handler_of_the_hosts_own_is_left_alone(self) -> None:
        came = []

        def handler(number: int, frame: Optional[FrameType]) -> None:
            came.append(number)

        signal.signal(signal.SIGINT, handler)
        config = self.configured()
        config.set_progress(lambda report: interrupt())
        with config.start() as session:
            self.assertEqual(len(list(session)), 3)
        self.assertEqual(came, [signal.SIGINT] * 3)

    def test_whoever_listened_before_hears_of_the_signal_too(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        signal.set_wakeup_fd(theirs.fileno())
        self.addCleanup(signal.set_wakeup_fd, -1)
        config = self.configured()
        config.set_progress(lambda report: interrupt())
        with config.start() as session, self.assertRaises(KeyboardInterrupt):
            session.step()
        self.assertEqual(ours.recv(10), bytes([signal.SIGINT]))
        self.assertEqual(signal.set_wakeup_fd(-1), theirs.fileno())

    def test_a_call_on_another_thread_is_not_interrupted(self) -> None:
        steps: list[int] = []
        config = self.configured()
        config.set_progress(lambda report: interrupt() if report.step == 1 else None)
        session = config.start()
        ended = threading.Event()

        def run() -> None:
            steps.extend(report.step for report in session)
            ended.set()

        thread = threading.Thread(target=run)
        with self.assertRaises(KeyboardInterrupt):
            thread.start()
            ended.wait(60)
        ended.wait(60)
        thread.join()
        session.close()
        self.assertEqual(steps, [1, 2, 3])
