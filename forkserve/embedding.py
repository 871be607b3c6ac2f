"""A real server beside the calling program, for tests: ``with forkserve.running(app) as server: get(server.url)``.

    caller ─ fork ─▶ master (own session) ─▶ zygote ─▶ workers
      │ socket ◀── its addresses when it is ready, or what failed
      └ pidfd of the caller: readable when it has ended, which stops the server: it never outlives the caller

Nothing of the caller is touched: not its signals, not its working directory, not its sub-reaper flag.  The
application may be an object (the master and its zygote are forks of the caller) or "module:attribute" (its zygote is a
fresh interpreter, as everywhere).
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

import msgspec

from forkserve import clock, errors
from forkserve.errors import ForkserveError
from forkserve.master import Master
from forkserve.posix import process
from forkserve.server.context import WSGIApplication

REPORT_BYTES_MAX: Final = 128 * 1024
"""The longest report: a traceback longer than that does not help."""

_STOP_MARGIN_S: Final = 10.0
"""How long beyond graceful_timeout a stop may take before the server is killed."""


class _Report(msgspec.Struct):
    """What the server says to the caller, once: its addresses, or what failed."""

    urls: tuple[str, ...] = ()
    error: str = ""
    kind: str = "BootError"  # a name of errors.py


class RunningServer:
    """A server that runs in child processes.

    Attributes:
        pid: the master's.
        urls: where it listens, as it really is.
        exit_code: after :meth:`stop`; None while it runs.
    """

    def __init__(self, pid: int, pidfd: int, patience_s: float) -> None:
        self.pid = pid
        self.urls: tuple[str, ...] = ()
        self.exit_code: int | None = None
        self._pidfd = pidfd
        self._patience_s = patience_s

    @property
    def url(self) -> str:
        """The first address, such as ``http://127.0.0.1:43210``."""
        return self.urls[0]

    @property
    def port(self) -> int:
        """The port of the first address.

        Raises:
            ValueError: the first address has none.
        """
        return int(self.url.rsplit(":", 1)[1])

    def send_signal(self, signum: int) -> None:
        """Send the master a signal: SIGHUP reloads, SIGTTIN adds a worker …  Nothing happens once it has stopped."""
        if self.exit_code is None:
            process.signal_process(self._pidfd, signum)

    def stop(self) -> int:
        """Stop gracefully and wait for it; may be repeated.

        Returns:
            The exit code of the server; negative when a signal ended it.
        """
        if self.exit_code is None:
            self.send_signal(signal.SIGTERM)
            status = _wait(self._pidfd, self._patience_s)
            if status is None:
                self.send_signal(signal.SIGKILL)
                status = _wait(self._pidfd, _STOP_MARGIN_S)
            self.exit_code = -status.signum or status.code if status is not None else -signal.SIGKILL
            os.close(self._pidfd)
        return self.exit_code


def _wait(pidfd: int, patience_s: float) -> process.ExitStatus | None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = clock.monotonic_s() + patience_s
    while (left_s := deadline - clock.monotonic_s()) > 0:
        if poll.poll(left_s * 1000):
            return process.reap(pidfd)
    return None


@contextmanager
def running(
    app: str | WSGIApplication, settings: Mapping[str, Any] | None = None, **more: Any
) -> Iterator[RunningServer]:
    """Run a server for the time of a ``with`` block; it listens on a free port of 127.0.0.1 unless ``bind`` is given.

    Args:
        app: a WSGI application object, or "module:attribute" (found from the caller's directory unless ``chdir``).
        settings, more: settings by name, such as ``workers=2, timeout=5``.

    Yields:
        The server, when its first workers are ready.

    Raises:
        SettingsError: a setting is wrong.
        BootError: the application or the first worker did not come up.
        ForkserveError: an address cannot be listened on, and so on.
    """
    values: dict[str, Any] = {"bind": "127.0.0.1:0", **(settings or {}), **more}
    master = Master(app, values)
    report_reader, report_writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner_fd = os.pidfd_open(os.getpid())  # not a pipe: every other fork of the caller would hold its end, too

    def server() -> NoReturn:
        report_reader.close()
        _serve(app, values, report_writer, owner_fd)

    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # captured or closed: then nothing is buffered twice
            stream.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a threaded caller; ours uses no lock of it
        pid = process.fork_child(server)
    report_writer.close()
    os.close(owner_fd)
    pidfd = process.open_pidfd(pid)
    if pidfd is None:
        raise ForkserveError("the server ended before it began")
    server_view = RunningServer(pid, pidfd, master.settings.graceful_timeout + _STOP_MARGIN_S)
    try:  # from here on: control-C while it boots stops it, too
        with report_reader:
            report = _first_report(report_reader, pidfd)
        server_view.urls = report.urls
        if report.error:
            raise getattr(errors, report.kind)(report.error)
        yield server_view
    finally:
        server_view.stop()


def _first_report(reader: socket.socket, pidfd: int) -> _Report:
    """What the server says first; its death counts as a report, since its children may hold the other end."""
    poll = select.poll()  # not select(2): the caller may have more than 1024 descriptors
    poll.register(reader.fileno(), select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    reader.setblocking(False)
    try:
        text = reader.recv(REPORT_BYTES_MAX)
    except BlockingIOError:
        text = b""
    if not text:
        return _Report(error="the server died while it started", kind="ForkserveError")
    return msgspec.json.decode(text, type=_Report)


def _serve(app: str | WSGIApplication, values: dict[str, Any], report_to: socket.socket, owner_fd: int) -> NoReturn:
    """In the child: be the master."""
    atexit._clear()  # what the caller registered is the caller's
    os.setsid()
    reported = False

    def report(words: _Report) -> None:
        nonlocal reported
        if not reported:
            reported = True
            with report_to, suppress(OSError):  # the caller may have stopped to listen: control-C while we booted
                report_to.send(msgspec.json.encode(words)[:REPORT_BYTES_MAX])

    master = Master(app, values, owner_fd=owner_fd, on_ready=lambda urls: report(_Report(urls=urls)))
    try:
        code = master.run()
    except ForkserveError as error:
        report(_Report(error=str(error), kind=type(error).__name__))
        code = error.exit_code
    report(_Report(error=master.failure or "the server stopped before it was ready"))
    process.leave(code)
