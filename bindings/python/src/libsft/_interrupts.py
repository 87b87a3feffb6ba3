"""Ctrl-C while the library works.

Python runs signal handlers between bytecodes of the main thread, so a call into C keeps ``KeyboardInterrupt``
waiting until it returns, which for loading a model or an evaluation may be minutes. So while a call of
the main thread is inside the library, and SIGINT has Python's own handler (whoever set another one
decides for themselves):

* that handler is replaced by one which only notes the signal, so that no exception can come between
  the return of the call and the reading of its result;
* signals are also written to a socket (``signal.set_wakeup_fd``), which a thread of this module reads,
  and that thread triggers the call's canceller: loading and evaluating end at once, an update is finished.

When the call has returned both are put back, and then ``KeyboardInterrupt`` is raised.
"""

import os
import select
import signal
import socket
import threading
from typing import Any, Callable, Optional


class _Listener:
    """The socket that signals are written to and the thread that reads it; one a process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.read, self.write = socket.socketpair()
        self.read.setblocking(False)
        self.write.setblocking(False)
        self.lock = threading.Lock()
        self.cancel: Optional[Callable[[], None]] = None
        self.previous_fd = -1
        threading.Thread(target=self._listen, name="libsft-interrupts", daemon=True).start()

    def _listen(self) -> None:
        while True:
            select.select([self.read], [], [])
            with self.lock:
                if signal.SIGINT in self._received() and self.cancel is not None:
                    self.cancel()

    def _received(self) -> bytes:
        """The numbers of the signals since the last time, which whoever listened before is told too."""
        try:
            numbers = self.read.recv(4096)
        except BlockingIOError:
            return b""
        if self.previous_fd != -1:
            try:
                os.write(self.previous_fd, numbers)
            except OSError:
                pass
        return numbers

    def begin(self, cancel: Optional[Callable[[], None]]) -> None:
        with self.lock:
            self.previous_fd = signal.set_wakeup_fd(self.write.fileno(), warn_on_full_buffer=False)
            self.cancel = cancel

    def end(self) -> None:
        with self.lock:
            signal.set_wakeup_fd(self.previous_fd)
            self._received()
            self.cancel = None
            self.previous_fd = -1


_listener: Optional[_Listener] = None


class Interrupts:
    """Holds Ctrl-C back from :meth:`begin` to :meth:`end`; does nothing outside the main thread."""

    __slots__ = ("_cancel", "_watching", "came")

    def __init__(self, cancel: Optional[Callable[[], None]]) -> None:
        self._cancel = cancel
        self._watching = False
        #: Whether Ctrl-C came.
        self.came = False

    def begin(self) -> None:
        global _listener
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        if _listener is None or _listener.pid != os.getpid():
            _listener = _Listener()
        try:
            signal.signal(signal.SIGINT, self._note)
        except ValueError:  # a subinterpreter, which gets no signals
            return
        self._watching = True
        _listener.begin(self._cancel)

    def _note(self, number: int, frame: Any) -> None:
        self.came = True
        if self._cancel is not None:
            self._cancel()

    def end(self) -> None:
        if not self._watching:
            return
        self._watching = False
        if _listener is not None:
            _listener.end()
        # Unless a callback has set another handler meanwhile.
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.default_int_handler)
