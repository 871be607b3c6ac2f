"""``wsgi.input`` gives what ``io.BytesIO`` of the same bytes would, however the body came and wherever it is kept.

BODIES (framing, bytes) x READS (calls, one after the other) x {whole before the call, read as it comes}
    ── asked of a server ──▶ the same as of io.BytesIO
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import pytest

from tests.serving import Served, serving

BODY_MEMORY = 64
"""Bodies up to this size stay in memory here, longer ones are in a file."""

Call = tuple[str, *tuple[int | None, ...]]
"""A method of the input and its arguments; ``iter`` and ``next`` are those of the language.  The hint of readlines may
be ignored (PEP 3333), so what it gives is looked at until there is no more."""

READS: dict[str, list[Call]] = {
    "all": [("read",)],
    "all-by-minus-one": [("read", -1)],
    "all-by-none": [("read", None)],
    "nothing": [("read", 0), ("readline", 0), ("read", 1)],
    "one-by-one": [("read", 1)] * 8,
    "more-than-there-is": [("read", 1_000_000), ("read", 1_000_000)],
    "exactly-what-there-is-and-on": [("read", 5), ("read", 6), ("read", 54), ("read", 1)],
    "line-by-line": [("readline",)] * 8,
    "lines-by-minus-one": [("readline", -1)] * 3,
    "lines-by-none": [("readline", None)] * 3,
    "pieces-of-lines": [("readline", 3)] * 12,
    "lines-shorter-than-asked": [("readline", 1_000_000)] * 4,
    "all-lines": [("readlines",), ("readlines",)],
    "lines-by-hint": [("readlines-until-end", 1), ("readlines-until-end", 5)],
    "lines-by-hint-after-a-piece": [("read", 1), ("readlines-until-end", 5)],
    "iteration": [("iter",), ("iter",)],
    "one-step-of-iteration": [("next",), ("next",), ("read", 1), ("next",), ("read",)],
    "everything-mixed": [("readline",), ("read", 2), ("readline", 2), ("next",), ("readline",), ("iter",)],
    "after-the-end": [("read",), ("read",), ("read", 3), ("readline",), ("readline", 3), ("readlines",), ("iter",)],
}

LINES = b"ab\ncdefgh\n\n\r\nlast without end"
BINARY = bytes(range(256)) * 3
LONG = b"x" * 70_000 + b"\n" + b"y" * 140_000 + b"\nend\n"

BODIES: dict[str, tuple[str, bytes]] = {
    "no-body": ("none", b""),
    "empty": ("length", b""),
    "empty-chunked": ("chunked", b""),
    "one-byte": ("length", b"x"),
    "five-bytes": ("length", b"12345"),
    "line-ends-alone": ("length", b"\n\n\n"),
    "memory": ("length", LINES),
    "memory-chunked": ("chunked", LINES),
    "as-much-as-memory-holds": ("length", b"0123456\n" * (BODY_MEMORY // 8)),
    "one-byte-more": ("length", b"0123456\n" * (BODY_MEMORY // 8) + b"x"),
    "file": ("length", LINES * 4),
    "file-chunked": ("chunked", LINES * 4),
    "file-binary": ("chunked", BINARY),
    "file-long-lines": ("length", LONG),
}


def request(framing: str, body: bytes, reads: str) -> bytes:
    """A request with this body, that asks for these reads."""
    head = f"POST / HTTP/1.1\r\nHost: a\r\nX-Reads: {reads}\r\n".encode()
    if framing == "none":
        return head + b"\r\n"
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def results(stream: Any, calls: list[Call]) -> list[object]:
    """What the calls give, one after the other."""
    found: list[object] = []
    for name, *arguments in calls:
        if name == "iter":
            found.append(list(stream))
        elif name == "next":
            found.append(next(iter(stream), None))
        elif name == "readlines-until-end":
            found.append(list(chain.from_iterable(iter(partial(stream.readlines, *arguments), []))))
        else:
            found.append(getattr(stream, name)(*arguments))
    return found


def reader(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """An application that tells what its input gave."""
    found = results(environ["wsgi.input"], READS[environ["HTTP_X_READS"]])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(found).encode()]


pytestmark = pytest.mark.usefixtures("worker_type")


@pytest.fixture(scope="module", params=[True, False], ids=["buffered", "streamed"])
def server(request: pytest.FixtureRequest, worker_type: str) -> Iterator[Served]:
    with serving(reader, body_memory=BODY_MEMORY, request_buffering=request.param) as served:
        yield served


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(("framing", "body"), BODIES.values(), ids=BODIES.keys())
def test_input_gives_what_a_file_would(server: Served, framing: str, body: bytes, reads: str) -> None:
    after = request("length", b"next", "all")
    answers = server.talk(request(framing, body, reads) + after)
    expected = [results(io.BytesIO(body), READS[reads]), [b"next"]]
    assert [answer.body for answer in answers] == [repr(found).encode() for found in expected]


@pytest.mark.parametrize("body", ["no-body", "memory", "file"])
def test_an_input_that_was_closed_or_not_read_hurts_no_later_request(body: str) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        read = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/" else b""
        if environ["PATH_INFO"] == "/close":
            environ["wsgi.input"].close()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [read]

    framing, data = BODIES[body]
    asked = request(framing, data, "all")
    closing, ignoring = (asked.replace(b"POST /", b"POST /" + path) for path in (b"close", b"ignore"))
    with serving(application, body_memory=BODY_MEMORY) as server:
        answers = server.talk(closing + asked + ignoring + asked)
    assert [answer.body for answer in answers] == [b"", data, b"", data]
