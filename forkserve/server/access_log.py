"""The access log: one line a request, in gunicorn's format atoms or as JSON.

    exchange over ── line ──▶ batch ── end of the reactor's turn ──▶ one write

Off unless a place is named, or the user's logging configuration gives the logger ``forkserve.access`` handlers, which
then get the lines one by one.  The place may be full or closed: then lines are dropped and counted, and nothing waits
for long (log.DescriptorHandler); handlers of the user's are the user's affair.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import localtime, strftime
from typing import Any, Final

from forkserve import clock, log
from forkserve.http.errors import RefusedRequest
from forkserve.server.connection import Connection
from forkserve.server.exchange import Exchange

BATCH_LINES_MAX: Final = 256
"""Written at the latest when so many wait."""

_ESCAPES: Final = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))} | {34: '\\"', 92: "\\\\"}


class Entry:
    """What is known of one answered request.

    Attributes:
        environ: of the request; empty for one that could not be parsed.
        request_line: as it came.
        status: of the answer, with its reason.
        headers: of the answer, as the application gave them.
        body_bytes: sent.
        duration_ns: from the call of the application to its end.
    """

    __slots__ = ("body_bytes", "duration_ns", "environ", "headers", "request_line", "status", "wall_s")

    def __init__(
        self,
        environ: dict[str, Any],
        request_line: str,
        status: str,
        headers: list[tuple[str, str]],
        body_bytes: int,
        duration_ns: int,
    ) -> None:
        self.environ = environ
        self.request_line = request_line
        self.status = status
        self.headers = headers
        self.body_bytes = body_bytes
        self.duration_ns = duration_ns
        self.wall_s = clock.wall_s()

    def response_header(self, name: str) -> str:
        """The first header of the answer with this name, or ``-``."""
        return next((value for key, value in self.headers if key.lower() == name), "-")


def _variable(name: str) -> Callable[[Entry], str]:
    return lambda entry: str(entry.environ.get(name) or "-")


def _user(entry: Entry) -> str:
    """The name of Basic authentication; never the password."""
    from base64 import b64decode

    scheme, _, token = entry.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        return b64decode(token.strip(), validate=True).decode("utf-8").partition(":")[0] or "-"
    except ValueError:
        return "-"


ATOMS: Final[dict[str, Callable[[Entry], object]]] = {
    "h": _variable("REMOTE_ADDR"),
    "l": lambda entry: "-",
    "u": _user,
    "t": lambda entry: strftime("[%d/%b/%Y:%H:%M:%S %z]", localtime(entry.wall_s)),
    "r": lambda entry: entry.request_line or "-",
    "s": lambda entry: entry.status[:3],
    "m": _variable("REQUEST_METHOD"),
    "U": _variable("PATH_INFO"),
    "q": lambda entry: entry.environ.get("QUERY_STRING", ""),
    "H": _variable("SERVER_PROTOCOL"),
    "b": lambda entry: entry.body_bytes or "-",
    "B": lambda entry: entry.body_bytes,
    "f": _variable("HTTP_REFERER"),
    "a": _variable("HTTP_USER_AGENT"),
    "T": lambda entry: entry.duration_ns // 1_000_000_000,
    "M": lambda entry: entry.duration_ns // 1_000_000,
    "D": lambda entry: entry.duration_ns // 1_000,
    "L": lambda entry: f"{entry.duration_ns / 1e9:.6f}",
    "p": lambda entry: f"<{os.getpid()}>",
}
"""gunicorn's atoms; beside them ``{name}i``, ``{name}o`` and ``{name}e`` for headers in, headers out, environ."""


class _Values(dict[str, str]):
    """Atoms of one entry, made when the format asks for them."""

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self._entry = entry

    def __missing__(self, atom: str) -> str:
        entry = self._entry
        value: object = "-"
        if atom in ATOMS:
            value = ATOMS[atom](entry)
        elif atom.startswith("{") and atom[-2:] in ("}i", "}o", "}e"):
            name = atom[1:-2]
            if atom.endswith("i"):
                key = name.upper().replace("-", "_")
                environ = entry.environ
                value = environ.get(f"HTTP_{key}", environ.get(key, "-") if key.startswith("CONTENT_") else "-")
            elif atom.endswith("o"):
                value = entry.response_header(name.lower())
            else:
                value = entry.environ.get(name, "-")
        return str(value).translate(_ESCAPES)


def format_text(template: str, entry: Entry) -> str:
    """One line by gunicorn's ``access_log_format``.

    Raises:
        ValueError: the template is malformed.
    """
    try:
        return template % _Values(entry)
    except TypeError as error:
        raise ValueError(str(error)) from error


def check_template(template: str) -> None:
    """Refuse a template that no line can be made with.

    Raises:
        ValueError: it is malformed.
    """
    if template != "json":
        format_text(template, Entry({}, "", "200 OK", [], 0, 0))


def format_json(entry: Entry) -> str:
    """One JSON object."""
    environ = entry.environ
    return json.dumps(
        {
            "time": strftime("%Y-%m-%dT%H:%M:%S%z", localtime(entry.wall_s)),
            "pid": os.getpid(),
            "client": environ.get("REMOTE_ADDR", ""),
            "method": environ.get("REQUEST_METHOD", ""),
            "path": environ.get("PATH_INFO", ""),
            "query": environ.get("QUERY_STRING", ""),
            "protocol": environ.get("SERVER_PROTOCOL", ""),
            "request": entry.request_line,
            "status": int(entry.status[:3]),
            "body_bytes": entry.body_bytes,
            "duration_s": entry.duration_ns / 1e9,
            "referer": environ.get("HTTP_REFERER", ""),
            "user_agent": environ.get("HTTP_USER_AGENT", ""),
        }
    )


class AccessLog:
    """An observer of the reactor that writes lines to a descriptor, or to the handlers of ``log.access_logger``.

    Args:
        fd: where to.
        template: gunicorn's format, or ``json``.

    Raises:
        ValueError: the template is malformed.
    """

    def __init__(self, fd: int, template: str) -> None:
        self._handler = log.DescriptorHandler(fd)
        self._lines: deque[str] = deque()  # a thread may add while another one flushes
        self._format = format_json if template == "json" else (lambda entry: format_text(template, entry))
        check_template(template)

    def begin(self, exchange: Exchange) -> None:
        """Nothing to note."""

    def end(self, exchange: Exchange, now_ns: int) -> None:
        """A request was answered by the application, if only in part; what was answered for it was noted then."""
        if exchange.is_overdue and not exchange.has_answered:
            return
        line = str(exchange.head.partition(b"\r\n")[0], "latin-1")
        status = exchange.status or "000 "
        headers = exchange.headers if exchange.status else []
        duration_ns = now_ns - exchange.started_ns
        self._add(Entry(exchange.environ, line, status, headers, exchange.body_bytes, duration_ns))

    def refused(self, connection: Connection, refused: RefusedRequest, head: bytes, answer_bytes: int) -> None:
        """A request was answered by the server."""
        line = str(head.lstrip(b"\r\n").partition(b"\r\n")[0][:1024], "latin-1")
        environ = {"REMOTE_ADDR": connection.address}
        self._add(Entry(environ, line, f"{refused.status} {refused.phrase}", [], answer_bytes, 0))

    def flush(self) -> None:
        """Write what waits."""
        if self._lines:
            lines = []
            with suppress(IndexError):  # empty: all is taken, by us or by another thread
                while True:
                    lines.append(self._lines.popleft())
            if log.access_logger.handlers:
                _log_each(lines)
            else:
                text = "\n".join(lines)
                self._handler.emit(logging.LogRecord("forkserve.access", log.INFO, "", 0, text, None, None))

    def _add(self, entry: Entry) -> None:
        try:
            self._lines.append(self._format(entry))
        except Exception as error:  # a header of the application that is no pair, say: the log must not end the worker
            self._lines.append(f"access log: {type(error).__name__}: {error}".translate(_ESCAPES))
        if len(self._lines) >= BATCH_LINES_MAX:
            self.flush()


def _log_each(lines: Iterable[str]) -> None:
    for line in lines:
        try:
            log.access_logger.info(line)
        except Exception:
            continue  # the user's handler lost it; it must not end the worker
