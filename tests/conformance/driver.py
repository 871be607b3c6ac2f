"""The raw requests, what is expected of them, and the pure floor driven the way a connection drives it.

``requests/NAME.http`` holds the bytes, ``expected.json`` what they mean, by name:

    {"status": 400}                          refused
    {"environ": {…}, "body": "…", …}         accepted: these variables, this body (Latin-1), is the connection kept,
                                             ``absent`` variables, ``answers`` of the whole file if they are several

A name begins with its rule: ``host-good-*`` is accepted, ``host-bad-*`` and ``host-missing-*`` are refused.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forkserve.http.chunked import ChunkedDecoder
from forkserve.http.errors import RefusedRequest
from forkserve.http.forwarded import Forwarding
from forkserve.http.request import CHUNKED, HEAD_END, HeadLimits, HeadParser
from forkserve.settings import SECURE_SCHEME_HEADERS

HERE = Path(__file__).parent
BODY_BYTES_MAX = 1_000_000
EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "expected.json").read_text())
NAMES = sorted(EXPECTED)


def raw(name: str) -> bytes:
    """The bytes of a case."""
    return (HERE / "requests" / f"{name}.http").read_bytes()


def by_byte(data: bytes) -> list[bytes]:
    """One byte at a time."""
    return [data[index : index + 1] for index in range(len(data))]


def at_random_cuts(data: bytes, seed: str) -> list[bytes]:
    """In pieces of random size, the same for the same seed."""
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(data)) for _ in range(min(8, len(data))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


@dataclass
class Outcome:
    """What became of a request.

    Attributes:
        status: of the refusal, or 200.
        is_cut: it is refused because the bytes ended in it.
        method: the first word, if it came whole, also where the request is refused.
        expects_continue: its head has passed and asks for ``100 Continue``.
        head_environ: that of its head, where this has passed; ``environ`` is that of the whole request.
    """

    status: int
    environ: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = False
    is_cut: bool = False
    method: str = field(default="", compare=False)
    expects_continue: bool = False
    head_environ: dict[str, Any] = field(default_factory=dict, compare=False)


def first_request(parts: Iterable[bytes]) -> Outcome:
    """What becomes of the first request; without one it is cut."""
    return next(every_request(parts), Outcome(400, is_cut=True))


def every_request(parts: Iterable[bytes]) -> Iterator[Outcome]:
    """Feed the pure floor piece by piece, as one connection does: requests until one is refused or nothing is left.

    The peer is trusted, as the tests' own sockets are, which come from loopback.
    """
    parser = HeadParser(HeadLimits(body_bytes=BODY_BYTES_MAX), Forwarding(scheme_headers=SECURE_SCHEME_HEADERS))
    stream = _Stream(parts)
    while stream.has_request():
        outcome = Outcome(200)
        try:
            _take(outcome, parser, stream)
        except RefusedRequest as refused:
            outcome.status, outcome.is_cut = refused.status, isinstance(refused, _Cut)
        yield outcome
        if outcome.status != 200:
            return


class _Cut(RefusedRequest):
    def __init__(self) -> None:
        super().__init__(400, "cut")


class _Stream:
    """The bytes of one connection: those that have come and are not used yet, and those to come."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self.buffer = b""

    def more(self) -> None:
        part = next(self._parts, None)
        if part is None:
            raise _Cut
        self.buffer += part

    def take(self) -> bytes:
        """All that is here."""
        data, self.buffer = self.buffer, b""
        return data

    def has_request(self) -> bool:
        """Does anything come but empty lines?"""
        try:
            while True:
                while self.buffer.startswith(b"\r\n"):
                    self.buffer = self.buffer[2:]
                if self.buffer and self.buffer != b"\r":
                    return True
                self.more()
        except _Cut:
            return False


def _take(outcome: Outcome, parser: HeadParser, stream: _Stream) -> None:
    base = {"SCRIPT_NAME": "", "wsgi.url_scheme": "http", "REMOTE_ADDR": "127.0.0.1"}
    environ, length, outcome.keep_alive, outcome.expects_continue = parser.parse(
        _head(outcome, parser, stream), base, True
    )
    outcome.head_environ = environ.copy()
    outcome.body = _body(length, stream)
    if length == CHUNKED:
        del environ["HTTP_TRANSFER_ENCODING"]
        environ["CONTENT_LENGTH"] = str(len(outcome.body))
    outcome.environ = environ


def _head(outcome: Outcome, parser: HeadParser, stream: _Stream) -> bytes:
    seen = 0
    while True:
        method, space, _ = stream.buffer[:20].partition(b" ")
        outcome.method = str(method, "latin-1") if space else ""
        end = stream.buffer.find(HEAD_END)
        if end >= 0:
            break
        parser.check_partial(stream.buffer, seen)
        seen = len(stream.buffer)
        stream.more()
    head = stream.buffer[:end]
    stream.buffer = stream.buffer[end + len(HEAD_END) :]
    return head


def _body(length: int, stream: _Stream) -> bytes:
    if length != CHUNKED:
        while len(stream.buffer) < length:
            stream.more()
        body, stream.buffer = stream.buffer[:length], stream.buffer[length:]
        return body
    decoder = ChunkedDecoder(body_bytes_max=BODY_BYTES_MAX)
    body = b"".join(decoder.feed(stream.take()))
    while not decoder.is_done:
        stream.more()
        body += b"".join(decoder.feed(stream.take()))
    stream.buffer = decoder.leftover()
    return body
