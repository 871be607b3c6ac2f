"""Interrupting the call of one exchange where it runs, and no other.

    who runs the call      here ─ application … ──x── cleans up ── end: claims "no more" ─▶ books ─▶ next call
    who has the lead       claims "I interrupt" ──▶ sends RequestTimeout ──▶ "is sent"

Each exchange has one claim, taken by one atomic operation (list.pop).  When the end of the call takes it, nothing is
sent.  When the interruption was first, the end waits until that has been sent and then withdraws what has not arrived:
an application may have swallowed it, or have ended just before.  There is no lock that an exception could leave held,
and the books of a call are kept when nothing can be raised any more.

How it is sent is a *way*:

* :class:`ByException`: between two bytecodes of a thread (CPython, PyThreadState_SetAsyncExc).  C code goes on until it
  returns, be it that it computes or waits.
* :class:`BySignal`: in the main thread, by a handler, so that a system call is interrupted, too (PEP 475).  C code that
  neither returns nor looks at signals goes on.
* greenlets have a way of their own (workers/ggevent.py).
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from contextvars import copy_context
from types import FrameType
from typing import Any, Final, Protocol

from forkserve import tracebacks
from forkserve.clock import monotonic_s
from forkserve.errors import RequestTimeout
from forkserve.posix import unpatched
from forkserve.server.exchange import Exchange

SIGNAL: Final = signal.SIGRTMIN + 6
"""Interrupts the main thread.  A real-time signal, since all others belong to the application or the system."""

SENDING_S: Final = 1.0
"""How long the end of a call waits for an interruption that was claimed to be sent; it takes microseconds."""

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int
_NOTHING: Final = ctypes.py_object()  # NULL


class Way(Protocol):
    """How RequestTimeout comes to where a call runs: to its *place*, a thread or a greenlet."""

    def here(self) -> Any:
        """The place of the caller."""

    def frame_of(self, place: Any) -> FrameType | None:
        """Where it is now."""

    def send(self, place: Any) -> None:
        """Have RequestTimeout raised there soon."""

    def withdraw(self, place: Any) -> None:
        """Called there: if it has not been raised yet, it will not be."""


class ByException:
    """A way into any thread; places are their identifiers."""

    def here(self) -> int:
        """This thread."""
        return unpatched.get_ident()

    def frame_of(self, place: int) -> FrameType | None:
        """Its innermost frame; None when it has ended."""
        return sys._current_frames().get(place)

    def send(self, place: int) -> None:
        """It is raised at the thread's next bytecode."""
        _set_async_exc(place, ctypes.py_object(RequestTimeout))

    def withdraw(self, place: int) -> None:
        """Take it back."""
        _set_async_exc(place, _NOTHING)


class BySignal(ByException):
    """A way into the main thread; made there."""

    def __init__(self) -> None:
        self._is_wanted = False
        signal.signal(SIGNAL, self._on_signal)

    def send(self, place: int) -> None:
        """Send the signal."""
        self._is_wanted = True
        signal.pthread_kill(place, SIGNAL)

    def withdraw(self, place: int) -> None:
        """Let the handler do nothing."""
        self._is_wanted = False

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self._is_wanted:
            self._is_wanted = False
            raise RequestTimeout


def way_into_this_thread() -> Way:
    """For who runs all calls in the calling thread."""
    return BySignal() if threading.current_thread() is threading.main_thread() else ByException()


class Calls:
    """Runs exchanges, each where :meth:`run` is called.

    Args:
        way: how they are interrupted.
    """

    def __init__(self, way: Way) -> None:
        self._way = way

    def run(self, exchange: Exchange) -> None:
        """Run an exchange here; an interruption does not outlive it."""
        if exchange.may_interrupt is None:
            exchange.run()
            return
        context = copy_context()
        try:
            exchange.place = self._way.here()
            if exchange.may_interrupt:
                context.run(exchange.call)
            else:
                exchange.skip()
            self._end(exchange)
        except RequestTimeout:
            pass  # it came outside of the application's code, and comes only once
        context.run(exchange.close_books)

    def interrupt(self, exchange: Exchange) -> str:
        """Raise RequestTimeout in a call; returns where its code was, as a stack; empty where that was not to be seen.

        A call that has not begun yet will not.  Called with the lead.
        """
        stack = "" if exchange.place is None else self._stack(exchange.place)
        if not exchange.claim_interruption():
            return ""
        if exchange.place is not None:
            self._way.send(exchange.place)
        exchange.is_interrupted = True
        return stack

    def _stack(self, place: Any) -> str:
        return tracebacks.stack_above(self._way.frame_of(place), Exchange.call.__code__)

    def _end(self, exchange: Exchange) -> None:
        if exchange.claim_interruption():
            return
        until_s = monotonic_s() + SENDING_S
        while not exchange.is_interrupted and monotonic_s() < until_s:
            continue  # who has claimed it is about to send it
        self._way.withdraw(exchange.place)
