"""The C side: finding and loading the library, its structs and the types of its functions.

Everything here follows ``sft.h``, which is the reference. The rest of the package calls through
``lib`` and never touches ctypes' loader itself.
"""

import ctypes
import os
from collections.abc import Iterator
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_double,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, TypeVar

#: The number of the binary interface that this package is written for.
ABI_VERSION = 1


class LibraryError(ImportError):
    """The shared library was not found, cannot be loaded, or does not fit this package."""


# ---- Structs, field by field as in sft.h ----


class StepReportStruct(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("stop_reason", c_int32),
        ("step", c_uint64),
        ("epoch", c_double),
        ("loss", c_double),
        ("smoothed_loss", c_double),
        ("grad_norm", c_double),
        ("learning_rate", c_double),
        ("token_accuracy", c_double),
        ("entropy", c_double),
        ("supervised_tokens", c_uint64),
        ("tokens", c_uint64),
        ("total_tokens", c_uint64),
        ("seconds", c_double),
        ("has_smoothed_loss", c_int32),
        ("has_eval", c_int32),
        ("eval_loss", c_double),
        ("eval_token_accuracy", c_double),
        ("eval_entropy", c_double),
        ("eval_supervised_tokens", c_uint64),
        ("eval_seconds", c_double),
        ("loss_scale", c_double),
        ("skipped_updates", c_uint64),
    ]


class CheckpointReportStruct(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("step", c_uint64),
        ("folder", c_char_p),
    ]


class MemoryPlanStruct(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("total_bytes", c_uint64),
        ("lower_bound_bytes", c_uint64),
        ("weights_bytes", c_uint64),
        ("gradients_bytes", c_uint64),
        ("optimizer_bytes", c_uint64),
        ("activations_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("batch_bytes", c_uint64),
    ]


class BatchStruct(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("tokens", c_void_p),
        ("labels", c_void_p),
        ("seq_starts", c_void_p),
        ("n_tokens", c_size_t),
        ("n_seqs", c_size_t),
    ]


class EvalReportStruct(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("stop_reason", c_int32),
        ("step", c_uint64),
        ("loss", c_double),
        ("token_accuracy", c_double),
        ("entropy", c_double),
        ("supervised_tokens", c_uint64),
        ("tokens", c_uint64),
        ("seconds", c_double),
    ]


class SnapshotStruct(Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("stop_reason", c_int32),
        ("step", c_uint64),
        ("total_steps", c_uint64),
        ("epoch", c_double),
        ("total_tokens", c_uint64),
        ("has_best", c_int32),
        ("restored_best", c_int32),
        ("best_step", c_uint64),
        ("best_value", c_double),
        ("patience_used", c_uint64),
        ("elapsed_seconds", c_double),
        ("resumed", c_int32),
        ("has_checkpoint", c_int32),
        ("resumed_step", c_uint64),
        ("checkpoint_step", c_uint64),
    ]


AnyStruct = TypeVar("AnyStruct", bound=Structure)


def new_struct(kind: type[AnyStruct]) -> AnyStruct:
    """A zeroed struct that knows its own size."""
    struct = kind()
    struct.struct_size = ctypes.sizeof(kind)
    return struct


def copied_struct(kind: type[AnyStruct], pointer: Any) -> AnyStruct:
    """A copy of what a callback was given, of a library that may be older or newer."""
    struct = kind()
    given = int(pointer.contents.struct_size)
    ctypes.memmove(ctypes.byref(struct), pointer, min(given, ctypes.sizeof(kind)))
    return struct


# ---- Callbacks ----

ProgressFunction = CFUNCTYPE(c_int32, c_void_p, POINTER(StepReportStruct))
CheckpointFunction = CFUNCTYPE(None, c_void_p, POINTER(CheckpointReportStruct))
LogFunction = CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
DropFunction = CFUNCTYPE(None, c_void_p)

# ---- Functions: result and arguments ----

Handle = c_void_p
Out = c_void_p  # a byref(…), or None where the header allows NULL
Status = c_int32

#: Every function of sft.h.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "sft_abi_version": (c_uint32, []),
    "sft_version": (c_char_p, []),
    "sft_build_info": (c_char_p, []),
    "sft_status_name": (c_char_p, [Status]),
    "sft_stop_reason_name": (c_char_p, [c_int32]),
    "sft_string_free": (None, [c_void_p]),
    "sft_canceller_new": (Handle, []),
    "sft_canceller_cancel": (None, [Handle]),
    "sft_canceller_free": (None, [Handle]),
    "sft_config_new": (Handle, []),
    "sft_config_free": (None, [Handle]),
    "sft_config_last_error": (c_char_p, [Handle]),
    "sft_config_last_error_copy": (c_void_p, [Handle]),
    "sft_config_merge_json": (Status, [Handle, c_char_p, c_size_t]),
    "sft_config_merge_file": (Status, [Handle, c_char_p]),
    "sft_config_set_str": (Status, [Handle, c_char_p, c_char_p]),
    "sft_config_set_i64": (Status, [Handle, c_char_p, c_int64]),
    "sft_config_set_f64": (Status, [Handle, c_char_p, c_double]),
    "sft_config_set_bool": (Status, [Handle, c_char_p, c_int32]),
    "sft_config_to_json": (Status, [Handle, Out]),
    "sft_config_set_progress": (Status, [Handle, ProgressFunction, c_void_p, DropFunction]),
    "sft_config_set_checkpoint": (Status, [Handle, CheckpointFunction, c_void_p, DropFunction]),
    "sft_config_set_log": (Status, [Handle, LogFunction, c_void_p, DropFunction]),
    "sft_config_set_canceller": (Status, [Handle, Handle]),
    "sft_plan": (Status, [Handle, Out]),
    "sft_plan_json": (Status, [Handle, Out]),
    "sft_start": (Status, [Handle, Out]),
    "sft_resume": (Status, [Handle, c_char_p, Out]),
    "sft_step": (Status, [Handle, Out]),
    "sft_step_batch": (Status, [Handle, POINTER(BatchStruct), c_size_t, Out]),
    "sft_last_report": (Status, [Handle, Out]),
    "sft_evaluate": (Status, [Handle, Out]),
    "sft_evaluate_batch": (Status, [Handle, POINTER(BatchStruct), c_size_t, Out]),
    "sft_observe": (Status, [Handle, c_char_p, c_double]),
    "sft_should_stop": (c_bool, [Handle]),
    "sft_stop_reason": (c_int32, [Handle]),
    "sft_snapshot_get": (Status, [Handle, Out]),
    "sft_save": (Status, [Handle, c_char_p]),
    "sft_export": (Status, [Handle, c_char_p, c_int32]),
    "sft_session_free": (None, [Handle]),
    "sft_last_error": (c_char_p, [Handle]),
    "sft_last_error_copy": (c_void_p, [Handle]),
    "sft_eval_set": (Status, [Handle, c_char_p, Out]),
}

# ---- Loading ----

_FILE = "libsft.so"


def _candidates() -> Iterator[str]:
    """Where the library may be, in the order in which it is looked for."""
    named = os.environ.get("LIBSFT_LIBRARY")
    if named:
        # Whoever names one means that one and no other.
        yield str(Path(named) / _FILE) if os.path.isdir(named) else named
        return
    bundled = Path(__file__).with_name(_FILE)
    if bundled.exists():
        yield str(bundled)
        return
    # Names without a folder are looked up by the system's loader.
    yield _FILE + ".0"
    yield _FILE


def declare(library: Any, path: str) -> None:
    """Checks that ``library`` is one that this package can drive, and types its functions."""
    try:
        abi_version = library.sft_abi_version
    except AttributeError:
        raise LibraryError(f"{path} is not libsft: it has no sft_abi_version", path=path) from None
    abi_version.restype = c_uint32
    found = int(abi_version())
    if found != ABI_VERSION:
        raise LibraryError(
            f"{path} has the ABI version {found}, and this package is for version {ABI_VERSION}: "
            f"install the libsft package and library of one release",
            path=path,
        )
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise LibraryError(
                f"{path} is older than this package: it has no {name}; install a newer library",
                path=path,
            ) from None
        function.restype = result
        function.argtypes = arguments


def load() -> tuple[ctypes.CDLL, str]:
    """The library and the name or path by which it was found."""
    tried = []
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            tried.append(str(error))
            continue
        declare(library, path)
        return library, path
    raise LibraryError(
        "cannot load libsft: set LIBSFT_LIBRARY to the path of libsft.so (of its file or folder), "
        "install the wheel that holds it, or install the library where the system's loader finds it. "
        "Tried: " + "; ".join(tried)
    )


lib, library_path = load()


def text(value: Any) -> str:
    """A string that the library lent out."""
    return (value or b"").decode("utf-8", "replace")


def taken_text(pointer: "c_void_p") -> str:
    """A string that the library gave away."""
    try:
        return ctypes.string_at(pointer).decode("utf-8", "replace") if pointer else ""
    finally:
        lib.sft_string_free(pointer)
