"""The zygote: a process that has loaded one generation of the application and forks its workers.

    master ─ Load ─▶ become (user, directory, environment) ─▶ import, look, freeze ─▶ Loaded ─▶ master
    master ─ Spawn ─▶ fork twice ─▶ worker (child of the master from now on) ─▶ Spawned ─▶ master
    channel ends ─▶ leave

It is a fresh interpreter (fork and exec), so that nothing the master has imported is in it; only for an application
that exists as an object alone is it a plain fork of the master.  It serves nothing and has no thread of its own.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from forkserve import clock, hooks, log, messages, sources
from forkserve.errors import BootError, ForkserveError
from forkserve.posix import forksafety, privileges, process, unpatched
from forkserve.posix.channel import CLOSED, Channel
from forkserve.posix.handover import HandOver
from forkserve.posix.key_material import KeyRegion
from forkserve.posix.listeners import adopt_listener
from forkserve.posix.scoreboard import Scoreboard
from forkserve.posix.signals import GROUP_SIGNALS, release
from forkserve.posix.stacks import write_stacks_on_abort
from forkserve.server.context import WorkerContext, WSGIApplication
from forkserve.server.loader import load_application, prepare_path
from forkserve.server.tls import TlsServer
from forkserve.settings import Hooks, Settings


@dataclass(frozen=True, slots=True)
class WorkerProgram:
    """What a zygote does for the worker type that the settings name.

    Attributes:
        prepare: before anything of the application is imported: monkey patches.
        settle: after the import, before it is looked whether forking is safe.
        run: what a worker runs.
    """

    prepare: Callable[[Settings], None]
    settle: Callable[[Settings], None]
    run: Callable[[WorkerContext], NoReturn]


@dataclass(frozen=True, slots=True)
class Embedded:
    """An application that exists as an object in the embedding program, with the hooks given beside it."""

    application: WSGIApplication
    hooks: Hooks


def serve(channel: Channel, program: WorkerProgram, embedded: Embedded | None = None) -> NoReturn:
    """Be a zygote until the master closes the channel.

    Args:
        channel: this end of the channel to the master; the first message is a Load.
        program: what its workers need and run.
        embedded: the application when it exists already; otherwise the settings name it.
    """
    for signum in GROUP_SIGNALS:
        signal.signal(signum, _ignore)
    release(GROUP_SIGNALS)
    order = _next_order(channel)
    if order is None or not isinstance(order[0], messages.Load):
        process.abandon(process.CRASHED)
    load = order[0]
    try:
        zygote = Zygote(channel, load, program, embedded)
    except ForkserveError as error:
        _fail(channel, str(error), error.traceback_text)
    channel.send(messages.Loaded(preloaded=zygote.application is not None, fork_hazards=zygote.hazards))
    while (order := _next_order(channel)) is not None:
        message, fds = order
        zygote.obey(message, fds)
    process.leave(0)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing; a real handler, since an ignored signal would be inherited by what the application starts."""


def _next_order(channel: Channel) -> tuple[messages.AnyMessage, list[int]] | None:
    """Wait for the master; None when it is gone."""
    poll = unpatched.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        received = channel.receive()
        if received is CLOSED:
            return None
        if received is not None:
            return received
        poll.poll()


def _fail(channel: Channel, message: str, traceback_text: str) -> NoReturn:
    message, traceback_text = messages.fitted(message, traceback_text)
    channel.send(messages.LoadFailed(message=message, traceback_text=traceback_text))
    process.leave(BootError.exit_code)


class Zygote:
    """A loaded generation.

    Attributes:
        application: None when workers import for themselves.
        hazards: why it is not safe to fork, as far as that is for the master to decide.

    Raises:
        ForkserveError: the user, the directory, the configuration file or the application stands in the way.
    """

    def __init__(
        self,
        channel: Channel,
        load: messages.Load,
        program: WorkerProgram,
        embedded: Embedded | None,
    ) -> None:
        self._channel = channel
        self._load = load
        self._program = program
        self._scoreboard = Scoreboard.attach(load.scoreboard_fd)
        self._listeners = [adopt_listener(fd, address) for fd, address in load.listeners]
        self._handover = HandOver(*load.handover_fds)
        keys = KeyRegion.attach(load.keys_fd) if load.keys_fd is not None else None
        settings = load.settings
        name = f" [{settings.proc_name}]" if settings.proc_name else ""
        process.set_title(f"zygote gen {load.generation}{name}")
        write_stacks_on_abort(load.stack_fd)
        _become(settings, load.argv)
        log.setup(settings, error_fd=load.error_fd)
        program.prepare(settings)
        self._hooks = embedded.hooks if embedded else sources.load_hooks(load.config_path)
        self.hazards: tuple[str, ...] = ()
        self.application = embedded.application if embedded else None
        if embedded is None and load.preload:
            self._import(settings)
        self._tls = TlsServer(keys, settings, self._hooks.ssl_context) if keys is not None else None
        if self._tls is not None and self.application is not None:
            self._tls.renew()
        gc.collect()
        gc.freeze()

    def _import(self, settings: Settings) -> None:
        if settings.app is None:
            raise ForkserveError("no application is named")
        before = forksafety.open_descriptors()
        begun = clock.monotonic_s()
        self.application = load_application(settings.app)
        self._program.settle(settings)
        found = forksafety.hazards(before)
        log.event(
            logging.DEBUG,
            "application.loaded",
            f"imported {settings.app}",
            generation=self._load.generation,
            took_s=round(clock.monotonic_s() - begun, 3),
        )
        if settings.preload == "auto":
            self.hazards = found
        elif found:
            log.event(
                logging.WARNING,
                "preload.hazards",
                f"preload = on, although forking is not safe: {'; '.join(found)}",
                generation=self._load.generation,
            )

    def obey(self, message: messages.AnyMessage, fds: list[int]) -> None:
        """Do what the master says; ``fds`` are ours to close."""
        if isinstance(message, messages.Spawn) and len(fds) == 2:
            self._spawn(message, fds[0], fds[1])
        elif isinstance(message, messages.ReopenLogs):
            places = [self._load.error_fd] * message.error + [self._load.access_fd] * message.access
            for fd, place in zip(fds, places, strict=False):
                if place is not None:
                    os.dup2(fd, place, inheritable=False)
            log.reopened(self._load.settings, self._load.error_fd)
        for fd in fds:
            unpatched.close(fd)

    def _spawn(self, order: messages.Spawn, channel_fd: int, stack_fd: int) -> None:
        load = self._load
        view = hooks.WorkerView(None, order.worker_id, load.settings, load.generation)
        hooks.call(self._hooks, "pre_fork", hooks.ServerView(load.master_pid, load.settings), view)

        def worker() -> NoReturn:
            self._channel.close()
            context = WorkerContext(
                settings=load.settings,
                hooks=self._hooks,
                application=self.application,
                listeners=self._listeners,
                channel=Channel.from_fd(channel_fd),
                row=self._scoreboard.row(order.slot),
                worker_id=order.worker_id,
                generation=load.generation,
                stack_fd=stack_fd,
                error_fd=load.error_fd,
                access_fd=load.access_fd,
                master_pid=load.master_pid,
                board=self._scoreboard,
                handover=self._handover,
                tls=self._tls,
            )
            self._program.run(context)

        try:
            pid = process.fork_detached(worker, GROUP_SIGNALS)
        except OSError as error:
            self._channel.send(messages.SpawnFailed(worker_id=order.worker_id, error=str(error)))
            return
        if not self._channel.send(messages.Spawned(worker_id=order.worker_id, pid=pid)):
            os.kill(pid, signal.SIGKILL)  # the master has dismissed us meanwhile, and will never know of it


def _become(settings: Settings, argv: tuple[str, ...]) -> None:
    """Take on the user, directory, environment and arguments that the application is to see."""
    for assignment in settings.raw_env:
        key, _equals, value = assignment.partition("=")
        os.environ[key] = value
    sys.argv[:] = argv
    os.umask(settings.umask)
    if settings.user is not None or settings.group is not None:
        uid, gid = privileges.resolve(settings.user, settings.group)
        privileges.drop(uid, gid, initgroups=settings.initgroups)
    prepare_path(settings.chdir, settings.pythonpath)
