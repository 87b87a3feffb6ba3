"""A run."""

import ctypes
from collections.abc import Iterator
from typing import Callable, Optional, Union

from ._batch import Batch, Numbers, batch_array
from ._native import (
    EvalReportStruct,
    SnapshotStruct,
    StepReportStruct,
    lib,
    new_struct,
)
from ._objects import Canceller, NativeObject
from ._reports import Evaluation, Snapshot, StepReport
from ._status import Export, Status, StopReason
from ._text import PathLike, encoded, encoded_path


class Session(NativeObject):
    """A run, from :meth:`Config.start`. Iterating over it steps it until it ends::

        with config.start() as session:
            for report in session:
                print(report.step, report.loss)
            session.export("tuned")

    One call at a time: a second one, from another thread or from inside a callback, raises
    :class:`BusyError` and does nothing; :attr:`should_stop` and :attr:`stop_reason` may be read at any time.

    Ctrl-C during a call in the main thread cancels the run: loading and evaluating end at once, an
    update is finished; then ``KeyboardInterrupt`` is raised. The session can still be saved and exported.
    """

    _what = "session"

    def __init__(self, pointer: Optional[int], canceller: Canceller) -> None:
        super().__init__(pointer, lib.sft_session_free, lib.sft_last_error)
        self._canceller = canceller
        #: The report of the last update, also where its call raised.
        self.last_report: Optional[StepReport] = None

    # ---- Steps ----

    def step(self) -> Optional[StepReport]:
        """One optimizer update on the next rows, with the evaluation, checkpoint and stop decision
        that are due after it. None once the run has ended.

        After a :class:`FileError` (the log or an earlier checkpoint could not be written) the update
        has taken effect all the same and the run can go on.
        """
        out = new_struct(StepReportStruct)
        return self._stepped(out, lambda pointer: lib.sft_step(pointer, ctypes.byref(out)))

    def step_batch(self, *micro_batches: Union[Batch, Numbers]) -> Optional[StepReport]:
        """One optimizer update on the host's own tokens: the loss is the mean over the supervised
        positions of all micro-batches together. A batch that is only tokens may be given as those.
        None once the run has ended."""
        batches, kept = batch_array(micro_batches)
        out = new_struct(StepReportStruct)
        return self._stepped(
            out,
            lambda pointer: lib.sft_step_batch(pointer, batches, len(kept), ctypes.byref(out)),
        )

    def _stepped(self, out: StepReportStruct, call: Callable[[int], int]) -> Optional[StepReport]:
        try:
            status = self._call(call, cancel=self._canceller.cancel)
        finally:
            # Written on success alone, but an update may have taken effect all the same. The pointer is a name, which
            # the library checks: a call from here is fine for a session that was closed or is busy, and does nothing.
            if not out.step:
                lib.sft_last_report(self._pointer, ctypes.byref(out))
            if out.step:
                self.last_report = StepReport._of(out)
        return None if status == Status.STOPPED else self.last_report

    def __iter__(self) -> Iterator[StepReport]:
        return self

    def __next__(self) -> StepReport:
        report = self.step()
        if report is None:
            raise StopIteration
        return report

    def run(self) -> Optional[StepReport]:
        """Steps until the run ends; the report of the last update, None if there has been none."""
        while self.step() is not None:
            pass
        return self.last_report

    # ---- Evaluation and the stop rules ----

    def evaluate(self) -> Evaluation:
        """Evaluates on the evaluation rows now, also after the run has ended. The result is logged and
        seen by the stop rules."""
        out = new_struct(EvalReportStruct)
        self._call(lib.sft_evaluate, ctypes.byref(out), cancel=self._canceller.cancel)
        return Evaluation._of(out)

    def evaluate_batch(self, *batches: Union[Batch, Numbers]) -> Evaluation:
        """As :meth:`evaluate`, on the host's own batches."""
        array, kept = batch_array(batches)
        out = new_struct(EvalReportStruct)
        self._call(
            lib.sft_evaluate_batch,
            array,
            len(kept),
            ctypes.byref(out),
            cancel=self._canceller.cancel,
        )
        return Evaluation._of(out)

    def eval_set(self, name: Optional[str] = None) -> Evaluation:
        """The numbers of one set of the last evaluation, whatever asked for it: ``name`` is a name of
        ``eval_dataset_name``; None for all sets together."""
        out = new_struct(EvalReportStruct)
        chosen = None if name is None else encoded(name, "name")
        self._call(lib.sft_eval_set, chosen, ctypes.byref(out))
        return Evaluation._of(out)

    def observe(self, metric: str, value: float) -> None:
        """Feeds a number of the host's own to the stop rules, as known after the last update. A rule
        names it by its metric. NaN is allowed and never counts as progress."""
        self._call(lib.sft_observe, encoded(metric, "metric"), float(value))

    @property
    def should_stop(self) -> bool:
        """Whether the run has ended; stays true once it has, and is true for a closed session. May be
        read while another call is inside."""
        return bool(lib.sft_should_stop(self._pointer))

    @property
    def stop_reason(self) -> StopReason:
        """Why the run ended; false while it goes on. May be read while another call is inside."""
        return StopReason(lib.sft_stop_reason(self._pointer))

    def snapshot(self) -> Snapshot:
        """Where the run stands."""
        out = new_struct(SnapshotStruct)
        self._call(lib.sft_snapshot_get, ctypes.byref(out))
        return Snapshot._of(out)

    # ---- What it leaves ----

    def save(self, folder: PathLike) -> None:
        """Writes a checkpoint to the folder, whole or not at all, durable on return: all that
        :meth:`Config.resume` needs to go on."""
        path = encoded_path(folder, "folder")
        self._call(lib.sft_save, path, cancel=self._canceller.cancel)

    def export(self, folder: PathLike, what: Export = Export.FULL) -> None:
        """Writes the model to the folder as a Hugging Face folder, whole or not at all. After the end
        of a run with ``load_best_model_at_end`` it has the best weights."""
        path = encoded_path(folder, "folder")
        self._call(lib.sft_export, path, int(what), cancel=self._canceller.cancel)
