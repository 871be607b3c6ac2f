"""The lead: which of two threads turns the reactor, so that a long call does not stop it.

    serving thread   turn ─ call ─┬──── application ────────────────────────┬─ turn ─ …
                                  └ the lead is free                        └ takes it back
    relief thread    (looks at times)  └ the same call still? ─▶ turns ─────┘

The serving thread holds the lead (a lock) but for the calls of the application.  A short call costs one release and
one acquire of a lock that nobody wants, about 0.1 µs.  The relief thread looks every RELIEF_TICK_S whether the call
that ran at the last look still runs; if so it takes the lead and turns the reactor: deadlines, refusals, health, heads
and bodies of others, everything but calls of the application.  While there are no calls it sleeps.

Promises: whoever turns the reactor holds the lead; the application is called by the serving thread alone.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from forkserve import log
from forkserve.posix import unpatched

RELIEF_TICK_S: Final = 0.01
"""A call is relieved after one to two of these.  A look costs about 20 µs: 0.2 % of a processor, only while calls
come."""
QUIET_TICKS_MAX: Final = 20
"""So many looks without a new call, then the relief sleeps until the next call wakes it."""


class Relieved(Protocol):
    """The reactor, as the relief thread sees it."""

    def begin_relief(self) -> None:
        """The serving thread is in a long call; the caller has the lead."""

    def turn(self) -> bool:
        """One turn; False when the reactor has stopped."""

    def end_relief(self) -> None:
        """The lead is about to be given back."""

    def wake(self) -> None:
        """End the wait of the turn that another thread is in."""


class Lead:
    """The lock, and the thread that takes it when a call is long.

    Args:
        reactor: what is turned.
    """

    def __init__(self, reactor: Relieved) -> None:
        self._reactor = reactor
        self._lock = unpatched.allocate_lock()
        self._alarm = unpatched.allocate_lock()
        self._ended = unpatched.allocate_lock()
        self._calls = 0
        self._is_calling = False
        self._is_asleep = False
        self._is_over = False
        self._tick_s = RELIEF_TICK_S
        self._serving_clock = 0
        self._relieved_ns = self._relieved_cpu_ns = 0

    def start(self) -> None:
        """Take the lead, and start the relief thread.  Called by the serving thread."""
        self._serving_clock = time.pthread_getcpuclockid(unpatched.get_ident())
        self._lock.acquire()
        self._alarm.acquire()
        self._ended.acquire()
        unpatched.start_new_thread(self._relieve, ())

    def stop(self) -> None:
        """End the relief thread.  Called by the serving thread, which keeps the lead."""
        self._is_over = True
        self._raise_alarm()
        self._ended.acquire()

    def look_every(self, tick_s: float) -> None:
        """How often the relief looks from now on, in seconds."""
        if tick_s != self._tick_s:
            self._tick_s = tick_s
            self._raise_alarm()

    def take_relieved(self) -> tuple[int, int]:
        """How long the last call was relieved, and the processor time that it took meanwhile, in nanoseconds; once."""
        found = self._relieved_ns, self._relieved_cpu_ns
        self._relieved_ns = self._relieved_cpu_ns = 0
        return found

    def call(self, run: Callable[..., None], *arguments: object) -> None:
        """Run code of the application in the serving thread; the lead is free meanwhile."""
        self._calls += 1
        self._is_calling = True
        if self._is_asleep:
            self._is_asleep = False
            self._raise_alarm()
        self._lock.release()
        try:
            run(*arguments)
        finally:
            self._is_calling = False
            if not self._lock.acquire(False):
                self._reactor.wake()
                self._lock.acquire()

    def _raise_alarm(self) -> None:
        with suppress(RuntimeError):  # it is raised already, and has not been heard yet
            self._alarm.release()

    def _relieve(self) -> None:
        """The relief thread."""
        try:
            self._look()
        except Exception as error:
            log.event(
                log.CRITICAL,
                "worker.defect",
                f"defect in the server, long calls are not relieved any more: {type(error).__name__}: {error}",
                traceback="".join(traceback.format_exception(error)),
            )
        finally:
            self._ended.release()

    def _look(self) -> None:
        seen = quiet_ticks = 0
        while not self._is_over:
            if quiet_ticks < QUIET_TICKS_MAX:
                self._alarm.acquire(timeout=self._tick_s)
            else:
                self._is_asleep = True
                if self._calls == seen:  # looked at behind the flag: a call that begins now raises the alarm
                    self._alarm.acquire()
                self._is_asleep = False
                quiet_ticks = 0
            if self._calls != seen:
                seen, quiet_ticks = self._calls, 0
            elif self._is_calling:
                self._take_over(seen)
            else:
                quiet_ticks += 1

    def _take_over(self, call: int) -> None:
        if not self._lock.acquire(False):
            return  # the call has ended this moment
        reactor = self._reactor
        begun_ns, begun_cpu_ns = time.monotonic_ns(), time.clock_gettime_ns(self._serving_clock)
        reactor.begin_relief()
        try:
            while self._is_calling and self._calls == call and reactor.turn():
                continue
        finally:
            reactor.end_relief()
            self._relieved_ns = time.monotonic_ns() - begun_ns
            self._relieved_cpu_ns = time.clock_gettime_ns(self._serving_clock) - begun_cpu_ns
            self._lock.release()
