"""The gthread worker type: calls on threads, but only where that is worth it.

    serving thread   poll ─ read ─ call in place ─ send ─ poll …            the application does not block
                     poll ─ read ─▶ queue ─▶ pool thread: call, send ─▶ finish_later ─▶ poll …       it does

A hand-over to another thread costs about 20 µs and a fight for the interpreter's lock, more than a whole short request.
So the thread that polls also calls, and the lead passes to a relief thread when a call turns out to be long
(server/lead.py).  When calls block, they go to the pool instead, up to ``threads`` at once (expectation.py); a thread
of the pool goes on with what waits (Reactor.follow) without a word of the one that polls.

Blocking is told from computing, which no number of threads makes faster: a call blocks that was off the processor by
its own doing for a good part of its time (getrusage(2), ru_nvcsw).
"""

from __future__ import annotations

import queue
import resource
import threading
from contextlib import suppress
from typing import Final

from forkserve.posix import unpatched
from forkserve.server.exchange import Exchange
from forkserve.server.executor import Executor
from forkserve.server.interruption import ByException, Calls
from forkserve.server.lead import RELIEF_TICK_S, Lead
from forkserve.server.reactor import Reactor
from forkserve.settings import Settings
from forkserve.workers.expectation import Expectation, Mode

LOOK_NS: Final = 300_000
"""A call that takes longer is looked at: has it blocked?"""
BLOCKED_NS: Final = 200_000
BLOCKED_SHARE: Final = 4
"""It has if it was off the processor for so long, and for a quarter of its time; or, where it was so long that it was
relieved, if it was on the processor for less than a quarter of the time."""
SUSPICION_NS: Final = 100_000_000
"""After a long call, processor time is read in each turn for so long, so that the next long one can be judged."""
CLOSE_TICK_S: Final = 0.001
"""How often a call of a trial is looked at: if it blocks, the reactor stands still for two of these at most."""


class CallThread(threading.Thread):
    """A thread that runs calls; its name tells which request it runs."""

    exchange: Exchange | None = None

    @property
    def name(self) -> str:
        """The thread's own name, and the request while there is one."""
        exchange = self.exchange
        return f"{self._name} {exchange.id}" if exchange is not None else self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = str(name)


class ThreadExecutor(Executor):
    """Runs exchanges in place, or on a pool."""

    is_multithread = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.calls_max = settings.threads
        self._queue: queue.SimpleQueue[Exchange | None] = unpatched.SimpleQueue()
        self._threads: list[CallThread] = []
        self._expectation = Expectation()
        self._suspicious_until_ns = 0
        self._calls = Calls(ByException())
        self._usage = 0, 0
        self._usage_turn = 0

    def serve(self, reactor: Reactor) -> None:
        """A thread of its own serves; this one, the main thread, is left to Python's signal handlers."""
        self._reactor = reactor
        self._lead = Lead(reactor)
        self._serving = CallThread(target=self._serve, name="forkserve", daemon=True)
        self._error: BaseException | None = None
        self._serving.start()
        self._serving.join()
        for _ in self._threads:
            self._queue.put(None)
        if self._error is not None:
            raise self._error

    def run(self, exchange: Exchange) -> None:
        """Call in place, or on a thread of the pool."""
        reactor = self._reactor
        mode = Mode.QUEUED if reactor.is_relieved else self._expectation.mode(reactor.now_ns)
        if mode is Mode.QUEUED and self._has_thread_for(reactor.calls):
            self._queue.put(exchange)
            return
        if reactor.is_relieved:  # without a single thread in the pool, and this is no thread that can be relieved
            self._call(exchange)
            reactor.finish(exchange)
            return
        self._lead.look_every(CLOSE_TICK_S if mode is Mode.TRIAL else RELIEF_TICK_S)
        if reactor.now_ns < self._suspicious_until_ns and self._usage_turn != reactor.turns:
            self._usage, self._usage_turn = _usage(), reactor.turns
        self._lead.call(self._call, exchange)
        self._judge(exchange)
        reactor.finish(exchange)

    def interrupt(self, exchange: Exchange) -> str:
        """Raise it in the thread of this exchange, and only there."""
        return self._calls.interrupt(exchange)

    def _serve(self) -> None:
        try:
            self._lead.start()
            self._reactor.turn_for_ever()
            self._lead.stop()
        except BaseException as error:
            self._error = error

    def _has_thread_for(self, calls: int) -> bool:
        """See that the pool has a thread for each call; where the system gives none more, those that are there do."""
        if len(self._threads) < calls:
            thread = CallThread(target=self._work, name=f"forkserve-{len(self._threads) + 1}", daemon=True)
            with suppress(RuntimeError):  # the limit of tasks, or no memory: it is tried again with the next call
                thread.start()
                self._threads.append(thread)
        return bool(self._threads)

    def _work(self) -> None:
        """A thread of the pool: what waits, it takes by itself, without waiting for the thread that polls."""
        reactor = self._reactor
        exchange = self._queue.get()
        while exchange is not None:
            self._call(exchange)
            following = reactor.follow(exchange)
            reactor.finish_later(exchange)
            exchange = self._queue.get() if following is None else following

    def _call(self, exchange: Exchange) -> None:
        """Run an exchange in this thread."""
        thread = threading.current_thread()
        if isinstance(thread, CallThread):
            thread.exchange = exchange
        self._calls.run(exchange)
        if isinstance(thread, CallThread):
            thread.exchange = None

    def _judge(self, exchange: Exchange) -> None:
        """A call was run in place: has it blocked?"""
        reactor = self._reactor
        now_ns = reactor.now_ns
        wall_ns = now_ns - exchange.started_ns
        if wall_ns < LOOK_NS:
            self._expectation.note_run()
            return
        self._suspicious_until_ns = now_ns + SUSPICION_NS
        relieved_ns, relieved_cpu_ns = self._lead.take_relieved()
        if relieved_ns > BLOCKED_NS:
            if relieved_cpu_ns * BLOCKED_SHARE < relieved_ns:
                self._expectation.note_blocked(now_ns, is_certain=True)
                return
        elif self._usage_turn == reactor.turns:
            (cpu_ns, switches), before = _usage(), self._usage
            self._usage = cpu_ns, switches
            off_ns = wall_ns - (cpu_ns - before[0])
            if switches > before[1] and off_ns > BLOCKED_NS and off_ns * BLOCKED_SHARE > wall_ns:
                self._expectation.note_blocked(now_ns, is_certain=False)
                return
        self._expectation.note_run()


def _usage() -> tuple[int, int]:
    """Processor time of this thread in nanoseconds, and how often it gave the processor up by itself (getrusage(2))."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return int((usage.ru_utime + usage.ru_stime) * 1e9), usage.ru_nvcsw
