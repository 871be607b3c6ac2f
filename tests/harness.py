"""Verbs for stories over real servers.

    server = start("demo:app")                     a real `python -m forkserve`, in a session of its own, on a free port
    server.get("/hello")                           one request on a connection of its own
    server.hup(); server.wait_for("reload.done")   signals go in, facts come out of its log (JSON lines, by code)
    with assert_no_request_lost(server): …         clients that open a connection for each request, all the while

Nothing here sleeps for "a while": each wait is for a fact, has a deadline, and shows the server's log when it fails.
When a story ends, so does its server, and no process of its session may be left.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
DEADLINE_S = 20.0
"""How long any fact may take to come about; far above what it takes, for slow machines."""

WORKER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "sync": (),
    "gthread": ("--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}
"""How a server of each worker type is started."""

LOOK_INTERVAL_S = 0.02
"""How often a fact that cannot be waited for (a line in a file, a process's title) is looked at."""

Event = Mapping[str, Any]


class HarnessError(AssertionError):
    """A fact did not come about; the text has the server's log."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A process of the server, as its title says: role "master", "zygote" or "worker"."""

    pid: int
    role: str
    id: int = 0
    generation: int = 0


# ---------------------------------------------------------------------------------------------- processes


def session_members(leader: int) -> list[int]:
    """The living processes of a session, whatever their parents (proc(5), stat: state, ppid, pgrp, session)."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended while we looked
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(name))
    return found


_TITLE = re.compile(r"forkserve: (master|zygote|worker)(?: (\d+))?(?: gen (\d+))?")


def _seen(pid: int) -> ProcessSeen | None:
    try:
        title = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return None  # ended while we looked
    found = _TITLE.match(title)
    return found and ProcessSeen(pid, found[1], int(found[2] or 0), int(found[3] or 0))


# ---------------------------------------------------------------------------------------------- connections


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; a name that begins with @ is abstract."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = "\0" + path[1:] if path.startswith("@") else path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Server:
    """A running server, from the outside."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.log_path = log_path
        self.pidfd = os.pidfd_open(process.pid)
        self.client_context: ssl.SSLContext | None = None  # how clients speak TLS with it

    # --- what it says

    def log(self) -> str:
        """Everything that it has written so far."""
        return self.log_path.read_text("utf-8", "replace")

    def events(self, code: str | None = None, **fields: object) -> list[Event]:
        """The events of its log, in order: all of a code, with these fields."""
        found: list[Event] = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):  # a line that is no event: a warning of Python, a print()
                event = json.loads(line)
                if isinstance(event, dict) and "code" in event and code in (None, event["code"]):
                    found.append(event)
        return [event for event in found if all(event.get(name) == value for name, value in fields.items())]

    def wait_for(self, code: str, *, count: int = 1, within_s: float = DEADLINE_S, **fields: object) -> Event:
        """The ``count``-th event of a code with these fields, once it has come."""
        self.wait_until(
            lambda: len(self.events(code, **fields)) >= count, f"event {code} {fields or ''} x {count}", within_s
        )
        return self.events(code, **fields)[count - 1]

    def wait_for_log(self, text: str, within_s: float = DEADLINE_S) -> None:
        """Until its log matches a regular expression."""
        self.wait_until(lambda: re.search(text, self.log()) is not None, f"{text!r} in the log", within_s)

    def wait_until(self, fact: Callable[[], bool], what: str, within_s: float = DEADLINE_S) -> None:
        """Until a fact holds; fails with the log when it does not in time, or when the server has ended before."""
        deadline = time.monotonic() + within_s
        while not fact():
            ended = self.process.poll() is not None
            if ended and fact():
                return
            if ended or time.monotonic() > deadline:
                why = f"the server ended with {self.process.returncode}" if ended else f"{within_s:g} s are over"
                raise HarnessError(f"waited for {what}, but {why}. {self.described()}")
            time.sleep(LOOK_INTERVAL_S)

    def described(self) -> str:
        """Its processes and its log, for a failure's text."""
        return f"Processes: {self.processes()}. Its log:\n{self.log()}"

    # --- where it is

    @property
    def urls(self) -> list[str]:
        """Its addresses as they really are, in the order in which they were given."""
        return re.findall(r"listening at ([^\s\",]+)", self.log())

    @property
    def port(self) -> int:
        """The port of its first address."""
        return int(self.urls[0].rsplit(":", 1)[1])

    def connection(self, url: str | None = None, timeout: float = DEADLINE_S) -> http.client.HTTPConnection:
        """A connection of its own, not made yet."""
        url = url or self.urls[0]
        if url.startswith("unix:"):
            return UnixConnection(url.removeprefix("unix:"), timeout)
        scheme, _, rest = url.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme == "https":
            return http.client.HTTPSConnection(
                host.strip("[]"), int(port), timeout=timeout, context=self.client_context
            )
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout)

    def raw(self) -> socket.socket:
        """A raw TCP connection to its first address."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)

    # --- what one asks it

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> Answer:
        """One request on a connection of its own, which says that it will be closed."""
        connection = self.connection(url)
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str = "/", url: str | None = None) -> Answer:
        """GET on a connection of its own."""
        return self.request("GET", path, url=url)

    # --- what one does to it

    def send_signal(self, signum: int) -> None:
        """Send a signal to the master."""
        signal.pidfd_send_signal(self.pidfd, signum)

    def hup(self) -> None:
        self.send_signal(signal.SIGHUP)

    def term(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill_worker(self, signum: int = signal.SIGKILL, pid: int | None = None) -> int:
        """Send a signal to one worker (the first, if none is named); returns its pid."""
        pid = pid or self.worker_pids()[0]
        os.kill(pid, signum)
        return pid

    # --- who it is

    def processes(self) -> list[ProcessSeen]:
        """All of them that have a title."""
        return [seen for pid in session_members(self.pid) if (seen := _seen(pid)) is not None]

    def workers(self) -> list[ProcessSeen]:
        """Its workers that have said that they are ready and have not ended, by number."""
        ready = {event["worker"] for event in self.events("worker.ready")}
        return sorted(
            (seen for seen in self.processes() if seen.role == "worker" and seen.id in ready), key=lambda s: s.id
        )

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self.workers()]

    def zygote_pid(self, *, without: int | None = None) -> int:
        """The zygote's, once there is just one with that title (what it forks workers through bears it, too)."""

        found: list[int] = []

        def fact() -> bool:
            found[:] = [seen.pid for seen in self.processes() if seen.role == "zygote"]
            return len(found) == 1 and without not in found

        self.wait_until(fact, "a single zygote")
        return found[0]

    def wait_for_workers(self, count: int, *, generation: int | None = None, without: int | None = None) -> list[int]:
        """Until exactly ``count`` are there, all of that generation, none of them the pid ``without``."""

        def fact() -> bool:
            workers = self.workers()
            return (
                len(workers) == count
                and all(generation in (None, worker.generation) for worker in workers)
                and without not in [worker.pid for worker in workers]
            )

        self.wait_until(fact, f"{count} workers of generation {generation or 'any'}")
        return self.worker_pids()

    # --- its end

    def wait_exit(self, within_s: float = DEADLINE_S) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"it did not end within {within_s:g} s. {self.described()}") from None

    def wait_until_nobody_is_left(self) -> None:
        """Until no process of its session lives."""
        deadline = time.monotonic() + DEADLINE_S
        while session_members(self.pid):
            if time.monotonic() > deadline:
                raise HarnessError(f"processes are left: {session_members(self.pid)}. {self.described()}")
            time.sleep(LOOK_INTERVAL_S)

    def end(self) -> None:
        """Stop it if it runs, see that nobody is left, and clear up in any case."""
        try:
            if self.process.poll() is None:
                self.send_signal(signal.SIGTERM)
                self.wait_exit()
            self.wait_until_nobody_is_left()
        finally:
            for pid in session_members(self.pid):
                with contextlib.suppress(ProcessLookupError):  # ended by itself meanwhile
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.pidfd)


def launch(
    *arguments: str,
    cwd: Path,
    log_path: Path,
    environ: Mapping[str, str] | None = None,
    inherit: Sequence[int] = (),
    bind: Sequence[str] = ("127.0.0.1:0",),
    log_format: str = "json",
    descriptors: int | None = None,
) -> Server:
    """Start `python -m forkserve` in a session of its own; its output goes to ``log_path``.

    Args:
        descriptors: how many it may have open at once; None: as many as we.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("FORKSERVE_", "GUNICORN_"))}
    own |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), **(environ or {})}
    for name in ("WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "NOTIFY_SOCKET", "LISTEN_FDS"):
        if name not in (environ or {}):
            own.pop(name, None)
    command = [sys.executable, "-m", "forkserve", "--log-format", log_format]
    command += [part for address in bind for part in ("--bind", address)]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -S -n {descriptors}; exec "$@"', "sh", *command]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=cwd,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=inherit,
        )
    return Server(process, log_path)


# ---------------------------------------------------------------------------------------------- load


@dataclass(slots=True)
class Load:
    """What clients that ask all the while have seen."""

    answers: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def answered(self) -> int:
        with self.lock:
            return sum(self.answers.values())

    def wait_for_answers(self, more: int, within_s: float = DEADLINE_S) -> None:
        """Until ``more`` requests have been answered from now on."""
        goal, deadline = self.answered + more, time.monotonic() + within_s
        while self.answered < goal:
            if time.monotonic() > deadline:
                raise HarnessError(
                    f"only {self.answered} of {goal} answers within {within_s:g} s; lost: {self.lost[:5]}"
                )
            time.sleep(LOOK_INTERVAL_S)


@contextlib.contextmanager
def assert_no_request_lost(
    server: Server, path: str = "/", *, clients: int = 4, until_refused: bool = False, expect: int = 200
) -> Iterator[Load]:
    """Clients that open a connection for each request, from before the block until after it; none may fail.

    Args:
        until_refused: the server stops in the block: a refused connection ends a client and is no loss.
    """
    load = Load()
    url = server.urls[0]
    threads = [
        threading.Thread(target=_client, args=(load, server, url, path, until_refused, expect), daemon=True)
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        load.wait_for_answers(clients)
        yield load
        if not until_refused:
            load.wait_for_answers(clients)
    finally:
        if not until_refused:
            load.stopping.set()
        for thread in threads:
            thread.join(DEADLINE_S)
        load.stopping.set()
    if load.lost:
        raise HarnessError(f"{len(load.lost)} of {load.answered} requests lost: {load.lost[:5]}. {server.described()}")


def _client(load: Load, server: Server, url: str, path: str, until_refused: bool, expect: int) -> None:
    while not load.stopping.is_set():
        connection = server.connection(url)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read().decode()
            if response.status != expect:
                raise HarnessError(f"{response.status} {body[:100]}")
            with load.lock:
                load.answers[body] = load.answers.get(body, 0) + 1
        except ConnectionRefusedError:
            if until_refused:
                with load.lock:
                    load.refused += 1
                return
            with load.lock:
                load.lost.append("connection refused")
        except Exception as error:  # whatever it is, a request was lost
            with load.lock:
                load.lost.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()


def read_all(connection: socket.socket, within_s: float = DEADLINE_S) -> bytes:
    """Everything until the other side closes."""
    received = b""
    deadline = time.monotonic() + within_s
    while True:
        readable, _, _ = select.select([connection], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise HarnessError(f"no end within {within_s:g} s after {received[-200:]!r}")
        if not (chunk := connection.recv(65536)):
            return received
        received += chunk
