"""A whole run in one call."""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Union

from ._callbacks import Log, Progress
from ._config import Config, Source
from ._errors import CancelledError, ConfigError, DataError
from ._objects import Canceller
from ._reports import Snapshot, StepReport
from ._status import LogLevel, StopReason
from ._text import PathLike

Row = Mapping[str, Any]
#: Rows: the path of a JSONL file or of a folder, or the rows themselves.
Rows = Union[PathLike, Iterable[Row]]


@dataclass(frozen=True)
class TrainResult:
    """How a run of :func:`train` ended."""

    #: Why.
    stop_reason: StopReason
    #: Updates done.
    steps: int
    #: The report of the last update; None if there was none, as after resuming a run that had ended.
    last_report: Optional[StepReport]
    #: Where the run stood at its end.
    snapshot: Snapshot
    #: The folder of the log, the checkpoints and the model.
    output_dir: str
    #: Whether the model is there: not after a run that ended on NaN, where every weight may be NaN, unless
    #: the best weights were put back.
    saved: bool


def log_to(logger: logging.Logger) -> Log:
    """A log callback that passes the library's lines on to a logger."""

    def log(level: LogLevel, message: str) -> None:
        logger.log(logging.WARNING if level == LogLevel.WARNING else logging.INFO, "%s", message)

    return log


def train(
    model: PathLike,
    train_dataset: Optional[Rows] = None,
    *,
    eval_dataset: Optional[Union[Rows, Mapping[str, Rows]]] = None,
    args: Optional[Source] = None,
    callbacks: Iterable[Union[Mapping[str, Any], Progress]] = (),
    log: Optional[Log] = None,
    canceller: Optional[Canceller] = None,
    **keys: Any,
) -> TrainResult:
    """Trains the model in the folder ``model`` until a rule or the budget ends the run, and leaves the
    model in ``output_dir``, as ``sft train`` does::

        train("SmolLM2-135M", "rows.jsonl", eval_dataset="eval.jsonl", eval_strategy="steps",
              callbacks=[EarlyStopping(patience=3)], output_dir="tuned")

    Arguments and keys have the names that they have in TRL's ``SFTTrainer`` and ``SFTConfig``. ``args`` is a
    mapping or the path of a YAML or JSON file; later ones win: ``args``, ``callbacks``, the named arguments,
    ``keys``.

    Rows may be given themselves, as any iterable of mappings: they are written as JSONL to a temporary folder
    (so they are on disk twice while the run lasts), and removed with it at the end. A resumed run knows
    rows by their content, so the other name does not matter.

    ``callbacks`` are mappings of keys, such as :class:`EarlyStopping`, and at most one function that is called
    with the report of each update and stops the run by a true result. ``log`` receives the library's
    lines; without it they go to the logger ``libsft``.

    Ctrl-C ends the run as any stop does (with a checkpoint, unless ``save_strategy`` is ``"no"``), then
    ``KeyboardInterrupt`` is raised, and no model is written to ``output_dir``.
    """
    progress: list[Callable[[StepReport], Optional[object]]] = []
    with tempfile.TemporaryDirectory(prefix="libsft-rows-") as folder, Config(args) as config:
        for callback in callbacks:
            if isinstance(callback, Mapping):
                config.merge(callback)
            else:
                progress.append(callback)
        if len(progress) > 1:
            raise ConfigError("callbacks: at most one function; call the others from it")
        named: dict[str, Any] = {"model_name_or_path": model}
        if train_dataset is not None:
            named["dataset_name"] = _path_of(train_dataset, folder, "train")
        if eval_dataset is not None:
            named["eval_dataset_name"] = (
                {name: _path_of(rows, folder, f"eval-{name}") for name, rows in eval_dataset.items()}
                if isinstance(eval_dataset, Mapping)
                else _path_of(eval_dataset, folder, "eval")
            )
        config.merge(named)
        config.merge(keys)
        if config["dataset_name"] is None:
            raise ConfigError(
                "dataset_name: missing: give train_dataset; to feed batches of your own, use "
                "Config.start and Session.step_batch"
            )
        config.set_progress(progress[0] if progress else None)
        config.set_log(log or log_to(logging.getLogger("libsft")))
        config.set_canceller(canceller)
        output_dir = str(config["output_dir"])
        with config.start() as session:
            try:
                session.run()
            except KeyboardInterrupt:
                session.step()  # takes in that the run was cancelled: the checkpoint of its end
                raise
            except CancelledError:
                session.step()  # cancelled within an evaluation: the same, and no failure
            snapshot = session.snapshot()
            broken = snapshot.stop_reason == StopReason.NON_FINITE and not snapshot.restored_best
            saved = snapshot.step > 0 and not broken
            if saved:
                session.export(output_dir)
            return TrainResult(
                stop_reason=snapshot.stop_reason,
                steps=snapshot.step,
                last_report=session.last_report,
                snapshot=snapshot,
                output_dir=output_dir,
                saved=saved,
            )


def _path_of(rows: Rows, folder: str, name: str) -> PathLike:
    if isinstance(rows, (str, os.PathLike)):
        return rows
    path = Path(folder) / f"{name}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise DataError(f"{name} row {number}: expected a mapping, found {type(row).__name__}")
            try:
                line = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(f"{name} row {number}: cannot be written as JSON: {error}") from None
            file.write(line + "\n")
    return path
