"""The configuration of a run."""

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional, Union

from ._callbacks import (
    Log,
    OnCheckpoint,
    Progress,
    checkpoint_function,
    drop_function,
    forget,
    log_function,
    none_of,
    progress_function,
    register,
)
from ._errors import ConfigError, InvalidArgumentError, SftError
from ._native import (
    CheckpointFunction,
    DropFunction,
    LogFunction,
    MemoryPlanStruct,
    ProgressFunction,
    lib,
    new_struct,
    taken_text,
)
from ._objects import Canceller, NativeObject
from ._reports import Plan
from ._rules import Rule
from ._session import Session
from ._text import PathLike, encoded, encoded_path

#: A configuration as it may be given: keys with values, or the path of a YAML or JSON file.
Source = Union[Mapping[str, Any], PathLike]


class Config(NativeObject):
    """Keys with values, callbacks and a canceller. Keys are those of the command line, which are TRL's
    where TRL has the thing; ``sft init`` prints all of them with defaults and meanings.

    ``source`` is a mapping or the path of a YAML or JSON file; keyword arguments come after it::

        Config("run.yaml", max_steps=100)
        Config(model_name_or_path="model", stop=[Target("eval_loss", at_most=1.2)])
    """

    _what = "configuration"

    def __init__(self, source: Optional[Source] = None, /, **keys: Any) -> None:
        super().__init__(lib.sft_config_new(), lib.sft_config_free, lib.sft_config_last_error)
        self._canceller: Optional[Canceller] = None
        try:
            self.merge(source, **keys)
        except BaseException:
            self.close()
            raise

    # ---- Keys ----

    def merge(self, source: Optional[Source] = None, /, **keys: Any) -> None:
        """Sets the keys of a mapping or of a YAML or JSON file, then those of the keyword arguments:
        of each of the two all or, on an error, none."""
        if isinstance(source, (str, os.PathLike)):
            self._call(lib.sft_config_merge_file, encoded_path(source, "source"))
        elif source is not None:
            self.merge_json(_json(dict(source)))
        if keys:
            self.merge_json(_json(keys))

    def merge_json(self, text: Union[str, bytes]) -> None:
        """Sets the keys of a JSON object: all of them or, on an error, none."""
        data = text if isinstance(text, bytes) else text.encode()
        self._call(lib.sft_config_merge_json, data, len(data))

    def set(self, key: str, value: Any) -> None:
        """Sets one key. A text is read as the key needs it: ``"5"`` sets a number. A key with dots
        reaches inside a nested one: ``"lr_scheduler_kwargs.num_cycles"``. None clears."""
        name = encoded(key, "key")
        if isinstance(value, bool):
            self._call(lib.sft_config_set_bool, name, int(value))
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ConfigError(f"{key}: the number {value} does not fit into 64 bits")
            self._call(lib.sft_config_set_i64, name, value)
        elif isinstance(value, float):
            self._call(lib.sft_config_set_f64, name, value)
        else:
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            text = value if isinstance(value, str) else _json(value)
            self._call(lib.sft_config_set_str, name, encoded(text, key))

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.to_dict()

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def to_json(self) -> str:
        """All keys with their values, defaults included, as a JSON object that
        :meth:`merge_json` takes."""
        out = ctypes.c_void_p()
        self._call(lib.sft_config_to_json, ctypes.byref(out))
        return taken_text(out)

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, defaults included."""
        keys: dict[str, Any] = json.loads(self.to_json())
        return keys

    # ---- Callbacks and canceller ----

    def set_progress(self, progress: Optional[Progress]) -> None:
        """Sets the function that is called after each update of the sessions that are started from
        now on; a true result asks the run to stop. None: none.

        What a callback raises is raised by the call that it was called from, once that has done its
        work. What this one raises also ends the run, by ``StopReason.CALLBACK``.
        """
        function = progress_function if progress else none_of(ProgressFunction)
        self._set_callback(lib.sft_config_set_progress, function, progress)

    def set_checkpoint(self, checkpoint: Optional[OnCheckpoint]) -> None:
        """Sets the function that is called once a checkpoint that was due is whole on the disk."""
        function = checkpoint_function if checkpoint else none_of(CheckpointFunction)
        self._set_callback(lib.sft_config_set_checkpoint, function, checkpoint)

    def set_log(self, log: Optional[Log]) -> None:
        """Sets the function that receives what the library has to say, of this configuration and of
        the sessions that are started from now on. :func:`log_to` makes one for a logger."""
        function = log_function if log else none_of(LogFunction)
        self._set_callback(lib.sft_config_set_log, function, log)

    def _set_callback(
        self, setter: Callable[..., int], c_function: Any, function: Optional[Callable[..., Any]]
    ) -> None:
        if function is not None and not callable(function):
            raise InvalidArgumentError(f"a callback must be callable, found {function!r}")
        number = register(function) if function is not None else None
        drop = drop_function if function is not None else none_of(DropFunction)
        try:
            self._call(setter, c_function, number, drop)
        except SftError:
            # On an error of the library the function stays ours.
            forget(number)
            raise

    def set_canceller(self, canceller: Optional[Canceller]) -> None:
        """Lets ``canceller`` stop the sessions that are started from now on, and :meth:`start` and
        :meth:`plan` themselves. It may be closed at any time, and may serve several configurations."""
        if canceller is not None:
            canceller._check_open()
        self._call(lib.sft_config_set_canceller, canceller._pointer if canceller else None)
        self._canceller = canceller

    # ---- What is done with it ----

    def plan(self) -> Plan:
        """Plans the memory of a run, without allocating it."""
        out = new_struct(MemoryPlanStruct)
        self._call_cancellable(lib.sft_plan, ctypes.byref(out))
        return Plan._of(out)

    def plan_json(self) -> str:
        """As :meth:`plan`, with every tensor, as a JSON object: ``"total_bytes"`` and ``"segments"``."""
        out = ctypes.c_void_p()
        try:
            self._call_cancellable(lib.sft_plan_json, ctypes.byref(out))
            return taken_text(out)
        except BaseException:
            lib.sft_string_free(out)
            raise

    def start(self) -> Session:
        """Starts a run: loads the model and the data that the configuration names, allocates all
        memory, and opens the log in ``output_dir``; or goes on from a checkpoint where
        ``resume_from_checkpoint`` says so. The configuration is copied, and can be changed, used again
        or closed. Without ``dataset_name`` the host feeds its own batches by
        :meth:`Session.step_batch`."""
        return self._begin(lambda pointer, out: lib.sft_start(pointer, out))

    def resume(self, folder: PathLike) -> Session:
        """As :meth:`start`, going on from the checkpoint in ``folder``, whatever
        ``resume_from_checkpoint`` says."""
        path = encoded_path(folder, "folder")
        return self._begin(lambda pointer, out: lib.sft_resume(pointer, path, out))

    def _begin(self, function: Callable[[Any, Any], int]) -> Session:
        out = ctypes.c_void_p()
        try:
            canceller = self._call_cancellable(function, ctypes.byref(out))
            return Session(out.value, canceller)
        except BaseException:
            # Also where the run did start, but a callback raised or Ctrl-C came.
            lib.sft_session_free(out)
            raise

    def _call_cancellable(self, function: Callable[..., int], *arguments: Any) -> Canceller:
        """Calls with a canceller for Ctrl-C: the one that was set, else a new one."""
        given = self._canceller
        canceller = given or Canceller()

        def call(pointer: int, *arguments: Any) -> int:
            if given is None:
                status = int(lib.sft_config_set_canceller(pointer, canceller._pointer))
                if status:
                    return status
            return function(pointer, *arguments)

        self._call(call, *arguments, cancel=canceller.cancel)
        return canceller


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be written as JSON: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.to_dict()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no value of a configuration")
