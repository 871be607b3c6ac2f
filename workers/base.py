"""The life of a worker, the same for every worker type.

    fork ─▶ signals, title, post_fork ─▶ application ─▶ post_worker_init ─▶ Ready ─▶ reactor … drained ─▶ worker_exit
                                             └ AppLoadError ─▶ BootFailed ─▶ exit 3

The master alone decides: TERM to this process is passed on as a wish, INT and HUP of a terminal's or container's group
are ignored.  Without a master (end of file on the channel) it finishes what it has and leaves.

Promises: a failing hook ends nothing; the stacks of all threads go to ``stack_fd`` when the process is aborted, even
inside C code.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from random import SystemRandom
from types import FrameType
from typing import Final, NoReturn

import msgspec

from forkserve import hooks, log, messages
from forkserve.clock import monotonic_ns
from forkserve.errors import AppLoadError, BootError, SettingsError
from forkserve.http.errors import RefusedRequest
from forkserve.posix import process, unpatched
from forkserve.posix.channel import CLOSED
from forkserve.posix.handover import Giver
from forkserve.posix.scoreboard import IS_SERVING
from forkserve.posix.signals import GROUP_SIGNALS, WakeupSignals, release, reset_in_forks
from forkserve.posix.stacks import write_stacks_on_abort
from forkserve.server.access_log import AccessLog
from forkserve.server.connection import Connection
from forkserve.server.context import WorkerContext, WSGIApplication
from forkserve.server.exchange import Exchange
from forkserve.server.loader import load_application
from forkserve.server.reactor import Observer, Reactor
from forkserve.server.warmup import warm_up
from forkserve.settings import Settings
from forkserve.workers import load_worker_class
from forkserve.workers.hooks import HookObserver, WorkerHandle

ABORTED: Final = 134
"""The exit code after SIGABRT: 128 + 6, the shell's convention for it."""


def prepare(settings: Settings) -> None:
    """Make the process fit for the worker type, before the application is imported.

    Raises:
        SettingsError: there is no such type, or it cannot work here.
    """
    load_worker_class(settings.worker_type).prepare()


def settle(settings: Settings) -> None:
    """End what the worker type need not keep over a fork."""
    load_worker_class(settings.worker_type).settle()


def run_worker(ctx: WorkerContext) -> NoReturn:
    """Serve until the master says drain, or is gone.  Runs in the worker process; never returns."""
    Worker(ctx).run()


class Worker:
    """One worker process."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._hooks = ctx.hooks
        addresses = tuple(listener.name for listener in ctx.listeners)
        self._server_view = hooks.ServerView(ctx.master_pid, ctx.settings, addresses, ctx.settings.workers)
        self._view = WorkerHandle(
            pid=os.getpid(), age=ctx.worker_id, cfg=ctx.settings, generation=ctx.generation, ppid=ctx.master_pid
        )
        self._has_master = True
        self._reactor: Reactor | None = None
        self._pid = os.getpid()

    def run(self) -> NoReturn:
        """The whole life."""
        ctx = self._ctx
        signals = self._take_signals()
        name = ctx.settings.proc_name or ctx.settings.app
        process.set_title(f"worker {ctx.worker_id} gen {ctx.generation}" + (f" [{name}]" if name else ""))
        hooks.call(self._hooks, "post_fork", self._server_view, self._view)
        reactor = self._reactor = self._boot()
        os.register_at_fork(after_in_child=self._on_fork)
        reactor.add_reader(ctx.channel.fileno(), self._on_channel)
        reactor.add_reader(signals.fileno(), lambda: self._on_signals(signals))
        hooks.call(self._hooks, "post_worker_init", self._view)
        ctx.row.beat(monotonic_ns())
        ctx.row.words[IS_SERVING] = 1  # an heir from the moment on in which others are told to leave
        ctx.channel.send(messages.Ready())
        reactor.run()
        self._leave(0)

    # ── boot ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_signals(self) -> WakeupSignals:
        signals = WakeupSignals(each for each in GROUP_SIGNALS if each != signal.SIGQUIT)
        faulthandler.disable()  # the parent's: ending it later would put the parent's handler back in the place of ours
        # These two act inside the handler: the application's call may never give the reactor another turn.
        signal.signal(signal.SIGQUIT, self._on_quit)
        signal.signal(signal.SIGABRT, self._on_abort)
        # After the handler above, so that it comes second: first the stacks are written, by C code, wherever we are.
        write_stacks_on_abort(self._ctx.stack_fd)
        release(GROUP_SIGNALS)
        reset_in_forks()
        return signals

    def _boot(self) -> Reactor:
        ctx = self._ctx
        settings = ctx.settings
        try:
            application = self._application()
            if ctx.tls is not None:
                ctx.tls.renew()
            executor = load_worker_class(settings.worker_type)(settings)
            observer = self._observer()
        except BootError as error:
            self._fail_boot(str(error), error.traceback_text)
        except (SettingsError, ValueError) as error:
            self._fail_boot(str(error), "")
        self._view.wsgi = application
        requests_max = settings.max_requests
        if requests_max:
            jitter = settings.max_requests_jitter
            requests_max += SystemRandom().randint(0, settings.max_requests // 10 if jitter < 0 else jitter)
        reactor = Reactor(
            application=application,
            settings=settings,
            listeners=ctx.listeners,
            executor=executor,
            row=ctx.row,
            errors=sys.stderr,
            tls=ctx.tls,
            observer=observer,
            requests_max=requests_max,
            on_request_limit=lambda: self._wish("max_requests"),
            on_interrupted=lambda: self._wish("request_timeout"),
            handover=ctx.handover,
            idle_siblings=None if ctx.board is None else partial(ctx.board.idle_workers, ctx.generation),
            has_siblings=None if ctx.board is None else partial(ctx.board.has_serving_workers, ctx.generation),
        )
        try:
            warm_up(application, settings.warmup, reactor.base_environ("localhost", "80" if ctx.tls is None else "443"))
        except BootError as error:
            self._fail_boot(str(error), error.traceback_text)
        return reactor

    def _application(self) -> WSGIApplication:
        ctx = self._ctx
        if ctx.application is not None:
            return ctx.application
        if ctx.settings.app is None:
            raise AppLoadError("no application is named")
        return load_application(ctx.settings.app)

    def _observer(self) -> Observer | None:
        ctx = self._ctx
        settings = ctx.settings
        observers: list[Observer] = []
        if settings.accesslog is not None or log.access_logger.handlers:
            template = "json" if settings.log_format == "json" else settings.access_log_format
            try:
                observers.append(AccessLog(1 if ctx.access_fd is None else ctx.access_fd, template))
            except ValueError as error:
                raise SettingsError(f"access_log_format = {template!r}: {error}") from error
        if ctx.hooks.pre_request is not None or ctx.hooks.post_request is not None:
            observers.append(HookObserver(ctx.hooks, self._view))
        if len(observers) > 1:
            return Observers(observers)
        return observers[0] if observers else None

    def _fail_boot(self, message: str, traceback_text: str) -> NoReturn:
        message, traceback_text = messages.fitted(message, traceback_text)
        self._ctx.channel.send(messages.BootFailed(message=message, traceback_text=traceback_text))
        self._leave(BootError.exit_code)

    # ── what happens ──────────────────────────────────────────────────────────────────────────────────────────────

    def _on_channel(self) -> None:
        ctx = self._ctx
        assert self._reactor is not None
        while True:
            try:
                received = ctx.channel.receive()
            except msgspec.DecodeError as error:
                log.event(log.ERROR, "channel.garbled", f"the master sent what is no message, ignored: {error}")
                continue
            if received is None:
                return
            if received is CLOSED:
                self._has_master = False
                self._reactor.remove_reader(ctx.channel.fileno())
                log.event(log.WARNING, "worker.orphaned", "the master is gone: finishing what is here, then leaving")
                self._reactor.drain(stopping=False, is_orphan=True)
                return
            message, fds = received
            if isinstance(message, messages.Drain):
                heir = Giver(fds.pop()) if message.heir == "other" and fds else None
                own_heir = ctx.handover if message.heir == "own" else None
                self._reactor.drain(stopping=message.stopping, heir=heir or own_heir)
            elif isinstance(message, messages.ReopenLogs):
                self._reopen_logs(message, fds)
                fds = []
            for fd in fds:
                unpatched.close(fd)

    def _on_signals(self, signals: WakeupSignals) -> None:
        assert self._reactor is not None
        for signum in signals.drain_at_once():
            if signum == signal.SIGQUIT:
                self._on_quit(signum, None)  # the main thread, where its handler runs, may be in a call, or asleep
            elif signum == signal.SIGABRT:
                self._on_abort(signum, None)
            elif signum != signal.SIGTERM:
                continue  # a group's signal, or one that only the master answers, or the application's
            elif self._has_master:
                self._wish("signal")
            else:
                self._reactor.drain(stopping=False)

    def _on_quit(self, _signum: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._pid:  # else: a child that the application forked has our handler; it is not a worker
            hooks.call(self._hooks, "worker_int", self._view)
            self._leave(0, at_once=True)

    def _on_abort(self, _signum: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            hooks.call(self._hooks, "worker_abort", self._view)
            self._leave(ABORTED, at_once=True)

    def _on_fork(self) -> None:
        """In a child that the application has forked."""
        assert self._reactor is not None
        self._reactor.is_forked_off = True

    def _wish(self, reason: str) -> None:
        self._ctx.channel.send(messages.RetireWish(reason=reason))

    def _reopen_logs(self, message: messages.ReopenLogs, fds: Sequence[int]) -> None:
        """Put the new files in the places of the old ones."""
        remaining = list(fds)
        for is_meant, old in ((message.error, self._ctx.error_fd), (message.access, self._ctx.access_fd)):
            if is_meant and remaining:
                new = remaining.pop(0)
                if old is not None:
                    os.dup2(new, old, inheritable=False)
                unpatched.close(new)
        for fd in remaining:
            unpatched.close(fd)
        log.reopened(self._ctx.settings, self._ctx.error_fd)

    def _leave(self, code: int, *, at_once: bool = False) -> NoReturn:
        self._view.alive = False
        hooks.call(self._hooks, "worker_exit", self._server_view, self._view)
        process.leave(code, at_once=at_once)


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def begin(self, exchange: Exchange) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.begin(exchange)

    def end(self, exchange: Exchange, now_ns: int) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.end(exchange, now_ns)

    def refused(self, connection: Connection, refused: RefusedRequest, head: bytes, answer_bytes: int) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.refused(connection, refused, head, answer_bytes)

    def flush(self) -> None:
        """Pass on."""
        for observer in self._observers:
            observer.flush()
