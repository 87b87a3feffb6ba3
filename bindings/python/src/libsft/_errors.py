"""Exceptions: one class a status, below one class a group, below :class:`SftError`."""

from typing import Optional

from ._status import Status


class SftError(Exception):
    """What the library, or this package in its place, says about a call that failed."""

    #: The status of the class; an instance may have a newer one of the same group.
    status: Status = Status.ERR_INTERNAL

    def __init__(self, message: str, status: Optional[Status] = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ArgumentError(SftError):
    """A call was wrong in itself."""

    status = Status.ERR_INVALID_ARGUMENT


class InvalidArgumentError(ArgumentError, ValueError):
    """An argument is missing, out of range or not UTF-8, or does not fit the run."""


class ClosedError(InvalidArgumentError):
    """The object was closed."""


class BusyError(ArgumentError, RuntimeError):
    """Another call is inside the object right now; nothing was done."""

    status = Status.ERR_BUSY


class PoisonedError(ArgumentError, RuntimeError):
    """An earlier :class:`PanicError` left the object unusable: it can only be closed."""

    status = Status.ERR_POISONED


class ConfigError(SftError, ValueError):
    """A configuration value is wrong or contradicts another."""

    status = Status.ERR_CONFIG


class UnknownKeyError(ConfigError):
    """A configuration key is not known; the text names the nearest one."""

    status = Status.ERR_UNKNOWN_KEY


class UnsupportedError(ConfigError):
    """What was asked for is known and not supported."""

    status = Status.ERR_UNSUPPORTED


class ModelError(SftError, ValueError):
    """The model folder or its config.json is wrong."""

    status = Status.ERR_MODEL


class UnsupportedModelError(ModelError):
    """The model's architecture, or one of its options, is not supported."""

    status = Status.ERR_UNSUPPORTED_MODEL


class TensorError(ModelError):
    """A tensor is missing, has another shape or type, or holds NaN."""

    status = Status.ERR_TENSOR


class TokenizerError(ModelError):
    """The tokenizer cannot be read or lacks what the data needs."""

    status = Status.ERR_TOKENIZER


class TemplateError(ModelError):
    """The chat template does not compile, or raised an error."""

    status = Status.ERR_TEMPLATE


class DataError(SftError, ValueError):
    """A data file or a row of it is wrong, or there are no rows."""

    status = Status.ERR_DATA


class BatchError(DataError):
    """A batch of the host is malformed; nothing was done."""

    status = Status.ERR_BATCH


class FileError(SftError, OSError):
    """Reading or writing a file failed."""

    status = Status.ERR_IO


class ExistsError(FileError, FileExistsError):
    """A folder that must not be overwritten already exists."""

    status = Status.ERR_EXISTS


class CheckpointError(FileError):
    """A checkpoint is damaged, incomplete or of a format that is not known."""

    status = Status.ERR_CHECKPOINT


class RunError(SftError, RuntimeError):
    """The device or the run itself failed."""

    status = Status.ERR_DEVICE


class DeviceError(RunError):
    """The device cannot be used."""


class OutOfMemoryError(RunError, MemoryError):
    """The run does not fit into memory."""

    status = Status.ERR_OUT_OF_MEMORY


class CancelledError(RunError):
    """The canceller was triggered while the call was loading or evaluating."""

    status = Status.ERR_CANCELLED


class DefectError(SftError, RuntimeError):
    """A defect of the library, please report it."""

    status = Status.ERR_INTERNAL


class PanicError(DefectError):
    """A defect of the library was caught; the object can only be closed."""

    status = Status.ERR_PANIC


class InternalError(DefectError):
    """A defect of the library was found by itself."""


_CLASSES: dict[int, type[SftError]] = {
    Status.ERR_INVALID_ARGUMENT: InvalidArgumentError,
    Status.ERR_DEVICE: DeviceError,
    Status.ERR_INTERNAL: InternalError,
    **{
        kind.status: kind
        for kind in (
            BusyError,
            PoisonedError,
            ConfigError,
            UnknownKeyError,
            UnsupportedError,
            ModelError,
            UnsupportedModelError,
            TensorError,
            TokenizerError,
            TemplateError,
            DataError,
            BatchError,
            FileError,
            ExistsError,
            CheckpointError,
            OutOfMemoryError,
            CancelledError,
            PanicError,
        )
    },
}

#: What a status that a newer library adds to a group becomes.
_GROUPS: dict[int, type[SftError]] = {
    1: ArgumentError,
    2: ConfigError,
    3: ModelError,
    4: DataError,
    5: FileError,
    6: RunError,
    9: DefectError,
}


def error_of(status: int, message: str) -> SftError:
    """The exception for a status of the library."""
    kind = _CLASSES.get(status) or _GROUPS.get(status // 100, SftError)
    known = Status(status)
    return kind(message or known.label, known)
