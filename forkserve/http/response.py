"""The response head: one call from what the application gave to bytes and the framing of the body.

    "200 OK", [("Content-Type", "text/plain"), …]  ── HeadWriter.render ──▶  b"HTTP/1.1 200 OK…", mode, keep-alive

The application's status and headers are checked as PEP 3333 has it: nothing that it gives can break the framing, split
the response or speak for the server.  What is wrong raises :class:`BadResponse` before a byte is sent.  Steady header
lines are remembered in a bounded cache of the writer; ``Date`` is formatted once a second.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from forkserve.http.errors import BadResponse, RefusedRequest

CHUNKED: Final = -1
"""Mode of a body: in the chunked coding."""
UNTIL_CLOSE: Final = -2
"""Mode of a body: ended by the end of the connection."""
NO_BODY: Final = -3
"""Mode of a body: there is none, whatever the application gives (HEAD, 204, 304)."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

CACHE_PAIRS_MAX: Final = 1024
CACHE_VALUE_CHARS_MAX: Final = 256
CACHE_STATUSES_MAX: Final = 256

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""field-value of RFC 9110 section 5.5: no control character but HTAB; nothing above Latin-1 (PEP 3333)."""
_STATUS: Final = re.compile(r"([2-9][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*")
"""PEP 3333: "999 Message here"; informational answers are the server's."""

_HOP_BY_HOP: Final = frozenset(
    {
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
"""PEP 3333 calls it a fatal error when an application gives one of these.  ``Connection`` alone is taken for what it
asks and not sent: many applications say ``Connection: keep-alive`` with their event streams."""

_STEADY: Final = frozenset(
    {
        "accept-ranges",
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-allow-origin",
        "access-control-expose-headers",
        "access-control-max-age",
        "allow",
        "cache-control",
        "content-encoding",
        "content-language",
        "content-security-policy",
        "content-type",
        "cross-origin-embedder-policy",
        "cross-origin-opener-policy",
        "cross-origin-resource-policy",
        "permissions-policy",
        "pragma",
        "referrer-policy",
        "strict-transport-security",
        "vary",
        "x-content-type-options",
        "x-frame-options",
        "x-powered-by",
        "x-xss-protection",
    }
)
"""Headers whose lines are remembered: the same in answer after answer, and no secrets."""

_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

Rendered = tuple[bytes, int, bool]
"""head bytes; the body's length, :data:`CHUNKED`, :data:`UNTIL_CLOSE` or :data:`NO_BODY`; is the connection kept."""


def http_date(wall_s: int) -> str:
    """IMF-fixdate of RFC 9110 section 5.6.7, whatever the locale.

    Args:
        wall_s: seconds since 1970.
    """
    moment = datetime.fromtimestamp(wall_s, UTC)
    weekday, month = _WEEKDAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return f"{weekday}, {moment.day:02} {month} {moment.year:04} {moment:%H:%M:%S} GMT"


class HeadWriter:
    """Renders the response heads of one worker.

    Args:
        server: value of the ``Server`` field.
        keepalive_s: what ``Keep-Alive: timeout=`` promises; the connection is held a second longer.
    """

    __slots__ = ("_keep_alive_line", "_lines", "_of_second", "_server_line", "_statuses")

    def __init__(self, *, server: str = "forkserve", keepalive_s: int = 75) -> None:
        self._server_line = f"Server: {server}\r\n".encode("latin-1")
        promise = f"Keep-Alive: timeout={keepalive_s}\r\n" if keepalive_s else ""
        self._keep_alive_line = f"Connection: keep-alive\r\n{promise}".encode("latin-1")
        self._of_second = -1, b"", b""
        self._statuses: dict[str, tuple[int, bytes]] = {}
        self._lines: dict[tuple[str, str], bytes] = {}

    def render(
        self,
        status: str,
        headers: list[tuple[str, str]],
        wall_s: int,
        known_length: int | None,
        is_head: bool,
        is_http11: bool,
        keep_alive: bool,
    ) -> Rendered:
        """The head of one response.

        Args:
            status: as given to ``start_response``.
            headers: as given to ``start_response``.
            wall_s: seconds since 1970, for ``Date``.
            known_length: of the body, where it is in hand already.
            is_head: the method is HEAD.
            is_http11: of the request.
            keep_alive: does the client, and do we, want to keep the connection.

        Raises:
            BadResponse: of PEP 3333's rules one is broken; the text says which.
        """
        second, date_line, common = self._of_second
        if wall_s != second:
            date_line, common = self._turn_second(wall_s)
        try:
            code, status_line = self._statuses[status]
        except (KeyError, TypeError):
            code, status_line = self._parse_status(status)
        if type(headers) is not list:
            raise BadResponse(f"headers are a {type(headers).__name__}, not a list")
        length: int | None = None
        parts = [status_line, common]
        known_lines = self._lines
        for pair in headers:
            try:
                parts.append(known_lines[pair])
                continue
            except (KeyError, TypeError):
                kind, line, number = self._parse_header(pair)
            if kind == "content-length":
                if length is not None:
                    raise BadResponse("two Content-Length headers")
                length = number
            elif kind == "connection":
                keep_alive = keep_alive and number > 0
            else:
                parts.append(line)
                if kind in ("date", "server"):
                    parts[1] = parts[1].replace(date_line if kind == "date" else self._server_line, b"")
        if is_head or code == 204 or code == 304:
            mode = NO_BODY
            if length is None and code != 304:
                length = known_length or None  # an empty answer to HEAD says nothing of the length that GET has
            if length is not None and code != 204:
                parts.append(b"Content-Length: %d\r\n" % length)
        else:
            mode = _frame(parts, known_length if length is None else length, is_http11)
            keep_alive = keep_alive and mode != UNTIL_CLOSE
        parts.append(self._keep_alive_line if keep_alive else b"Connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts), mode, keep_alive

    def refusal(self, refused: RefusedRequest, wall_s: int, *, is_head: bool) -> bytes:
        """The whole answer to a refused request; the connection ends after it."""
        body = refused.page
        head, _mode, _keep = self.render(
            f"{refused.status} {refused.phrase}",
            [("Content-Type", "text/plain; charset=utf-8")],
            wall_s,
            len(body),
            is_head,
            True,
            False,
        )
        return head if is_head else head + body

    def early_hints(self, headers: list[tuple[str, str]]) -> bytes:
        """An interim answer 103 (RFC 8297).

        Raises:
            BadResponse: a header cannot be sent.
        """
        lines = [b"HTTP/1.1 103 Early Hints\r\n"]
        for pair in headers:
            kind, line, _number = self._parse_header(pair)
            if kind in ("content-length", "connection"):
                raise BadResponse(f"header {kind} has no place among early hints")
            lines.append(line)
        return b"".join((*lines, b"\r\n"))

    def _turn_second(self, wall_s: int) -> tuple[bytes, bytes]:
        date_line = f"Date: {http_date(wall_s)}\r\n".encode("latin-1")
        common = self._server_line + date_line
        self._of_second = wall_s, date_line, common  # at once: several threads render
        return date_line, common

    def _parse_status(self, status: str) -> tuple[int, bytes]:
        if not isinstance(status, str):
            raise BadResponse(f"status is a {type(status).__name__}, not a str")
        match = _STATUS.fullmatch(status)
        if match is None:
            raise BadResponse(f"status {status[:60]!r} is not three digits (200 or more), a space and a reason")
        entry = int(match[1]), f"HTTP/1.1 {status}\r\n".encode("latin-1")
        if len(self._statuses) < CACHE_STATUSES_MAX and len(status) <= CACHE_VALUE_CHARS_MAX:
            self._statuses[status] = entry
        return entry

    def _parse_header(self, pair: tuple[str, str]) -> tuple[str, bytes, int]:
        """Lower-case name, line, and a number: a length, or for Connection whether it may be kept."""
        try:
            name, value = pair
        except (TypeError, ValueError):
            raise BadResponse(f"header {pair!r:.60} is not a pair of name and value") from None
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadResponse(f"header {name!r:.60}: name and value have to be str")
        kind = name.lower()
        if kind == "content-length":
            if not value.isascii() or not value.isdecimal() or len(value) > 18:
                raise BadResponse(f"Content-Length {value[:60]!r} is no length")
            return kind, b"", int(value)
        if not _TOKEN.fullmatch(name):
            raise BadResponse(f"header name {name[:60]!r} is not a token")
        if not _VALUE.fullmatch(value):
            raise BadResponse(f"header {name}: value {value[:60]!r} holds a control character or is not Latin-1")
        if kind == "connection":
            return kind, b"", "close" not in [option.strip() for option in value.lower().split(",")]
        if kind in _HOP_BY_HOP:
            raise BadResponse(f"header {name} is hop-by-hop: only the server may send it")
        line = f"{name}: {value}\r\n".encode("latin-1")
        if kind in _STEADY and len(value) <= CACHE_VALUE_CHARS_MAX and type(pair) is tuple:
            if len(self._lines) >= CACHE_PAIRS_MAX:
                self._lines.clear()
            self._lines[name, value] = line
        return kind, line, 0


def _frame(parts: list[bytes], length: int | None, is_http11: bool) -> int:
    """Say how the body ends (RFC 9112 section 6.3); returns its mode."""
    if length is not None:
        parts.append(b"Content-Length: %d\r\n" % length)
        return length
    if is_http11:
        parts.append(b"Transfer-Encoding: chunked\r\n")
        return CHUNKED
    return UNTIL_CLOSE
