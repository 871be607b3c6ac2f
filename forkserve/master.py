"""The master: joins supervisor and workers, and is the way to embed a server.

    Master(app, settings).run()
        log, on_starting ─▶ certificate, listeners ─▶ daemon, pid file ─▶ scoreboard, sub-reaper ─▶ supervise ─▶ code

The master never imports the application; a zygote (a fresh interpreter) does.  Only an application that is given as
an object is already here: then the zygote is a fork of this process, and a reload can change settings alone.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

from forkserve import hooks as hook_calls
from forkserve import log
from forkserve.errors import SettingsError
from forkserve.posix import listeners as posix_listeners
from forkserve.posix import privileges, process
from forkserve.posix.channel import Channel
from forkserve.posix.listeners import Listener
from forkserve.posix.log_files import LogFiles
from forkserve.posix.notify import Notifier
from forkserve.posix.pidfile import PidFile
from forkserve.posix.scoreboard import Scoreboard
from forkserve.posix.signals import GROUP_SIGNALS
from forkserve.server.context import WSGIApplication
from forkserve.settings import Hooks, Settings, make_settings
from forkserve.sources import Loaded
from forkserve.supervisor import zygote
from forkserve.supervisor.certificates import Certificates
from forkserve.supervisor.effects import House
from forkserve.supervisor.loop import Supervisor
from forkserve.supervisor.model import SLOTS_MAX
from forkserve.supervisor.watch import start_watcher

_FOR_THE_MASTER_ALONE: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}
)
"""The service manager's words to its service (sd_notify(3), sd_listen_fds(3)): an application that uses them speaks
for us."""


class Master:
    """A server.

    Args:
        app: "module:attribute" (loaded by a zygote, reloaded by SIGHUP), or a WSGI application object.
        settings: a Settings, or a mapping of their names to values.
        hooks: gunicorn's hooks as callables.
        reload_settings: reads the configuration anew at a reload; None: a reload keeps the settings.
        config_path: the Python configuration file that zygotes take their hooks from.
        owner_fd: stops the server when it becomes readable: a pidfd of the program that the server belongs to,
            or a pipe whose other end that program holds.
        on_ready: called once, with the addresses as they really are, when the first workers serve.

    Attributes:
        failure: after a run that did not come up: why, with the application's traceback.

    Raises:
        SettingsError: a setting is wrong.
    """

    def __init__(
        self,
        app: str | WSGIApplication,
        settings: Settings | Mapping[str, Any] | None = None,
        *,
        hooks: Hooks | None = None,
        reload_settings: Callable[[], Loaded] | None = None,
        config_path: str | None = None,
        owner_fd: int | None = None,
        on_ready: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        if not isinstance(settings, Settings):
            settings = make_settings(settings or {})
        if isinstance(app, str):
            settings = msgspec.structs.replace(settings, app=app)
        elif not callable(app):
            raise SettingsError(f"app is {type(app).__name__!r}, neither a callable nor 'module:attribute'")
        self.settings = settings
        self._application = None if isinstance(app, str) else app
        self._hooks = hooks or Hooks()
        self._reload_settings = reload_settings
        self._config_path = config_path
        self._owner_fd = owner_fd
        self._on_ready = on_ready
        self.failure = ""

    def run(self) -> int:
        """Serve until stopped; blocks; only in the main thread.

        Returns:
            The exit code: 0 after a stop, 3 when the first workers did not come up.

        Raises:
            ForkserveError: an address, file, user or setting stands in the way; nothing was started.
            SystemExit: the hook on_starting refuses the start.
        """
        settings = self.settings
        argv = (sys.argv[0] if sys.argv else "forkserve", *sys.argv[1:])
        log_files = LogFiles(settings.errorlog, settings.accesslog)
        log.setup(settings, error_fd=log_files.error_fd)
        privileges.resolve(settings.user, settings.group)
        hook_calls.call(self._hooks, "on_starting", hook_calls.ServerView(os.getpid(), settings))
        certificates = Certificates(settings) if settings.certfile else None
        listeners = _open_listeners(settings)
        pid_file = None
        try:
            if settings.daemon:
                settled = process.daemonize()
                for listener in listeners:
                    listener.take_over()
            pid_file = PidFile(settings.pidfile) if settings.pidfile else None
            if settings.daemon:
                settled()  # what was refused up to here was said where it is read
                log.setup(settings, error_fd=log_files.error_fd)  # lets go of what standard error was
            house = House(
                settings=settings,
                hooks=self._hooks,
                config_path=self._config_path,
                argv=argv,
                listeners=listeners,
                scoreboard=Scoreboard.create(SLOTS_MAX),
                log_files=log_files,
                notifier=Notifier(os.environ),
                start_zygote_process=self._fork_zygote if self._application else _exec_zygote,
                on_ready=lambda: self._tell_ready(listeners),
                embeds_object=self._application is not None,
                certificates=certificates,
            )
            return self._supervise(house)
        finally:
            for listener in listeners:
                listener.close()
            if pid_file is not None:
                pid_file.remove()

    def _supervise(self, house: House) -> int:
        settings = house.settings
        process.become_subreaper()
        process.set_title(f"master [{settings.proc_name or settings.app or 'embedded application'}]")
        for listener in house.listeners:
            log.event(logging.INFO, "listening", f"listening at {listener.url}", workers=settings.workers)
        supervisor = Supervisor(house, self._reload_settings)
        if self._owner_fd is not None:
            supervisor.stop_when_readable(self._owner_fd)
        if settings.reload:
            start_watcher(supervisor.effects.children, settings)
        outcome = supervisor.run()
        self.failure = "\n".join(filter(None, (outcome.message, outcome.traceback_text)))
        hook_calls.call(house.hooks, "on_exit", house.view())
        return outcome.exit_code

    def _tell_ready(self, listeners: Sequence[Listener]) -> None:
        if self._on_ready is not None:
            self._on_ready(tuple(listener.url for listener in listeners))

    def _fork_zygote(self, channel_fd: int, _inherit: Sequence[int], close_in_fork: Callable[[], None]) -> int:
        """A zygote that is a fork of this process, because the application is an object in it."""
        application = self._application
        assert application is not None

        def child() -> NoReturn:
            close_in_fork()
            zygote.serve(Channel.from_fd(channel_fd), _worker_program(), zygote.Embedded(application, self._hooks))

        return process.fork_child(child, GROUP_SIGNALS)


def _exec_zygote(channel_fd: int, inherit: Sequence[int], _close_in_fork: Callable[[], None]) -> int:
    """A zygote that is a fresh interpreter: nothing that the master has imported is in it."""
    command = process.python_command("forkserve.master:zygote_main", [str(channel_fd)])
    environ = {name: value for name, value in os.environ.items() if name not in _FOR_THE_MASTER_ALONE}
    return process.exec_program(command, environ, inherit, GROUP_SIGNALS)


def zygote_main() -> NoReturn:
    """Where the zygote's interpreter begins; its only argument is its channel's descriptor."""
    zygote.serve(Channel.from_fd(int(sys.argv[-1])), _worker_program())


def _worker_program() -> zygote.WorkerProgram:
    """Imported here, not in each worker: once, shared, with the starter's rights, before anybody patches anything."""
    from forkserve.workers import base

    return zygote.WorkerProgram(base.prepare, base.settle, base.run_worker)


def _open_listeners(settings: Settings) -> list[Listener]:
    """What systemd hands over, else what the settings name; all or none."""
    listeners = posix_listeners.systemd_listeners(os.environ, os.getpid()) or _open_addresses(settings)
    for listener in listeners:
        listener.speaks_tls = settings.certfile is not None
    return listeners


def _open_addresses(settings: Settings) -> list[Listener]:
    addresses = [posix_listeners.parse_address(text) for text in settings.bind]
    mode = 0o777 & ~settings.umask
    owner = privileges.resolve(settings.user, settings.group) if settings.user or settings.group else None
    return posix_listeners.open_listeners(addresses, backlog=settings.backlog, mode=mode, owner=owner)
