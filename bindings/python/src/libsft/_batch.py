"""Token batches that the host feeds."""

import ctypes
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

from ._errors import BatchError, InvalidArgumentError
from ._native import BatchStruct, new_struct

#: Whole numbers: an object with the buffer protocol (``array``, ``memoryview``, a numpy array) or any
#: iterable of them.
Numbers = Union[Sequence[int], Iterable[int], Any]

_WHOLE_NUMBER_FORMATS = frozenset("bBhHiIlLqQnN")
_INT32_FORMATS = frozenset(["i", "=i", "@i", "<i"])


class Batch:
    """Sequences of tokens laid end to end.

    ``labels`` are the token ids, or -100 where not trained on; None: all are trained on. They are not
    shifted: position i predicts the label at i + 1, so the first label of each sequence never counts.
    ``seq_starts`` are the positions at which sequences start, ascending from 0; None: all tokens are
    one sequence.

    A writable, contiguous buffer of 32-bit integers is used where it lies, so a host may fill it anew
    between calls; it cannot be resized while the batch lives. Everything else is copied once.
    """

    __slots__ = ("_struct", "_kept")

    def __init__(
        self, tokens: Numbers, labels: Optional[Numbers] = None, seq_starts: Optional[Numbers] = None
    ) -> None:
        batch = new_struct(BatchStruct)
        kept: list[Any] = []
        batch.tokens, batch.n_tokens = _int32(tokens, "tokens", kept)
        if labels is not None:
            batch.labels, n_labels = _int32(labels, "labels", kept)
            if n_labels != batch.n_tokens:
                raise BatchError(f"labels: expected {batch.n_tokens}, one a token, found {n_labels}")
        if seq_starts is not None:
            batch.seq_starts, batch.n_seqs = _int32(seq_starts, "seq_starts", kept)
        self._struct = batch
        self._kept = kept

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self._struct.n_tokens)


def _int32(numbers: Numbers, what: str, kept: list[Any]) -> tuple[int, int]:
    """Address and number of 32-bit integers; what they belong to is added to ``kept``."""
    copied = None
    given: Any = numbers
    try:
        view = memoryview(given)
    except TypeError:
        copied = _copied(numbers, what)
    else:
        if isinstance(numbers, (bytes, bytearray, str)):
            raise TypeError(f"{what}: expected whole numbers, found {type(numbers).__name__}")
        if view.ndim != 1 or view.format.lstrip("@=<") not in _WHOLE_NUMBER_FORMATS:
            raise TypeError(
                f"{what}: expected a buffer of whole numbers in one dimension, found {view.ndim} "
                f"dimensions of format {view.format!r}"
            )
        if view.format not in _INT32_FORMATS or view.readonly or not view.c_contiguous:
            copied = _copied(_native(view, what).tolist(), what)
        elif len(view):
            there = (ctypes.c_int32 * len(view)).from_buffer(view)
            kept.append(there)
            return ctypes.addressof(there), len(view)
        else:
            copied = array("i")
    # Room for one, so that an empty batch has an address too and the library can say what it lacks.
    there = (ctypes.c_int32 * max(1, len(copied)))(*copied)
    kept.append(there)
    return ctypes.addressof(there), len(copied)


def _native(view: memoryview, what: str) -> memoryview:
    """The view in the machine's own format, which is what Python can read numbers from."""
    code = view.format[-1]
    if view.format in (code, "@" + code):
        return view
    if view.itemsize != struct.calcsize(code) or not view.c_contiguous:
        raise TypeError(f"{what}: a buffer of format {view.format!r} cannot be read; give a list")
    return view.cast("B").cast(code)  # type: ignore[call-overload,no-any-return]


def _copied(numbers: Iterable[int], what: str) -> "array[int]":
    try:
        return array("i", numbers)
    except OverflowError:
        raise BatchError(f"{what}: a number does not fit into 32 bits") from None
    except TypeError as error:
        raise TypeError(f"{what}: expected whole numbers: {error}") from None


def batch_array(batches: Sequence[Union[Batch, Numbers]]) -> tuple[Any, list[Batch]]:
    """The batches as C wants them, and what keeps them alive. A batch that is only tokens may be
    given as those."""
    for batch in batches:
        if isinstance(batch, int):
            raise InvalidArgumentError("a batch is a Batch or a sequence of tokens, found a number")
    made = [batch if isinstance(batch, Batch) else Batch(batch) for batch in batches]
    structs = (BatchStruct * len(made))(*[batch._struct for batch in made])
    return structs, made
