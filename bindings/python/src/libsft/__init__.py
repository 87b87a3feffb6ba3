"""Supervised fine-tuning of language models, by the library libsft.

The smallest run::

    import libsft

    with libsft.Config("run.yaml") as config, config.start() as session:
        for report in session:
            print(report.step, report.loss)
        session.export("tuned")

or, in one call, :func:`train`. Pure Python over ctypes: the library does the work, without the GIL.
"""

import json
from typing import Any

from . import _native
from ._batch import Batch
from ._callbacks import Log, OnCheckpoint, Progress
from ._config import Config
from ._errors import (
    ArgumentError,
    BatchError,
    BusyError,
    CancelledError,
    CheckpointError,
    ClosedError,
    ConfigError,
    DataError,
    DefectError,
    DeviceError,
    ExistsError,
    FileError,
    InternalError,
    InvalidArgumentError,
    ModelError,
    OutOfMemoryError,
    PanicError,
    PoisonedError,
    RunError,
    SftError,
    TemplateError,
    TensorError,
    TokenizerError,
    UnknownKeyError,
    UnsupportedError,
    UnsupportedModelError,
)
from ._native import ABI_VERSION, LibraryError
from ._objects import Canceller
from ._reports import Checkpoint, Evaluation, Plan, Snapshot, StepReport
from ._rules import (
    Budget,
    Divergence,
    EarlyStopping,
    EarlyStoppingCallback,
    NonFinite,
    Overfit,
    Plateau,
    Rule,
    Target,
)
from ._session import Session
from ._status import Export, LogLevel, Status, StopReason
from ._train import TrainResult, log_to, train

__version__ = "0.1.0"


def version() -> str:
    """The version of the library that is running."""
    return _native.text(_native.lib.sft_version())


def abi_version() -> int:
    """The number of its binary interface; it equals :data:`ABI_VERSION`."""
    return int(_native.lib.sft_abi_version())


def build_info() -> dict[str, Any]:
    """How the library was built: ``version``, ``abi_version``, ``arch``, ``os``, ``debug`` and ``devices``, the
    kinds of device that it can use."""
    info: dict[str, Any] = json.loads(_native.text(_native.lib.sft_build_info()))
    return info


def library_path() -> str:
    """The path, or the name that the system's loader knows, of the library that is running."""
    return _native.library_path


def status_name(status: int) -> str:
    """The library's name of a status, ``"unknown"`` for a number that is none."""
    return _native.text(_native.lib.sft_status_name(status))


def stop_reason_name(stop_reason: int) -> str:
    """The library's name of a stop reason, ``"unknown"`` for a number that is none."""
    return _native.text(_native.lib.sft_stop_reason_name(stop_reason))


__all__ = [
    "ABI_VERSION",
    "ArgumentError",
    "Batch",
    "BatchError",
    "Budget",
    "BusyError",
    "CancelledError",
    "Canceller",
    "Checkpoint",
    "CheckpointError",
    "ClosedError",
    "Config",
    "ConfigError",
    "DataError",
    "DefectError",
    "DeviceError",
    "Divergence",
    "EarlyStopping",
    "EarlyStoppingCallback",
    "Evaluation",
    "ExistsError",
    "Export",
    "FileError",
    "InternalError",
    "InvalidArgumentError",
    "LibraryError",
    "Log",
    "LogLevel",
    "ModelError",
    "NonFinite",
    "OnCheckpoint",
    "OutOfMemoryError",
    "Overfit",
    "PanicError",
    "Plan",
    "Plateau",
    "PoisonedError",
    "Progress",
    "Rule",
    "RunError",
    "Session",
    "SftError",
    "Snapshot",
    "Status",
    "StepReport",
    "StopReason",
    "Target",
    "TemplateError",
    "TensorError",
    "TokenizerError",
    "TrainResult",
    "UnknownKeyError",
    "UnsupportedError",
    "UnsupportedModelError",
    "abi_version",
    "build_info",
    "library_path",
    "log_to",
    "status_name",
    "stop_reason_name",
    "train",
    "version",
]
