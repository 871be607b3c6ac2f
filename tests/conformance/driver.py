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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkserve.http.chunked import ChunkedDecoder
from forkserve.http.errors import RefusedRequest
from forkserve.http.request import CHUNKED, HEAD_END, HeadLimits, HeadParser

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
    """What became of the first request."""

    status: int
    environ: dict[str, Any]
    body: bytes
    keep_alive: bool


def first_request(parts: list[bytes]) -> Outcome:
    """Feed the pure floor piece by piece."""
    parser = HeadParser(HeadLimits(body_bytes=BODY_BYTES_MAX))
    feed = iter(parts)
    try:
        head, rest = _head(parser, feed)
        environ, length, keep_alive, _expects_continue = parser.parse(head, {"SCRIPT_NAME": ""})
        body = _body(length, rest, feed)
    except RefusedRequest as refused:
        return Outcome(refused.status, {}, b"", False)
    if length == CHUNKED:
        del environ["HTTP_TRANSFER_ENCODING"]
        environ["CONTENT_LENGTH"] = str(len(body))
    return Outcome(200, environ, body, keep_alive)


def _head(parser: HeadParser, feed: Iterator[bytes]) -> tuple[bytes, bytes]:
    buffer = b""
    seen = 0
    for part in feed:
        buffer += part
        while buffer.startswith(b"\r\n") and seen == 0:
            buffer = buffer[2:]
        if not buffer or buffer == b"\r":
            continue
        end = buffer.find(HEAD_END)
        if end >= 0:
            return buffer[:end], buffer[end + 4 :]
        parser.check_partial(buffer, seen)
        seen = len(buffer)
    raise RefusedRequest(400, "cut")


def _body(length: int, rest: bytes, feed: Iterator[bytes]) -> bytes:
    if length != CHUNKED:
        while len(rest) < length:
            rest += next(feed, b"") or _cut()
        return rest[:length]
    decoder = ChunkedDecoder(body_bytes_max=BODY_BYTES_MAX)
    body = b"".join(decoder.feed(rest))
    while not decoder.is_done:
        body += b"".join(decoder.feed(next(feed, b"") or _cut()))
    return body


def _cut() -> bytes:
    raise RefusedRequest(400, "cut")
