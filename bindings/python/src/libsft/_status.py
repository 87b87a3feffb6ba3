"""The numbers of sft.h: statuses, stop reasons, log levels and what can be exported."""

from enum import IntEnum
from typing import Optional


class _Number(IntEnum):
    """A number of the library's. A newer library may have ones without a name here."""

    @classmethod
    def _missing_(cls, value: object) -> "Optional[_Number]":
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member


class Status(_Number):
    """How a call went; ``status.label`` is the name in C."""

    OK = 0
    STOPPED = 1
    ERR_INVALID_ARGUMENT = 100
    ERR_BUSY = 101
    ERR_POISONED = 102
    ERR_CONFIG = 200
    ERR_UNKNOWN_KEY = 201
    ERR_UNSUPPORTED = 202
    ERR_MODEL = 300
    ERR_UNSUPPORTED_MODEL = 301
    ERR_TENSOR = 302
    ERR_TOKENIZER = 303
    ERR_TEMPLATE = 304
    ERR_DATA = 400
    ERR_BATCH = 401
    ERR_IO = 500
    ERR_EXISTS = 501
    ERR_CHECKPOINT = 502
    ERR_DEVICE = 600
    ERR_OUT_OF_MEMORY = 601
    ERR_CANCELLED = 602
    ERR_PANIC = 900
    ERR_INTERNAL = 901

    @property
    def label(self) -> str:
        """The name in C, such as ``SFT_ERR_CONFIG``."""
        return f"SFT_{self.name}"


class StopReason(_Number):
    """Why a run ended; false while it goes on. ``str`` gives the name that logs print."""

    NONE = 0
    TARGET_REACHED = 1
    PLATEAU = 2
    NON_FINITE = 3
    DIVERGED = 4
    OVERFIT = 5
    MAX_STEPS = 6
    MAX_EPOCHS = 7
    MAX_TOKENS = 8
    MAX_TIME = 9
    CANCELLED = 10
    CALLBACK = 11

    @property
    def label(self) -> str:
        """The name that logs print, such as ``target_reached``."""
        return self.name.lower()

    def __str__(self) -> str:
        return self.label

    def __format__(self, spec: str) -> str:
        return format(self.label, spec)


class LogLevel(_Number):
    """How much a line of the log matters."""

    WARNING = 1
    INFO = 2


class Export(_Number):
    """What :meth:`Session.export` writes."""

    FULL = 1
    ADAPTER = 2
    MERGED = 3
