"""Interrupting the call of one exchange in its thread, and no other.

    thread of the call    run() ── application … ──x── cleans up ── end: claims "no more" ─▶ next call
    who has the lead      claims "I interrupt" ──▶ raises RequestTimeout there

Each exchange has one claim, taken by one atomic operation (list.pop): by the end of the call, after which nothing is
raised, or by the interruption, for which the end then waits.  There is no lock that an exception could leave held.

The exception comes between two bytecodes of that thread (CPython, PyThreadState_SetAsyncExc); in the main thread it is
raised by a signal handler, so that a system call is interrupted, too (PEP 475).  Code of C that does neither return nor
look at signals goes on.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

from forkserve.clock import monotonic_s
from forkserve.errors import RequestTimeout
from forkserve.posix import unpatched
from forkserve.server.exchange import Exchange

SIGNAL: Final = signal.SIGRTMIN + 6
"""Interrupts the main thread.  A real-time signal, since all others belong to the application or the system."""

COMING_S: Final = 1.0
"""How long the end of a call waits for an interruption that was claimed; it takes microseconds."""

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int


def stack_of_thread(ident: int) -> str:
    """Where a thread is, innermost call last; empty when it has ended."""
    frame = sys._current_frames().get(ident)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def raise_in_thread(ident: int) -> None:
    """Raise RequestTimeout in a thread at its next bytecode."""
    _set_async_exc(ident, ctypes.py_object(RequestTimeout))


class Calls:
    """Runs exchanges, each in the thread that calls :meth:`run`."""

    def __init__(self) -> None:
        self._raise: Callable[[int], None] = raise_in_thread

    def use_signal(self) -> None:
        """All calls will be in this thread; where it is the main thread, interrupt them by a signal."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, _on_signal)
            self._raise = _send_signal

    def run(self, exchange: Exchange) -> None:
        """Run an exchange in this thread; an interruption does not outlive it."""
        if exchange.may_interrupt is None:
            exchange.run()
            return
        exchange.thread_id = unpatched.get_ident()
        try:
            exchange.run()
            self._end(exchange)
        except RequestTimeout:
            exchange.close_books()  # it came outside of the application's code, and comes only once

    def interrupt(self, exchange: Exchange) -> str:
        """Raise RequestTimeout in a call; returns where it was, as a stack; empty where it has ended already."""
        ident = exchange.thread_id
        if not ident or not exchange.claim_interruption():
            return ""
        stack = stack_of_thread(ident)
        self._raise(ident)
        return stack

    def _end(self, exchange: Exchange) -> None:
        if exchange.claim_interruption():
            return
        until_s = monotonic_s() + COMING_S
        while monotonic_s() < until_s:
            continue  # each round is an occasion for the exception that is on its way


def _send_signal(ident: int) -> None:
    signal.pthread_kill(ident, SIGNAL)


def _on_signal(_signum: int, _frame: FrameType | None) -> None:
    raise RequestTimeout
