"""What configurations, sessions and cancellers share: owning a handle, and calling with it."""

import atexit
import os
import threading
import weakref
from types import TracebackType
from typing import Any, Callable, Optional, TypeVar

from ._errors import BusyError, ClosedError, InvalidArgumentError, SftError, error_of
from ._interrupts import Interrupts
from ._native import lib, text
from ._status import Status

_thread = threading.local()


def _frames() -> "list[list[BaseException]]":
    """The calls of this thread that are inside the library, each with what its callbacks raised."""
    frames: Optional[list[list[BaseException]]] = getattr(_thread, "frames", None)
    if frames is None:
        frames = _thread.frames = []
    return frames


def keep_error(error: BaseException) -> None:
    """Keeps what a callback raised until the call that it was called from has returned.

    Callbacks run on the thread that called into the library, so that call is the thread's innermost.
    """
    _frames()[-1].append(error)


def _free(function: Callable[[Any], None], pointer: int, pid: int) -> None:
    """Frees a handle; what a callback raises meanwhile goes to the caller."""
    # A forked child has none of the library's threads, and must not wait for them.
    if os.getpid() != pid:
        return
    raised: list[BaseException] = []
    frames = _frames()
    frames.append(raised)
    try:
        function(pointer)
    finally:
        frames.pop()
    if raised:
        raise raised[0]


#: What Python's end has to close.
_alive: "weakref.WeakSet[NativeObject]" = weakref.WeakSet()
#: Set once Python ends.
_ending = threading.Event()


@atexit.register
def _close_all() -> None:
    """Closes what is open when Python ends; before that ends the calls of daemon threads, which Python would
    otherwise kill in the middle of a callback, and with them the process: a thread must not end
    while frames of the library are on its stack."""
    _ending.set()
    ours = [thing for thing in _alive if thing._pid == os.getpid()]
    for thing in ours:
        cancel = thing._cancel
        if cancel is not None:
            cancel()
    for thing in ours:
        thing._lock.acquire()  # and never released
        thing._finalizer()


Self = TypeVar("Self", bound="NativeObject")


class NativeObject:
    """The owner of a handle. It is freed by :meth:`close`, at the end of a ``with`` block, or when
    the object is collected, whichever comes first."""

    _what = "object"

    def __init__(
        self,
        pointer: Optional[int],
        free: Callable[[Any], None],
        last_error: Optional[Callable[[Any], Optional[bytes]]] = None,
    ) -> None:
        if not pointer:
            raise MemoryError(f"no memory for a {self._what}")
        self._pointer = pointer
        self._last_error = last_error
        self._pid = os.getpid()
        # One call at a time, as the library asks. The library would say so itself; but the text of
        # an error may only be read while no other thread calls, so the lock spans both.
        self._lock = threading.RLock()
        self._depth = 0
        self._closed = False
        # What ends the call that is inside.
        self._cancel: Optional[Callable[[], None]] = None
        self._finalizer = weakref.finalize(self, _free, free, pointer, self._pid)
        self._finalizer.atexit = False  # type: ignore[misc,unused-ignore]
        _alive.add(self)

    @property
    def closed(self) -> bool:
        """Whether the object was closed."""
        return self._closed

    def close(self) -> None:
        """Frees what the library holds for this object. Doing so twice does nothing.

        If a call is inside the object (one on another thread, or the one whose callback calls
        this), that call ends as usual and the rest goes then.
        """
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                if self._depth == 0:
                    self._finalizer()
            finally:
                self._lock.release()

    def __enter__(self: Self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<libsft.{type(self).__name__}{state} at {self._pointer:#x}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"a {self._what} belongs to its process and cannot be pickled or copied")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the {self._what} is closed")
        if os.getpid() != self._pid:
            raise InvalidArgumentError(
                f"the {self._what} belongs to the process that made it and cannot be used after a "
                "fork; make it in the child, or start the child by spawn"
            )

    def _call(
        self,
        function: Callable[..., int],
        *arguments: Any,
        cancel: Optional[Callable[[], None]] = None,
    ) -> Status:
        """Calls ``function(handle, *arguments)``; errors of the library and exceptions of callbacks
        are raised, other outcomes returned. ``cancel`` is what Ctrl-C does meanwhile."""
        self._check_open()
        raised: list[BaseException] = []
        failure: Optional[SftError] = None
        status = int(Status.OK)
        interrupts = Interrupts(cancel)
        interrupts.begin()
        try:
            if self._lock.acquire(blocking=False):
                self._depth += 1
                if self._depth == 1:
                    self._cancel = cancel
                frames = _frames()
                frames.append(raised)
                try:
                    status = function(self._pointer, *arguments)
                    if status >= 100:
                        failure = self._failure(status)
                finally:
                    frames.pop()
                    self._depth -= 1
                    if self._depth == 0:
                        self._cancel = None
                    self._lock.release()
                    if self._closed:
                        self.close()
            else:
                if _ending.is_set():
                    threading.Event().wait()  # a daemon thread, which Python ends here
                failure = self._failure(Status.ERR_BUSY)
        finally:
            interrupts.end()
        if interrupts.came:
            raise KeyboardInterrupt from (raised[0] if raised else failure)
        if raised:
            raise raised[0] from failure
        if failure is not None:
            raise failure
        return Status(status)

    def _failure(self, status: int) -> SftError:
        # The text of an earlier failure is not the text of this one.
        if status == Status.ERR_BUSY:
            return BusyError(f"another call is inside the {self._what} right now")
        message = text(self._last_error(self._pointer)) if self._last_error else ""
        return error_of(status, message)


class Canceller(NativeObject):
    """Asks runs to stop, from any thread. Give it to :meth:`Config.set_canceller` before the run, so
    that loading can be cancelled too."""

    _what = "canceller"

    def __init__(self) -> None:
        super().__init__(lib.sft_canceller_new(), lib.sft_canceller_free)

    def cancel(self) -> None:
        """Asks every run that shares this canceller to stop, for good: a running update is finished
        first, loading and evaluating end with :class:`CancelledError`. May be called from any
        thread, at any time, more than once; once it is closed it does nothing."""
        lib.sft_canceller_cancel(self._pointer)
