"""The application behind the fuzzer: reads its input in several ways and answers in several ways.

    environ ── sees ──▶ digest ──▶ picks a way to read ──▶ digest of the body too ──▶ picks a way to answer ──▶ Reply

It never fails by itself.  :func:`answer` depends on nothing but the request, so the judge computes the same
:class:`Reply` from what the pure parser made of the bytes and compares: an environ or a body that differs by one
character shows.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

Environ = dict[str, Any]

GOOD_PATH = "/good-9f3c1d"
"""Asked on a connection of its own after each input; answered with the worker's process."""

SMALL = b"one block of the answer\n"
LARGE_BYTES = 300_000
"""More than a socket takes at once: the server has to keep the rest."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the application answers; ``way`` is how it is given to the server."""

    way: str
    seen: str
    blocks: list[bytes]
    status: str = "200 OK"
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def closes(self) -> bool:
        """Does the application ask for the end of the connection?"""
        return ("Connection", "close") in self.headers

    @property
    def has_known_length(self) -> bool:
        """Can the server say where the answer ends without the chunked coding?"""
        return self.way in _WHOLE or "Content-Length" in dict(self.headers) or self.status[:3] in ("204", "304")

    @property
    def body(self) -> bytes:
        """The whole of it."""
        return b"".join(self.blocks)


def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """PEP 3333."""
    if environ["PATH_INFO"] == GOOD_PATH:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{os.getpid()} {environ['QUERY_STRING']}".encode()]
    reply = answer(environ)
    headers = [("X-Seen", reply.seen), ("X-Way", reply.way), *reply.headers]
    if reply.way == "replaced":
        start_response("200 OK", [("X-Wrong", "yes")])
        try:
            raise ValueError("replaced before anything was sent")
        except ValueError:
            start_response(reply.status, headers, sys.exc_info())
        return reply.blocks
    if reply.way == "hinted" and "wsgi.early_hints" in environ:
        environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    write = start_response(reply.status, headers)
    if reply.way == "written":
        for block in reply.blocks:
            write(block)
        return []
    if reply.way in ("file", "object like a file"):
        file = _file(reply.body) if reply.way == "file" else io.BytesIO(reply.body)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 1000)
        return wrapped
    return _generate(reply.blocks) if reply.way in ("generated", "large generated") else reply.blocks


def answer(environ: Environ) -> Reply:
    """What this request is answered with."""
    digest = hashlib.sha256()
    for key in sorted(environ):
        if key.startswith(("HTTP_", "CONTENT_")) or key in _SEEN:
            digest.update(f"{key}={environ[key]!r}\n".encode())
    read = _READERS[digest.digest()[0] % len(_READERS)]
    for block in read(environ["wsgi.input"], environ.get("CONTENT_LENGTH")):
        digest.update(block)
    make = _ANSWERS[digest.digest()[1] % len(_ANSWERS)]
    return make(digest.hexdigest())


def _file(data: bytes) -> IO[bytes]:
    """A regular file, which the server sends in its own way."""
    file = os.fdopen(os.memfd_create("answer"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _generate(blocks: list[bytes]) -> Iterator[bytes]:
    yield from blocks


_SEEN = frozenset({"REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI", "SERVER_PROTOCOL"})

# ---------------------------------------------------------------------------------------------- ways to read


def _read_all(stream: io.BufferedIOBase, _length: str | None) -> Iterable[bytes]:
    yield stream.read()


def _read_blocks(stream: io.BufferedIOBase, _length: str | None) -> Iterable[bytes]:
    while block := stream.read(1000):
        yield block


def _read_by_length(stream: io.BufferedIOBase, length: str | None) -> Iterable[bytes]:
    yield stream.read() if length is None else stream.read(int(length))
    yield stream.read(1)  # nothing: what follows is the next request's


def _read_lines(stream: io.BufferedIOBase, _length: str | None) -> Iterable[bytes]:
    while line := stream.readline():
        yield line


def _iterate(stream: io.BufferedIOBase, _length: str | None) -> Iterable[bytes]:
    yield stream.read(3)
    yield from stream


def _ignore(_stream: io.BufferedIOBase, _length: str | None) -> Iterable[bytes]:
    return ()


_READERS = (_read_all, _read_blocks, _read_by_length, _read_lines, _iterate, _ignore)

# ---------------------------------------------------------------------------------------------- ways to answer

_WHOLE = frozenset({"block", "blocks", "nothing", "large", "file", "hinted", "replaced"})

_LARGE = [bytes([65 + number % 26]) * (LARGE_BYTES // 30) for number in range(30)]

_ANSWERS: tuple[Callable[[str], Reply], ...] = (
    lambda seen: Reply("block", seen, [SMALL]),
    lambda seen: Reply("blocks", seen, [SMALL, b"", SMALL, b"end"]),
    lambda seen: Reply("nothing", seen, []),
    lambda seen: Reply("generated", seen, [SMALL, b"", SMALL]),
    lambda seen: Reply("written", seen, [SMALL, b"", SMALL]),
    lambda seen: Reply("object like a file", seen, [SMALL] * 100),
    lambda seen: Reply("file", seen, [SMALL] * 100),
    lambda seen: Reply("file", seen, _LARGE),
    lambda seen: Reply("hinted", seen, [SMALL]),
    lambda seen: Reply("large", seen, [b"".join(_LARGE)]),
    lambda seen: Reply("large generated", seen, _LARGE),
    lambda seen: Reply("no content", seen, [], "204 No Content"),
    lambda seen: Reply("not modified", seen, [], "304 Not Modified", [("ETag", '"a"')]),
    lambda seen: Reply("generated", seen, [SMALL, SMALL], "404 Not Found", [("Content-Length", str(2 * len(SMALL)))]),
    lambda seen: Reply("block", seen, [SMALL], "503 Odd  reason: \xe9", [("Connection", "close")]),
    lambda seen: Reply("replaced", seen, [SMALL], "500 Internal Server Error"),
)
