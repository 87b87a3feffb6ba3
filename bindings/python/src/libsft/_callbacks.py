"""Functions of the host that the library calls.

C gets one function for each kind of callback and, as ``user_data``, a number by which the Python
function is found in a table. The library's drop function takes it out of the table, so a function lives
as long as a configuration or session may call it. No exception crosses into C: it is kept,
and raised by the call that the callback was called from.
"""

import itertools
import threading
from typing import Any, Callable, Optional, TypeVar

from ._native import (
    CheckpointFunction,
    CheckpointReportStruct,
    DropFunction,
    LogFunction,
    ProgressFunction,
    StepReportStruct,
    copied_struct,
    text,
)
from ._objects import keep_error
from ._reports import Checkpoint, StepReport
from ._status import LogLevel

#: Called after each update; a true result asks the run to stop.
Progress = Callable[[StepReport], Optional[object]]
#: Called once a checkpoint that was due is whole on the disk.
OnCheckpoint = Callable[[Checkpoint], object]
#: Called with each line that the library has to say.
Log = Callable[[LogLevel, str], object]

_functions: dict[int, Callable[..., Any]] = {}
_numbers = itertools.count(1)
_lock = threading.Lock()


def register(function: Callable[..., Any]) -> int:
    """Puts a function into the table; the number is its ``user_data``."""
    with _lock:
        number = next(_numbers)
        _functions[number] = function
    return number


def forget(number: Optional[int]) -> None:
    """Takes a function out of the table."""
    if number is not None:
        # A local name, so that the function's own end comes after the table is whole again.
        dropped = _functions.pop(number, None)
        del dropped


def _progress(number: Optional[int], report: Any) -> int:
    try:
        function = _functions[number or 0]
        return 1 if function(StepReport._of(copied_struct(StepReportStruct, report))) else 0
    except BaseException as error:
        # A host whose callback fails has lost its way: the run ends.
        keep_error(error)
        return 1


def _checkpoint(number: Optional[int], report: Any) -> None:
    try:
        function = _functions[number or 0]
        function(Checkpoint._of(copied_struct(CheckpointReportStruct, report)))
    except BaseException as error:
        keep_error(error)


def _log(number: Optional[int], level: int, message: Optional[bytes]) -> None:
    try:
        _functions[number or 0](LogLevel(level), text(message))
    except BaseException as error:
        keep_error(error)


def _drop(number: Optional[int]) -> None:
    try:
        forget(number)
    except BaseException as error:
        keep_error(error)


# What C calls. They live as long as the module, so no callback can outlive them.
progress_function = ProgressFunction(_progress)
checkpoint_function = CheckpointFunction(_checkpoint)
log_function = LogFunction(_log)
drop_function = DropFunction(_drop)

Function = TypeVar("Function")


def none_of(kind: type[Function]) -> Function:
    """NULL as a function of that kind."""
    return kind()
