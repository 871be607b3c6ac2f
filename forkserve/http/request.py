"""The request head: one call from bytes to the WSGI environ and the framing facts.

    GET /path?q HTTP/1.1 CRLF          request line   one look into a bounded cache, or _parse_request_line
    Host: example.org CRLF             field line     one look into a bounded cache, or _parse_field
    CRLF                               (the empty line was found by the caller)

One ``bytes.translate`` over the whole head proves that it holds no control character and no CR or LF outside of line
ends; after that only lines seen for the first time are looked at character by character.  The caches belong to one
parser, are bounded, and are emptied when full; fields that may carry secrets never enter, a name that is new does not
bring its line, and fields that change with every request stop entering.

Promises: what :meth:`HeadParser.parse` returns can be framed in one way only; everything else raises
:class:`RefusedRequest` (RFC 9112; the list is docs/HTTP.md).  Leaves to others: finding the end of the head, reading
the body, and what stands in the base environ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from forkserve.http.errors import RefusedRequest
from forkserve.http.forwarded import Forwarding

Environ = dict[str, Any]

ParsedHead = tuple[Environ, int, bool, bool]
"""environ; bytes of the body or :data:`CHUNKED`; may the connection be kept; is ``100 Continue`` awaited."""

CHUNKED: Final = -1
"""In the place of a body's length: the chunked coding tells its end."""

HEAD_END: Final = b"\r\n\r\n"

HEAD_BYTES_MAX: Final = 256 * 1024
"""The longest head, whatever the limits of its lines are.  Precedents: node 16 KiB, nginx 32 KiB, h11 16 KiB,
Apache and gunicorn 800 KiB (100 fields of 8190)."""

CONTENT_LENGTH_DIGITS_MAX: Final = 18
"""A length of more digits does not fit into 63 bits."""

CACHE_LINES_MAX: Final = 1024
CACHE_LINE_CHARS_MAX: Final = 256
"""Bounds of each cache: about 1 MB at the very worst."""

_VISIBLE: Final = bytes([9, *range(32, 127), *range(128, 256)])
"""HTAB, SP, VCHAR and obs-text: all that RFC 9110 section 5.5 lets a field hold."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 section 5.6.2."""

_HOST: Final = re.compile(
    r"(?:(?:(?:[A-Za-z0-9\-._~!$&()*+;=]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[A-Za-z0-9\-._~:]+\])"
    r"(?::([0-9]{0,5}))?)?"
)
"""uri-host [":" port] of RFC 3986 section 3.2.2, without the comma and the quote, which no name has and with which
two Host fields could pass for one.  It may be empty (RFC 9112 section 3.2), but a port alone names nothing (RFC 9110
section 4.2.1)."""

_VERSION: Final = re.compile(r"HTTP/([0-9])\.([0-9])")

_ABSOLUTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^#]*)")

_ONCE: Final = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE"})
"""Fields whose repetition is refused rather than joined: each has been used to smuggle."""

_SECRET: Final = re.compile(r"AUTH|COOKIE|CREDENTIAL|CSRF|JWT|KEY|PASS|SECRET|SESSION|SIGNATURE|TOKEN")
"""Fields with such a word in their name are never remembered."""

VALUES_OF_A_NAME_MAX: Final = 64
"""So many values of one field are remembered; a field that changes with every request (an id, an address) then stops
taking the places of those that do not."""

_Field = tuple[str, str]
_Name = tuple[str, bool]
"""environ key, and may its values be remembered; an empty key is a field that is dropped."""
_RequestLine = tuple[str, str, str, str, bool, str | None]
"""method, PATH_INFO, QUERY_STRING, the target as sent, is it HTTP/1.1, authority of an absolute target."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Limits of a request; the settings ``limit_request_*`` by the same words.

    Attributes:
        line_bytes: of the request line (414).
        fields: how many field lines (431).
        field_bytes: of one field line (431).
        body_bytes: of the body (413); 0 is no limit.
    """

    line_bytes: int = 8190
    fields: int = 100
    field_bytes: int = 8190
    body_bytes: int = 0


class HeadParser:
    """Parses the heads of one worker's requests.  Its only state are caches.

    Args:
        limits: what a head may have.
        forwarding: what fields of trusted peers mean.
    """

    __slots__ = (
        "_forwarded_keys",
        "_forwarded_lines",
        "_forwarding",
        "_lines",
        "_names",
        "_once",
        "_passed_keys",
        "_remembered",
        "_requests",
        "limits",
    )

    def __init__(self, limits: HeadLimits, forwarding: Forwarding | None = None) -> None:
        self.limits = limits
        self._forwarding = forwarding = forwarding or Forwarding()
        self._forwarded_keys = forwarding.keys
        self._passed_keys = forwarding.passed_keys
        self._once = _ONCE | forwarding.passed_keys
        self._requests: dict[str, _RequestLine] = {}
        self._lines: dict[str, _Field] = {}
        self._forwarded_lines: dict[str, _Field] = {}  # apart, so that requests without them pay nothing
        self._names: dict[str, _Name] = {}
        self._remembered: dict[str, int] = {}

    def parse(self, head: bytes, base: Environ, is_trusted: bool = False) -> ParsedHead:
        """The environ and framing of one request.

        Args:
            head: the request line and the field lines, without the empty line and the CRLF before it; empty lines
                before the request line are the caller's to skip.
            base: the connection's constants; it is copied, and holds no ``HTTP_`` and no ``CONTENT_`` name.
            is_trusted: is the peer one whose word about the client counts (forwarded.py)?

        Raises:
            RefusedRequest: the head is malformed, ambiguous or over a limit.
        """
        lines = str(head, "latin-1").split("\r\n")
        if head.translate(None, _VISIBLE) != b"\r\n" * (len(lines) - 1):
            raise RefusedRequest(400, "control character, bare CR or bare LF in the head")
        limits = self.limits
        if len(head) > HEAD_BYTES_MAX:
            raise RefusedRequest(431, f"head of more than {HEAD_BYTES_MAX} bytes")
        if len(lines) > limits.fields + 1:
            raise RefusedRequest(431, f"more than {limits.fields} header fields")
        request_line = lines[0]
        request = self._requests.get(request_line)
        if request is None:
            request = self._parse_request_line(request_line)
        environ = base.copy()
        (
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ["QUERY_STRING"],
            environ["RAW_URI"],
            is_http11,
            authority,
        ) = request
        environ["REQUEST_URI"] = request[3]
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if is_http11 else "HTTP/1.0"
        del lines[0]
        is_forwarded = False
        known_lines = self._lines
        for line in lines:
            field = known_lines.get(line)
            if field is None:
                field = self._forwarded_lines.get(line) or self._parse_field(line)
                if field is None:
                    continue
                if field[0] in self._forwarded_keys:
                    if not is_trusted and field[0] in self._passed_keys:
                        continue
                    is_forwarded = is_trusted
            key, value = field
            if key in environ:
                value = self._join(key, environ[key], value)
            environ[key] = value
        if "HTTP_HOST" not in environ and is_http11:
            raise RefusedRequest(400, "no Host field")
        if authority is not None:
            environ["HTTP_HOST"] = authority
        if is_forwarded:
            self._forwarding.apply(environ)
        return self._frame(environ, is_http11)

    def check_partial(self, buffer: bytes | bytearray, seen: int) -> None:
        """Refuse what cannot become a head any more, before its end has come.

        Args:
            buffer: what has come so far; its first line is not empty.
            seen: how many bytes of it were checked by an earlier call.
        """
        limits = self.limits
        newline = buffer.find(b"\n", seen)
        while newline >= 0:
            if newline == 0 or buffer[newline - 1] != 13:
                raise RefusedRequest(400, "bare LF in the head")
            newline = buffer.find(b"\n", newline + 1)
        # A line may be whole but for its LF, and the head but for the last byte of its end: those are no excess.
        if len(buffer) > limits.line_bytes + 1 and buffer.find(b"\r\n", 0, limits.line_bytes + 2) < 0:
            raise RefusedRequest(414, f"request line of more than {limits.line_bytes} bytes")
        if len(buffer) >= HEAD_BYTES_MAX + len(HEAD_END):
            raise RefusedRequest(431, f"head of more than {HEAD_BYTES_MAX} bytes")
        if len(buffer) > limits.field_bytes + limits.line_bytes:
            window = buffer[-(limits.field_bytes + 3) :]
            if b"\r\n" not in window:
                raise RefusedRequest(431, f"header field of more than {limits.field_bytes} bytes")

    def _parse_request_line(self, line: str) -> _RequestLine:
        """RFC 9112 section 3; remembers the answer."""
        if len(line) > self.limits.line_bytes:
            raise RefusedRequest(414, f"request line of more than {self.limits.line_bytes} bytes")
        parts = line.split(" ")
        if len(parts) != 3 or "\t" in line:
            raise RefusedRequest(400, "request line is not: method, space, target, space, version")
        method, target, version = parts
        if not _TOKEN.fullmatch(method):
            raise RefusedRequest(400, "method is not a token")
        if not target:
            raise RefusedRequest(400, "empty request target")
        is_http11 = _is_http11(version)
        path, query, authority = _split_target(method, target)
        if "%" in path:
            path = str(unquote_to_bytes(path), "latin-1")
        request = (method, path, query, target, is_http11, authority)
        if len(line) <= CACHE_LINE_CHARS_MAX:
            if len(self._requests) >= CACHE_LINES_MAX:
                self._requests.clear()
            self._requests[line] = request
        return request

    def _parse_field(self, line: str) -> _Field | None:
        """RFC 9112 section 5: one field line, or None where it is dropped; remembers it if it may."""
        if len(line) > self.limits.field_bytes:
            raise RefusedRequest(431, f"header field of more than {self.limits.field_bytes} bytes")
        name, colon, value = line.partition(":")
        if not colon:
            raise RefusedRequest(400, "header line without a colon")
        names = self._names
        is_known = name in names
        key, is_kept = names[name] if is_known else self._parse_name(name)
        if not key:
            return None
        field = key, value.strip(" \t")
        if key == "HTTP_HOST":
            check_host(field[1])
        if is_kept and is_known and len(line) <= CACHE_LINE_CHARS_MAX:  # names made up for one request cost no more
            self._remember(line, field)
        return field

    def _remember(self, line: str, field: _Field) -> None:
        remembered = self._remembered
        if len(self._lines) >= CACHE_LINES_MAX:
            self._lines.clear()
            self._forwarded_lines.clear()
            remembered.clear()
        count = remembered.get(field[0], 0)
        if count < VALUES_OF_A_NAME_MAX:
            remembered[field[0]] = count + 1
            lines = self._forwarded_lines if field[0] in self._forwarded_keys else self._lines
            lines[line] = field

    def _parse_name(self, name: str) -> _Name:
        """The environ key of a field name; remembers it."""
        if name[:1] in (" ", "\t"):
            raise RefusedRequest(400, "folded header line")
        if not _TOKEN.fullmatch(name):
            raise RefusedRequest(400, "header name is not a token")
        key = name.upper().replace("-", "_")
        is_kept = _SECRET.search(key) is None
        if f"HTTP_{key}" in self._passed_keys:
            key = "" if "-" in name else f"HTTP_{key}"  # from the proxy alone: not by another spelling
        elif "_" in name or key == "PROXY":
            key = ""  # would pass for another field (X_User for X-User), or for a variable (httpoxy)
        elif key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        if len(name) <= CACHE_LINE_CHARS_MAX:
            if len(self._names) >= CACHE_LINES_MAX:
                self._names.clear()
            self._names[name] = key, is_kept
        return key, is_kept

    def _join(self, key: str, first: str, second: str) -> str:
        """RFC 9110 section 5.3; cookies by RFC 6265 section 5.4."""
        if key in self._once:
            raise RefusedRequest(400, "a field that may stand once stands twice")
        return f"{first}; {second}" if key == "HTTP_COOKIE" else f"{first}, {second}"

    def _frame(self, environ: Environ, is_http11: bool) -> ParsedHead:
        """RFC 9112 section 6.3 and 9.3, RFC 9110 section 10.1.1."""
        length = 0
        if "HTTP_TRANSFER_ENCODING" in environ:
            _check_transfer_encoding(environ, is_http11)
            length = CHUNKED
        elif "CONTENT_LENGTH" in environ:
            length = _content_length(environ["CONTENT_LENGTH"])
            if 0 < self.limits.body_bytes < length:
                raise RefusedRequest(413, f"body of more than {self.limits.body_bytes} bytes")
        keep_alive = is_http11
        if "HTTP_CONNECTION" in environ:
            options = _elements(environ["HTTP_CONNECTION"])
            keep_alive = "close" not in options and (is_http11 or "keep-alive" in options)
        expects_continue = False
        if "HTTP_EXPECT" in environ and is_http11:
            expectations = set(_elements(environ["HTTP_EXPECT"])) - {""}
            if expectations - {"100-continue"}:
                raise RefusedRequest(417, "an expectation other than 100-continue")
            expects_continue = length != 0 and bool(expectations)
        return environ, length, keep_alive, expects_continue


def check_host(value: str) -> None:
    """Refuse what is no host with an optional port (RFC 9112 section 3.2)."""
    match = _HOST.fullmatch(value)
    if match is None or (match[1] and int(match[1]) > 65535):
        raise RefusedRequest(400, "invalid Host")


def _is_http11(version: str) -> bool:
    if version == "HTTP/1.1":
        return True
    if version == "HTTP/1.0":
        return False
    match = _VERSION.fullmatch(version)
    if match is None:
        raise RefusedRequest(400, "malformed HTTP version")
    if match[1] != "1":
        raise RefusedRequest(505, "HTTP version is not 1.x")
    return True  # a later minor version is read as the highest that we know (RFC 9110 section 2.5)


def _split_target(method: str, target: str) -> tuple[str, str, str | None]:
    """Path, query, authority of the four forms of RFC 9112 section 3.2."""
    if not target.isascii() or "#" in target:
        raise RefusedRequest(400, "request target holds a fragment or bytes over 127")
    if method == "CONNECT":
        raise RefusedRequest(501, "CONNECT is not supported")
    if target[0] == "/":
        path, _, query = target.partition("?")
        return path, query, None
    if target == "*":
        if method != "OPTIONS":
            raise RefusedRequest(400, "the target * is for OPTIONS alone")
        return "", "", None
    match = _ABSOLUTE.fullmatch(target)
    if match is None or match[1].lower() not in ("http", "https"):
        raise RefusedRequest(400, "request target is neither a path nor an http URL")
    authority = match[2]
    if not authority:
        raise RefusedRequest(400, "absolute target without a host")
    check_host(authority)
    path, _, query = match[3].partition("?")
    if not path and method == "OPTIONS" and not query:
        return "", "", authority  # RFC 9112 section 3.2.4: the last proxy's form of *
    return path or "/", query, authority


def _elements(value: str) -> list[str]:
    """The elements of a list in lower case, empty ones too (RFC 9110 section 5.6.1)."""
    return [element.strip(" \t") for element in value.lower().split(",")]


def _content_length(value: str) -> int:
    if not value.isdecimal() or len(value) > CONTENT_LENGTH_DIGITS_MAX:
        raise RefusedRequest(400, "invalid Content-Length")
    return int(value)


def _check_transfer_encoding(environ: Environ, is_http11: bool) -> None:
    """Only ``chunked``, alone, in HTTP/1.1, without Content-Length (RFC 9112 section 6.1)."""
    if "CONTENT_LENGTH" in environ:
        raise RefusedRequest(400, "both Content-Length and Transfer-Encoding")
    if not is_http11:
        raise RefusedRequest(400, "Transfer-Encoding in HTTP/1.0")
    codings = _elements(environ["HTTP_TRANSFER_ENCODING"])
    if codings == ["chunked"]:
        return
    if codings[-1] == "chunked" and codings.count("chunked") == 1 and all(map(_TOKEN.fullmatch, codings)):
        raise RefusedRequest(501, "a transfer coding other than chunked")
    raise RefusedRequest(400, "invalid Transfer-Encoding")
