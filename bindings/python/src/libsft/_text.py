"""Texts and paths on their way into C."""

import os
from typing import Union

from ._errors import InvalidArgumentError

#: A path as it may be given.
PathLike = Union[str, "os.PathLike[str]"]


def encoded(value: str, what: str) -> bytes:
    """UTF-8 without a NUL, at which C would end it."""
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected a text, found {type(value).__name__}")
    if "\0" in value:
        raise InvalidArgumentError(f"{what}: holds a NUL character")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what}: is not UTF-8: {value!r}") from None


def encoded_path(path: PathLike, what: str) -> bytes:
    """The same for a path."""
    return encoded(os.fspath(path), what)
